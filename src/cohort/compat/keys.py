"""One entry of the tables of other libraries' keys, and what happens to a key that has no counterpart here."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from cohort.types import UserError

log = logging.getLogger("cohort")


SECRET = ("token", "api_key", "secret", "webhook_url")
"""Endings of keys whose values are not shown."""


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
