"""Reads a run's folder: the whole rows of its files, how many lines were unreadable, and where a file was read to."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohort.report.verdict import read_config
from cohort.texts import without_secrets
from cohort.types import UserError

FILES = ("metrics", "completions", "held_out", "groups", "rows", "warnings")
"""Names of the files, which end in .jsonl."""
SIGNS = ("metrics.jsonl", "config.yaml", "settings.json")
"""One of these makes a folder a run's."""
Row = dict[str, Any]


@dataclass
class Lines:
    """The rows of one file."""

    rows: list[Row] = field(default_factory=list)
    skipped: int = 0
    """Whole lines that are no JSON object with a step."""
    place: list[int] = field(default_factory=lambda: [0, 0])
    """[number of the file in the file system, bytes read]: where a later reading goes on."""


def read_lines(path: Path, start: int = 0) -> Lines:
    """The rows from byte `start` on. A last line without its end is left for the next reading."""
    lines = Lines()
    try:
        with open(path, "rb") as file:
            lines.place[0] = path.stat().st_ino
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return lines
    whole = data[: data.rfind(b"\n") + 1]
    lines.place[1] = start + len(whole)
    for line in whole.split(b"\n")[:-1]:
        row = parsed(line)
        if row is None:
            lines.skipped += 1
        else:
            lines.rows.append(row)
    return lines


def parsed(line: bytes) -> Row | None:
    """The row of a line; None where it is no JSON object with a whole, finite step."""
    try:
        row = json.loads(line.decode("utf-8", errors="replace"))
    except (json.JSONDecodeError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def read_object(path: Path) -> Row:
    """The JSON object of a file; empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def configuration(folder: Path) -> Row:
    """The resolved settings without secrets, nested ones by dotted keys."""
    return flat(without_secrets({**read_object(folder / "settings.json"), **read_config(folder)}))


def flat(settings: Row, head: str = "") -> Row:
    """flat({"a": {"b": 1}, "c": 2}) -> {"a.b": 1, "c": 2}"""
    result: Row = {}
    for key, value in settings.items():
        inner = flat(value, f"{head}{key}.") if isinstance(value, dict) and value else {f"{head}{key}": value}
        result |= inner
    return result


def run_folders(path: Path) -> list[Path]:
    """The folder of a run, or those of a comparison's runs. Raises UserError for a path that has neither."""
    if any((path / name).is_file() for name in SIGNS):
        return [path]
    runs = sorted(each.parent for each in path.glob("seed-*/*/metrics.jsonl"))
    if not runs:
        what = "no such folder" if not path.exists() else "a file" if path.is_file() else "no metrics.jsonl in it"
        raise UserError(f"{path}: {what}; give a run's output_dir, where training writes metrics.jsonl")
    return runs


def names_of(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: ["seed-0/grpo", "seed-1/grpo"]."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def plain(value: Any, digits: int = 5) -> Any:
    """The value as JSON has it: numbers at `digits` significant digits, None for those that are not finite."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if isinstance(value, dict):
        return {str(key): plain(inner, digits) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, digits) for inner in value]
    return str(value)
