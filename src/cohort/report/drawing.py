"""Colours, style, panels and legends of all plots."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's palette, made for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MANY = 30
"""Curves with more points are drawn faintly, with their running mean on top."""
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,
}
"""matplotlib's rc settings."""


def running_mean(values: list[float], width: int) -> list[float]:
    """Means over windows of `width` (odd) values, shorter at the ends: [0, 1, 2, 9], 3 -> [.5, 1, 4, 5.5]."""
    reach = width // 2
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def panels(titles: list[str]) -> tuple[Any, list[Any]]:
    """A figure with a panel for each title, side by side, and steps on the x axis. Needs no pyplot and no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(max(7.0, 5.4 * len(titles)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def legend(axis: Any, entries: int) -> None:
    """Put a legend under the panel, where it covers no curve."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=min(entries, 3), fontsize=9)
