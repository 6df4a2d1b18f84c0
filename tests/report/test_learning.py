"""Plots of iterations, and of learned and true reward against KL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cohort.report import learning_plots
from cohort.report.plots import plot_training


def guarded(steps: int, peak: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row = {"step": step, "guard/kl": step / 2, "guard/proxy": step / 10, "guard/gold": 0.5 - abs(step - 6) / 20}
        rows.append(row if peak is None or step < peak + 4 else {**row, "guard/overoptimized_from": float(peak)})
    return rows


def iterated(offset: float = 0.0) -> list[dict[str, Any]]:
    """Two iterations of 4 steps with 10 completions each, evaluated before the first step and every 2."""
    rows: list[dict[str, Any]] = [{"step": 0, "eval/accuracy": offset}]
    for step in range(1, 9):
        rows.append({"step": step, "iteration": (step - 1) // 4, "num_completions": 10 * step})
        if step % 2 == 0:
            rows.append({"step": step, "eval/accuracy": offset + step / 20})
    return rows


def test_learned_and_true_reward_by_kl() -> None:
    figure = learning_plots.overoptimization(guarded(12, peak=6))
    gold_axis, proxy_axis = figure.axes
    (gold, mark), (proxy,) = gold_axis.get_lines(), proxy_axis.get_lines()
    assert list(gold.get_xdata()) == list(proxy.get_xdata()) == [step / 2 for step in range(1, 13)]
    assert list(gold.get_ydata())[5] == 0.5 and list(proxy.get_ydata())[-1] == 1.2
    assert list(mark.get_xdata()) == [3.0, 3.0] and mark.get_label() == "gold falls from here: step 6, KL 3"
    assert len(gold_axis.get_legend().get_texts()) == 3


def test_many_points_are_smoothed_and_no_mark_is_drawn_where_nothing_parted() -> None:
    figure = learning_plots.overoptimization(guarded(60, peak=None))
    (gold,) = figure.axes[0].get_lines()
    assert "mean of 5" in figure.axes[0].get_xlabel()
    assert list(gold.get_xdata())[10] == sum(range(9, 14)) / 5 / 2
    assert learning_plots.overoptimization([{"step": 1, "reward": 0.0}]) is None


def test_iterations_by_completions() -> None:
    """The second iteration begins with the last point of the first."""
    figure = learning_plots.iterations([iterated()])
    first, second, boundary = figure.axes[0].get_lines()
    assert list(first.get_xdata()) == [0, 20, 40] and list(first.get_ydata()) == [0.0, 0.1, 0.2]
    assert list(second.get_xdata()) == [40, 60, 80] and list(second.get_ydata()) == [0.2, 0.3, 0.4]
    assert [first.get_label(), second.get_label()] == ["iteration 0", "iteration 1"]
    assert list(boundary.get_xdata()) == [40, 40]


def test_iterations_of_several_runs_have_a_band() -> None:
    figure = learning_plots.iterations([iterated(), iterated(0.2)])
    axis = figure.axes[0]
    assert list(axis.get_lines()[0].get_ydata()) == [0.1, 0.2, 0.30000000000000004]
    band = axis.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.0, 0.4)
    assert "lowest to highest of 2 runs" in axis.get_xlabel()


def test_one_iteration_is_no_picture() -> None:
    rows = [row for row in iterated() if row["step"] <= 4]
    assert learning_plots.iterations([rows]) is None
    assert learning_plots.iterations([[{"step": 1, "eval/accuracy": 0.5}]]) is None


def test_a_run_with_both_gives_both_pictures(tmp_path: Path) -> None:
    rows = [*iterated(), *guarded(8, peak=6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = [path.name for path in plot_training(tmp_path)]
    assert names == ["held_out_accuracy.png", "overoptimization.png", "iterations.png"]
