"""Keys of TRL's GRPOConfig and of transformers' TrainingArguments: supported, without effect, or refused.

A key that is a field of the configuration is supported. Of the others, most are accepted with a notice that names what
takes their place; a key that would change what is learned is refused. `trl.py` applies this table, and
`scripts/write_coming_from.py` writes docs/coming-from-trl.md from it.
"""

from __future__ import annotations

from cohort.compat import preference_keys
from cohort.compat.keys import Key

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "activation_checkpointing": "gradient_checkpointing",
    "max_seq_length": "max_length",
    "lr_scheduler": "lr_scheduler_type",
    "reward_clip_range": "reward_clip",
    "vllm_importance_sampling_cap": "vllm_importance_sampling_clip_max",
    "teacher_model_name_or_path": "teacher",
}
"""Other names of a field -> the field."""

_NO_PADDING = "batches are packed without padding"
_ONE_ENGINE = "the built-in engine samples: prompts are prefilled once per group and share their cache"
_SERVER = "with use_vllm and vllm_mode: server, a part of engine: {vllm: {...}} (docs/scaling.md); else without effect"
_COMMAND = "an option of the server's own command, which `cohort vllm` prints"
RECORDED = "metrics.jsonl has every step's metrics, completions.jsonl samples of the completions"
OPTIMISER = "AdamW, by adam_beta1, adam_beta2, adam_epsilon and weight_decay"
_PLACES = "torchrun or accelerate launch starts the ranks (docs/scaling.md), each with one device"
_SHARDED = "becomes distributed: fsdp2 and fsdp_offload; what has no counterpart is named"
_LOADER = "rows are tokenised once, before the first step: there is no data loader to tune"
_HUB = "with push_to_hub the final model is uploaded, once"
_EVAL_BATCH = "max_rows says how many completions are decoded side by side, token_budget how many tokens are scored"
_KERNELS = "the head never holds a tensor of tokens by vocabulary, and groups share their prompt"

SUPPORTED: dict[str, str] = {
    "Objective": "beta epsilon epsilon_high loss_type num_iterations scale_rewards reward_weights "
    "multi_objective_aggregation importance_sampling_level delta top_entropy_quantile entropy_coef "
    "use_adaptive_entropy entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target "
    "off_policy_mask_threshold sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos "
    "vespo_k_neg vespo_lambda_neg use_bias_correction_kl vllm_importance_sampling_correction "
    "vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min "
    "mask_truncated_completions disable_dropout router_aux_loss_coef sync_ref_model "
    "ref_model_mixup_alpha ref_model_sync_steps",
    "Sampling": "num_generations generation_batch_size steps_per_generation max_completion_length temperature top_p "
    "top_k min_p chat_template_kwargs max_prompt_length",
    "Optimiser": "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim weight_decay "
    "adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps per_device_train_batch_size "
    "gradient_accumulation_steps",
    "Precision, memory and speed": "bf16 gradient_checkpointing use_cpu model_init_kwargs trust_remote_code",
    "Logging and evaluation": "logging_steps disable_tqdm log_level report_to logging_dir log_completions "
    "run_name project trackio_space_id "
    "eval_strategy eval_steps eval_on_start num_generations_eval",
    "Saving": "metric_for_best_model greater_is_better load_best_model_at_end "
    "output_dir save_strategy save_steps save_total_limit save_only_model resume_from_checkpoint "
    "push_to_hub hub_model_id hub_private_repo",
    "Data and randomness": "seed shuffle_dataset",
    "Processes and devices": "ddp_timeout",
}
"""Names of the keys that GRPOConfig has too, by group."""

