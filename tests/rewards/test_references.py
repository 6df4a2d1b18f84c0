"""References that are missing or cannot be read are told before a run, with their rows, and never as Python's text."""

# ruff: noqa: RUF043

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort import GRPOConfig
from cohort.data.chains import build_tokenizer
from cohort.data.check import check_file
from cohort.data.rows import load_rows
from cohort.rewards import accuracy, correctness, facts
from cohort.rewards.check.preflight import preflight
from cohort.rewards.check.references import require_references
from cohort.rewards.compose import Rewards
from cohort.train.trainer import Trainer
from cohort.types import Row, UserError
from helpers import small_model

NAN = float("nan")
SQUAD = {"text": ["Rome"], "answer_start": [3]}
MISSING = [None, "", "  \n", [], [None], ["", None], NAN]


def rows_of(*references: Any, column: str = "answer") -> list[Row]:
    return [Row("?", columns={column: value}, source=f"a.jsonl row {i}") for i, value in enumerate(references, 1)]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("reward", ["accuracy", "correctness", "facts", "choice_accuracy"])
def test_rows_without_a_reference_are_told_at_the_start(missing: Any, reward: str) -> None:
    rows = rows_of(*["A"] * 3, missing, *["B"] * 36)
    with pytest.raises(UserError, match=r"no reward applies to 1 of 40 rows: a.jsonl row 4\. What .* is missing there"):
        require_references(Rewards([reward]), rows)
    assert accuracy(["4"], answer=[missing]) == [None] and correctness(["4"], answer=[missing]) == [None]


def test_the_first_rows_are_named_and_another_reward_may_apply(caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(*["4", ""] * 10)
    with pytest.raises(
        UserError, match=r"10 of 20 rows: a.jsonl row 2, .* row 4, .* row 6, .* row 8, .* row 10, \.\.\."
    ):
        require_references(Rewards(["accuracy"]), rows)
    with caplog.at_level(logging.INFO, "cohort"):
        require_references(Rewards(["accuracy", "format"]), rows)
    (record,) = caplog.records
    assert "accuracy does not apply to 10 of 20 rows" in record.message
    with pytest.raises(UserError, match="no reward applies to 10 of 20 rows"):
        require_references(Rewards(["accuracy", {"name": "format", "weight": 0}]), rows)
    caplog.clear()
    require_references(Rewards(["accuracy"]), [])
    require_references(Rewards(["accuracy"]), rows_of("4", 4, True, ["4", None], 0))
    assert not caplog.records


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (SQUAD, "a reference is a mapping with text, answer_start"),
        ([SQUAD], "a mapping with text"),
        (b"4", "a reference is bytes: b'4'"),
        ([["4"]], "a reference is list"),
        ([{"role": "assistant", "content": "4"}], "a mapping with role, content"),
    ],
)
def test_what_is_no_text_is_told_and_is_no_answer(reference: Any, said: str) -> None:
    with pytest.raises(UserError, match=rf"accuracy cannot read the reference of 2 of 3 rows: a.jsonl row 1, .*{said}"):
        require_references(Rewards(["accuracy", "format"]), rows_of(reference, "4", reference))
    with pytest.raises(UserError, match="only `facts` reads mappings"):
        accuracy(["4"], answer=[reference])


def test_facts_reads_mappings() -> None:
    trivia = {"value": "Rome", "aliases": ["Roma"], "normalized_value": "rome"}
    rows = rows_of(SQUAD, trivia, column="answers")
    require_references(Rewards(["facts"]), rows)
    assert facts(["It is\nRoma"], answers=[trivia]) == [1.0]
    assert preflight(Rewards(["facts"]), rows).problem is None, "the right answer of a mapping is one of its names"
    with pytest.raises(UserError, match="no reward applies to 1 of 2 rows"):
        require_references(Rewards(["facts"]), rows_of(SQUAD, {"text": [], "answer_start": []}))


def test_a_choice_that_is_none_is_told_before_the_run() -> None:
    rows = rows_of("A", "B", "E", " ")
    with pytest.raises(
        UserError, match=r"choice cannot read the reference of 2 of 4 rows: a.jsonl row 3, a.jsonl row 4"
    ):
        require_references(Rewards(["choice"]), rows)
    odd = Row("?", columns={"answer": "A", "choices": {"label": ["A", "B"], "text": ["x"]}}, source="b row 1")
    with pytest.raises(UserError, match="choice cannot read the reference of 1 of 1 rows: b row 1"):
        require_references(Rewards(["choice"]), [odd])


