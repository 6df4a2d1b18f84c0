"""What TRL's scripts make of their arguments: an adapter, a quantisation, a device map."""

from __future__ import annotations

from typing import Any

from cohort.compat.script_arguments import ModelConfig


def get_peft_config(model_args: ModelConfig) -> Any:
    """The LoraConfig of the arguments; None where use_peft is off."""
    if not model_args.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type=model_args.lora_task_type,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules,
        modules_to_save=model_args.lora_modules_to_save,
        use_rslora=model_args.use_rslora,
        use_dora=model_args.use_dora,
        bias="none",
        target_parameters=model_args.lora_target_parameters,
    )


def get_quantization_config(model_args: ModelConfig) -> Any:
    """The BitsAndBytesConfig of the arguments; None where weights are not quantised."""
    from transformers import BitsAndBytesConfig

    if model_args.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=model_args.dtype,
            bnb_4bit_quant_type=model_args.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_args.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model_args.bnb_4bit_quant_storage,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_args.load_in_8bit else None


def get_kbit_device_map() -> dict[str, int] | None:
    """The device map of a quantised model: this process's GPU; None without one."""
    import torch

    from cohort.world import rank

    return {"": rank() % torch.cuda.device_count()} if torch.cuda.is_available() else None
