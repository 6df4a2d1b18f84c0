"""What a TRL script gives to a configuration, as the keys and values that it has here: `trl_keys` is the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any

from cohort.compat.trl_keys import KEYS, OPTIMISER, RECORDED, RENAMED
from cohort.types import UserError

log = logging.getLogger("cohort")

TRACKERS = ("tensorboard",)
OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
)
GENERATION = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
    "stop": "stop",
    "stop_strings": "stop",
}
"""Keys of generation_kwargs -> ours."""


def translate(given: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The keys that a configuration with these `fields` takes, from those a TRL script gives. What is taken without
    effect is told in one line each. Raises UserError for a refused key."""
    values = {key: value.value if isinstance(value, Enum) else value for key, value in given.items()}
    for old, new in RENAMED.items():
        if old in values and old not in fields and new in fields:
            values.setdefault(new, values[old])
            del values[old]
    if "generation_kwargs" in values and "generation_kwargs" not in fields:
        values |= _generation(values.pop("generation_kwargs") or {}, fields)
    for key, form in FORMS.items():
        if key in values and key in fields:
            values |= form(values.pop(key))
    for key in [key for key in values if key in KEYS and key not in fields]:
        _tell(key, values.pop(key))
    return values


def _tell(key: str, value: Any) -> None:
    entry = KEYS[key]
    # True == 1 and False == 0, so kinds are compared too.
    listed = any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in entry.off)
    if value is None or listed or (value is False and True not in entry.off):
        return
    if entry.refused:
        allowed = ", ".join(repr(v) for v in entry.off) or "None"
        raise UserError(f"`{key}` is {value!r}, and is not supported ({entry.text}): leave it out, or set {allowed}")
    log.warning("%s=%r has no effect here: %s", key, value, entry.text)


def _generation(kwargs: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """generation_kwargs win over the keys beside them, as in TRL."""
    found = {}
    for key, value in kwargs.items():
        if key == "do_sample" and value:
            continue
        if GENERATION.get(key) in fields:
            found[GENERATION[key]] = [value] if key in ("stop", "stop_strings") and isinstance(value, str) else value
        elif key in KEYS:
            _tell(key, value)
        else:
            known = ", ".join(GENERATION)
            log.warning("generation_kwargs: %s=%r has no effect here: the built-in engine knows %s", key, value, known)
    return found


def _default_for_none(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {} if value is None else {key: value}


def _log_completions(value: Any) -> dict[str, Any]:
    if value is True:
        return {}
    return {"log_completions": 0 if value is False else value}


def _warmup_steps(value: Any) -> dict[str, Any]:
    share = isinstance(value, float) and 0 < value < 1
    return {"warmup_ratio" if share else "warmup_steps": value}


def _report_to(value: Any) -> dict[str, Any]:
    names = [value] if isinstance(value, str) else list(value or [])
    unknown = [name for name in names if name not in (*TRACKERS, "none")]
    if unknown:
        log.warning("report_to=%r has no effect here: %s; tensorboard is supported", ", ".join(unknown), RECORDED)
    return {"report_to": [name for name in names if name in TRACKERS]}


def _optim(value: Any) -> dict[str, Any]:
    name = str(value)
    if name not in OPTIMIZERS:
        log.warning("optim=%r has no effect here: %s", name, OPTIMISER)
        return {}
    return {"optim": name}


FORMS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "log_completions": _log_completions,
    "warmup_steps": _warmup_steps,
    "report_to": _report_to,
    "optim": _optim,
    **{
        key: _default_for_none(key)
        for key in ("min_p", "top_k", "top_p", "num_generations_eval", "shuffle_dataset", "gradient_checkpointing",
                    "eval_steps", "model_init_kwargs", "chat_template_kwargs", "lr_scheduler_kwargs", "output_dir",
                    "resume_from_checkpoint", "template")
    },
}  # fmt: skip
"""Values of supported keys in forms that only TRL and transformers have: None for the default, True for a number."""
