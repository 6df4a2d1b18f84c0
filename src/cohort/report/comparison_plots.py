"""Plots of a comparison of methods, after DeepSeekMath's Figs. 5 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cohort.report.drawing import COLOURS, STYLE, legend, panels

Results = dict[str, list[dict[str, Any]]]
"""Method -> the results of its runs, one for each seed; the first entry is the start."""
START_COLOUR = "#777777"


def plot_comparison(results: Results, folder: Path) -> list[Path]:
    """Write comparison_accuracy.png and comparison_maj_pass.png; returns their paths."""
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in (("comparison_accuracy.png", accuracy), ("comparison_maj_pass.png", maj_pass)):
            draw(results).savefig(folder / name, dpi=150)
            written.append(folder / name)
    return written


def accuracy(results: Results) -> Any:
    """Held-out accuracy against sampled completions (Fig. 5): means, and bands from the lowest to the highest seed."""
    start, *methods = results
    figure, (axis,) = panels(["Held-out accuracy by sampled completions"])
    level = fmean(result["accuracy"] for result in results[start])
    axis.axhline(level, color=START_COLOUR, linestyle="--", linewidth=1.2, label=start)
    for name, colour in zip(methods, _colours(len(methods)), strict=True):
        accuracies = by_completions(results[name])
        counts = list(accuracies)
        axis.plot(
            counts,
            [fmean(accuracies[n]) for n in counts],
            color=colour,
            linewidth=2,
            marker="o",
            markersize=4,
            label=name,
        )
        if len(results[name]) > 1:
            low, high = [min(accuracies[n]) for n in counts], [max(accuracies[n]) for n in counts]
            axis.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
    seeds = len(results[start])
    axis.set_xlabel("completions sampled" + f" (bands: lowest to highest of {seeds} seeds)" * (seeds > 1))
    axis.set_ylabel("share correct")
    _percentages(axis)
    legend(axis, len(results))
    return figure


def maj_pass(results: Results) -> Any:
    """Maj@K and Pass@K against K, before and after (Fig. 7): means, and bands from the lowest to the highest seed. Only
    Pass@K where there are no answers to vote on."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    voted = all(run["maj@k"] for runs in results.values() for run in runs)
    keys = ("maj@k", "pass@k") if voted else ("pass@k",)
    figure, axes = panels([key.title() for key in keys])
    start = next(iter(results))
    colours = [START_COLOUR, *_colours(len(results) - 1)]
    for axis, key in zip(axes, keys, strict=True):
        ks = sorted(map(int, results[start][0][key]))
        for (name, runs), colour in zip(results.items(), colours, strict=True):
            values = [[run[key][str(k)] for run in runs] for k in ks]
            line = "--" if name == start else "-"
            axis.plot(
                ks, [fmean(v) for v in values], line, color=colour, linewidth=2, marker="o", markersize=4, label=name
            )
            if len(runs) > 1:
                low, high = [min(v) for v in values], [max(v) for v in values]
                axis.fill_between(ks, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(ks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.set_xlabel("K")
        axis.set_ylabel("share of held-out problems")
        _percentages(axis)
        legend(axis, len(results))
    return figure


def by_completions(runs: Sequence[dict[str, Any]]) -> dict[int, list[float]]:
    """Completions sampled -> the accuracy of each run, in order of the completions."""
    by_count: dict[int, list[float]] = {}
    for run in runs:
        for point in run["curve"]:
            by_count.setdefault(point["completions"], []).append(point["accuracy"])
    return dict(sorted(by_count.items()))


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _percentages(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_ylim(-0.03, 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
