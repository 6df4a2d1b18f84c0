"""Loads rows from files, hub names, reasoning-gym tasks and objects. Errors name the file and the row."""

from __future__ import annotations

import base64
import datetime
import difflib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from cohort.config.hub import cache_without_hub, not_loaded
from cohort.data.files import FILE_KINDS, Records, records_of_file
from cohort.data.forms import PROMPTS, in_columns, tell_form
from cohort.data.messages import checked_text, in_turns
from cohort.progress import Task
from cohort.types import Row, Text, UserError, did_you_mean

log = logging.getLogger("cohort")

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> the words by which `datasets` knows its files."""
CONVERSATIONS = ("messages", "conversations")


def load_rows(
    spec: Any,
    *,
    split: str = "train",
    columns: dict[str, str] | None = None,
    system_prompt: str | None = None,
    max_samples: int | None = None,
    dataset_kwargs: dict[str, Any] | None = None,
) -> list[Row]:
    """Rows of a path, a hub name, `reasoning_gym:TASK`, a datasets.Dataset or a list of dicts.

    `columns` maps our column to the data's ({"prompt": "question"}). `system_prompt` makes plain prompts
    conversational ("" adds no system turn). Raises UserError naming file and row for invalid data.
    """
    rows: list[Row] = []
    with Task(f"reading dataset {_name(spec)}"):
        for where, record in read_records(spec, split, dataset_kwargs or {}):
            if not rows and isinstance(record, dict):
                tell_form({**record, **{ours: record.get(theirs) for ours, theirs in (columns or {}).items()}}, where)
            rows.append(make_row(record, where, columns or {}, system_prompt))
            if max_samples is not None and len(rows) == max_samples:
                break
    if not rows:
        raise UserError(f"dataset {_name(spec)} is empty: it needs at least one row")
    return rows


def as_rows(dataset: Any, most: int = 0, columns: dict[str, str] | None = None) -> list[Row]:
    """The rows of a trainer's dataset: rows, or what load_rows takes. Of one without a length, which may be endless,
    the first `most` are read. Raises UserError for an IterableDataset if `most` is not positive."""
    if isinstance(dataset, list) and dataset and isinstance(dataset[0], Row):
        return dataset
    endless = isinstance(dataset, Iterable) and not isinstance(dataset, str | Path) and not hasattr(dataset, "__len__")
    if endless and most > 0:
        log.info("the dataset has no length: its first %d rows are read, enough for max_steps", most)
        return load_rows(dataset, max_samples=most, columns=columns)
    if endless and type(dataset).__name__ == "IterableDataset":
        raise UserError(
            "the dataset is an IterableDataset, which has no length: set max_steps, and give an eval_dataset as a list"
        )
    return load_rows(dataset, columns=columns)


def numbered(rows: list[Row]) -> list[Row]:
    """The rows with their places in the training data."""
    return [replace(row, number=i) for i, row in enumerate(rows)]


def _name(spec: Any) -> str:
    return repr(spec) if isinstance(spec, str | Path) else f"of type {type(spec).__name__}"


def read_records(spec: Any, split: str = "train", kwargs: dict[str, Any] | None = None) -> Records:
    """The records of a path, a hub name, a task or an object, before they become rows."""
    kwargs = kwargs or {}
    if isinstance(spec, Path):
        spec = str(spec)
    if not isinstance(spec, str):
        return _from_object(spec)
    if spec.startswith("reasoning_gym:"):
        return _from_reasoning_gym(spec.partition(":")[2], kwargs)
    path = Path(spec).expanduser()
    if path.is_file():
        return records_of_file(path)
    if path.is_dir():
        return _from_folder(path, split)
    check_source(spec)
    return _from_hub(spec, split, kwargs)


def check_source(spec: str) -> None:
    """Raise UserError for a missing path: a name that looks like a path, not like one on the hub."""
    path = Path(spec).expanduser()
    if path.exists() or spec.startswith("reasoning_gym:"):
        return
    if spec.startswith((".", "/", "~")) or path.suffix in FILE_KINDS or spec.count("/") > 1:
        raise UserError(f"dataset {spec!r}: no such file or directory{_near(path)}")


def _near(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {str(path.parent / close[0])!r}?" if close else ""


def _from_object(spec: Any) -> Records:
    for method, arguments in (("to_dicts", ()), ("to_pylist", ()), ("to_dict", ("records",))):
        # Tables: polars, pyarrow, pandas. A datasets.Dataset is read row by row.
        if hasattr(spec, method) and hasattr(spec, "columns") and not hasattr(spec, "features"):
            spec = getattr(spec, method)(*arguments)
            break
    if isinstance(spec, dict) or not isinstance(spec, Iterable):
        raise UserError(
            f"the dataset is a {type(spec).__name__}: give a path, a hub name, a datasets.Dataset or a list of dicts"
        )
    return ((f"row {i}", record) for i, record in enumerate(spec, 1))


def _from_folder(path: Path, split: str) -> Records:
    """Records of a directory of data files, or of one written by `datasets.save_to_disk`."""
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import DatasetDict, load_from_disk

        saved = load_from_disk(str(path))
        if isinstance(saved, DatasetDict):
            if split not in saved:
                raise UserError(f"{path}: no split {split!r}; it has {', '.join(saved)}: set dataset_split")
            saved = saved[split]
        return ((f"{path.name} row {i}", record) for i, record in enumerate(saved, 1))
    files = sorted(p for p in path.iterdir() if p.suffix in FILE_KINDS)
    if not files:
        raise UserError(f"{path}: no data files in this directory; it needs {', '.join(FILE_KINDS)} files")
    return (pair for file in _of_split(path, files, split) for pair in records_of_file(file))


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """The files of a split where names say of which they are, as train-00000.parquet does; else all. Raises UserError
    where they name other splits."""
    splits = {file: _split_of(file) for file in files}
    if not any(splits.values()):
        return files
    wanted = [file for file in files if splits[file] == split]
    if not wanted:
        there = ", ".join(dict.fromkeys(filter(None, splits.values())))
        raise UserError(f"{folder}: no file of split {split!r}, but of {there}: set the split, or name one file")
    if left := [file.name for file in files if file not in wanted]:
        log.info("%s: split %s is %s; not read: %s", folder, split, ", ".join(f.name for f in wanted), ", ".join(left))
    return wanted


def _split_of(file: Path) -> str | None:
    """The split that a file's name says, by the words that `datasets` reads."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((split for split, names in SPLITS.items() if set(names) & set(words)), None)


