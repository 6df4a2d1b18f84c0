"""Files of JSON lines that a run appends to: of bounded size, and cut where a run is resumed."""

from __future__ import annotations

import json
import logging
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger("cohort")

LIMIT = 64 * 2**20
"""Bytes of a file above which it is thinned."""
FILLED = 0.75
"""Share of LIMIT that is left at most, so that a file is rewritten a few times in a run and not at each step."""
_STEP = re.compile(r'\{"step": (\d+)')

Drop = Callable[[list[str], list[str]], list[str]]
"""(lines that are dropped, lines that stay) -> the lines that stay, with what they take over."""


def append(path: Path, rows: Iterable[dict[str, Any]], durable: bool = False) -> int:
    """Append rows and return the file's size. A row's first key is `step`. `durable`: they are on the disk when the
    call returns, so that a machine that goes down does not lose them."""
    # A lone surrogate, which a text from the data may hold, is written as the escape that JSON has for it.
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(line(row) for row in rows)
        if durable:
            file.flush()
            os.fsync(file.fileno())
        return file.tell()


def line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def cut(path: Path, step: int) -> None:
    """Remove the rows behind `step`, and lines that are no rows: what a kill in mid-write has left, or somebody else
    has written. The latter are told."""
    if path.exists():
        # Evaluations before the first step are rows of step 0 and stay.
        _replace(path, [text for text, row in _rows(path) if row["step"] <= step])


def rows(path: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in _rows(path)) if path.exists() else iter(())


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    strange = []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a kill may cut a letter
    for number, text in enumerate(texts, 1):
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield text, row
        elif text and number < len(texts):
            strange.append(number)
    if strange:
        log.warning("%s: %d lines are no rows of a run and are left out, first line %d", path, len(strange), strange[0])


def as_they_are(dropped: list[str], kept: list[str]) -> list[str]:
    return kept


def thin(path: Path, drop: Drop) -> None:
    """Drop half of the older half of the file's steps, until FILLED of LIMIT is left. The first step and the last two
    stay, whatever their size."""
    lines = [text for text in path.read_text(encoding="utf-8").split("\n") if text]
    while sum(len(text.encode()) + 1 for text in lines) > FILLED * LIMIT:
        steps = list(dict.fromkeys(_step_of(text) for text in lines))
        older = steps[: len(steps) // 2]
        leaving = set(older) - _spread(older)
        if not leaving:
            break
        kept = [text for text in lines if _step_of(text) not in leaving]
        lines = drop([text for text in lines if _step_of(text) in leaving], kept)
    _replace(path, lines)


def _spread(steps: list[int]) -> set[int]:
    """Half of the steps, the first one among them, as evenly spread over the run as they can be. Of a file that is
    thinned often, every second line would leave the run's end alone: a step's chance to stay would halve each time."""
    count = (len(steps) + 1) // 2
    spread = set(steps[:1])
    for i in range(1, count):
        wanted = steps[0] + (steps[-1] - steps[0]) * i / (count - 1)
        place = bisect_left(steps, wanted)
        spread.add(min(steps[max(0, place - 1) : place + 1], key=lambda step: abs(step - wanted)))
    return spread


def _step_of(text: str) -> int:
    match = _STEP.match(text)
    return int(match[1]) if match else -1


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Rewrite the file in one piece: a kill leaves the old one or the new one."""
    whole = path.with_suffix(".partial")
    whole.write_text("".join(text + "\n" for text in lines), encoding="utf-8", errors="backslashreplace")
    whole.replace(path)
