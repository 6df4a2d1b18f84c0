"""Plots of iterations and of rewards that are learned from against the reward that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cohort.report.drawing import COLOURS, MANY, legend, panels, running_mean
from cohort.report.metrics import Rows, component_keys, series

Curve = dict[float, list[float]]
"""Completions sampled -> a value of each run."""


def overoptimization(rows: Rows) -> Any | None:
    """Proxy and gold reward against the KL to the starting model (Gao et al., arXiv 2210.10760, Fig. 1), with the point
    from which gold falls while the proxy rises; None where no gold reward was named."""
    points = [row for row in rows if "guard/gold" in row]
    if not points:
        return None
    figure, (axis,) = panels(["Learned and true reward by distance from the start"])
    other = axis.twinx()
    other.spines["right"].set_visible(True)
    other.grid(False)
    kl = [float(row["guard/kl"]) for row in points]
    width = max(5, len(points) // 12) | 1
    smooth = running_mean(kl, width) if len(points) > MANY else kl
    drawn = []
    for place, key, colour, name in (
        (other, "guard/proxy", COLOURS[1], "proxy: what is learned from"),
        (axis, "guard/gold", COLOURS[0], "gold: what is meant"),
    ):
        values = [float(row[key]) for row in points]
        if len(points) > MANY:
            place.scatter(kl, values, s=6, color=colour, alpha=0.25, linewidths=0)
            values = running_mean(values, width)
        drawn += place.plot(smooth, values, color=colour, linewidth=2, label=name)
    peak = next((row["guard/overoptimized_from"] for row in points if "guard/overoptimized_from" in row), None)
    if peak is not None:
        at = next(i for i, row in enumerate(points) if row["step"] >= peak)
        label = f"gold falls from here: step {peak:.0f}, KL {smooth[at]:.3g}"
        drawn.append(axis.axvline(smooth[at], color=COLOURS[6], linestyle="--", linewidth=1.2, label=label))
    axis.set_xlabel("KL to the starting model, nats of a completion" + f" (mean of {width})" * (len(points) > MANY))
    axis.set_ylabel("gold reward", color=COLOURS[0])
    other.set_ylabel("proxy reward", color=COLOURS[1])
    axis.legend(handles=drawn, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, fontsize=9)
    return figure


def iterations(runs: Sequence[Rows]) -> Any | None:
    """Held-out accuracy by sampled completions, each iteration in a colour of its own (DeepSeekMath, Fig. 6): the mean
    of the runs, and a band from the lowest to the highest. None where there was one iteration, or nothing held out."""
    curves = _by_iteration(runs)
    if len(curves) < 2:
        return None
    figure, (axis,) = panels(["Held-out accuracy, iteration by iteration"])
    for number, curve in sorted(curves.items()):
        colour, counts = COLOURS[number % len(COLOURS)], sorted(curve)
        means = [fmean(curve[n]) for n in counts]
        axis.plot(counts, means, color=colour, linewidth=2, marker="o", markersize=4, label=f"iteration {number}")
        if len(runs) > 1:
            low, high = [min(curve[n]) for n in counts], [max(curve[n]) for n in counts]
            axis.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
    for number in sorted(curves)[1:]:
        axis.axvline(min(curves[number]), color="#777777", linestyle=":", linewidth=1)
    axis.set_xlabel("completions sampled" + f" (band: lowest to highest of {len(runs)} runs)" * (len(runs) > 1))
    axis.set_ylabel("held-out score")
    legend(axis, len(curves))
    return figure


def _by_iteration(runs: Sequence[Rows]) -> dict[int, Curve]:
    """Iteration -> its curve; where one ends the next begins, with the same point."""
    found: dict[int, Curve] = {}
    for rows in runs:
        keys = component_keys(dict.fromkeys(key for row in rows for key in row))
        sampled = dict(zip(*series(rows, "num_completions"), strict=True)) | {0.0: 0.0}
        begun = dict(zip(*series(rows, "iteration"), strict=True))
        if not keys or not begun:
            continue
        for step, value in zip(*series(rows, keys[0]), strict=True):
            # the iteration that ends with this step, and the one that the next step begins
            for number in {begun.get(step, begun.get(step + 1)), begun.get(step + 1)} - {None}:
                assert number is not None
                found.setdefault(int(number), {}).setdefault(sampled[step], []).append(value)
    return found
