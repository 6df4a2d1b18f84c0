"""Intervals, metrics files, running means and tables, compared with worked values and scipy."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console, RenderableType
from scipy.stats import binomtest

from cohort.config import read_run
from cohort.formulas.chance import wilson
from cohort.report.drawing import running_mean
from cohort.report.metrics import component_keys, read_metrics, series
from cohort.report.tables import before_after_table, evaluation_table, examples_panel, share_with_interval
from cohort.types import UserError
from helpers import ROOT
from write_configuration import FIRST, configuration_markdown


def printed(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def write_metrics(folder: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows) + tail
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (1, 10), (5, 10), (27, 100), (999, 1000), (1000, 1000)])
def test_wilson_equals_scipys(successes: int, total: int) -> None:
    oracle = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    assert wilson(successes, total, z=1.959963984540054) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_wilson_worked_values() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, 0.27754), abs=1e-5)
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson(10, 10)[1] == 1.0
    assert wilson(50, 100, z=1.0) == pytest.approx((0.5 - 0.049752, 0.5 + 0.049752), abs=1e-6)


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {total}"):
        wilson(successes, total)


def test_metrics_of_a_killed_run_leave_out_the_half_line(tmp_path: Path) -> None:
    folder = write_metrics(tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], tail='{"step": 3, "lo')
    assert (
        read_metrics(folder)
        == read_metrics(folder / "metrics.jsonl")
        == [
            {"step": 1, "loss": 2.0},
            {"step": 2, "loss": 1.0},
        ]
    )


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '{"loss": 1.0}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    folder = write_metrics(tmp_path, [{"step": 1}], tail=f'{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2: not a JSON object"):
        read_metrics(folder)


def test_missing_metrics_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a run's output_dir"):
        read_metrics(tmp_path)


def test_series_sorts_by_step_and_takes_the_last_finite_value() -> None:
    rows = [
        {"step": 2, "loss": 5.0},
        {"step": 1, "loss": 7},
        {"step": 2, "eval/accuracy": 0.5},
        {"step": 2, "loss": 4.0},
        {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": None},
    ]
    assert series(rows, "loss") == ([1.0, 2.0], [7.0, 4.0])


def test_held_out_components_put_accuracy_first() -> None:
    row = {
        "step": 1,
        "eval/reward": 1.0,
        "eval/samples": 10,
        "eval/format": 1.0,
        "eval/accuracy": 0.5,
        "eval/completions/mean_length": 3.0,
        "seconds/eval": 1.0,
    }
    assert component_keys(row) == ["eval/accuracy", "eval/format"]


def test_running_mean_worked_values() -> None:
    assert running_mean([0.0, 1.0, 2.0, 9.0], 3) == [0.5, 1.0, 4.0, 5.5]
    assert running_mean([3.0], 5) == [3.0]


def test_share_shows_the_interval() -> None:
    assert share_with_interval(27, 100) == "27.0% [19.3, 36.4]"
    assert share_with_interval(0, 10) == "0.0% [0.0, 27.8]"


def test_before_after_table_holds_its_cells() -> None:
    text = printed(
        before_after_table(
            "100 [b]problems[/b]", [("accuracy", share_with_interval(24, 100), share_with_interval(97, 100))]
        )
    )
    assert "100 [b]problems[/b]" in text
    row = next(line for line in text.splitlines() if "accuracy" in line)
    assert row.split() == ["accuracy", "24.0%", "[16.7,", "33.2]", "97.0%", "[91.5,", "99.0]"]


def test_completions_are_shown_and_never_interpreted() -> None:
    hostile = "[red]x[/red] [/] \x1b[2J\x1b]0;t\x07 \u202egnp\ud800"
    text = printed(examples_panel([("[link=x]2+2=", hostile, "好的\n\t<answer>4</answer>")]))
    assert "[link=x]2+2=" in text and "[red]x[/red] [/]" in text
    assert "好的" in text and "<answer>4</answer>" in text
    assert not set(text) & set("\x1b\x07\u202e\ud800")


def test_a_long_completion_keeps_its_end() -> None:
    text = printed(examples_panel([("q", "a" * 5000 + "\nthe end", "b")]))
    assert "the end" in text and "[3808 characters left out]" in text and text.count("a") < 1300


def test_evaluation_table_values() -> None:
    result = {
        "problems": 100,
        "samples": 8,
        "accuracy": 0.27,
        "interval": wilson(27, 100),
        "pass@k": {1: 0.27, 8: 0.6},
        "maj@k": {8: 0.4},
        "metrics": {"eval/accuracy": 0.27, "eval/format": 0.5, "eval/completions/mean_length": 200.04},
    }
    lines = {" ".join(line.split()) for line in printed(evaluation_table("m [x]", result)).splitlines()}
    assert {"m [x]", "100 problems x 8 samples", "accuracy 27.0% [19.3, 36.4]"} <= lines
    assert {"pass@1 27.0%", "pass@8 60.0%", "maj@8 40.0%", "mean score: format 0.500"} <= lines
    assert "mean length 200.0 tokens" in lines


def test_the_configuration_reference_is_current() -> None:
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == configuration_markdown(), (
        "write it again: python scripts/write_configuration.py > docs/configuration.md"
    )


def test_the_configuration_reference_tells_values_defaults_and_sources() -> None:
    lines = configuration_markdown().splitlines()
    assert any(line.startswith("| `model` | text | required |") for line in lines)
    assert any(line.startswith("| `adam_beta1` | number >= 0 and < 1 | `0.9` |") for line in lines)
    assert any(line.startswith("| `scale_rewards` | `group`, `batch`, `none` | `group` |") for line in lines)
    of_grpo = lines[lines.index("## GRPOConfig") :]
    beta = next(line for line in of_grpo if line.startswith("| `beta` |")).split(" | ")
    assert beta[1:3] == ["number >= 0", "`0.04`"]
    assert beta[3:] == ["Weight of the KL term.", "DeepSeekMath, arXiv 2402.03300, section 4.2 |"]


def test_the_first_ten_keys_are_a_run(tmp_path: Path) -> None:
    page = configuration_markdown()
    (tmp_path / "run.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    keys = list(yaml.safe_load((tmp_path / "run.yaml").read_text()))
    run, settings = read_run(tmp_path / "run.yaml")
    assert run.reward_funcs == ["accuracy"] and settings.max_steps == 200
    assert keys == list(FIRST) and len(keys) == 10
    lines = page.splitlines()
    assert any(line.startswith("| `num_generations` | `64` | G, answers to one prompt.") for line in lines)
