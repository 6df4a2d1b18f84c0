"""The demo: its files and output after a few steps; and, as a slow test, that it learns the task."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from cohort.demo import small as demo

WRITTEN = ["config.json", "model.safetensors", "metrics.jsonl", "completions.jsonl", "summary.json", "report.html"]
PLOTS = ["reward.png", "held_out_accuracy.png"]


def test_a_short_demo_leaves_everything_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SFT_STEPS", 4)
    monkeypatch.setattr(demo, "GRPO_STEPS", 2)
    monkeypatch.setattr(demo, "HELD_OUT", 40)
    monkeypatch.setattr(demo, "LEAST_ACCURACY", 0.0)
    monkeypatch.setattr(demo, "LEAST_FORMAT", 0.0)
    screen = io.StringIO()
    summary = demo.run_demo(3, tmp_path, Console(file=screen, width=100))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert summary["seed"] == 3 and summary["problems"] == 40
    low, high = summary["interval_after"]
    assert low <= summary["accuracy_after"] <= high
    assert all((tmp_path / name).is_file() for name in WRITTEN + PLOTS)
    assert "accuracy, greedy" in screen.getvalue() and "GRPO on its own answers" in screen.getvalue()
    assert screen.getvalue().endswith(f"Look at it in a browser: {tmp_path / 'report.html'}\n")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.num_parameters() == 520_064
    assert AutoTokenizer.from_pretrained(tmp_path).decode([4]) == "<think>"


@pytest.mark.slow
def test_an_sft_that_learned_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SFT_STEPS", 1)
    monkeypatch.setattr(demo, "HELD_OUT", 10)
    with pytest.raises(RuntimeError, match="SFT has not learned the task"):
        demo.run_demo(0, tmp_path, Console(file=io.StringIO()))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_learns(seed: int, tmp_path: Path) -> None:
    summary = demo.run_demo(seed, tmp_path, Console(file=io.StringIO()))
    assert 0.20 <= summary["accuracy_before"] <= 0.45
    assert summary["accuracy_after"] >= 0.95
