"""Folders of checkpoints: complete or absent, checked, the newest, and those that a branch leaves behind."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cohort.train.output import manifest
from cohort.types import UserError

log = logging.getLogger("cohort")

NAME = re.compile(r"checkpoint-(\d+)")
REMOVED = "removed-"
"""Before the name of a checkpoint that is being deleted."""


def partial_of(target: Path) -> Path:
    """The checkpoint's name while it is written."""
    return target.with_name(target.name.replace("checkpoint-", "partial-"))


@contextmanager
def whole(target: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """A folder that gets its manifest and becomes the target once the block has filled it, and is removed where the
    block raises. `facts`: what the run was made with."""
    partial = partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        manifest.write(partial, facts)
        for path in (*partial.rglob("*"), partial):
            _sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        _remove(target)
    partial.rename(target)
    _sync(target.parent)


def prune(folder: Path, keep: int | None, spared: Collection[str] = ()) -> None:
    """Delete the oldest checkpoints beyond `keep`, but for those of the names `spared`, and what an earlier deletion
    left."""
    for path in folder.glob(f"{REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)
    if keep is not None:
        for path in _by_step(folder)[:-keep]:
            if path.name not in spared:
                _remove(path)


def _remove(path: Path) -> None:
    """Delete a folder, which has another name before any of its files is gone."""
    removed = path.with_name(f"{REMOVED}{path.name}")
    shutil.rmtree(removed, ignore_errors=True)
    path.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def leave_behind(folder: Path, step: int, records: Sequence[str]) -> None:
    """Move checkpoints after the step aside, with copies of the records: a run that goes on from there is another
    one."""
    later = [path for path in _by_step(folder) if _step_of(path) > step]
    if not later:
        return
    aside = next(path for n in range(1, 10**6) if not (path := folder / f"abandoned-{n}").exists())
    aside.mkdir()
    for name in records:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, aside / name)
    for path in later:
        path.rename(aside / path.name)
    names = ", ".join(path.name for path in later)
    log.warning("the run goes on from step %d: %s, of the branch that is left, are now in %s", step, names, aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints, from the first step on. A half-written one has another name."""
    return sorted((path for path in folder.glob("checkpoint-*") if _step_of(path) >= 0), key=_step_of)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step, whatever its state."""
    return next(iter(reversed(_by_step(folder))), None)


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint of the highest step that is whole. Each damaged one before it is named in a warning. Raises
    UserError where there are checkpoints and none is whole."""
    damaged = []
    for path in reversed(_by_step(folder)):
        wrong = manifest.damage(path)
        if not wrong:
            return path
        damaged.append(f"{path}: {wrong}")
        log.warning("%s cannot be resumed: %s", path, wrong)
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} is whole: {'; '.join(damaged)}. Start again without --resume: what is there is "
            "then moved aside"
        )
    return None


def require(path: Path) -> None:
    """Raise UserError for a folder that is no checkpoint, or a damaged one."""
    if not path.is_dir():
        raise UserError(f"{path} is no checkpoint: there is no such folder; give a folder named checkpoint-N")
    wrong = manifest.damage(path)
    if not wrong:
        return
    others = [other for other in reversed(_by_step(path.parent)) if other != path and not manifest.damage(other)]
    remedy = f"The newest that is whole is {others[0]}" if others else "give a folder named checkpoint-N"
    raise UserError(f"{path} cannot be resumed: {wrong}. {remedy}")


def where_to_resume(folder: Path) -> str:
    """The end of a message about a run that broke: its newest checkpoint."""
    path = newest(folder)
    if path is None:
        return "There is no checkpoint (save_steps)"
    return f"The newest checkpoint, from before, is {path}"
