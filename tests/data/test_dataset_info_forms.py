"""Rows of dataset_info.json entries: which columns are read, system texts, pairs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cohort.data.dataset_info import entry_rows, find_entries
from cohort.types import Row, UserError


def rows(folder: Path, entry: dict[str, Any], *records: dict[str, Any], system: str | None = None) -> list[Row]:
    (folder / "dataset_info.json").write_text(json.dumps({"it": {"file_name": "it.json", **entry}}))
    (folder / "it.json").write_text(json.dumps(records))
    return entry_rows(find_entries("it", str(folder))[0], max_samples=None, system_prompt=system, seed=0)


def texts(row: Row) -> list[str]:
    assert isinstance(row.prompt, list)
    return [f"{turn['role']}: {turn['content']}" for turn in row.prompt]


ALPACA = {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["h", "k"]]}
READ = [
    ({}, ["system: s", "user: h", "assistant: k", "user: q\ni"]),
    ({"prompt": "instruction", "response": "output"}, ["user: q"]),
    ({"prompt": "instruction", "query": "input"}, ["user: q\ni"]),
    ({"prompt": "input", "system": "system"}, ["system: s", "user: i"]),
    ({"prompt": "instruction", "history": "history"}, ["user: h", "assistant: k", "user: q"]),
]


@pytest.mark.parametrize(("columns", "expected"), READ)
def test_an_entry_that_names_columns_reads_these(columns: dict[str, str], expected: list[str], tmp_path: Path) -> None:
    (row,) = rows(tmp_path, {"columns": columns} if columns else {}, ALPACA)
    assert texts(row) == expected


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def test_a_conversations_own_system_turn_comes_before_the_column(tmp_path: Path) -> None:
    entry = {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}}
    own = [{"from": "system", "value": "own"}, human("q"), gpt("a")]
    both, column, neither = rows(
        tmp_path,
        entry,
        {"conversations": own, "system": "column"},
        {"conversations": own[1:], "system": "column"},
        {"conversations": own[1:], "system": ""},
        system="default",
    )
    assert [texts(row)[0] for row in (both, column, neither)] == ["system: own", "system: column", "system: default"]
    (unnamed,) = rows(
        tmp_path, {**entry, "columns": {"messages": "conversations"}}, {"conversations": own[1:], "system": "column"}
    )
    assert texts(unnamed) == ["user: q"]


def test_pairs_of_every_form(tmp_path: Path) -> None:
    alpaca = {"instruction": "q", "chosen": "good", "rejected": "bad"}
    talk = {"conversations": [human("q")], "chosen": gpt("good"), "rejected": gpt("bad")}
    chat = {
        "messages": [{"role": "user", "content": "q"}],
        "chosen": {"role": "assistant", "content": "good"},
        "rejected": {"role": "assistant", "content": "bad"},
    }
    for formatting, record in (("alpaca", alpaca), ("sharegpt", talk), ("openai", chat)):
        (row,) = rows(tmp_path, {"ranking": True, "formatting": formatting}, record)
        assert texts(row) == ["user: q"] and row.completion is None
        sides = [row.columns[side][0]["content"] for side in ("chosen", "rejected")]
        assert sides == ["good", "bad"], formatting


CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
TOOL_CALLS = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
OPENAI = {"role": "assistant", "content": "", "tool_calls": TOOL_CALLS}
REFUSED = [
    ({"formatting": "sharegpt"}, {"conversations": [human("q"), CALL]}, "turn 2 (function_call) calls a tool"),
    (
        {"formatting": "sharegpt"},
        {"conversations": [human("q"), gpt("a"), {"from": "observation", "value": "1"}]},
        "turn 3 (observation) calls a tool or is its result",
    ),
    ({"formatting": "openai"}, {"messages": [{"role": "user", "content": "q"}, OPENAI]}, "turn 2 (assistant) calls"),
    ({"formatting": "openai"}, {"messages": [{"role": "tool", "content": "1"}]}, "turn 1 (tool) calls a tool"),
    (
        {"formatting": "sharegpt", "ranking": True},
        {"conversations": [human("q"), gpt("a")], "chosen": gpt("b"), "rejected": gpt("c")},
        "the conversation of this pair ends with an answer",
    ),
    ({"columns": {"prompt": "instruction", "tools": "tools"}}, ALPACA, "tools are not called in these rows"),
    ({"columns": {"prompt": "instruction", "kto_tag": "label"}}, ALPACA, "there is no stage kto"),
    ({"columns": {"prompt": "instruction", "images": "images"}}, ALPACA, "prompts are text"),
]


@pytest.mark.parametrize(("entry", "record", "message"), REFUSED)
def test_what_is_not_read_is_refused(
    entry: dict[str, Any], record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        rows(tmp_path, entry, record)
    assert message in str(error.value)
