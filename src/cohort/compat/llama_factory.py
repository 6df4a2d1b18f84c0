"""Reads LLaMA-Factory's YAML: its keys as ours. `scripts/write_coming_from.py` writes
docs/coming-from-llama-factory.md from the tables here.

Keys of transformers' TrainingArguments are passed on unchanged: `trl.py` reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from cohort.compat.keys import Key, warn_or_refuse
from cohort.types import UserError, did_you_mean

log = logging.getLogger("cohort")

IDENTIFYING_KEYS = ("stage", "model_name_or_path", "cutoff_len", "do_train")
"""A file with one of these keys, and neither `method` nor `model`, is LLaMA-Factory's."""

STAGES = {"sft": "sft", "grpo": "grpo", "dpo": "dpo", "ppo": "ppo", "rm": "reward_model"}
NO_STAGES = {
    "pt": "further pre-training on raw text is not done here: use transformers' run_clm.py or LLaMA-Factory",
    "kto": "it has no counterpart here: make pairs of good and bad answers and use stage: dpo, or stage: grpo",
}


_PACKED = "batches are always packed, without padding and without mixing examples"
_LOADED = "rows are read and tokenised once, in one process"
_EXPORT = "`cohort export OUTPUT_DIR --merge` merges the adapter into its model, --push uploads the result"
_IMAGES = "prompts are text"
_INFERENCE = "the built-in engine samples"
_OPTIMISER = "AdamW trains"

