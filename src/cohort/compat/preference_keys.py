"""Keys of TRL's SFTConfig, DPOConfig and RewardConfig that are no keys of its GRPOConfig."""

from __future__ import annotations

from cohort.compat.keys import Key

SUPPORTED = {
    "DPOConfig": "loss_type loss_weights beta label_smoothing discopop_tau f_divergence_type f_alpha_divergence_coef "
    "ld_alpha use_weighting precompute_ref_log_probs sync_ref_model ref_model_mixup_alpha ref_model_sync_steps "
    "max_length disable_dropout router_aux_loss_coef",
    "SFTConfig": "max_length loss_type completion_only_loss assistant_only_loss chat_template_path eos_token "
    "dataset_text_field",
    "RewardConfig": "max_length center_rewards_coefficient chat_template_path disable_dropout",
}
"""Names of the keys that our class has too, by TRL's class."""

KEYS: dict[str, Key] = {
    "truncation_mode": Key(
        "becomes truncation: cut, by which a completion loses its end; the beginning of a prompt with its answer is "
        "never cut off",
        off=("keep_start",),
        refused=True,
    ),
    "precompute_ref_batch_size": Key("token_budget says how many tokens are scored at a time"),
    "padding_free": Key("batches are packed without padding anyway", off=(True,)),
    "pad_token": Key("the tokenizer's own, or its end token: pass processing_class to set another"),
    "eos_token": Key(
        "no end token is added to a text that a reward model scores: write it into the data, or set "
        "tokenizer.eos_token and pass processing_class",
        refused=True,
    ),
    "packing": Key("batches are always packed, without padding and without mixing examples", off=(True,)),
    "packing_strategy": Key("batches are always packed, without mixing examples", off=("bfd", "bfd_split", "wrapped")),
    "eval_packing": Key("batches are always packed, without mixing examples", off=(True,)),
    "dataset_kwargs": Key("rows with input_ids are taken as they are", off=({}, {"skip_prepare_dataset": True})),
    "dataset_num_proc": Key("rows are tokenised in this process, before the first step"),
    "activation_offloading": Key("gradient_checkpointing saves that memory; the gradient is the same"),
}
