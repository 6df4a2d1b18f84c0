"""The arguments of TRL's scripts beside the trainer's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cohort.types import UserError


def _help(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass
class ScriptArguments:
    """The data that a script trains on."""

    dataset_name: str | None = _help(None, "A path or a name on the hub.")
    dataset_config: str | None = _help(None, "The configuration of a dataset on the hub.")
    dataset_train_split: str = _help("train", "The split to train on.")
    dataset_test_split: str = _help("test", "The split to evaluate on.")
    dataset_streaming: bool = _help(False, "Whether the dataset is streamed.")
    ignore_bias_buffers: bool = _help(False, "Of PyTorch's DDP, which is not used here: it has no effect.")


@dataclass
class ModelConfig:
    """The model that a script trains, its adapter and its quantisation. Raises UserError for two quantisations."""

    model_name_or_path: str | None = _help(None, "A path or a name on the hub.")
    model_revision: str = _help("main", "A branch, tag or commit on the hub.")
    dtype: str | None = _help("float32", "The dtype that weights are loaded in.")
    trust_remote_code: bool = field(default=False, init=False)
    """The configuration has the flag; TrlParser sets both."""
    attn_implementation: str | None = _help(None, "transformers' attention; here groups have their own.")
    use_peft: bool = _help(False, "Whether an adapter is trained.")
    lora_r: int = _help(16, "The adapter's rank.")
    lora_alpha: int = _help(32, "The adapter's scale is lora_alpha / lora_r.")
    lora_dropout: float = _help(0.05, "Dropout of the adapter.")
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Modules that get an adapter."})
    lora_target_parameters: list[str] | None = field(default=None, metadata={"help": "Parameters that get an adapter."})
    lora_modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that are trained in full."})
    lora_task_type: str = _help("CAUSAL_LM", "peft's task type: SEQ_CLS for a reward model.")
    use_rslora: bool = _help(False, "Whether the scale is lora_alpha / sqrt(lora_r).")
    use_dora: bool = _help(False, "Whether the adapter is DoRA's.")
    load_in_8bit: bool = _help(False, "Whether frozen weights have 8 bits.")
    load_in_4bit: bool = _help(False, "Whether frozen weights have 4 bits.")
    bnb_4bit_quant_type: str = _help("nf4", "bitsandbytes' type of 4-bit weights.", choices=["fp4", "nf4"])
    use_bnb_nested_quant: bool = _help(False, "Whether the constants of 4-bit weights are quantised too.")
    bnb_4bit_quant_storage: str | None = _help(None, "The dtype that 4-bit weights are stored in.")

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("load_in_8bit and load_in_4bit are both set: choose one of them")
        if isinstance(self.lora_target_modules, list) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]  # "all-linear" is a name
