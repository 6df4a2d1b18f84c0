"""Plots of iterations, and of a learned reward (proxy) against the true one (gold)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cohort.report.drawing import COLOURS, MANY, legend, panels, running_mean
from cohort.report.metrics import Rows, component_keys, series

Curve = dict[float, list[float]]
"""Completions sampled -> one value for each run."""


def overoptimization(rows: Rows) -> Any | None:
    """Proxy and gold reward against the KL to the starting model (Gao et al., arXiv 2210.10760, Fig. 1), with the point
    from which gold falls while the proxy rises. None if the run has no gold reward."""
    points = [row for row in rows if "guard/gold" in row]
    if not points:
        return None
    figure, (axis,) = panels(["Learned and true reward by distance from the start"])
    proxy_axis = axis.twinx()
    proxy_axis.spines["right"].set_visible(True)
    proxy_axis.grid(False)
    kl = [float(row["guard/kl"]) for row in points]
    width = max(5, len(points) // 12) | 1
    smooth = running_mean(kl, width) if len(points) > MANY else kl
    lines: list[Any] = []
    for target, key, colour, name in (
        (proxy_axis, "guard/proxy", COLOURS[1], "proxy: the learned reward"),
        (axis, "guard/gold", COLOURS[0], "gold: the true reward"),
    ):
        values = [float(row[key]) for row in points]
        if len(points) > MANY:
            target.scatter(kl, values, s=6, color=colour, alpha=0.25, linewidths=0)
            values = running_mean(values, width)
        lines += target.plot(smooth, values, color=colour, linewidth=2, label=name)
    peak = next((row["guard/overoptimized_from"] for row in points if "guard/overoptimized_from" in row), None)
    if peak is not None:
        at = next(i for i, row in enumerate(points) if row["step"] >= peak)
        label = f"gold falls from here: step {peak:.0f}, KL {smooth[at]:.3g}"
        lines.append(axis.axvline(smooth[at], color=COLOURS[6], linestyle="--", linewidth=1.2, label=label))
    axis.set_xlabel("KL to the starting model, nats of a completion" + f" (mean of {width})" * (len(points) > MANY))
    axis.set_ylabel("gold reward", color=COLOURS[0])
    proxy_axis.set_ylabel("proxy reward", color=COLOURS[1])
    axis.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1, fontsize=9)
    return figure


def iterations(runs: Sequence[Rows]) -> Any | None:
    """Held-out accuracy by sampled completions, one colour for each iteration (DeepSeekMath, Fig. 6): the mean of the
    runs, and a band from the lowest to the highest. None for a single iteration, or without held-out scores."""
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
    """Iteration -> its curve. The last point of an iteration is also the first of the next."""
    curves: dict[int, Curve] = {}
    for rows in runs:
        keys = component_keys(dict.fromkeys(key for row in rows for key in row))
        sampled = dict(zip(*series(rows, "num_completions"), strict=True)) | {0.0: 0.0}
        iteration_of = dict(zip(*series(rows, "iteration"), strict=True))
        if not keys or not iteration_of:
            continue
        for step, value in zip(*series(rows, keys[0]), strict=True):
            following = iteration_of.get(step + 1)
            for number in {iteration_of.get(step, following), following}:
                if number is not None:
                    curves.setdefault(int(number), {}).setdefault(sampled[step], []).append(value)
    return curves
