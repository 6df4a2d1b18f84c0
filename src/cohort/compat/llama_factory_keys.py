"""Keys of LLaMA-Factory's YAML: what becomes of each. `llama_factory.py` applies this table, and
`scripts/write_coming_from.py` writes docs/coming-from-llama-factory.md from it.

All keys of its argument classes are here, except those of transformers' TrainingArguments, which `trl.py` reads.
"""

from __future__ import annotations

from typing import Any

from cohort.compat.keys import Key

_PACKED = "batches are always packed, without padding and without mixing examples"
_LOADED = "rows are read and tokenised once, in one process"
_EXPORT = "`cohort export OUTPUT_DIR --merge` merges the adapter into its model, --push uploads the result"
_IMAGES = "prompts are text"
_INFERENCE = "the built-in engine samples"
_OPTIMISER = "AdamW trains"
_WRITERS = "metrics.jsonl and report_to"
_OWN_LOSS = "the loss of sft is the negative log-likelihood"
_REFERENCE = "the reference is the starting model"
_PROFILER = "seconds of each part of a step are in metrics.jsonl"
_FEWER_BYTES = "bf16, or float32 where the hardware has no fast bfloat16"


def _only_with(switch: str, **defaults: Any) -> dict[str, Key]:
    """Keys that are read where `switch` is on, which has no counterpart here."""
    return {name: Key(f"read with {switch} only", off=(default,)) for name, default in defaults.items()}


