"""Loads rows from files, hub names, reasoning-gym tasks and objects. Errors name the file and the row."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cohort.data.messages import checked_text, in_turns
from cohort.data.preferences import with_prompt
from cohort.types import Row, Text, UserError, did_you_mean

PROMPT_COLUMNS = ("prompt", "question", "problem", "query", "instruction", "messages", "conversations")
"""Columns that can hold the prompt; the first that a record has is used."""
CONVERSATIONS = ("messages", "conversations")
FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")

Records = Iterator[tuple[str, Any]]
"""(location, record) pairs, such as ("train.jsonl row 3", {...})."""


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
    rows = []
    for where, record in read_records(spec, split, dataset_kwargs or {}):
        rows.append(make_row(record, where, columns or {}, system_prompt))
        if max_samples is not None and len(rows) == max_samples:
            break
    if not rows:
        raise UserError(f"dataset {_name(spec)} is empty: it needs at least one row")
    return rows


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
        return _from_file(path)
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
    if isinstance(spec, dict) or not isinstance(spec, Iterable):
        raise UserError(
            f"the dataset is a {type(spec).__name__}: give a path, a hub name, a datasets.Dataset or a list of dicts"
        )
    return ((f"row {i}", record) for i, record in enumerate(spec, 1))


def _from_file(path: Path) -> Records:
    if path.suffix == ".jsonl":
        return _from_jsonl(path)
    if path.suffix == ".json":
        return _from_json(path)
    if path.suffix in (".csv", ".parquet"):
        return _from_table(path)
    raise UserError(f"{path}: {path.suffix or 'no'} extension is not supported; use {', '.join(FILE_KINDS)}")


def _from_jsonl(path: Path) -> Records:
    with open(path, encoding="utf-8") as file:
        number = 0
        for line_number, line in enumerate(_decoded(file, path), 1):
            if not line.strip():
                continue
            number += 1
            try:
                yield f"{path.name} row {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path} line {line_number}: not valid JSON ({error.msg}): {line[:80]!r}") from None


def _decoded(file: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None


def _from_json(path: Path) -> Records:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line must be named .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path} line {error.lineno}: not valid JSON ({error.msg}){hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from None
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects, found {type(content).__name__}")
    return ((f"{path.name} row {i}", record) for i, record in enumerate(content, 1))


def _from_table(path: Path) -> Records:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        read = pyarrow.csv.read_csv if path.suffix == ".csv" else pyarrow.parquet.read_table
        table = read(path)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(f"{path}: not readable as {path.suffix[1:]}: {error}") from None
    return ((f"{path.name} row {i}", record) for i, record in enumerate(table.to_pylist(), 1))


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
    return (pair for file in files for pair in _from_file(file))


def _from_hub(name: str, split: str, kwargs: dict[str, Any]) -> Records:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, split=split, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
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
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with columns, found {type(record).__name__}: {str(record)[:80]}")
    record = without_missing(record)
    for ours, theirs in columns.items():
        if theirs not in record:
            raise UserError(
                f"{where}: no column {theirs!r} (columns: {{{ours}: {theirs}}}); it has {', '.join(record)}"
            )
    mapped = {**record, **{ours: record[theirs] for ours, theirs in columns.items()}}
    mapped = with_prompt(mapped)
    name = next((name for name in PROMPT_COLUMNS if mapped.get(name) is not None), None)
    if name is None and (null := next((name for name in PROMPT_COLUMNS if name in mapped), None)) is not None:
        raise UserError(f"{where}: `{null}` is null or NaN: give it some text, or leave the row out")
    if name is None:
        raise UserError(
            f"{where}: no prompt column; it has {', '.join(map(str, record)) or 'no columns'}. Name it `prompt`, or "
            "map it: `columns: {prompt: your_column}`"
        )
    prompt, completion = _prompt_and_completion(mapped, name, where)
    others = {k: v for k, v in mapped.items() if k not in (name, "prompt", "completion") or k in columns.values()}
    row = Row(prompt, completion, others, where, name in CONVERSATIONS)
    return row if system_prompt is None and isinstance(prompt, str) else in_turns(row, system_prompt or "")


def without_missing(value: Any) -> Any:
    """The value with None for NaN, NaT and NA, as which pandas writes missing values, and with Python's own numbers and
    lists for numpy's."""
    if isinstance(value, dict):
        return {key: without_missing(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_missing(item) for item in value]
    if type(value).__module__ == "numpy":
        return without_missing(value.tolist())
    is_missing = isinstance(value, float) and value != value
    return None if is_missing or type(value).__name__ in ("NAType", "NaTType") else value


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
