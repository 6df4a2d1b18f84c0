"""Reads the keys and values that a TRL script passes to a configuration; `trl_keys.py` is the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from enum import Enum
from typing import Any

from cohort.compat.keys import warn_or_refuse
from cohort.compat.sharding import sharding_of
from cohort.compat.trl_keys import KEYS, OPTIMISER, RENAMED
from cohort.types import UserError, did_you_mean

log = logging.getLogger("cohort")

SHARDING = ("deepspeed", "fsdp", "fsdp_config")
"""Keys that `sharding.py` reads."""
SERVER = (
    "use_vllm", "vllm_mode", "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
    "vllm_enable_sleep_mode",
)  # fmt: skip
"""Keys of TRL's server mode, which become `engine`."""
TRACKERS = (
    "tensorboard", "wandb", "trackio", "mlflow", "swanlab", "comet_ml", "clearml", "dvclive", "azure_ml", "codecarbon",
    "dagshub", "flyte", "kubeflow", "neptune",
)  # fmt: skip
"""Values of transformers' report_to."""
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


def translate(arguments: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """TRL's keys and values as those of a configuration with these `fields`. A key without effect is logged in one
    line. Raises UserError for a refused key."""
    values = {key: value.value if isinstance(value, Enum) else value for key, value in arguments.items()}
    for old, new in RENAMED.items():
        if old in values and old not in fields and new in fields:
            value = values.pop(old)
            if values.setdefault(new, value) != value:
                raise UserError(f"`{old}` and `{new}` are one key under two names, and differ: leave one of them out")
    if "generation_kwargs" in values and "generation_kwargs" not in fields:
        kwargs = values.pop("generation_kwargs") or {}
        if not isinstance(kwargs, dict):
            raise UserError(f"`generation_kwargs` is {str(kwargs)[:80]!r}: it must be a mapping")
        values |= _generation_kwargs(kwargs, fields)
    if values.get("truncation_mode") == "keep_start" and "truncation" in fields:
        values.setdefault("truncation", "cut")
    for key, convert in CONVERSIONS.items():
        if key in values and key in fields:
            values |= convert(values.pop(key))
    if "distributed" in fields and any(values.get(key) for key in SHARDING):
        ours, told = sharding_of(values)
        for line in told:
            log.warning("%s", line)
        values = {**ours, **{key: value for key, value in values.items() if key not in SHARDING}}
    if values.get("use_vllm") and "engine" in fields:
        values = _engine_of_server(values)
    for key in [key for key in values if key in KEYS and key not in fields]:
        warn_or_refuse(key, values.pop(key), KEYS[key])
    return values


def _engine_of_server(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of TRL's server mode as our `engine`. A server that is named means that mode, which was TRL's default
    before version 1."""
    url, host = values.get("vllm_server_base_url"), values.get("vllm_server_host")
    mode = values.get("vllm_mode") or ("server" if url or host else "colocate")
    if mode != "server" or "engine" in values:
        return values
    place = "localhost" if host in (None, "0.0.0.0") else host
    url = url or f"http://{place}:{values.get('vllm_server_port') or 8000}"
    settings = {
        "url": url,
        "start_timeout": values.get("vllm_server_timeout"),
        "sleep": values.get("vllm_enable_sleep_mode"),
    }
    log.info("use_vllm: completions are sampled by the server at %s, which `cohort vllm` starts (docs/scaling.md)", url)
    rest = {key: value for key, value in values.items() if key not in SERVER}
    return {**rest, "engine": {"vllm": {name: value for name, value in settings.items() if value is not None}}}


def _generation_kwargs(kwargs: dict[str, Any], fields: Collection[str]) -> dict[str, Any]:
    """The keys in generation_kwargs, which replace those beside it, as in TRL."""
    values = {}
    for key, value in kwargs.items():
        if key == "do_sample" and value:
            continue
        if GENERATION.get(key) in fields:
            values[GENERATION[key]] = [value] if key in ("stop", "stop_strings") and isinstance(value, str) else value
        elif key in KEYS:
            warn_or_refuse(key, value, KEYS[key])
        else:
            names = ", ".join(GENERATION)
            log.warning("generation_kwargs: %s=%r has no effect here: the built-in engine has %s", key, value, names)
    return values


def _default_for_none(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {} if value is None else {key: value}


def _log_completions(value: Any) -> dict[str, Any]:
    return {"log_completions": {True: 8, False: 0}[value] if isinstance(value, bool) else value}


def _warmup_steps(value: Any) -> dict[str, Any]:
    is_ratio = isinstance(value, float) and 0 < value < 1
    return {"warmup_ratio" if is_ratio else "warmup_steps": value}


def _report_to(value: Any) -> dict[str, Any]:
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"`report_to` is {str(value)[:80]!r}: give names, such as [tensorboard, wandb], all or none")
    for name in names:
        if name not in (*TRACKERS, "all", "none"):
            hint = did_you_mean(name, [*TRACKERS, "all", "none"], f": it is one of {', '.join(TRACKERS)}, all, none")
            raise UserError(f"`report_to` names {name!r}, which is no tracker{hint}")
    return {"report_to": [name for name in names if name != "none"]}


def _optim(value: Any) -> dict[str, Any]:
    name = str(value)
    if name not in OPTIMIZERS:
        log.warning("optim=%r has no effect here: %s", name, OPTIMISER)
        return {}
    return {"optim": name}


CONVERSIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "log_completions": _log_completions,
    "warmup_steps": _warmup_steps,
    "report_to": _report_to,
    "optim": _optim,
    **{
        key: _default_for_none(key)
        for key in ("min_p", "top_k", "top_p", "num_generations_eval", "shuffle_dataset", "gradient_checkpointing",
                    "eval_steps", "model_init_kwargs", "chat_template_kwargs", "lr_scheduler_kwargs", "output_dir",
                    "disable_tqdm", "resume_from_checkpoint", "template", "teacher_model_init_kwargs")
    },
}  # fmt: skip
"""Supported keys whose values TRL and transformers write in other forms, such as None for the default."""
