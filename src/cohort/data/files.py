"""Reading records from files: JSON, JSON Lines, CSV and Parquet. Errors name the file and the line or row."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cohort.types import UserError

log = logging.getLogger("cohort")

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")

Records = Iterator[tuple[str, Any]]
"""(location, record) pairs, such as ("train.jsonl row 3", {...})."""


def records_of_file(path: Path) -> Records:
    """The records of a file. Raises UserError for one that cannot be read."""
    readers = {".jsonl": _from_jsonl, ".json": _from_json, ".csv": _from_csv, ".parquet": _from_parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: {path.suffix or 'no'} extension is not supported; use {', '.join(FILE_KINDS)}")
    return readers[path.suffix](path)


def parsed(text: str, where: str) -> Any:
    """The value of a JSON text. `where` begins the messages of UserError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON ({error.msg}): {text[:80]!r}") from None
    except RecursionError:
        raise UserError(f"{where}: the JSON is nested too deeply to be read") from None
    except ValueError as error:  # a whole number of too many digits
        raise UserError(f"{where}: not readable as JSON: {error}") from None


def text_of(path: Path) -> str:
    """The file's text, without a byte order mark. Raises UserError unless it is UTF-8."""
    with open(path, encoding="utf-8-sig") as file:
        return "".join(_decoded(file, path))


def _decoded(file: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _from_jsonl(path: Path) -> Records:
    with open(path, encoding="utf-8-sig") as file:
        number = 0
        for line_number, line in enumerate(_decoded(file, path), 1):
            if line.strip():
                number += 1
                yield f"{path.name} row {number}", parsed(line, f"{path} line {line_number}")


def _from_json(path: Path) -> Records:
    text = text_of(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line must be named .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path} line {error.lineno}: not valid JSON ({error.msg}){hint}") from None
    except (RecursionError, ValueError):
        content = parsed(text, str(path))
    if isinstance(content, dict):
        content = _wrapped(content, path)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects, found {type(content).__name__}")
    return ((f"{path.name} row {i}", record) for i, record in enumerate(content, 1))


def _wrapped(content: dict[str, Any], path: Path) -> list[Any]:
    """The rows of a file such as {"version": 1, "data": [{...}, ...]}: its only list of objects."""
    lists = {key: value for key, value in content.items() if isinstance(value, list) and value}
    lists = {key: value for key, value in lists.items() if all(isinstance(item, dict) for item in value)}
    if len(lists) != 1:
        found = (
            f"lists of objects under {', '.join(lists)}" if lists else f"dict with {', '.join(content) or 'no keys'}"
        )
        raise UserError(f"{path}: expected a list of objects, found {found}")
    ((key, rows),) = lists.items()
    log.info("%s: the rows are the list under %r", path, key)
    return rows


def _from_csv(path: Path) -> Records:
    """Every cell is text, as it stands: a number, a date or a null would change its spelling."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_decoded(file, path), strict=True)
        try:
            header = next(reader, [])
            twice = next((name for i, name in enumerate(header) if name in header[:i]), None)
            if twice is not None:
                raise UserError(f"{path}: two columns are named {twice!r}: rename one")
            number = 0
            for cells in reader:
                if not cells:
                    continue
                number += 1
                where = f"{path.name} row {number}"
                if len(cells) != len(header):
                    raise UserError(
                        f"{where}, line {reader.line_num}: {len(cells)} cells, and the header has {len(header)} "
                        "columns: put a cell that holds a comma or a line break between double quotes"
                    )
                yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num}: not readable as csv: {error}") from None


def _from_parquet(path: Path) -> Records:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
        rows = (record for batch in batches for record in batch.to_pylist())
        for i, record in enumerate(rows, 1):
            yield f"{path.name} row {i}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: not readable as parquet: {reason}. The file may be damaged") from None