GROUPS: dict[str, dict[str, Key]] = {
    "Model": {
        "model_name_or_path": Key("a name or a path", ours="model"),
        "adapter_name_or_path": Key(
            "merge the adapter into its model first (cohort export ADAPTER --merge), and name the result", refused=True
        ),
        "model_revision": Key("becomes model_init_kwargs: {revision: ...}"),
        "quantization_bit": Key("4, by bitsandbytes, with LoRA: a quantization_config in model_init_kwargs"),
        "quantization_method": Key("bitsandbytes", off=("bitsandbytes", "bnb")),
        "quantization_type": Key("nf4", off=("nf4",)),
        "double_quantization": Key("4-bit weights are doubly quantised", off=(True,)),
        "rope_scaling": Key("set it in the model's config.json", refused=True),
        "resize_vocab": Key("add tokens and resize before training", refused=True),
        "add_tokens": Key("add tokens and resize before training", refused=True),
        "flash_attn": Key("attention is grouped: a prompt is computed once for all its completions", off=("auto",)),
        "use_unsloth": Key("prompts are shared, batches packed, and the head is chunked"),
        "enable_liger_kernel": Key("the head never holds a tensor of tokens by vocabulary"),
        "disable_gradient_checkpointing": Key("gradient_checkpointing is off unless set", off=(True,)),
        "upcast_layernorm": Key("weights are float32 unless model_init_kwargs says otherwise"),
        "use_fast_tokenizer": Key("always the fast one", off=(True,)),
        "cache_dir": Key("set HF_HOME"),
        "infer_backend": Key(_INFERENCE, off=("huggingface",)),
        "image_max_pixels": Key(_IMAGES),
        "video_max_pixels": Key(_IMAGES),
    },
    "Data": {
        "dataset": Key("entries of dataset_info.json, paths or hub names, with commas", ours="dataset"),
        "eval_dataset": Key("the same for held-out rows", ours="eval_dataset"),
        "dataset_dir": Key("the folder of dataset_info.json; `data` by default", ours="dataset_dir"),
        "template": Key("used if the tokenizer has no chat template", ours="template"),
        "cutoff_len": Key("becomes max_length (sft, dpo, rm) or max_prompt_length; longer rows are cut, and counted"),
        "max_samples": Key("rows of each data set, of eval_dataset too", ours="max_samples"),
        "val_size": Key("a number of rows, or a share of them", ours="val_size"),
        "default_system": Key("for rows without a system turn", ours="system_prompt"),
        "enable_thinking": Key("goes to the chat template: chat_template_kwargs"),
        "packing": Key(_PACKED, off=(True,)),
        "neat_packing": Key(_PACKED, off=(True,)),
        "train_on_prompt": Key("the loss is on completions", refused=True),
        "mask_history": Key("for sft: the last answer of a conversation only; false: every one"),
        "streaming": Key(_LOADED),
        "buffer_size": Key(_LOADED),
        "mix_strategy": Key("data sets are joined, then shuffled", off=("concat",)),
        "interleave_probs": Key("data sets are joined, then shuffled"),
        "overwrite_cache": Key(_LOADED, off=(True,)),
        "preprocessing_num_workers": Key(_LOADED),
        "preprocessing_batch_size": Key(_LOADED),
        "tokenized_path": Key(_LOADED),
        "ignore_pad_token_for_loss": Key(_PACKED, off=(True,)),
        "media_dir": Key(_IMAGES),
        "tool_format": Key("there are no tools", refused=True),
    },
    "Method": {
        "stage": Key("sft, grpo, dpo, ppo; rm is reward_model", ours="method"),
        "finetuning_type": Key("full, lora, freeze", ours="finetuning_type"),
        "reward_funcs": Key("names with commas", ours="reward_funcs"),
        "reward_model": Key("joins reward_funcs"),
        "reward_model_type": Key("a sequence classifier by name or path", off=("full",)),
        "pref_beta": Key("`beta`: the KL term's weight, or DPO's beta"),
        "pref_loss": Key("`loss_type` of dpo: sigmoid, hinge or ipo"),
        "pref_ftx": Key("the loss has no supervised term", off=(0, 0.0), refused=True),
        "dpo_label_smoothing": Key("", ours="label_smoothing"),
        "ref_model": Key("the reference is the starting model", refused=True),
        "ppo_epochs": Key("passes over each sampled batch", ours="num_ppo_epochs"),
        "ppo_buffer_size": Key("batches that are sampled together", ours="num_mini_batches"),
        "ppo_score_norm": Key("advantages are whitened; rewards are unchanged"),
        "ppo_whiten_rewards": Key("advantages are whitened; rewards are unchanged"),
        "ppo_target": Key("kl_coef is fixed", off=(6, 6.0)),
    },
    "LoRA and freeze": {
        "lora_rank": Key("", ours="lora_rank"),
        "lora_alpha": Key("2 * lora_rank by default", ours="lora_alpha"),
        "lora_dropout": Key("", ours="lora_dropout"),
        "lora_target": Key("all, or names with commas", ours="lora_target"),
        "additional_target": Key("modules that are trained in full and saved with the adapter", ours="modules_to_save"),
        "use_dora": Key("", ours="use_dora"),
        "use_rslora": Key("", ours="use_rslora"),
        "loraplus_lr_ratio": Key("one learning rate for A and B", refused=True),
        "pissa_init": Key("LoRA's B starts at zero", refused=True),
        "create_new_adapter": Key("an adapter is always new", off=(True,)),
        "freeze_trainable_layers": Key("number of last layers; negative: of first", ours="freeze_trainable_layers"),
        "freeze_trainable_modules": Key("all, or names with commas", ours="freeze_trainable_modules"),
        "freeze_extra_modules": Key("names with commas", ours="freeze_extra_modules"),
        "freeze_vision_tower": Key(_IMAGES, off=(True,)),
        "freeze_multi_modal_projector": Key(_IMAGES, off=(True,)),
        "use_galore": Key(_OPTIMISER, refused=True),
        "use_apollo": Key(_OPTIMISER, refused=True),
        "use_badam": Key(_OPTIMISER, refused=True),
        "use_muon": Key(_OPTIMISER, refused=True),
        "use_adam_mini": Key(_OPTIMISER, refused=True),
        "use_llama_pro": Key("no layers are added", refused=True),
        "pure_bf16": Key("bf16 matrix products; trained weights stay float32"),
    },
    "Run": {
        "do_train": Key("`cohort train` trains", off=(True,)),
        "do_predict": Key("`cohort eval --output FILE` writes every completion"),
        "predict_with_generate": Key("evaluation samples where there are reward_funcs", off=(True,)),
        "plot_loss": Key("plots are always drawn: `cohort plot` draws them again", off=(True,)),
        "compute_accuracy": Key("reward_funcs score completions of the held-out rows"),
        "early_stopping_steps": Key("for rm: early_stopping_patience"),
        "disable_shuffling": Key("shuffle_dataset: false"),
        "max_new_tokens": Key("", ours="max_completion_length"),
        "do_sample": Key("sampling by temperature", off=(True,)),
        "num_beams": Key("sampling by temperature", off=(1,)),
        "length_penalty": Key("sampling by temperature", off=(1.0,)),
        "skip_special_tokens": Key(
            "reward functions get text without bos, eos and pad; other tokens stay",
            off=(True,),
        ),
        "include_effective_tokens_per_second": Key("the metric tokens_per_second", off=(True,)),
        "deepspeed": Key("a ZeRO configuration: becomes distributed: fsdp2 and fsdp_offload", ours="deepspeed"),
        "use_swanlab": Key("report_to: swanlab"),
        "export_dir": Key(_EXPORT),
        "export_size": Key(_EXPORT),
        "export_device": Key(_EXPORT),
        "export_legacy_format": Key(_EXPORT),
        "export_hub_model_id": Key(_EXPORT),
    },
}
KEYS = {name: key for group in GROUPS.values() for name, key in group.items()}


def is_llama_factory(values: dict[str, Any]) -> bool:
    return any(key in values for key in IDENTIFYING_KEYS) and "method" not in values and "model" not in values


