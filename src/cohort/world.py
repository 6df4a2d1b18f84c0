"""How many processes a launcher started for this run."""

from __future__ import annotations

import os

from cohort.types import UserError


def world_size() -> int:
    """Processes of the run: WORLD_SIZE, which torchrun and accelerate launch set; 1 without a launcher. Raises
    UserError where it is no number."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """This process's number among them, from 0."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return _number("LOCAL_RANK", rank())


def require_one_process() -> None:
    """Raise UserError where a launcher started several processes of a command that is one: each would do all of it, in
    the same folder."""
    if (size := world_size()) > 1:
        raise UserError(
            f"WORLD_SIZE is {size}: this command is one process. Start it without torchrun or accelerate launch, which "
            "are for `cohort train`; unset WORLD_SIZE where nothing else was started"
        )


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r} in the environment: it is no number. Unset it, or start with torchrun")
    return max(int(text), 1) if name == "WORLD_SIZE" else int(text)
