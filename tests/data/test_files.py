"""Files, tables and streams as people bring them."""

# ruff: noqa: E501

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort import GRPOConfig, GRPOTrainer, RewardConfig
from cohort.data.check import check_file
from cohort.data.dataset_info import entry_rows, find_entries
from cohort.data.labels import label
from cohort.data.rows import load_rows
from cohort.train.reward_models.trainer import RewardTrainer
from cohort.types import Row, UserError
from helpers import build_tokenizer, small_model

BOM = "\ufeff"
ROW = {"prompt": "1+1=", "answer": "2"}


def written(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", BOM + json.dumps(ROW) + "\n"),
        ("a.json", BOM + json.dumps([ROW])),
        ("a.json", json.dumps({"version": 3, "data": [ROW]})),
        ("a.json", json.dumps({"train": [ROW], "languages": ["en"], "empty": []})),
        ("a.csv", BOM + "prompt,answer\n1+1=,2\n"),
        ("a.csv", "prompt,answer\r\n1+1=,2\r\n\r\n"),
    ],
)
def test_forms_of_a_file(name: str, content: str, tmp_path: Path) -> None:
    (row,) = load_rows(written(tmp_path, name, content))
    assert (row.prompt, row.columns) == ("1+1=", {"answer": "2"})
    assert check_file(tmp_path / name, {}).problems == []


def test_a_csv_cell_is_text_as_it_stands(tmp_path: Path) -> None:
    content = 'prompt,answer,note\n"a, ""b""\nc",12:30,\nq,12345678901234567890,1.50\nr,2020-01-02,true\ns,null,NaN\n'
    rows = load_rows(written(tmp_path, "a.csv", content))
    assert rows[0].prompt == 'a, "b"\nc'
    assert [row.columns["answer"] for row in rows] == ["12:30", "12345678901234567890", "2020-01-02", "null"]
    assert [row.columns["note"] for row in rows] == ["", "1.50", "true", "NaN"]


def test_a_label_in_a_csv_file_is_a_number(tmp_path: Path) -> None:
    rows = load_rows(written(tmp_path, "a.csv", "prompt,completion,label\na,b,1\na,c,0.5\na,d,False\na,e,x\n"))
    assert [label(row) for row in rows[:3]] == [1.0, 0.5, 0.0]
    with pytest.raises(UserError, match=r"a.csv row 4: `label` holds 'x'; it must be a finite number"):
        label(rows[3])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,answer\na,b\nc\n", r"a.csv row 2, line 3: 1 cells, and the header has 2 columns"),
        ("a.csv", "prompt,answer\na,b,c\n", r"a.csv row 1, line 2: 3 cells"),
        ("a.csv", "prompt,prompt\na,b\n", "two columns are named 'prompt'"),
        ("a.csv", 'prompt\n"a\n', "line 2: not readable as csv"),
        ("a.csv", b"prompt\n\xff\n", "not UTF-8"),
        ("a.json", '{"a": [{"prompt": "x"}], "b": [{"prompt": "y"}]}', "found lists of objects under a, b"),
        ("a.json", '{"prompt": "x"}', "expected a list of objects, found dict with prompt"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"a":' * 100_000, r"line 1: the JSON is nested too deeply"),
        ("a.jsonl", '{"prompt": ' + "9" * 5000 + "}", "line 1: not readable as JSON"),
        ("a.jsonl", '{"prompt": "a\\ud800b"}', r"a.jsonl row 1: `prompt` holds half of a surrogate pair, '.ud800', at character 1"),
        ("a.jsonl", '{"prompt": "a", "answer": ["\\udc00"]}', "a.jsonl row 1: `answer` holds half of a surrogate pair"),
        ("a.parquet", b"PAR1 and no more", "not readable as parquet"),
        ("a.parquet", b"", "not readable as parquet"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_told_with_their_place(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_rows(written(tmp_path, name, content))


def test_a_parquet_file_damaged_in_its_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [f"question {i}" for i in range(1000)]}), path)
    data = bytearray(path.read_bytes())
    for i in range(4, 400):
        data[i] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"a.parquet: not readable as parquet: .* The file may be damaged"):
        load_rows(str(path))


