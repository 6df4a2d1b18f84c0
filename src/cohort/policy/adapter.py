"""peft adapters in directories: the base model they belong to, and merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cohort.types import UserError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether the directory, or the hub repository of that name, holds a peft adapter."""
    if Path(name).is_dir():
        return (Path(name) / CONFIG).is_file()
    return _file(name, CONFIG, revision) is not None


def base_of(name: str, revision: str | None = None) -> str:
    """The base model of the adapter. Raises UserError where the adapter does not name one."""
    from peft import PeftConfig

    try:
        base = PeftConfig.from_pretrained(name, revision=revision).base_model_name_or_path
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"adapter {name!r}: its {CONFIG} cannot be read: {_line(error)}") from error
    if not base:
        raise UserError(f"adapter {name!r}: its {CONFIG} names no base model: write base_model_name_or_path into it")
    return str(base)


def put_on(base: Any, name: str, *, allow_pickle: bool = False, revision: str | None = None) -> Any:
    """Put the adapter on a loaded base model, for inference. Raises UserError for weights that are a pickle or do not
    fit."""
    from peft import PeftModel

    if not allow_pickle and _file(name, WEIGHTS, revision) is None:
        raise UserError(
            f"adapter {name!r} has no {WEIGHTS}. Weights of another form are pickles, which can run code: allow_pickle "
            "loads them"
        )
    try:
        return PeftModel.from_pretrained(base, name, revision=revision)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"adapter {name!r} cannot be put on its base model: {_line(error)}") from error


def merged(model: Any) -> Any:
    """Merge the adapter into the weights of its base model. Raises UserError where that is not possible."""
    if getattr(model.get_base_model(), "is_quantized", False):
        raise UserError(
            "the adapter's base model is stored quantised: merging would round its weights again. Name the model it "
            "was quantised from in base_model_name_or_path of adapter_config.json"
        )
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(f"the adapter cannot be merged: {_line(error)}") from error


def _file(name: str, file: str, revision: str | None) -> str | None:
    from transformers.utils.hub import cached_file

    path: str | None = cached_file(
        name,
        file,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
