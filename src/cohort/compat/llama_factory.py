"""Reads LLaMA-Factory's YAML: its keys as ours. `scripts/write_coming_from.py` writes
docs/coming-from-llama-factory.md from the tables here.

Keys of transformers' TrainingArguments are passed on unchanged: `trl.py` reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from cohort.compat.keys import READ_WITH, Key, add_to_mapping, listed, rename, warn_or_refuse
from cohort.compat.llama_factory_keys import KEYS
from cohort.types import UserError, did_you_mean

log = logging.getLogger("cohort")

IDENTIFYING_KEYS = ("stage", "model_name_or_path", "cutoff_len", "do_train")
"""A file with one of these keys, and neither `method` nor `model`, is LLaMA-Factory's."""

STAGES = {"sft": "sft", "grpo": "grpo", "dpo": "dpo", "ppo": "ppo", "rm": "reward_model"}
NO_STAGES = {
    "pt": "further pre-training on raw text is not done here: use transformers' run_clm.py or LLaMA-Factory, "
    "or write the txt files as rows of `text` and train them by method: sft, in a file of ours",
    "kto": "it has no counterpart here: make pairs of good and bad answers and use stage: dpo, or stage: grpo",
}


def is_llama_factory(values: dict[str, Any]) -> bool:
    return any(key in values for key in IDENTIFYING_KEYS) and "method" not in values and "model" not in values


DEFAULTS: dict[str, Any] = {
    "finetuning_type": "lora",
    "cutoff_len": 2048,
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "logging_steps": 500,
    "eval_strategy": "no",
    "save_steps": 500,
    "save_total_limit": None,
}
"""Values of keys that a file leaves out, where LLaMA-Factory's differ from ours for some stage."""
SAMPLING = {"temperature": 0.95, "top_p": 0.7, "top_k": 50}
"""The same for sampling, in the stage ppo and in predictions. LLaMA-Factory has no stage grpo: there ours hold."""


def translate(values: dict[str, Any], where: str) -> dict[str, Any]:
    """LLaMA-Factory's values under our keys, with its defaults; a file of ours is returned unchanged. Raises UserError
    for refused keys and unknown stages."""
    if not is_llama_factory(values):
        return values
    stage = _stage(values.get("stage", "sft"), where)
    ours: dict[str, Any] = {"method": stage, "dataset_dir": "data", "truncation": "cut"}
    defaults = _defaults(stage, values)
    values = {**defaults, **values}
    for name, value in values.items():
        key = KEYS.get(name)
        if name in SPECIAL or name in SAMPLING or name in ("stage", "do_sample"):
            continue
        if key is None or key.ours is not None:
            ours[name] = _names(value, name, where) if name in LISTS else value
        else:
            warn_or_refuse(name, value, key, where)
    for name in [name for name in ours if name in KEYS]:
        _rename(ours, name, str(KEYS[name].ours), where)
    _actions(ours, where)
    defaults |= _sampling(values, ours)
    for name, merge in SPECIAL.items():
        if values.get(name) is not None:
            merge(values[name], ours, where)
    if "max_samples" in ours and "eval_dataset" in ours:
        ours.setdefault("eval_samples", ours["max_samples"])
    if told := ", ".join(f"{name}={value}" for name, value in defaults.items()):
        log.info("keys that %s leaves out have LLaMA-Factory's defaults: %s", where, told)
    return ours


def _rename(ours: dict[str, Any], name: str, key: str, where: str) -> None:
    """Give a value its name here. None says nothing of a key without a default of LLaMA-Factory's; keys of LoRA and of
    frozen layers that finetuning_type does not read are left out, as there."""
    for kind, keys in READ_WITH.items():
        if key in keys and ours.get("finetuning_type") != kind:
            unread = Key(f"it is read with finetuning_type: {kind}", off=(keys[key],))
            warn_or_refuse(name, ours.pop(name), unread, where)
            return
    if name == key and ours[name] is None and name not in DEFAULTS:
        del ours[name]
    rename(ours, name, key, where)


def _defaults(stage: str, values: dict[str, Any]) -> dict[str, Any]:
    """DEFAULTS of the keys that the file leaves out and that the run reads."""
    if values.get("do_train") is not True and (values.get("do_eval") or values.get("do_predict")):
        return {name: DEFAULTS[name] for name in ("cutoff_len",) if name not in values}
    unread = set()
    if values.get("save_strategy", "steps") != "steps":
        unread |= {"save_steps"}
    if stage != "reward_model" or "early_stopping_steps" in values:
        unread |= {"eval_strategy"}  # elsewhere ours is the same; early stopping needs evaluations
    defaults = {name: value for name, value in DEFAULTS.items() if name not in values and name not in unread}
    if values.get("eval_strategy") == "steps" and "eval_steps" not in values:
        defaults["eval_steps"] = values.get("logging_steps", DEFAULTS["logging_steps"])
    return defaults


def _actions(ours: dict[str, Any], where: str) -> None:
    """Set what the run does, and the training rows of one that trains nothing."""
    ours.setdefault("do_train", not (ours.get("do_eval") or ours.get("do_predict")))
    if not ours["do_train"] and "dataset" not in ours and "eval_dataset" in ours:
        ours["dataset"] = ours["eval_dataset"]


