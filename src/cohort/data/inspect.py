"""Inspection of data before training: each row as token ids, lengths, and the invalid rows of a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohort.config import SFTConfig, TrainingConfig
from cohort.data.configured import demonstration_limit, fit_demonstration, fit_prompt, prompt_limit
from cohort.data.dataset_info import Entry, entry_row
from cohort.data.files import parsed
from cohort.data.rows import make_row, read_records
from cohort.data.templates import encode_demonstrations, encode_prompt
from cohort.types import Row, UserError


@dataclass
class EncodedRow:
    """A row as token ids: EncodedRow(row, prompt=[5, 6], completion=[7, 2], fitted=([5, 6], [7, 2]))"""

    row: Row
    prompt: list[int]
    completion: list[int] | None
    """None if completions are sampled during training."""
    fitted: tuple[list[int], list[int] | None] | None
    """(prompt, completion) within the limits; None if the row is dropped."""
    trained: list[bool] | None = None
    """For each token of the completion whether it is trained on; None: all are."""

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion or [])

    @property
    def fate(self) -> str:
        if self.fitted is None:
            return "dropped"
        return "kept" if self.fitted == (self.prompt, self.completion) else "cut"


@dataclass
class Inspection:
    """All rows of a configuration's data as the trainer sees them."""

    rows: list[EncodedRow]
    limit: int
    limited_by: str
    """The key that sets the limit, or "the model's positions"."""


def inspect_rows(rows: list[Row], tokenizer: Any, config: TrainingConfig, context: int, sampled: bool) -> Inspection:
    """`sampled`: completions come from the policy, so only prompts are encoded. `context`: the model's positions.
    Raises UserError for a row that cannot be encoded."""
    kwargs = config.chat_template_kwargs
    if sampled:
        limit = prompt_limit(context, config)
        key = "max_prompt_length" if config.max_prompt_length else "the model's positions"
        encoded = [_encoded_prompt(row, encode_prompt(tokenizer, row, kwargs), limit, config) for row in rows]
        return Inspection(encoded, limit, key)
    limit, key = demonstration_limit(context, config)
    last_only = isinstance(config, SFTConfig) and config.mask_history
    encoded = []
    for row in rows:
        if row.completion is None:
            raise UserError(f"{row.source}: no completion; it has the columns {', '.join(row.columns) or 'prompt'}")
        for each in encode_demonstrations(tokenizer, row, kwargs, last_only):
            fitted = fit_demonstration(each, limit, config.truncation)
            kept = None if fitted is None else (fitted.prompt, fitted.completion)
            encoded.append(EncodedRow(row, each.prompt, each.completion, kept, each.trained))
    return Inspection(encoded, limit, key)


def _encoded_prompt(row: Row, ids: list[int], limit: int, config: TrainingConfig) -> EncodedRow:
    fitted = fit_prompt(ids, limit, config.truncation)
    return EncodedRow(row, ids, None, None if fitted is None else (fitted, None))


def quantiles(lengths: list[int]) -> dict[str, float]:
    """Statistics of at least one length. "95%" is the smallest length that 95% of the rows do not exceed."""
    ordered = sorted(lengths)
    n = len(ordered)
    return {
        "rows": n,
        "min": ordered[0],
        "median": ordered[(n - 1) // 2],
        "mean": sum(ordered) / n,
        "95%": ordered[-(-95 * n // 100) - 1],
        "max": ordered[-1],
    }


def histogram(lengths: list[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """(first length, last length, rows) of at most `bins` equally wide bins from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // bins)
    counts = Counter((length - low) // width for length in lengths)
    return [
        (low + i * width, min(high, low + (i + 1) * width - 1), counts[i]) for i in range((high - low) // width + 1)
    ]


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
