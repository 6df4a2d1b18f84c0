"""Data sets listed in a LLaMA-Factory `dataset_info.json`: rows from alpaca, sharegpt and openai records."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cohort.data.files import FILE_KINDS, parsed, text_of
from cohort.data.rows import plain_record, read_records
from cohort.types import Message, Row, UserError, did_you_mean

log = logging.getLogger("cohort")

FILE = "dataset_info.json"
FORMATS = ("alpaca", "sharegpt", "openai")
COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "chosen": "chosen",
    "rejected": "rejected",
}
"""LLaMA-Factory's name of a column -> the data's, unless an entry sets another."""
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
OPENAI_TAGS = {**TAGS, "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
ENTRY_KEYS = (
    "hf_hub_url",
    "file_name",
    "subset",
    "split",
    "folder",
    "num_samples",
    "ranking",
    "formatting",
    "columns",
    "tags",
)
UNSUPPORTED = {
    "script_url": "loading scripts are not run: save the data as JSON and name it by file_name",
    "ms_hub_url": "ModelScope is not a source: use hf_hub_url or file_name",
    "om_hub_url": "Modelers is not a source: use hf_hub_url or file_name",
    "cloud_file_name": "cloud storage is not a source: use hf_hub_url or file_name",
}
UNSUPPORTED_COLUMNS = ("images", "videos", "audios", "tools", "kto_tag")


TYPES: dict[str, type] = {
    **dict.fromkeys(("file_name", "hf_hub_url", "formatting", "split", "subset", "folder"), str),
    **dict.fromkeys(("columns", "tags"), dict),
    "num_samples": int,
    "ranking": bool,
}
_KINDS = {str: "text", dict: "an object", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True)
class Entry:
    """Entry("math", source="data/math.json", formatting="alpaca", columns={"response": "solution"})"""

    name: str
    source: str
    formatting: str | None = "alpaca"
    """None: guessed from each record."""
    columns: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    split: str = "train"
    kwargs: dict[str, Any] = field(default_factory=dict)
    num_samples: int | None = None
    ranking: bool = False


def find_entries(names: str, folder: str) -> list[Entry]:
    """The entries that `dataset: a,b` names: keys of the folder's dataset_info.json, paths, or hub names. Raises
    UserError for an unknown name or an invalid entry."""
    path = Path(folder) / FILE
    info = _read(path) if path.is_file() else {}
    return [_find(name.strip(), info, path) for name in names.split(",") if name.strip()]


def _read(path: Path) -> dict[str, Any]:
    info = parsed(text_of(path), str(path))
    if not isinstance(info, dict):
        raise UserError(f"{path}: expected an object of data sets, found {type(info).__name__}")
    return info


def _find(name: str, info: dict[str, Any], path: Path) -> Entry:
    if name in info:
        return _entry(name, info[name], path)
    for candidate in (Path(name), path.parent / name):
        if candidate.exists():
            return Entry(name, str(candidate), None)
    hint = did_you_mean(name, info)
    if hint or "/" not in name or name.startswith((".", "/", "~")) or Path(name).suffix in FILE_KINDS:
        problem = f"is no key of {path} and no file" if info else f"is no file, and there is no {path}: set dataset_dir"
        keys = f"; it has {', '.join(info)}" if info else ""
        raise UserError(f"dataset {name!r} {problem}{hint or keys}")
    return Entry(name, name, None)


def _entry(name: str, values: Any, path: Path) -> Entry:
    where = f"{path}, data set {name!r}"
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with file_name or hf_hub_url, found {type(values).__name__}")
    for key, type_ in TYPES.items():
        if values.get(key) is not None and not isinstance(values[key], type_):
            raise UserError(f"{where}: {key} is {str(values[key])[:60]!r}; it must be {_KINDS[type_]}")
    columns, tags = values.get("columns") or {}, values.get("tags") or {}
    for part, mapping in (("columns", columns), ("tags", tags)):
        wrong = next((key for key, value in mapping.items() if not isinstance(value, str)), None)
        if wrong is not None:
            raise UserError(f"{where}: {part} {wrong!r} is {str(mapping[wrong])[:60]!r}; it must be a name")
    if "hf_hub_url" not in values and "file_name" not in values:
        reason = next((UNSUPPORTED[key] for key in UNSUPPORTED if key in values), "it needs file_name or hf_hub_url")
        raise UserError(f"{where}: {reason}")
    for keys, allowed, kind in (
        (values, (*ENTRY_KEYS, *UNSUPPORTED), "key"),
        (columns, (*COLUMNS, *UNSUPPORTED_COLUMNS), "column"),
        (tags, TAGS, "tag"),
    ):
        unknown = next((key for key in keys if key not in allowed), None)
        if unknown is not None:
            raise UserError(f"{where}: unknown {kind} {unknown!r}{did_you_mean(unknown, allowed)}")
    unsupported = next((key for key in UNSUPPORTED_COLUMNS if key in columns), None)
    if unsupported is not None:
        raise UserError(f"{where}: column {unsupported!r} is not supported; {_why(unsupported)}: leave it out")
    formatting = values.get("formatting", "alpaca")
    if formatting not in FORMATS:
        raise UserError(f"{where}: formatting {formatting!r} is not one of {', '.join(FORMATS)}")
    kwargs = {"name": values.get("subset"), "data_dir": values.get("folder")}
    return Entry(
        name,
        values["hf_hub_url"] if "hf_hub_url" in values else str(path.parent / values["file_name"]),
        formatting,
        columns,
        tags,
        values.get("split", "train"),
        {key: value for key, value in kwargs.items() if value is not None} if "hf_hub_url" in values else {},
        values.get("num_samples"),
        bool(values.get("ranking")),
    )


def _why(column: str) -> str:
    reasons = {"tools": "tools are not called in these rows", "kto_tag": "there is no stage kto"}
    return reasons.get(column, "prompts are text")


def entry_rows(entry: Entry, *, max_samples: int | None, system_prompt: str | None, seed: int) -> list[Row]:
    """Conversational rows of one entry. Raises UserError naming file and row for an invalid record."""
    rows = []
    for where, record in read_records(entry.source, entry.split, entry.kwargs):
        rows.append(_with_system(entry_row(record, entry, where), system_prompt))
        if max_samples is not None and len(rows) == max_samples and entry.num_samples is None:
            break
    if not rows:
        raise UserError(f"dataset {entry.name!r} ({entry.source}) is empty: it needs at least one row")
    if entry.num_samples is not None:
        times, rest = divmod(entry.num_samples, len(rows))
        rows = rows * times + random.Random(seed).sample(rows, rest)
    return rows[:max_samples]


def entry_row(record: Any, entry: Entry, where: str) -> Row:
    """A record of the entry as a row. Raises UserError for a record that lacks what the format needs."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with columns, found {type(record).__name__}")
    record = plain_record(record, where)
    formatting = entry.formatting or guess_format(record)
    return _alpaca(record, entry, where) if formatting == "alpaca" else _sharegpt(record, entry, where, formatting)


