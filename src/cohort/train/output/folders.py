"""Folders of checkpoints: complete or absent, the newest, the oldest."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cohort.types import UserError

NAME = re.compile(r"checkpoint-(\d+)")


def partial_of(target: Path) -> Path:
    """The checkpoint's name while it is written."""
    return target.with_name(target.name.replace("checkpoint-", "partial-"))


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A folder that becomes the target once the block has filled it, and is removed where the block raises."""
    partial = partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
    _sync(target.parent)


def prune(folder: Path, keep: int | None) -> None:
    """Delete the oldest checkpoints beyond `keep`."""
    if keep is not None:
        for path in sorted(folder.glob("checkpoint-*"), key=_step_of)[:-keep]:
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step. A half-written one has another name."""
    folders = [path for path in folder.glob("checkpoint-*") if _step_of(path) >= 0]
    return max(folders, key=_step_of, default=None)


def require(path: Path) -> None:
    """Raise UserError for a folder that is no checkpoint."""
    if not (path / "state.json").is_file():
        raise UserError(f"{path} is no checkpoint: it has no state.json; give a folder named checkpoint-N")


def where_to_resume(folder: Path) -> str:
    """The end of a message about a run that broke: its newest checkpoint."""
    path = newest(folder)
    if path is None:
        return "There is no checkpoint (save_steps)"
    return f"The newest checkpoint, from before, is {path}"