def _from_hub(name: str, split: str, kwargs: dict[str, Any]) -> Records:
    from datasets import load_dataset

    try:
        with cache_without_hub(name):
            loaded = load_dataset(name, split=split, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        reason = not_loaded(name, error)
        raise UserError(
            f"dataset {name!r} is no file here{_near(Path(name))}, and could not be loaded from the hub: {reason}"
        ) from error
    return ((f"{name} {split} row {i}", record) for i, record in enumerate(loaded, 1))


def _from_reasoning_gym(task: str, kwargs: dict[str, Any]) -> Records:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UserError("reasoning_gym tasks need the package: pip install 'cohort-rl[reasoning-gym]'") from None
    if task not in DATASETS:
        raise UserError(f"reasoning_gym has no task {task!r}{did_you_mean(task, DATASETS)}")
    try:
        dataset = reasoning_gym.create_dataset(task, **kwargs)
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"reasoning_gym:{task} refuses dataset_kwargs {kwargs}: {error}") from None
    for i, entry in enumerate(dataset, 1):
        record = {
            "prompt": entry["question"],
            "answer": entry["answer"],
            "reasoning_gym_task": task,
            "reasoning_gym_entry": json.dumps(entry, default=str),
        }
        yield f"reasoning_gym:{task} row {i}", record


