"""The scripts of bench/ on tiny workloads: they keep running as the library changes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT

BENCH = ROOT / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a script of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_every_text_reward_has_a_time_on_hostile_texts(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = script("rewards")
    monkeypatch.setattr(rewards, "SIZE", 100)
    table = "\n".join(rewards.text_table())
    assert all(f"| `{name}` |" in table for name in rewards.TEXT_REWARDS)


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_of_ours_is_measured_by_phases(script: Any, tmp_path: Path, tied: bool) -> None:
    one_step, workloads = script("one_step"), script("workloads")
    workload = workloads.Workload("tiny", 50, 32, 2, 4, 48, 6, 5, 2, kv_heads=1, tied=tied, at_once=8)
    workloads.build(workload, str(tmp_path))
    found = one_step.measure_ours(workload, 3, str(tmp_path), str(tmp_path / "out"))
    assert [len(found[phase]) for phase in ("generate", "score", "update", "step")] == [1, 1, 1, 1]
    assert found["step"][0] >= found["generate"][0] + found["score"][0] + found["update"][0] > 0
    assert 1 <= found["tokens"] <= 5
    if not tied:  # the end token's probability is almost 0
        assert found["tokens"] == found["longest"] == 5


def test_the_floor_counts_a_prompt_once_and_what_attention_sees(script: Any) -> None:
    workload = script("workloads").Workload("tiny", 10, 4, 1, 2, 6, 3, 2, 1, kv_heads=1)
    matrices = 3 * 4 * 6 + 2 * 4 * 4 + 2 * 4 * 2  # gate, up, down; queries and out; keys and values
    completions = 8 * 2
    seen = 3 * 3 / 2 + completions * (3 + 2 / 2)
    forward = 2 * (matrices * (3 + completions) + 4 * 10 * completions + 2 * 4 * seen)
    found = script("floor").floor(workload, 2, 2, 1.0, float("inf"), bf16=False)
    assert found == pytest.approx({"generate": forward, "score": forward, "update": 3 * forward})


def test_the_floor_of_decoding_reads_the_weights_for_each_token_of_the_longest(script: Any) -> None:
    workload = script("workloads").Workload("tiny", 10, 4, 1, 2, 6, 3, 2, 1, kv_heads=1)
    weights = 3 * 4 * 6 + 2 * 4 * 4 + 2 * 4 * 2 + 4 * 10
    for bf16, size in ((False, 4), (True, 2)):
        found = script("floor").floor(workload, 1.5, 2, float("inf"), 100.0, bf16)
        assert found == pytest.approx({"generate": size * weights * 2 / 100, "score": 0, "update": 0})


def test_the_real_models_workload_asks_for_sums(script: Any) -> None:
    workloads = script("workloads")
    real = workloads.WORKLOADS["R"]
    rows = workloads.rows(real, 2)
    assert len(rows) == 8 and len({str(row["prompt"]) for row in rows}) == 8
    for row in rows:
        a, b = map(int, re.findall(r"\d+", row["prompt"][0]["content"]))
        assert row["answer"] == str(a + b) and min(a, b) >= 2 and max(a, b) <= 49
    assert workloads.reward_of(real)([[{"content": "19 + 2"}], [{"content": ""}]]) == [3 / 6, 0]


def test_a_workload_that_cannot_run_here_says_why(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speed, real_model = script("speed"), script("real_model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("cohort.demo.packaged_model.packaged_file", lambda: None)
    assert real_model.real_model() is None
    assert str(tmp_path) in speed.why_not(script("workloads").WORKLOADS["R"])
    assert speed.why_not(script("workloads").WORKLOADS["S"]) is None