GROUPS: dict[str, dict[str, Key]] = {
    "Model": {
        "model_name_or_path": Key("a name or a path", ours="model"),
        "adapter_name_or_path": Key(
            "the model, where nothing is trained; for training, merge the adapter into its model first (cohort export "
            "ADAPTER --merge), and name the result",
        ),
        "adapter_folder": Key("give the whole path", refused=True),
        "model_revision": Key("becomes model_init_kwargs: {revision: ...}"),
        "quantization_bit": Key("4, by bitsandbytes, with LoRA: a quantization_config in model_init_kwargs"),
        "quantization_method": Key("bitsandbytes", off=("bitsandbytes", "bnb")),
        "quantization_type": Key("nf4", off=("nf4",)),
        "double_quantization": Key("4-bit weights are doubly quantised", off=(True,)),
        "quantization_device_map": Key("each rank has the model on one device"),
        "rope_scaling": Key("set it in the model's config.json", refused=True),
        "resize_vocab": Key("add tokens and resize before training", refused=True),
        "add_tokens": Key("add tokens and resize before training", refused=True),
        "add_special_tokens": Key("add tokens and resize before training", refused=True),
        "new_special_tokens_config": Key("add tokens and resize before training", refused=True),
        "init_special_tokens": Key("no tokens are added", off=("noise_init",)),
        "split_special_tokens": Key("special tokens in a text stay text, those of the template are tokens"),
        "flash_attn": Key("attention is grouped: a prompt is computed once for all its completions", off=("auto",)),
        "use_unsloth": Key("prompts are shared, batches packed, and the head is chunked"),
        "use_unsloth_gc": Key("gradient_checkpointing: true"),
        "shift_attn": Key("attention is the model's own", refused=True),
        "mixture_of_depths": Key("every layer computes every token", refused=True),
        "moe_aux_loss_coef": Key("the load-balancing loss of a mixture of experts", ours="router_aux_loss_coef"),
        "train_from_scratch": Key("weights are loaded: initialise them and save the model first", refused=True),
        "low_cpu_mem_usage": Key("weights are read as transformers does", off=(True, False)),
        "use_reentrant_gc": Key("checkpointing is non-reentrant", off=(True,)),
        "upcast_lmhead_output": Key("log-probabilities are computed from float32 logits anyway"),
        "use_kv_cache": Key("sampling uses a cache, training none", off=(True,)),
        "use_v1_kernels": Key("fast_paths: auto chooses kernels"),
        "infer_dtype": Key("dtype of model_init_kwargs", off=("auto",)),
        "offload_folder": Key("weights are not offloaded to a disk", off=("offload",)),
        "print_param_status": Key("the run says how many weights are trained"),
        **dict.fromkeys(("hf_hub_token", "ms_hub_token", "om_hub_token"), Key("run `hf auth login`, or set HF_TOKEN")),
        "use_kt": Key("KTransformers is not an engine here", refused=True),
        **_only_with(
            "use_kt",
            kt_cpu_activation=None,
            kt_weight_path=None,
            kt_non_expert_weight_path=None,
            kt_expert_checkpoint_path=None,
            kt_use_lora_experts=None,
            kt_lora_expert_num=None,
            kt_lora_expert_intermediate_size=None,
        ),
        "enable_liger_kernel": Key("the head never holds a tensor of tokens by vocabulary"),
        "disable_gradient_checkpointing": Key("gradient_checkpointing is off unless set", off=(True, False)),
        "upcast_layernorm": Key("weights are float32 unless model_init_kwargs says otherwise"),
        "use_fast_tokenizer": Key("always the fast one", off=(True,)),
        "cache_dir": Key("set HF_HOME"),
        "infer_backend": Key(_INFERENCE, off=("huggingface",)),
        "vllm_maxlen": Key(_INFERENCE, off=(4096,)),
        "vllm_gpu_util": Key(_INFERENCE, off=(0.7,)),
        "vllm_enforce_eager": Key(_INFERENCE),
        "vllm_max_lora_rank": Key(_INFERENCE, off=(32,)),
        "vllm_config": Key(_INFERENCE),
        "sglang_maxlen": Key(_INFERENCE, off=(4096,)),
        "sglang_mem_fraction": Key(_INFERENCE, off=(0.7,)),
        "sglang_tp_size": Key(_INFERENCE, off=(-1,)),
        "sglang_config": Key(_INFERENCE),
        "sglang_lora_backend": Key(_INFERENCE, off=("triton",)),
        "image_max_pixels": Key(_IMAGES, off=(589824,)),
        "image_min_pixels": Key(_IMAGES, off=(1024,)),
        "image_do_pan_and_scan": Key(_IMAGES),
        "crop_to_patches": Key(_IMAGES),
        "video_max_pixels": Key(_IMAGES, off=(65536,)),
        "video_min_pixels": Key(_IMAGES, off=(256,)),
        "video_fps": Key(_IMAGES, off=(2.0,)),
        "video_maxlen": Key(_IMAGES, off=(128,)),
        "use_audio_in_video": Key(_IMAGES),
        "audio_sampling_rate": Key(_IMAGES, off=(16000,)),
    },
    "Data": {
        "dataset": Key("entries of dataset_info.json, paths or hub names, with commas", ours="dataset"),
        "eval_dataset": Key("the same for held-out rows", ours="eval_dataset"),
        "dataset_dir": Key("the folder of dataset_info.json; `data` by default", ours="dataset_dir"),
        "template": Key("used if the tokenizer has no chat template", ours="template"),
        "replace_chat_template": Key(
            "a key of ours: `template` is used in place of the tokenizer's own too", ours="replace_chat_template"
        ),
        "cutoff_len": Key("becomes max_length (sft, dpo, rm) or max_prompt_length; longer rows are cut, and counted"),
        "max_samples": Key("rows of each data set, of eval_dataset too", ours="max_samples"),
        "val_size": Key("a number of rows, or a share of them", ours="val_size"),
        "default_system": Key("for rows without a system turn", ours="system_prompt"),
        "enable_thinking": Key("goes to the chat template: chat_template_kwargs"),
        "preserve_thinking": Key("goes to the chat template: chat_template_kwargs"),
        "packing": Key(_PACKED, off=(True,)),
        "neat_packing": Key(_PACKED, off=(True, False)),
        "train_on_prompt": Key("for sft: the loss is on every token"),
        "mask_history": Key("for sft: the last answer of a conversation only; false: every one"),
        "streaming": Key(_LOADED),
        "buffer_size": Key(_LOADED, off=(16384,)),
        "mix_strategy": Key("data sets are joined, then shuffled", off=("concat",)),
        "interleave_probs": Key("data sets are joined, then shuffled"),
        "overwrite_cache": Key(_LOADED, off=(True, False)),
        "preprocessing_num_workers": Key(_LOADED),
        "preprocessing_batch_size": Key(_LOADED, off=(1000,)),
        "tokenized_path": Key(_LOADED),
        "data_shared_file_system": Key(_LOADED),
        "eval_on_each_dataset": Key("held-out data sets are joined, then evaluated"),
        "ignore_pad_token_for_loss": Key(_PACKED, off=(True,)),
        "media_dir": Key(_IMAGES),
        "tool_format": Key("there are no tools", refused=True),
    },
    "Method": {
        "stage": Key("sft, grpo, dpo, ppo; rm is reward_model", ours="method"),
        "finetuning_type": Key("full, lora, freeze", ours="finetuning_type"),
        "reward_funcs": Key("names with commas", ours="reward_funcs"),
        "reward_model": Key("joins reward_funcs"),
        "reward_model_type": Key("a sequence classifier or its adapter, by name or path", off=("full", "lora")),
        "pref_beta": Key("`beta`: the KL term's weight, or DPO's beta"),
        "pref_loss": Key("`loss_type` of dpo: sigmoid, hinge or ipo"),
        "pref_ftx": Key(
            "in a file of ours, loss_type: [sigmoid, sft] and loss_weights add such a term", off=(0, 0.0), refused=True
        ),
        "dpo_label_smoothing": Key("", ours="label_smoothing"),
        "pref_bco_weight": Key("the loss has no such term", off=(0, 0.0), refused=True),
        "simpo_gamma": Key("read with pref_loss: simpo only", off=(0.5,)),
        "ld_alpha": Key(
            "for dpo: the weight of a longer answer's tokens behind the shorter one's length", ours="ld_alpha"
        ),
        "kto_chosen_weight": Key("read with stage: kto only", off=(1, 1.0)),
        "kto_rejected_weight": Key("read with stage: kto only", off=(1, 1.0)),
        "ref_model": Key(_REFERENCE, refused=True),
        "ref_model_adapters": Key(_REFERENCE, refused=True),
        "ref_model_quantization_bit": Key(_REFERENCE, refused=True),
        "reward_model_adapters": Key("give the adapter as reward_model", refused=True),
        "reward_model_quantization_bit": Key("reward models are not quantised"),
        "use_dft_loss": Key("for sft: loss_type: dft"),
        "use_asft_loss": Key(_OWN_LOSS, refused=True),
        "use_eaft_loss": Key(_OWN_LOSS, refused=True),
        "asft_alpha": Key("read with use_asft_loss only", off=(0.1,)),
        "eaft_alpha": Key("read with use_eaft_loss only", off=(1, 1.0)),
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
        "loraplus_lr_embedding": Key("read with loraplus_lr_ratio only", off=(1e-6,)),
        "pissa_init": Key("LoRA's B starts at zero", refused=True),
        **_only_with("pissa_init", pissa_iter=16, pissa_convert=False),
        **_only_with("finetuning_type: oft", module_dropout=0.0, oft_rank=0, oft_block_size=32, oft_target="all"),
        "create_new_adapter": Key("an adapter is always new", off=(True, False)),
        "freeze_trainable_layers": Key("number of last layers; negative: of first", ours="freeze_trainable_layers"),
        "freeze_trainable_modules": Key("all, or names with commas", ours="freeze_trainable_modules"),
        "freeze_extra_modules": Key("names with commas", ours="freeze_extra_modules"),
        "freeze_vision_tower": Key(_IMAGES, off=(True,)),
        "freeze_multi_modal_projector": Key(_IMAGES, off=(True,)),
        "freeze_language_model": Key("the whole model is a language model", refused=True),
        "use_galore": Key(_OPTIMISER, refused=True),
        **_only_with(
            "use_galore",
            galore_target="all",
            galore_rank=16,
            galore_update_interval=200,
            galore_scale=2.0,
            galore_proj_type="std",
            galore_layerwise=False,
        ),
        "use_apollo": Key(_OPTIMISER, refused=True),
        **_only_with(
            "use_apollo",
            apollo_target="all",
            apollo_rank=16,
            apollo_update_interval=200,
            apollo_scale=32.0,
            apollo_proj="random",
            apollo_proj_type="std",
            apollo_scale_type="channel",
            apollo_layerwise=False,
            apollo_scale_front=False,
        ),
        "use_badam": Key(_OPTIMISER, refused=True),
        **_only_with(
            "use_badam",
            badam_mode="layer",
            badam_start_block=None,
            badam_switch_mode="ascending",
            badam_switch_interval=50,
            badam_update_ratio=0.05,
            badam_mask_mode="adjacent",
            badam_verbose=0,
        ),
        "use_muon": Key(_OPTIMISER, refused=True),
        "use_adam_mini": Key(_OPTIMISER, refused=True),
        "use_llama_pro": Key("no layers are added", refused=True),
        "pure_bf16": Key("bf16 matrix products; trained weights stay float32"),
    },
    "Run": {
        "do_train": Key("true, unless do_eval or do_predict is given alone", ours="do_train"),
        "do_eval": Key("the held-out metrics in eval_results.json, after training or without", ours="do_eval"),
        "do_predict": Key("completions of the held-out rows in generated_predictions.jsonl", ours="do_predict"),
        "predict_with_generate": Key("do_predict samples; evaluation does where there are reward_funcs", off=(True,)),
        "eval_num_beams": Key("sampling by temperature", off=(1,)),
        "temperature": Key("for ppo and do_predict 0.95 by default, as in LLaMA-Factory"),
        "top_p": Key("for ppo and do_predict 0.7 by default, as in LLaMA-Factory"),
        "top_k": Key("for ppo and do_predict 50 by default, as in LLaMA-Factory"),
        "max_length": Key("cutoff_len and max_new_tokens are the limits", off=(1024,)),
        "plot_loss": Key("plots are always drawn: `cohort plot` draws them again", off=(True, False)),
        "compute_accuracy": Key("reward_funcs score completions of the held-out rows"),
        "early_stopping_steps": Key("for rm: early_stopping_patience"),
        "disable_shuffling": Key("becomes shuffle_dataset: false"),
        "max_new_tokens": Key("", ours="max_completion_length"),
        "do_sample": Key("false: the most likely token, for do_predict"),
        "num_beams": Key("sampling by temperature", off=(1,)),
        "length_penalty": Key("sampling by temperature", off=(1.0,)),
        "skip_special_tokens": Key(
            "reward functions get text without bos, eos and pad; other tokens stay",
            off=(True,),
        ),
        "include_effective_tokens_per_second": Key("the metric tokens_per_second", off=(True, False)),
        "deepspeed": Key("a ZeRO configuration: becomes distributed: fsdp2 and fsdp_offload", ours="deepspeed"),
        "use_swanlab": Key("report_to: swanlab"),
        **_only_with(
            "use_swanlab",
            swanlab_project="llamafactory",
            swanlab_workspace=None,
            swanlab_run_name=None,
            swanlab_mode="cloud",
            swanlab_api_key=None,
            swanlab_logdir=None,
            swanlab_lark_webhook_url=None,
            swanlab_lark_secret=None,
        ),
        "use_mca": Key("distributed: fsdp2 divides a model among ranks", refused=True),
        "use_megatron_bridge": Key("distributed: fsdp2 divides a model among ranks", refused=True),
        "use_hyper_parallel": Key("distributed: fsdp2 divides a model among ranks", refused=True),
        **_only_with("use_hyper_parallel", hyper_parallel_args=None, hyper_parallel_cp_size=1),
        "ray_num_workers": Key("torchrun starts the ranks (docs/scaling.md)", off=(1,)),
        "ray_init_kwargs": Key("torchrun starts the ranks (docs/scaling.md)"),
        "master_addr": Key("torchrun starts the ranks (docs/scaling.md)"),
        "master_port": Key("torchrun starts the ranks (docs/scaling.md)"),
        "enable_torch_profiler": Key(_PROFILER),
        "profile_modules": Key(_PROFILER),
        **_only_with(
            "enable_torch_profiler",
            profiler_output_dir=None,
            profiler_wait_steps=1,
            profiler_warmup_steps=1,
            profiler_active_steps=1,
            profiler_repeat=1,
            profiler_record_shapes=True,
            profiler_profile_memory=True,
            profiler_with_stack=True,
        ),
        "fp8": Key(_FEWER_BYTES),
        **_only_with("fp8", fp8_backend="auto", fp8_enable_fsdp_float8_all_gather=False),
        "export_dir": Key(_EXPORT),
        "export_size": Key(_EXPORT, off=(5,)),
        "export_device": Key(_EXPORT, off=("cpu",)),
        "export_quantization_bit": Key(_EXPORT),
        "export_quantization_dataset": Key(_EXPORT),
        "export_quantization_nsamples": Key(_EXPORT, off=(128,)),
        "export_quantization_maxlen": Key(_EXPORT, off=(1024,)),
        "export_legacy_format": Key(_EXPORT),
        "export_hub_model_id": Key(_EXPORT),
    },
}
KEYS = {name: key for group in GROUPS.values() for name, key in group.items()}

