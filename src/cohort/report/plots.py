"""Plots of a run's metrics, as PNG files in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cohort.formulas.chance import wilson
from cohort.report import learning_plots
from cohort.report.drawing import COLOURS, MANY, STYLE, legend, panels, running_mean
from cohort.report.metrics import Rows, component_keys, read_metrics, series


def plot_training(run_dir: str | Path) -> list[Path]:
    """Write the plots that a run's metrics allow and return their paths; a run without steps has none.

    Raises UserError if the folder has no metrics.jsonl.
    """
    import matplotlib

    rows = read_metrics(run_dir)
    folder = Path(run_dir) if Path(run_dir).is_dir() else Path(run_dir).parent
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in PLOTS.items():
            figure = draw(rows)
            if figure is not None:
                figure.savefig(folder / name, dpi=150)
                written.append(folder / name)
    return written


def _line(axis: Any, rows: Rows, key: str, colour: str, label: str) -> tuple[list[float], list[float]]:
    """Draw a metric; more than MANY points are drawn faintly under their running mean. Returns the steps, and the
    values of the main line."""
    steps, values = series(rows, key)
    # matplotlib leaves labels that begin with "_" out of the legend.
    label = label.lstrip("_") or label
    if len(steps) <= MANY:
        axis.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)
        return steps, values
    width = max(5, len(steps) // 12) | 1
    means = running_mean(values, width)
    axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
    axis.plot(steps, means, color=colour, linewidth=2.2, label=label)
    axis.set_xlabel(f"step (thick: mean of {width})")
    return steps, means


def _band(axis: Any, steps: list[float], low: list[float], high: list[float], colour: str, label: str) -> None:
    axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0, label=label)


def _reward(rows: Rows) -> Any | None:
    steps, _ = series(rows, "reward")
    if not steps:
        return None
    components = list(dict.fromkeys(key for row in rows for key in row if _is_component_mean(key)))
    titles = ["Reward of the policy's samples"] + ["Reward functions"] * (len(components) > 1)
    figure, axes = panels(titles)
    steps, shown = _line(axes[0], rows, "reward", COLOURS[0], "mean reward")
    spread = dict(zip(*series(rows, "reward_std"), strict=True))
    if set(steps) <= set(spread):
        # Smoothed as the line in its middle is: a ragged band would look like noise.
        spreads = [spread[step] for step in steps]
        spreads = running_mean(spreads, max(5, len(steps) // 12) | 1) if len(steps) > MANY else spreads
        low = [mean - std for mean, std in zip(shown, spreads, strict=True)]
        high = [mean + std for mean, std in zip(shown, spreads, strict=True)]
        _band(axes[0], steps, low, high, COLOURS[0], "± spread within groups")
    axes[0].set_ylabel("reward")
    legend(axes[0], 2)
    if len(components) > 1:
        for i, key in enumerate(components):
            _line(axes[1], rows, key, COLOURS[(i + 1) % len(COLOURS)], key.split("/")[1])
        axes[1].set_ylabel("mean score")
        legend(axes[1], len(components))
    return figure


def _is_component_mean(key: str) -> bool:
    return key.startswith("rewards/") and key.endswith("/mean")


def _held_out(rows: Rows) -> Any | None:
    keys = component_keys(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if series(rows, key)[0]]
    if not keys:
        return None
    figure, (axis,) = panels(["Held-out problems"])
    sizes = dict(zip(*series(rows, "eval/samples"), strict=True))
    intervals = False
    every: list[float] = []
    for i, key in enumerate(keys):
        steps, values = series(rows, key)
        every += values
        colour = COLOURS[i % len(COLOURS)]
        name = key.removeprefix("eval/").lstrip("_")
        axis.plot(steps, values, color=colour, linewidth=2, marker="o", markersize=4, label=name)
        if set(steps) <= set(sizes) and all(0 <= value <= 1 for value in values):
            bounds = [wilson(value * sizes[step], sizes[step]) for step, value in zip(steps, values, strict=True)]
            _band(axis, steps, [b[0] for b in bounds], [b[1] for b in bounds], colour, "")
            intervals = True
    if intervals:
        axis.set_title("Held-out problems, with 95% intervals")
    if all(0 <= value <= 1 for value in every):
        from matplotlib.ticker import PercentFormatter

        axis.set_ylim(-0.03, 1.05)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set_ylabel("share correct" if keys == ["eval/accuracy"] else "mean score")
    _mark_ends(axis, *series(rows, keys[0]))
    legend(axis, len(keys))
    return figure


def _mark_ends(axis: Any, steps: list[float], values: list[float]) -> None:
    """Write the first and the last value beside their points."""
    percent = axis.get_ylim()[1] <= 1.1
    for i in sorted({0, len(steps) - 1}):
        text = f"{values[i]:.1%}" if percent else f"{values[i]:.3g}"
        below = percent and values[i] > 0.85
        axis.annotate(
            text,
            (steps[i], values[i]),
            xytext=(0, -16 if below else 9),
            textcoords="offset points",
            ha="center" if len(steps) == 1 else ("left", "right")[i > 0],
            fontweight="bold",
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
        )


def _lengths(rows: Rows) -> Any | None:
    if not series(rows, "completions/mean_length")[0]:
        return None
    clipped = any(series(rows, "completions/clipped_ratio")[1])
    figure, axes = panels(["Completion length"] + ["Completions cut at the limit"] * clipped)
    low = dict(zip(*series(rows, "completions/min_length"), strict=True))
    high = dict(zip(*series(rows, "completions/max_length"), strict=True))
    steps, _ = _line(axes[0], rows, "completions/mean_length", COLOURS[0], "mean")
    if set(steps) <= set(low) & set(high):
        _band(
            axes[0],
            steps,
            [low[s] for s in steps],
            [high[s] for s in steps],
            COLOURS[0],
            "shortest to longest",
        )
    if series(rows, "eval/completions/mean_length")[0]:
        _line(axes[0], rows, "eval/completions/mean_length", COLOURS[1], "mean, held out")
    axes[0].set_ylabel("tokens")
    axes[0].set_ylim(bottom=0)
    legend(axes[0], 3)
    if clipped:
        _line(axes[1], rows, "completions/clipped_ratio", COLOURS[1], "share cut")
        axes[1].set_ylabel("share of completions")
        axes[1].set_ylim(bottom=0)
        legend(axes[1], 1)
    return figure


def _kl_entropy(rows: Rows) -> Any | None:
    titles = {"kl": "KL to the reference", "teacher/kl": "KL to the teacher", "entropy": "Entropy of the policy"}
    present = [key for key in titles if series(rows, key)[0]]
    if not present:
        return None
    figure, axes = panels([titles[key] for key in present])
    for axis, key, colour in zip(axes, present, COLOURS, strict=False):
        _line(axis, rows, key, colour, key)
        axis.set_ylabel("nats per token")
        if len(series(rows, key)[0]) > MANY:
            legend(axis, 1)
    return figure


def _loss(rows: Rows) -> Any | None:
    # With rewards the loss stays near 0, because the advantages of a group add up to 0: no plot.
    if series(rows, "reward")[0] or not series(rows, "loss")[0]:
        return None
    figure, (axis,) = panels(["Loss"])
    _line(axis, rows, "loss", COLOURS[0], "training")
    if series(rows, "eval/loss")[0]:
        _line(axis, rows, "eval/loss", COLOURS[1], "held out")
    # A run without entropy trains a reward model: its loss is not per token.
    axis.set_ylabel("nats per token" if series(rows, "entropy")[0] else "loss")
    legend(axis, 2)
    return figure


PLOTS: dict[str, Callable[[Rows], Any]] = {
    "reward.png": _reward,
    "held_out_accuracy.png": _held_out,
    "lengths.png": _lengths,
    "kl_entropy.png": _kl_entropy,
    "loss.png": _loss,
    "overoptimization.png": learning_plots.overoptimization,
    "iterations.png": lambda rows: learning_plots.iterations([rows]),
}