def guess_format(record: dict[str, Any]) -> str:
    if "messages" in record:
        return "openai"
    return "sharegpt" if "conversations" in record else "alpaca"


def _turns(row: Row) -> list[Message]:
    """The prompt of a row of this module, which is always conversational."""
    assert isinstance(row.prompt, list)
    return row.prompt


def _with_system(row: Row, system_prompt: str | None) -> Row:
    prompt = _turns(row)
    if not system_prompt or prompt[0]["role"] == "system":
        return row
    return replace(row, prompt=[{"role": "system", "content": system_prompt}, *prompt])


def _alpaca(record: dict[str, Any], entry: Entry, where: str) -> Row:
    """A row with one user turn of instruction and input. The output is the completion and stays a column."""
    names = _names(entry)
    for ours in entry.columns:
        if names[ours] not in record:
            raise UserError(f"{where}: no column {names[ours]!r} ({entry.name}'s {ours}); it has {', '.join(record)}")
    question = [record.get(names["prompt"]), record.get(names["query"])]
    if not any(question):
        raise UserError(
            f"{where}: neither {names['prompt']!r} nor {names['query']!r} has text; it has {', '.join(record)}. Name "
            f"the columns in {FILE}: {{columns: {{prompt: ...}}}}"
        )
    messages = _system(record.get(names["system"]))
    for i, pair in enumerate(record.get(names["history"]) or [], 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"{where}: history {i} is {str(pair)[:60]}: it must be a pair of question and answer")
        messages += [_message("user", pair[0], where), _message("assistant", pair[1], where)]
    messages.append(_message("user", "\n".join(str(text) for text in question if text), where))
    answer = record.get(names["response"])
    if isinstance(answer, list):
        raise UserError(
            f"{where}: {names['response']!r} is a list: name its parts as chosen and rejected, and set ranking: true"
        )
    completion = [_message("assistant", answer, where)] if answer not in (None, "") else None
    return Row(messages, completion, _columns(record, entry, names, where), where, conversation=True)


