"""The plots that a run's metrics allow, and their content."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.image import imread

from cohort.formulas.chance import wilson
from cohort.report import plots
from cohort.report.plots import plot_training


def grpo_rows(steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": 0, "eval/accuracy": 0.25, "eval/format": 1.0, "eval/reward": 1.25, "eval/samples": 40}
    ]
    for step in range(1, steps + 1):
        rows.append(
            {
                "step": step,
                "loss": 0.0,
                "reward": step / steps + math.sin(step) / 10,
                "reward_std": 0.25,
                "rewards/accuracy/mean": step / steps,
                "rewards/_format$1/mean": 1.0,
                "completions/mean_length": 20.0,
                "completions/min_length": 10.0,
                "completions/max_length": 30.0,
                "completions/clipped_ratio": 0.1,
                "kl": 0.01,
                "entropy": 0.5,
            }
        )
    return [*rows, {"step": steps, "eval/accuracy": 0.75, "eval/format": 1.0, "eval/samples": 40}]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def band(axis: Any) -> tuple[float, float]:
    """Lowest and highest point of the first band of an axis."""
    polygon = next(c for c in axis.collections if isinstance(c, FillBetweenPolyCollection))
    heights = polygon.get_paths()[0].vertices[:, 1]
    return heights.min(), heights.max()


@pytest.mark.parametrize("steps", [1, 12, 60])
def test_a_grpo_run_gives_four_pictures(tmp_path: Path, steps: int) -> None:
    written = plot_training(write(tmp_path, grpo_rows(steps)))
    assert [path.name for path in written] == [
        "reward.png",
        "held_out_accuracy.png",
        "lengths.png",
        "kl_entropy.png",
    ]
    for path in written:
        height, width, _ = imread(path).shape
        assert height >= 500 and width >= 1000
        assert imread(path)[..., :3].std() > 0.02


def test_an_sft_run_gives_its_loss_and_nothing_else(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "eval/loss": 1.5, "eval/samples": 4},
    ]
    assert [path.name for path in plot_training(write(tmp_path, rows))] == ["loss.png"]
    (axis,) = plots._loss(rows).axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[2.0, 1.0], [1.5]]


def test_no_rows_give_no_plots(tmp_path: Path) -> None:
    assert plot_training(write(tmp_path, [])) == []


def test_few_points_are_drawn_as_they_are_many_with_a_running_mean() -> None:
    few, many = plots._reward(grpo_rows(12)).axes[0], plots._reward(grpo_rows(60)).axes[0]
    raw = [step / 60 + math.sin(step) / 10 for step in range(1, 61)]
    assert len(few.lines) == 1
    assert [list(line.get_ydata()) for line in many.lines] == [raw, plots.running_mean(raw, 5)]
    assert (many.lines[1].get_label(), many.get_xlabel()) == ("mean reward", "step (thick: mean of 5)")


def test_the_reward_band_is_one_spread_wide() -> None:
    rows = [{"step": s, "reward": 0.5, "reward_std": 0.25} for s in range(1, 5)]
    (axis,) = plots._reward(rows).axes
    assert band(axis) == pytest.approx((0.25, 0.75))


def test_components_have_a_panel_with_every_name_in_its_legend() -> None:
    _, axis = plots._reward(grpo_rows(3)).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["accuracy", "format$1"]


def test_held_out_bands_are_wilson_intervals() -> None:
    rows = [{"step": s, "eval/accuracy": a, "eval/samples": 40} for s, a in ((0, 0.25), (5, 0.75))]
    (axis,) = plots._held_out(rows).axes
    assert band(axis) == pytest.approx((wilson(10, 40)[0], wilson(30, 40)[1]))
    assert {text.get_text() for text in axis.texts} == {"25.0%", "75.0%"}


def test_scores_beyond_one_have_no_interval() -> None:
    rows = [{"step": s, "eval/correctness": v, "eval/samples": 40} for s, v in ((0, 0.5), (5, 1.5))]
    (axis,) = plots._held_out(rows).axes
    assert not axis.collections and axis.get_title() == "Held-out problems"
    assert {text.get_text() for text in axis.texts} == {"0.5", "1.5"}
