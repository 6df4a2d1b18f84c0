"""Metrics of a run folder to PNG plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cohort.report.intervals import wilson
from cohort.types import UserError

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

Series = tuple[list[float], list[float]]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, or of the one in a run folder; a half-written last line is left out.

    Raises UserError where there is none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder, which has a metrics.jsonl")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(path.read_text(encoding="utf-8").splitlines()):
                raise UserError(f"{path} line {number}: not valid JSON") from None
    return rows


def series(rows: list[dict[str, Any]], key: str) -> Series:
    """(steps, values) of the rows that have the key."""
    found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    return [float(step) for step, _ in found], [float(value) for _, value in found]


def plot_training(run_dir: str | Path) -> list[Path]:
    """Write the plots that the run's metrics allow beside them: reward.png, held_out_accuracy.png, loss.png,
    completions.png. Raises UserError where there is nothing to plot."""
    folder = Path(run_dir)
    rows = read_metrics(folder)
    written = [path for path in (draw(rows, folder) for draw in (_reward, _held_out, _loss, _lengths)) if path]
    if not written:
        raise UserError(f"{folder}: its metrics have nothing to plot yet")
    return written


def _axes(title: str, ylabel: str, panels: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * panels, 4.2), layout="constrained")
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_title(title)
    axes[0].set_ylabel(ylabel)
    return figure, axes


def _line(axis: Any, points: Series, colour: str, label: str) -> None:
    """Raw values faint and their running mean over them, where there are many."""
    steps, values = points
    if len(steps) > 30:
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        width = max(3, len(values) // 20)
        smooth = [sum(values[max(0, i - width) : i + 1]) / len(values[max(0, i - width) : i + 1]) for i in range(len(values))]
        axis.plot(steps, smooth, color=colour, linewidth=2, label=label)
    else:
        axis.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=3, label=label)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    return path


def _reward(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    if not series(rows, "reward")[0]:
        return None
    figure, (left, right) = _axes("Reward of the policy's samples", "reward", panels=2)
    _line(left, series(rows, "reward"), COLOURS[0], "total")
    names = dict.fromkeys(key for row in rows for key in row if key.startswith("rewards/") and key.endswith("/mean"))
    for name, colour in zip(names, COLOURS[1:] * len(names), strict=False):
        _line(left, series(rows, name), colour, name.split("/")[1])
    left.legend(frameon=False)
    right.set_title("Spread within groups")
    right.set_ylabel("reward_std, share of groups")
    _line(right, series(rows, "reward_std"), COLOURS[0], "reward_std")
    _line(right, series(rows, "frac_reward_zero_std"), COLOURS[1], "groups without spread")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    return _save(figure, folder / "reward.png")


def _held_out(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    evaluated = [row for row in rows if "eval/samples" in row]
    skipped = ("eval/samples", "eval/reward")
    names = dict.fromkeys(
        key for row in evaluated for key in row if key.startswith("eval/") and key.count("/") == 1 and key not in skipped
    )
    if not names:
        return None
    figure, (axis,) = _axes("Held-out problems, with 95% intervals", "mean score")
    for name, colour in zip(names, COLOURS * len(names), strict=False):
        steps, values = series(evaluated, name)
        axis.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=4, label=name.removeprefix("eval/"))
        if all(0 <= value <= 1 for value in values):
            bounds = [wilson(v * row["eval/samples"], int(row["eval/samples"])) for v, row in zip(values, evaluated, strict=False)]
            axis.fill_between(steps, [b[0] for b in bounds], [b[1] for b in bounds], color=colour, alpha=0.15, linewidth=0)
            axis.set_ylim(-0.02, 1.04)
    axis.legend(frameon=False, loc="lower right")
    return _save(figure, folder / "held_out_accuracy.png")


def _loss(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    # Under GRPO the loss is near 0 by construction and says nothing: entropy and KL do.
    if series(rows, "reward")[0]:
        shown = {"entropy": "entropy", "kl": "KL to the reference"}
    else:
        shown = {"loss": "training loss", "eval/loss": "held-out loss", "entropy": "entropy"}
    present = {key: label for key, label in shown.items() if series(rows, key)[0]}
    if not present:
        return None
    figure, (axis,) = _axes("Policy" if "loss" not in present else "Loss", "nats per token")
    for (key, label), colour in zip(present.items(), COLOURS, strict=False):
        _line(axis, series(rows, key), colour, label)
    axis.legend(frameon=False)
    return _save(figure, folder / "loss.png")


def _lengths(rows: list[dict[str, Any]], folder: Path) -> Path | None:
    steps, values = series(rows, "completions/mean_length")
    if not steps:
        return None
    figure, (axis,) = _axes("Completion length", "tokens")
    _line(axis, (steps, values), COLOURS[0], "mean")
    low, high = series(rows, "completions/min_length")[1], series(rows, "completions/max_length")[1]
    axis.fill_between(steps, low, high, color=COLOURS[0], alpha=0.12, linewidth=0, label="shortest to longest")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return _save(figure, folder / "completions.png")