def _sampling(values: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Set how training and predictions sample; returns the defaults that are used."""
    given = {name: values[name] for name in SAMPLING if values.get(name) is not None}
    left = {name: value for name, value in SAMPLING.items() if name not in given}
    trained = ours["method"] in ("ppo", "grpo") or bool(ours.get("dpo_pairs"))
    greedy = values.get("do_sample") is False
    if trained:
        ours |= (left if ours["method"] == "ppo" else {}) | given
        if greedy:
            log.warning("do_sample=False has no effect here: training samples by temperature")
    if ours.get("do_predict"):
        ours["predict_sampling"] = {"temperature": 0.0} if greedy else {**left, **given}
    elif given and not trained:
        log.warning("%s has no effect here: only ppo, grpo and do_predict sample", ", ".join(given))
    reads = ours["method"] == "ppo" or (ours.get("do_predict") and not greedy)
    return left if reads else {}


def _stage(stage: Any, where: str) -> str:
    name = str(stage)
    if name in NO_STAGES:
        raise UserError(f"{where}: stage {name}: {NO_STAGES[name]}")
    if name not in STAGES:
        hint = did_you_mean(name, STAGES, f": it is one of {', '.join(STAGES)}")
        raise UserError(f"{where}: unknown stage {stage!r}{hint}")
    return STAGES[name]


LISTS = ("additional_target", "freeze_trainable_modules", "freeze_extra_modules")
"""Keys whose value LLaMA-Factory writes as text with commas; ours are lists."""


def _names(value: Any, name: str, where: str) -> list[Any]:
    """'a,b' -> ['a', 'b']; 'all' -> [], which selects all modules."""
    return [each for each in listed(value, name, where) if each != "all"]


def _cutoff(value: Any, ours: dict[str, Any], where: str) -> None:
    whole = ours["method"] in ("sft", "reward_model") or (ours["method"] == "dpo" and not ours.get("dpo_pairs"))
    ours.setdefault("max_length" if whole else "max_prompt_length", value)


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


def _of_sft(name: str, ours_if_true: dict[str, Any]) -> Callable[[Any, dict[str, Any], str], None]:
    def merge(value: Any, ours: dict[str, Any], where: str) -> None:
        if value and ours["method"] != "sft":
            log.warning("%s=%r has no effect here: only the stage sft has it", name, value)
        elif value:
            ours.update(ours_if_true)

    return merge


def _template_argument(name: str) -> Callable[[Any, dict[str, Any], str], None]:
    def merge(value: Any, ours: dict[str, Any], where: str) -> None:
        add_to_mapping(ours, "chat_template_kwargs", {name: value}, where)

    return merge


def _adapter(value: Any, ours: dict[str, Any], where: str) -> None:
    if ours["do_train"]:
        raise UserError(
            f"{where}: `adapter_name_or_path` is {value!r}: training of an adapter does not go on here: merge the "
            "adapter into its model first (cohort export ADAPTER --merge), and name the result. To evaluate or predict "
            "with it, set do_train: false"
        )
    ours["model"] = value


def _reward_model(value: Any, ours: dict[str, Any], where: str) -> None:
    ours["reward_funcs"] = [*listed(ours.get("reward_funcs"), "reward_funcs", where), value]


def _early_stopping(value: Any, ours: dict[str, Any], where: str) -> None:
    if ours["method"] == "reward_model":
        ours["early_stopping_patience"] = value
    else:
        log.warning("early_stopping_steps=%r has no effect here: only the stage rm has it; Ctrl-C stops a run", value)


def _shuffling(value: Any, ours: dict[str, Any], where: str) -> None:
    if value:
        ours["shuffle_dataset"] = False


def _revision(value: Any, ours: dict[str, Any], where: str) -> None:
    add_to_mapping(ours, "model_init_kwargs", {"revision": value}, where)


def _quantization(bits: Any, ours: dict[str, Any], where: str) -> None:
    if bits != 4:
        raise UserError(
            f"{where}: `quantization_bit` is {bits!r}: 4 is supported. 8-bit products round activations depending on "
            "the rest of the batch, so the sampler's log-probabilities would differ from the policy's"
        )
    if ours.get("finetuning_type") != "lora":
        raise UserError(f"{where}: `quantization_bit` needs finetuning_type: lora; quantised weights are not trained")
    add_to_mapping(ours, "model_init_kwargs", {"quantization_config": dict(FOUR_BIT)}, where)


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
    "enable_thinking": _template_argument("enable_thinking"),
    "preserve_thinking": _template_argument("preserve_thinking"),
    "adapter_name_or_path": _adapter,
    "mask_history": _history,
    "train_on_prompt": _of_sft("train_on_prompt", {"completion_only_loss": False, "assistant_only_loss": False}),
    "use_dft_loss": _of_sft("use_dft_loss", {"loss_type": "dft"}),
    "reward_model": _reward_model,
    "early_stopping_steps": _early_stopping,
    "disable_shuffling": _shuffling,
    "model_revision": _revision,
    "quantization_bit": _quantization,
}
"""Keys whose value becomes part of another key's value."""