def test_values_that_json_has_not_become_text(tmp_path: Path) -> None:
    table = pyarrow.table({
        "prompt": ["1+1="], "day": [datetime.date(2020, 1, 2)], "at": [datetime.datetime(2020, 1, 2, 3, 4)], "price": [Decimal("1.50")],
        "raw": [b"text"], "image": [b"\xff\xd8"], "nested": [{"x": [Decimal("2")]}], "ratio": [float("nan")],
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = load_rows(str(tmp_path / "a.parquet"))
    assert row.columns == {
        "day": "2020-01-02", "at": "2020-01-02T03:04:00", "price": "1.50", "raw": "text", "image": "/9g=",
        "nested": {"x": ["2"]}, "ratio": None,
    }  # fmt: skip
    json.dumps(row.columns)


@pytest.mark.parametrize("table", [pandas.DataFrame, pyarrow.Table.from_pylist, datasets.Dataset.from_list])
def test_tables_are_read_row_by_row(table: Callable[[list[dict[str, str]]], Any]) -> None:
    rows = load_rows(table([ROW, {"prompt": "2+2=", "answer": "4"}]))
    assert [(row.prompt, row.columns) for row in rows] == [("1+1=", {"answer": "2"}), ("2+2=", {"answer": "4"})]


def test_columns_inside_columns_are_named_by_their_path() -> None:
    record = {
        "prompt": "p",
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "choices": ["a", "b"],
        "a.b": "dot",
    }
    (row,) = load_rows([record], columns={"answer": "reward_model.ground_truth", "first": "choices.0", "own": "a.b"})
    assert (row.columns["answer"], row.columns["first"], row.columns["own"]) == ("72", "a", "dot")
    for path in ("reward_model.truth", "choices.2", "choices.x", "prompt.x"):
        with pytest.raises(UserError, match=f"row 1: no column '{path}'"):
            load_rows([record], columns={"answer": path})


def endless() -> Iterator[dict[str, str]]:
    for i in itertools.count():
        yield {"prompt": f"{i}+1=", "answer": str(i + 1)}


def test_an_endless_dataset_is_read_as_far_as_the_run_goes(tmp_path: Path) -> None:
    config = GRPOConfig(
        str(tmp_path), max_steps=2, num_generations=2, per_device_train_batch_size=4, max_completion_length=3, apply_chat_template=False
    )  # fmt: skip
    stream = datasets.IterableDataset.from_generator(endless)
    trainer = GRPOTrainer(small_model(), "accuracy", config, stream, processing_class=build_tokenizer())
    assert len(trainer.rows) == 8
    trainer.train()
    assert trainer.state.global_step == 2
    with pytest.raises(UserError, match="has no length: set max_steps"):
        RewardTrainer(small_model(), RewardConfig(str(tmp_path)), stream)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_name": 3}, "file_name is '3'; it must be text"),
        ({"file_name": "a.json", "columns": ["prompt"]}, "columns is .*; it must be an object"),
        ({"file_name": "a.json", "columns": {"prompt": 1}}, "columns 'prompt' is '1'; it must be a name"),
        ({"file_name": "a.json", "tags": {"role_tag": None}}, "tags 'role_tag' is 'None'; it must be a name"),
        ({"file_name": "a.json", "num_samples": "all"}, "num_samples is 'all'; it must be a whole number"),
        ({"file_name": "a.json", "ranking": "yes"}, "ranking is 'yes'; it must be true or false"),
        ({"file_name": "a.json", "formatting": 1}, "formatting is '1'; it must be text"),
    ],
)
def test_wrong_types_in_dataset_info_are_told(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    written(tmp_path, "dataset_info.json", BOM + json.dumps({"it": entry}))
    with pytest.raises(UserError, match=f"dataset_info.json, data set 'it': {message}"):
        find_entries("it", str(tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "messages", "role", "content", "answer", "completion", "chosen", "rejected", "tools"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
CONTENT = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.lists(JSON, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)


def reads(kind: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever a file holds, it is rows of text or a UserError."""
    path = tmp_path_factory.getbasetemp() / f"any{kind}"
    path.write_bytes(content)
    with suppress(UserError):
        for row in load_rows(str(path)):
            assert isinstance(row, Row)
            json.dumps([row.prompt, row.completion, row.columns]).encode()
    with suppress(UserError):
        check_file(path, {})
    path.with_name("dataset_info.json").write_bytes(content)
    with suppress(UserError):
        for entry in find_entries("prompt,answer", str(path.parent)):
            entry_rows(entry, max_samples=None, system_prompt=None, seed=0)


ANY = given(st.sampled_from([".json", ".jsonl", ".csv", ".parquet"]), CONTENT)
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@settings(max_examples=100, **QUIET)
@ANY
def test_any_file_is_rows_or_told(tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes) -> None:
    reads(kind, content, tmp_path_factory)


@pytest.mark.slow
@settings(max_examples=10_000, **QUIET)
@ANY
def test_any_file_is_rows_or_told_often(tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes) -> None:
    reads(kind, content, tmp_path_factory)
