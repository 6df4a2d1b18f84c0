"""A check of a file's rows: the invalid ones, the forms they are read as, and the methods that can use them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohort.data.dataset_info import Entry, entry_row
from cohort.data.files import parsed
from cohort.data.rows import make_row, read_records
from cohort.types import Row, UserError


@dataclass
class FileCheck:
    """The result of `cohort data check`."""

    rows: int = 0
    problems: list[str] = field(default_factory=list)
    """A message for each invalid row."""
    columns: Counter[str] = field(default_factory=Counter)
    """Column name -> rows that have it."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Number of plain and of conversational prompts."""
    repeated: int = 0
    """Rows that repeat an earlier prompt."""


def check_file(
    path: Path, columns: dict[str, str], needs: tuple[str, ...] = (), entry: Entry | None = None
) -> FileCheck:
    """Check every row of a file; an invalid row does not stop the check. `needs`: columns that a row must have, or
    `completion`. Raises UserError if the file cannot be read."""
    result, seen = FileCheck(), set()
    for where, record in _every_record(path):
        result.rows += 1
        try:
            if isinstance(record, UserError):
                raise record
            row = make_row(record, where, columns, None) if entry is None else entry_row(record, entry, where)
            _check_row(row, needs)
        except UserError as error:
            result.problems.append(str(error))
            continue
        result.columns.update(name for name, value in row.columns.items() if value is not None)
        result.columns.update(["completion"] * (row.completion is not None))
        result.kinds["plain" if isinstance(row.prompt, str) else "conversational"] += 1
        key = json.dumps(row.prompt, sort_keys=True, default=str)
        result.repeated += key in seen
        seen.add(key)
    return result


def _check_row(row: Row, needs: tuple[str, ...]) -> None:
    texts = [row.prompt] if isinstance(row.prompt, str) else [str(message["content"]) for message in row.prompt]
    if not any(text.strip() for text in texts):
        raise UserError(f"{row.source}: the prompt is empty")
    for name in needs:
        value = row.completion if name == "completion" else row.columns.get(name)
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{row.source}: no {name}; it has {', '.join(row.columns) or 'a prompt only'}")


def _every_record(path: Path) -> Iterator[tuple[str, Any]]:
    """(location, record) of each line. A line that is not valid JSON gives a UserError as its record, so that the later
    lines are checked too."""
    if path.suffix != ".jsonl":
        yield from read_records(str(path))
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                if "\ufffd" in line:
                    raise UserError(f"{where}: not UTF-8 text")
                yield where, parsed(line, where)
            except UserError as error:
                yield where, error