def test_tests_and_entries_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cohort.rewards.functions.code.UnitTests.start", lambda self: None)
    rows = rows_of(["assert f(1)"], None, [], column="test_list")
    with pytest.raises(UserError, match="no reward applies to 2 of 3 rows: a.jsonl row 2, a.jsonl row 3"):
        require_references(Rewards(["unit_tests"]), rows)
    gym = Row("?", columns={"reasoning_gym_task": "chain_sum", "reasoning_gym_entry": "{}"})
    with pytest.raises(UserError, match="no reward applies to 1 of 2 rows: row 2"):
        require_references(Rewards(["reasoning_gym"]), [gym, Row("?")])


def test_empty_prompts_are_told() -> None:
    rows = [Row("a"), Row(" \n", source="b row 2"), Row([{"role": "user", "content": None}], source="b row 3")]
    with pytest.raises(UserError, match="the prompt of 2 of 3 rows is empty: b row 2, b row 3"):
        require_references(Rewards(["format"]), rows)


def test_nan_is_missing_in_data_of_any_kind(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": [4.0, NAN]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "answer": 4}\n{"prompt": "b", "answer": [NaN]}\n')
    records = [{"prompt": "a", "answer": np.int64(4)}, {"prompt": "b", "answer": np.array([NAN])}]
    for spec in (tmp_path / "a.parquet", tmp_path / "a.jsonl", records):
        first, second = (row.columns["answer"] for row in load_rows(spec))
        assert first == 4 and type(first) in (int, float) and second in (None, [None])
        with pytest.raises(UserError, match="no reward applies to 1 of 2 rows: .*row 2"):
            require_references(Rewards(["accuracy"]), load_rows(spec))
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"}\n{"prompt": NaN, "answer": "4"}\n')
    with pytest.raises(UserError, match="b.jsonl row 2: `prompt` is null or NaN: give it some text"):
        load_rows(tmp_path / "b.jsonl")


def test_checking_a_file_finds_empty_references(tmp_path: Path) -> None:
    values = ["4", "", " ", [], None, NAN]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": "a", "answer": value}) + "\n" for value in values))
    assert len(check_file(tmp_path / "a.jsonl", {}, ("answer",)).problems) == 5


def test_the_text_nan_is_a_text() -> None:
    assert accuracy(["<answer>nan</answer>"], answer=["nan"]) == [1.0]
    assert accuracy(["<answer>nan</answer>"], answer=[NAN]) == [None]
    assert facts(["nan"], answer=[NAN]) == [None]


@pytest.mark.parametrize("preflight", [True, False])
def test_a_run_does_not_start(tmp_path: Path, preflight: bool) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": "1+1=", "answer": a}) + "\n" for a in ("2", "")))
    config = GRPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, reward_preflight=preflight)
    arguments: dict[str, Any] = {"processing_class": build_tokenizer(), "args": config}
    with pytest.raises(UserError, match="no reward applies to 1 of 2 rows: a.jsonl row 2"):
        Trainer(small_model(), "accuracy", train_dataset=str(tmp_path / "a.jsonl"), **arguments)
    good = [{"prompt": "1+1=", "answer": "2"}]
    with pytest.raises(UserError, match="no reward applies to 1 of 1 rows: row 1"):
        Trainer(
            small_model(), "accuracy", train_dataset=good, eval_dataset=[{"prompt": "a", "answer": None}], **arguments
        )


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = st.dictionaries(st.sampled_from(["answer", "answers", "choices", "options", "aliases", "other"]), VALUES)


def check_any_rows(rows: list[Row], reward: str) -> None:
    rewards = Rewards([reward])
    try:
        require_references(rewards, rows)
    except UserError:
        return
    names = dict.fromkeys(name for row in rows for name in row.columns)
    columns = {name: [row.columns.get(name) for row in rows] for name in names}
    scores = rewards(["?"] * len(rows), ["4"] * len(rows), [[1]] * len(rows), columns)
    assert all(math.isfinite(total) for total in scores.totals), "what the scan lets pass is scored"


REWARDS = st.sampled_from(["accuracy", "correctness", "facts", "choice", "choice_accuracy", "format"])
ROWS = st.lists(st.builds(Row, st.just("?"), columns=COLUMNS), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(ROWS, REWARDS)
def test_the_scan_raises_nothing_but_user_errors(rows: list[Row], reward: str) -> None:
    check_any_rows(rows, reward)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(ROWS, REWARDS)
def test_the_scan_of_many_rows_raises_nothing_but_user_errors(rows: list[Row], reward: str) -> None:
    check_any_rows(rows, reward)