def translate(values: dict[str, Any], where: str) -> dict[str, Any]:
    """LLaMA-Factory's values under our keys; a file of ours is returned unchanged. Raises UserError for refused keys
    and unknown stages."""
    if not is_llama_factory(values):
        return values
    stage = _stage(values.get("stage", "sft"), where)
    ours: dict[str, Any] = {"method": stage, "dataset_dir": "data", "truncation": "cut"}
    for name, value in values.items():
        key = KEYS.get(name)
        if name in SPECIAL or name == "stage":
            continue
        if key is None:
            ours[name] = value
        elif key.ours is not None:
            ours[key.ours] = _listed(value) if name in LISTS else value
        else:
            warn_or_refuse(name, value, key, where)
    for name, merge in SPECIAL.items():
        if values.get(name) is not None:
            merge(values[name], ours, where)
    if "max_samples" in ours and "eval_dataset" in ours:
        ours.setdefault("eval_samples", ours["max_samples"])
    return ours


def _stage(stage: Any, where: str) -> str:
    if stage in NO_STAGES:
        raise UserError(f"{where}: stage {stage}: {NO_STAGES[stage]}")
    if stage not in STAGES:
        hint = did_you_mean(str(stage), STAGES, f": it is one of {', '.join(STAGES)}")
        raise UserError(f"{where}: unknown stage {stage!r}{hint}")
    return STAGES[stage]


LISTS = ("additional_target", "freeze_trainable_modules", "freeze_extra_modules")
"""Keys whose value LLaMA-Factory writes as text with commas; ours are lists."""


def _listed(value: Any) -> list[str]:
    """'a,b' -> ['a', 'b']; 'all' -> [], which selects all modules."""
    names = value.split(",") if isinstance(value, str) else list(value or [])
    return [name.strip() for name in names if name.strip() not in ("", "all")]


def _cutoff(value: Any, ours: dict[str, Any], where: str) -> None:
    whole = ours["method"] in ("sft", "reward_model") or (ours["method"] == "dpo" and not ours.get("dpo_pairs"))
    ours["max_length" if whole else "max_prompt_length"] = value


def _preference_beta(value: Any, ours: dict[str, Any], where: str) -> None:
    if ours["method"] in ("grpo", "dpo"):
        ours["beta"] = value
    else:
        log.warning("pref_beta=%r has no effect here: only the stages grpo and dpo have it", value)


def _preference_loss(value: Any, ours: dict[str, Any], where: str) -> None:
    if value not in ("sigmoid", "hinge", "ipo"):
        raise UserError(
            f"{where}: `pref_loss` is {value!r}, and is not supported: sigmoid, hinge and ipo are. Others are in "
            "docs/variants.md, by `loss_type`"
        )
    if ours["method"] == "dpo":
        ours["loss_type"] = value
    elif value != "sigmoid":
        log.warning("pref_loss=%r has no effect here: only the stage dpo has it", value)


def _history(value: Any, ours: dict[str, Any], where: str) -> None:
    if ours["method"] == "sft":
        ours["mask_history"] = value
    elif value:
        log.warning("mask_history=%r has no effect here: only the stage sft has it", value)


def _thinking(value: Any, ours: dict[str, Any], where: str) -> None:
    kwargs = ours.get("chat_template_kwargs") or {}
    ours["chat_template_kwargs"] = {**kwargs, "enable_thinking": value}


def _reward_model(value: Any, ours: dict[str, Any], where: str) -> None:
    named = ours.get("reward_funcs") or []
    functions = named.split(",") if isinstance(named, str) else list(named)
    ours["reward_funcs"] = [*functions, value]


def _early_stopping(value: Any, ours: dict[str, Any], where: str) -> None:
    if ours["method"] == "reward_model":
        ours["early_stopping_patience"] = value
    else:
        log.warning("early_stopping_steps=%r has no effect here: only the stage rm has it; Ctrl-C stops a run", value)


def _revision(value: Any, ours: dict[str, Any], where: str) -> None:
    ours["model_init_kwargs"] = {**(ours.get("model_init_kwargs") or {}), "revision": value}


def _quantization(bits: Any, ours: dict[str, Any], where: str) -> None:
    if bits != 4:
        raise UserError(
            f"{where}: `quantization_bit` is {bits!r}: 4 is supported. 8-bit products round activations depending on "
            "the rest of the batch, so the sampler's log-probabilities would differ from the policy's"
        )
    if ours.get("finetuning_type") != "lora":
        raise UserError(f"{where}: `quantization_bit` needs finetuning_type: lora; quantised weights are not trained")
    kwargs = ours.get("model_init_kwargs") or {}
    ours["model_init_kwargs"] = {**kwargs, "quantization_config": dict(FOUR_BIT)}


FOUR_BIT = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
SPECIAL: dict[str, Callable[[Any, dict[str, Any], str], None]] = {
    "cutoff_len": _cutoff,
    "pref_beta": _preference_beta,
    "pref_loss": _preference_loss,
    "enable_thinking": _thinking,
    "mask_history": _history,
    "reward_model": _reward_model,
    "early_stopping_steps": _early_stopping,
    "model_revision": _revision,
    "quantization_bit": _quantization,
}
"""Keys whose value becomes part of another key's value."""
