"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cohort.types import UserError

TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Load weights that are no safetensors, which can run code.")
]


def names(text: str, option: str, example: str) -> list[str]:
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise UserError(f"{option} {text!r}: give at least one name, such as {example}")
    return found


def pairs(text: str, option: str, example: str) -> dict[str, str]:
    found = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(key.strip() and value.strip() for key, _, value in found):
        raise UserError(f"{option} {text!r}: write name=value, such as {example}, commas between several")
    return {key.strip(): value.strip() for key, _, value in found}


def check_output(output: Path | None) -> None:
    """Before anything costs time."""
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
