"""Reads the YAML of TRL's command line: keys of its ScriptArguments and ModelConfig as ours, with the trainer's own
keys beside them, which `trl.py` reads. TRL names the trainer on the command line: `trl sft --config FILE`."""

from __future__ import annotations

import logging
from typing import Any

from cohort.compat.keys import Key, add_to_mapping, listed, rename, warn_or_refuse
from cohort.compat.llama_factory import FOUR_BIT
from cohort.types import UserError

log = logging.getLogger("cohort")

METHODS = {"reward": "reward_model", "kto": "", "gkd": "distill"}
"""TRL's commands -> `method`, where they differ; "": it has no counterpart."""
LORA = {
    "lora_r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "lora_target",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
"""Keys that TRL reads with use_peft alone."""
TRL_LORA = {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.05}
"""TRL's defaults."""
RENAMED = {
    "model_name_or_path": "model",
    "dataset_name": "dataset",
    "dataset_train_split": "dataset_split",
    "dataset_test_split": "eval_split",
    "eval_dataset_name": "eval_dataset",
    "test_split_size": "val_size",
}
OURS = RENAMED | LORA
"""Keys with another name here -> that name."""
INIT = {"model_revision": "revision", "dtype": "dtype", "torch_dtype": "dtype"}
"""Keys of the model -> their names in model_init_kwargs."""
_MIXTURE = "name one data set; files of several can be joined in a folder"
KEYS: dict[str, Key] = {
    **{theirs: Key("", ours=ours) for theirs, ours in OURS.items()},
    "dataset_config": Key("becomes dataset_kwargs: {name: ...}"),
    "reward_model_name_or_path": Key("joins reward_funcs"),
    "use_peft": Key("becomes finetuning_type: lora; without it lora_* keys have no effect, as in TRL"),
    "model_revision": Key("becomes model_init_kwargs: {revision: ...}"),
    "dtype": Key("becomes model_init_kwargs: {dtype: ...}"),
    "torch_dtype": Key("becomes model_init_kwargs: {dtype: ...}"),
    "attn_implementation": Key("attention is grouped: a prompt is computed once for all its completions"),
    "load_in_4bit": Key("with use_peft: a quantization_config in model_init_kwargs"),
    "load_in_8bit": Key("load_in_4bit is", refused=True),
    "bnb_4bit_quant_type": Key("nf4", off=("nf4",)),
    "use_bnb_nested_quant": Key("4-bit weights are doubly quantised", off=(True,)),
    "bnb_4bit_quant_storage": Key("stored as bitsandbytes does"),
    "lora_task_type": Key("the method says it", off=("CAUSAL_LM", "SEQ_CLS")),
    "lora_target_parameters": Key("lora_target names modules", refused=True),
    "dataset_streaming": Key("rows are read once", off=(False,)),
    "streaming": Key("rows are read once", off=(False,)),
    "datasets": Key(_MIXTURE, refused=True),
    "ignore_bias_buffers": Key("buffers are not compared among processes"),
}


def is_trl(values: dict[str, Any]) -> bool:
    """Whether the values are those of TRL's command line, and neither ours nor LLaMA-Factory's: TRL's name of the model
    or the data, and no key that LLaMA-Factory alone has."""
    theirs = {"stage", "cutoff_len", "do_train", "finetuning_type", "template", "dataset_dir", "dataset"}
    named = "dataset_name" in values or "datasets" in values or "use_peft" in values
    return "model" not in values and not theirs & {*values} and ("model_name_or_path" in values or named)


def translate(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values with TRL's keys of model, data and LoRA as ours. Raises UserError where a file of TRL's lacks the
    method, and for a key that is there under both names."""
    ours = dict(values)
    method = ours.get("method")
    if isinstance(method, str) and method in METHODS:
        ours["method"] = METHODS[method]
        if not ours["method"]:
            raise UserError(f"{where}: `trl kto` has no counterpart: make pairs of a good and a bad answer and use dpo")
    from_trl = is_trl(ours)
    if from_trl and "method" not in ours:
        raise UserError(
            f"{where} is a file of TRL's command line, which does not say which trainer reads it: name the method, "
            f"`cohort train sft --config {where}` (or grpo, dpo, reward, rloo), or add `method: sft` to it"
        )
    for theirs, key in RENAMED.items():
        rename(ours, theirs, key, where)
    if (name := ours.pop("dataset_config", None)) is not None:
        add_to_mapping(ours, "dataset_kwargs", {"name": name}, where)
    if (reward_model := ours.pop("reward_model_name_or_path", None)) is not None:
        ours["reward_funcs"] = [reward_model, *listed(ours.get("reward_funcs"), "reward_funcs", where)]
    _lora(ours, from_trl, where)
    for theirs, name in INIT.items():
        value = ours.pop(theirs, None)
        if value is not None and (name, value) != ("revision", "main"):
            add_to_mapping(ours, "model_init_kwargs", {name: value}, where)
    for key in [key for key in ours if key in KEYS and KEYS[key].ours is None]:
        warn_or_refuse(key, ours.pop(key), KEYS[key], where)
    return ours


def _lora(ours: dict[str, Any], from_trl: bool, where: str) -> None:
    """LoRA with TRL's defaults where use_peft is true; in a file of TRL's that does not say so, its keys are told."""
    wanted, four_bit = _switch(ours, "use_peft", where), _switch(ours, "load_in_4bit", where)
    if four_bit and not wanted:
        raise UserError(f"{where}: `load_in_4bit` needs use_peft: true; quantised weights are not trained")
    if from_trl and not wanted:
        for theirs in [theirs for theirs in LORA if theirs in ours]:
            warn_or_refuse(theirs, ours.pop(theirs), Key("it is read with use_peft: true"), where)
        return
    for theirs, key in LORA.items():
        rename(ours, theirs, key, where)
    for key in ("lora_target", "modules_to_save"):
        if isinstance(ours.get(key), str) and ours[key] not in ("all", "all-linear"):
            ours[key] = listed(ours[key], key, where)
    if ours.get("lora_target") == "all-linear":
        ours["lora_target"] = "all"
    if not wanted:
        return
    if ours.get("finetuning_type", "lora") != "lora":
        raise UserError(
            f"{where}: use_peft is true and finetuning_type is {ours['finetuning_type']!r}: give one of them"
        )
    if "lora_target" not in ours:
        log.info("lora_target_modules is not set: every linear layer gets LoRA; TRL leaves the choice to peft")
    for key, value in {"finetuning_type": "lora", **TRL_LORA}.items():
        ours.setdefault(key, value)
    if four_bit:
        add_to_mapping(ours, "model_init_kwargs", {"quantization_config": dict(FOUR_BIT)}, where)


def _switch(ours: dict[str, Any], name: str, where: str) -> bool:
    """Take out a key that is true or false. Raises UserError for another value."""
    value = ours.pop(name, None)
    if value not in (None, True, False):
        raise UserError(f"{where}: `{name}` is {str(value)[:80]!r}: it must be true or false")
    return bool(value)