GROUPS: dict[str, dict[str, Key]] = {
    "Objective": {
        "label_smoothing_factor": Key("targets are the tokens themselves", off=(0.0,), refused=True),
        "neftune_noise_alpha": Key("embeddings get no noise", refused=True),
    },
    "Sampling": {
        "generation_kwargs": Key(
            "temperature, top_p, top_k, min_p, stop and max_new_tokens are used; others get a notice"
        ),
        "repetition_penalty": Key(
            "samples stay the policy's own: the reward `repetition` penalises repeats", off=(1.0,)
        ),
        "max_tool_calling_iterations": Key("there are no tools: a completion is one turn", refused=True),
        "cache_implementation": Key(_ONE_ENGINE),
        "use_transformers_continuous_batching": Key(_ONE_ENGINE),
        "transformers_continuous_batching_config": Key(_ONE_ENGINE),
        "use_transformers_paged": Key(_ONE_ENGINE),
        "ds3_gather_for_generation": Key(_PLACES, off=(True,)),
        "use_vllm": Key(
            "with vllm_mode: server it becomes engine: {vllm: {...}} (docs/scaling.md); vLLM in this process is not "
            f"there: {_ONE_ENGINE}"
        ),
        "vllm_mode": Key(_SERVER, off=("colocate", "server")),
        "vllm_model_impl": Key(_COMMAND, off=("vllm",)),
        "vllm_enable_sleep_mode": Key(_SERVER),
        "vllm_structured_outputs_regex": Key("completions are not constrained: reward their form", refused=True),
        "vllm_server_base_url": Key(_SERVER),
        "vllm_server_host": Key(_SERVER, off=("0.0.0.0",)),
        "vllm_server_port": Key(_SERVER, off=(8000,)),
        "vllm_server_timeout": Key(_SERVER, off=(240.0,)),
        "vllm_group_port": Key("weights are sent as files, in engine's folder", off=(51216,)),
        "vllm_gpu_memory_utilization": Key(_COMMAND, off=(0.3,)),
        "vllm_max_model_length": Key(_COMMAND),
        "vllm_tensor_parallel_size": Key(_COMMAND, off=(1,)),
    },
    "Optimiser": {
        "optim_args": Key(OPTIMISER),
        "optim_target_modules": Key(OPTIMISER),
        "average_tokens_across_devices": Key("denominators are always counts of the whole step", off=(True,)),
    },
    "Precision, memory and speed": {
        "fp16": Key("bf16, or float32 where the hardware has no fast bfloat16"),
        "bf16_full_eval": Key("evaluation runs as training does, by bf16"),
        "fp16_full_eval": Key("evaluation runs as training does, by bf16"),
        "tf32": Key("torch.set_float32_matmul_precision in your script"),
        "cast_lm_head_to_fp32": Key("log-probabilities are computed from float32 logits anyway"),
        "gradient_checkpointing_kwargs": Key("checkpointing is non-reentrant", off=({"use_reentrant": False},)),
        "activation_checkpointing_kwargs": Key(
            "checkpointing is the non-reentrant one", off=({"use_reentrant": False},)
        ),
        "torch_compile": Key("shapes change with every packed batch: nothing is compiled"),
        "torch_compile_backend": Key("nothing is compiled"),
        "torch_compile_mode": Key("nothing is compiled"),
        "use_liger_kernel": Key(_KERNELS),
        "use_liger_loss": Key(_KERNELS),
        "liger_kernel_config": Key(_KERNELS),
        "use_cache": Key("training uses no cache, sampling always does"),
        "torch_empty_cache_steps": Key("the cache is emptied when memory runs out"),
        "auto_find_batch_size": Key("token_budget is halved when memory runs out; the batch stays"),
        "pad_to_multiple_of": Key(_NO_PADDING, off=("auto",)),
        "per_device_eval_batch_size": Key(_EVAL_BATCH, off=(8,)),
        "per_gpu_eval_batch_size": Key(_EVAL_BATCH),
        "eval_accumulation_steps": Key(_EVAL_BATCH),
        "group_by_length": Key(_NO_PADDING),
        "train_sampling_strategy": Key("shuffle_dataset says whether the order is random", off=("random",)),
        "length_column_name": Key(_NO_PADDING, off=("length",)),
        "skip_memory_metrics": Key("seconds and tokens per second are in metrics.jsonl", off=(True,)),
    },
    "Logging and evaluation": {
        "logging_strategy": Key(
            "logging_steps sets the interval of on_log; metrics.jsonl has every step", off=("steps",)
        ),
        "logging_first_step": Key("metrics.jsonl has every step, the first included"),
        "log_on_each_node": Key(_PLACES, off=(True,)),
        "logging_nan_inf_filter": Key("values are logged as they are; a NaN gradient stops the run", off=(True,)),
        "include_num_input_tokens_seen": Key("the metric num_tokens counts them", off=("no",)),
        "include_tokens_per_second": Key("the metric tokens_per_second"),
        "log_level_replica": Key(_PLACES, off=("warning",)),
        "trackio_bucket_id": Key("trackio_space_id names the Space"),
        "trackio_static_space_id": Key("logs are uploaded to trackio_space_id alone", off=(False,)),
        "num_completions_to_print": Key("log_completions is the number of completions recorded at each step"),
        "log_unique_prompts": Key(RECORDED),
        "log_multimodal": Key("prompts are text", off=(True,)),
        "log_completions_hub_repo": Key(RECORDED),
        "eval_delay": Key("eval_steps is the interval of evaluations", off=(0,)),
        "prediction_loss_only": Key("evaluation samples and rewards, or takes the held-out loss"),
        "eval_do_concat_batches": Key("evaluation samples and rewards, or takes the held-out loss", off=(True,)),
        "eval_use_gather_object": Key(_PLACES),
        "include_for_metrics": Key("reward functions get every column", off=([],)),
        "batch_eval_metrics": Key("reward functions get every column"),
        "label_names": Key("the loss is on completion tokens"),
    },
    "Saving": {
        "save_safetensors": Key("always safetensors, never a pickle", off=(True,)),
        "save_on_each_node": Key(_PLACES),
        "enable_jit_checkpoint": Key("save_steps: a run resumes from its newest checkpoint"),
        "overwrite_output_dir": Key("an earlier run's files in output_dir are moved to earlier-N"),
        "hub_token": Key("run `hf auth login`, or set HF_TOKEN"),
        "hub_strategy": Key(_HUB, off=("every_save", "end")),
        "hub_always_push": Key(_HUB),
        "hub_revision": Key(_HUB),
        "ignore_data_skip": Key("the order of the data is a function of the step: a resumed run skips nothing"),
        "restore_callback_states_from_checkpoint": Key("callbacks keep their own state"),
    },
    "Data and randomness": {
        "remove_unused_columns": Key("all columns stay: reward functions can read them"),
        "data_seed": Key("seed sets the order of the data and the sampling"),
        "full_determinism": Key(
            "runs with one seed repeat bit for bit on the same machine; on CUDA set torch's switch"
        ),
        "dataloader_drop_last": Key("an epoch's last batch is filled from the next epoch"),
        "dataloader_num_workers": Key(_LOADER, off=(0,)),
        "dataloader_pin_memory": Key(_LOADER, off=(True,)),
        "dataloader_persistent_workers": Key(_LOADER),
        "dataloader_prefetch_factor": Key(_LOADER),
        "dataloader_multiprocessing_context": Key(_LOADER),
        "dataloader_in_order": Key(_LOADER, off=(True,)),
    },
    "Processes and devices": {
        "accelerator_config": Key(_PLACES),
        "parallelism_config": Key(_PLACES),
        "ddp_find_unused_parameters": Key(_PLACES),
        "ddp_bucket_cap_mb": Key(_PLACES),
        "ddp_broadcast_buffers": Key(_PLACES),
        "ddp_static_graph": Key(_PLACES),
        "ddp_backend": Key(_PLACES),
        "fsdp": Key(_SHARDED, off=("", [])),
        "fsdp_config": Key("read with fsdp"),
        "deepspeed": Key(_SHARDED),
        "local_rank": Key(_PLACES, off=(-1, 0)),
        "debug": Key("Python's debugger", off=("", [])),
        "do_train": Key("`cohort train` and train() train", off=(True, False)),
        "do_eval": Key("eval_strategy says when to evaluate; `cohort eval` does it alone"),
        "do_predict": Key("`cohort eval --output FILE` writes every completion"),
    },
}
KEYS = preference_keys.KEYS | {name: key for group in GROUPS.values() for name, key in group.items()}
