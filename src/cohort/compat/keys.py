"""One entry of the tables of other libraries' keys, and what happens to a key that has no counterpart here."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from cohort.types import UserError

log = logging.getLogger("cohort")


SECRET = ("token", "api_key", "secret", "webhook_url")
"""Endings of keys whose values are not shown."""

READ_WITH: dict[str, dict[str, Any]] = {
    "lora": {
        "lora_rank": 8, "lora_alpha": None, "lora_dropout": 0, "lora_target": "all", "use_dora": False,
        "use_rslora": False, "modules_to_save": [],
    },
    "freeze": {"freeze_trainable_layers": 2, "freeze_trainable_modules": [], "freeze_extra_modules": []},
}  # fmt: skip
"""Value of finetuning_type -> the keys of ours that are read with it alone, and their defaults."""


class Key(NamedTuple):
    """Key("batches are packed without padding", off=("auto",)) or Key("a name or a path", ours="model")"""

    text: str
    """What takes the key's place, or a remark on it."""
    off: tuple[Any, ...] = ()
    """Values that, like None and False, turn the feature off or are what happens anyway: they get no notice."""
    refused: bool = False
    """Whether any other value is an error, because it would change what is learned."""
    ours: str | None = None
    """The key of ours that gets its value."""


def warn_or_refuse(name: str, value: Any, key: Key, where: str = "") -> None:
    """Log one line for a value that has no effect here. Raises UserError if the key is refused."""
    # True == 1 and False == 0, so types are compared too.
    is_off = any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in key.off)
    if value is None or is_off or (value is False and True not in key.off):
        return
    if key.refused:
        allowed = ", ".join(repr(off) for off in key.off) or "None"
        prefix = f"{where}: " if where else ""
        raise UserError(
            f"{prefix}`{name}` is {value!r}, and is not supported: {key.text}. Leave it out, or set {allowed}"
        )
    shown = "..." if name.endswith(SECRET) else repr(value)
    log.warning("%s=%s has no effect here: %s", name, shown, key.text)


def listed(value: Any, name: str, where: str) -> list[Any]:
    """Names of a list or of a text with commas. Raises UserError for another value."""
    if isinstance(value, str):
        return [part for part in map(str.strip, value.split(",")) if part]
    if value is None or isinstance(value, list | tuple):
        return list(value or [])
    raise UserError(f"{where}: `{name}` is {str(value)[:80]!r}: it must be a list, or names with commas")


def add_to_mapping(ours: dict[str, Any], name: str, more: dict[str, Any], where: str) -> None:
    """Add to the mapping that a key of ours has. Raises UserError where it is none, or says something else."""
    before = ours.get(name) or {}
    if not isinstance(before, dict):
        raise UserError(f"{where}: `{name}` is {str(before)[:80]!r}: it must be a mapping")
    for key, value in more.items():
        if before.get(key, value) != value:
            raise UserError(
                f"{where}: `{name}` has {key}: {str(before[key])[:80]!r}, and another key of the file means "
                f"{key}: {str(value)[:80]!r}: leave one of them out"
            )
    ours[name] = {**before, **more}


def rename(values: dict[str, Any], theirs: str, ours: str, where: str) -> None:
    """Give a value its name here, where it is there; None says nothing. Raises UserError where both names are."""
    if theirs not in values or theirs == ours:
        return
    value = values.pop(theirs)
    if value is None:
        return
    if ours in values:
        raise UserError(f"{where}: `{theirs}` and `{ours}` are one key under two names: leave one of them out")
    values[ours] = value