TEMPLATES = """
aeva alpaca bailing bailing_v2 breeze chatglm3 chatml chatml_de cohere cpm4 custom dbrx deepseek deepseek3
deepseekcoder deepseekr1 default dots_ocr empty ernie ernie_nothink ernie_vl exaone falcon falcon_h1 fewshot gemma
gemma2 gemma3 gemma3n gemma4 gemma4n glm4 glm4_5v glm4_7 glm4_moe glm4v glm_ocr glmz1 gpt_oss granite3
granite3_vision granite4 hunyuan hunyuan_small hy3 hy_dense_1_8b hy_dense_7b index intern2 intern_s1 intern_vl
keye_vl kimi_vl lfm2 lfm2_vl llama2 llama2_zh llama3 llama4 llava llava_next llava_next_llama3 llava_next_mistral
llava_next_qwen llava_next_video llava_next_video_mistral llava_next_video_yi llava_next_yi mimo mimo_v2 mimo_vl
minicpm_o minicpm_v minicpm_v_4_6 minimax1 minimax2 ministral ministral3 mistral mistral_small mllama moonlight
moss_vl olmo openchat openchat-3.6 opencoder paligemma paligemma_chat phi phi4 phi4_mini phi_small pixtral qwen
qwen2_audio qwen2_omni qwen2_vl qwen3 qwen3_5 qwen3_5_nothink qwen3_6 qwen3_nothink qwen3_omni qwen3_omni_nothink
qwen3_vl qwen3_vl_nothink sailor seed_coder seed_oss smollm smollm2 solar starchat telechat2 vicuna video_llava
xuanyuan yi yi_vl youtu youtu_vl yuan zephyr
"""
"""Names of its templates."""