def make_row(record: Any, where: str, columns: dict[str, str], system_prompt: str | None) -> Row:
    """A record as a row; `columns` maps our column to the record's. Raises UserError for an invalid record."""
    mapped = in_columns(mapped_record(record, where, columns), where)
    name = next((name for name in PROMPTS if mapped.get(name) is not None), None)
    if name is None and (null := next((name for name in PROMPTS if name in mapped), None)) is not None:
        raise UserError(f"{where}: `{null}` is null or NaN: give it some text, or leave the row out")
    if name is None:
        raise UserError(
            f"{where}: no prompt column; it has {', '.join(map(str, record)) or 'no columns'}. Name it `prompt`, or "
            "map it: `columns: {prompt: your_column}`"
        )
    prompt, completion = _prompt_and_completion(mapped, name, where)
    others = {k: v for k, v in mapped.items() if k not in (name, "prompt", "completion") or k in columns.values()}
    row = Row(prompt, completion, others, where, name in CONVERSATIONS)
    plain = isinstance(prompt, str) and (system_prompt is None or not prompt)
    return row if plain else in_turns(row, system_prompt or "")


def mapped_record(record: Any, where: str, columns: dict[str, str]) -> dict[str, Any]:
    """The record with its values as JSON has them, and `columns` beside its own. Raises UserError for one that is no
    object, or lacks a column that is mapped."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with columns, found {type(record).__name__}: {str(record)[:80]}")
    record = plain_record(record, where)
    return {**record, **{ours: _found(record, ours, theirs, where) for ours, theirs in columns.items()}}


def _found(record: dict[str, Any], ours: str, theirs: str, where: str) -> Any:
    """The value of a column, or of a place inside one: `reward_model.ground_truth`, `choices.0`."""
    if theirs in record:
        return record[theirs]
    value: Any = record
    for part in theirs.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise UserError(
                f"{where}: no column {theirs!r} (columns: {{{ours}: {theirs}}}); it has {', '.join(record)}"
            )
    return value


def plain_record(record: dict[Any, Any], where: str) -> dict[str, Any]:
    return {str(name): plain_value(value, f"{where}: `{name}`") for name, value in record.items()}


def plain_value(value: Any, where: str) -> Any:
    """The value as JSON has it, which a checkpoint can hold: None for NaN, NaT and NA, as which pandas writes missing
    values; dates in ISO form, decimals and bytes as text; Python's numbers and lists for numpy's. Other objects are
    unchanged. Raises UserError for text that is not Unicode."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where} holds half of a surrogate pair, {value[error.start : error.end]!r}, at character "
                f"{error.start}, which is no text: mend the data"
            ) from None
        return value
    if isinstance(value, dict):
        return {key: plain_value(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item, where) for item in value]
    if type(value).__module__ == "numpy":
        return plain_value(value.tolist(), where)
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal | datetime.timedelta):
        return str(value)
    return _text_of_bytes(bytes(value)) if isinstance(value, bytes | bytearray) else value


def _text_of_bytes(value: bytes) -> str:
    """The bytes as UTF-8 text, or, where they are none, in base64."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def _prompt_and_completion(record: dict[str, Any], name: str, where: str) -> tuple[Text, Text | None]:
    """The record's prompt, from its column `name`, and its completion: a conversation's last turn if it has none."""
    prompt, completion = checked_text(record[name], where, name), record.get("completion")
    if completion is not None:
        completion = checked_text(completion, where, "completion")
        if isinstance(completion, list) and completion[-1]["role"] != "assistant":
            raise UserError(f"{where}: `completion` ends with the {completion[-1]['role']}'s turn, not the assistant's")
    if isinstance(prompt, str):
        if name in CONVERSATIONS:
            raise UserError(f"{where}: `{name}` is text {prompt[:60]!r}; it must be a list of messages")
        more = record.get("input") if name == "instruction" else None
        return f"{prompt}\n{more}" if more else prompt, completion
    if name in CONVERSATIONS and prompt[-1]["role"] == "assistant" and completion is None:
        if len(prompt) == 1:
            raise UserError(f"{where}: `{name}` is one assistant turn: there is no question before the answer")
        return prompt[:-1], prompt[-1:]
    return prompt, completion
