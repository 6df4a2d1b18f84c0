"""The scripts of bench/ on tiny workloads: they keep running as the library changes."""

from __future__ import annotations

import importlib
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
    speed, workloads = script("speed"), script("workloads")
    workload = workloads.Workload("tiny", 50, 32, 2, 4, 48, 6, 5, 2, kv_heads=1, tied=tied, at_once=8)
    workloads.build(workload, str(tmp_path))
    found = speed.measure_ours(workload, 3, str(tmp_path))
    assert [len(found[phase]) for phase in ("generate", "score", "update", "step")] == [1, 1, 1, 1]
    assert found["step"][0] >= found["generate"][0] + found["score"][0] + found["update"][0] > 0
    assert 1 <= found["tokens"] <= 5
    if not tied:  # the end token's probability is almost 0
        assert found["tokens"] == 5


def test_the_floor_counts_a_prompt_once_and_what_attention_sees(script: Any) -> None:
    workload = script("workloads").Workload("tiny", 10, 4, 1, 2, 6, 3, 2, 1, kv_heads=1)
    matrices = 3 * 4 * 6 + 2 * 4 * 4 + 2 * 4 * 2  # gate, up, down; queries and out; keys and values
    completions = 8 * 2
    seen = 3 * 3 / 2 + completions * (3 + 2 / 2)
    forward = 2 * (matrices * (3 + completions) + 4 * 10 * completions + 2 * 4 * seen)
    assert script("speed").floor(workload, 2, 1.0, float("inf"), bf16=False) == pytest.approx(5 * forward)