def _names(entry: Entry, messages: str = COLUMNS["messages"]) -> dict[str, str]:
    """LLaMA-Factory's name of a column -> the data's. An entry that names some columns has no input, history or system
    text in others."""
    unread = dict.fromkeys(("query", "history", "system"), "") if entry.columns else {}
    return {**COLUMNS, "messages": messages, **unread, **entry.columns}


def _sharegpt(record: dict[str, Any], entry: Entry, where: str, formatting: str) -> Row:
    """A row from a conversation; its last turn is the completion if it is the assistant's."""
    names = _names(entry, "messages" if formatting == "openai" else COLUMNS["messages"])
    tags = {**(OPENAI_TAGS if formatting == "openai" else TAGS), **entry.tags}
    turns = record.get(names["messages"])
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: {names['messages']!r} is no list of turns; the row has {', '.join(record)}")
    messages = [_turn(turn, tags, where, i) for i, turn in enumerate(turns, 1)]
    if messages[0]["role"] != "system":  # the conversation's own system turn comes before the column
        messages = [*_system(record.get(names["system"])), *messages]
    if entry.ranking and messages[-1]["role"] == "assistant":
        raise UserError(
            f"{where}: the conversation of this pair ends with an answer; it must end with the question that "
            f"{names['chosen']!r} and {names['rejected']!r} answer"
        )
    completion = [messages.pop()] if messages[-1]["role"] == "assistant" else None
    if not messages or messages[-1]["role"] != "user":
        raise UserError(f"{where}: the conversation has no question before its answer")
    columns = _columns(record, entry, names, where, tags)
    if completion is not None and "answer" not in columns and "output" not in columns:
        columns["output"] = completion[0]["content"]
    return Row(messages, completion, columns, where, conversation=True)


def _turn(turn: Any, tags: dict[str, str], where: str, i: int) -> Message:
    role, content = tags["role_tag"], tags["content_tag"]
    if not isinstance(turn, dict) or role not in turn or content not in turn:
        raise UserError(f"{where}: turn {i} is {str(turn)[:80]}; each needs {role!r} and {content!r}")
    if turn[role] in (tags["function_tag"], tags["observation_tag"], "tool") or turn.get("tool_calls"):
        raise UserError(
            f"{where}: turn {i} ({turn[role]}) calls a tool or is its result, which is not read here: leave such rows "
            "out, or write them with `messages` and `tool_calls` as TRL has them, in a configuration with `method`"
        )
    roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system"}
    if turn[role] not in roles:
        raise UserError(
            f"{where}: turn {i} has the role {turn[role]!r}, and the roles are {', '.join(roles)}: name it in `tags`"
        )
    return _message(roles[turn[role]], turn[content], where)


def _columns(
    record: dict[str, Any], entry: Entry, names: dict[str, str], where: str, tags: dict[str, str] | None = None
) -> dict[str, Any]:
    """The record's columns for reward functions; of a ranked row, `chosen` and `rejected` as messages."""
    used = (names["prompt"], names["query"], names["history"], names["messages"], names["system"])
    columns = {key: value for key, value in record.items() if key not in used}
    if names["response"] in columns:
        columns["output"] = columns[names["response"]]
    if not entry.ranking:
        return columns
    for side in ("chosen", "rejected"):
        value = record.get(names[side])
        if value is None:
            raise UserError(f"{where}: ranking data needs {names[side]!r}; the row has {', '.join(record)}")
        turn = _turn(value, tags, where, 1) if tags and isinstance(value, dict) else _message("assistant", value, where)
        columns[side] = [turn]
    return columns


def _message(role: str, content: Any, where: str) -> Message:
    if not isinstance(content, str):
        raise UserError(
            f"{where}: the {role}'s text is {type(content).__name__} {str(content)[:60]!r}: it must be text"
        )
    return {"role": role, "content": content}


def _system(text: Any) -> list[Message]:
    return [{"role": "system", "content": str(text)}] if text else []
