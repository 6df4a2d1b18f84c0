"""Plots of a reward model's scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohort.formulas.chance import wilson
from cohort.report.drawing import COLOURS, STYLE, legend, panels
from cohort.report.judgement import HALF, has_values

if TYPE_CHECKING:
    from cohort.evaluation.judging import ModelScores


def plot_judgement(scores: ModelScores, result: dict[str, Any], folder: Path) -> list[Path]:
    """Write reliability.png, scores.png and, with several samples of a prompt, best_of_n.png; returns their paths."""
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        draws = {"reliability.png": _reliability, "scores.png": _scores, "best_of_n.png": _best}
        if has_values(scores):
            draws = {"scores.png": _values}
        for name, draw in draws.items():
            figure = draw(scores, result)
            if figure is not None:
                figure.savefig(folder / name, dpi=150)
                written.append(folder / name)
    return written


def _reliability(scores: ModelScores, result: dict[str, Any]) -> Any:
    figure, (axis,) = panels([f"Reliability, ECE {result['calibration']['ece']:.3f}"])
    predicted, share, counts = zip(*result["calibration"]["bins"], strict=True)
    bounds = [wilson(s * n, n) for s, n in zip(share, counts, strict=True)]
    below = [max(0.0, s - low) for s, (low, _) in zip(share, bounds, strict=True)]
    above = [max(0.0, high - s) for s, (_, high) in zip(share, bounds, strict=True)]
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--", label="perfect")
    axis.errorbar(predicted, share, [below, above], color=COLOURS[0], marker="o", capsize=3, label="with 95% intervals")
    axis.set_xlabel("predicted" if scores.kind != "pairs" else "predicted that its choice is right")
    axis.set_ylabel("share right")
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.03, 1.03)
    axis.xaxis.get_major_locator().set_params(integer=False)
    legend(axis, 2)
    return figure


def _values(scores: ModelScores, result: dict[str, Any]) -> Any:
    figure, (left, right) = panels(["Scores by label", "Scores by length"])
    found = [t.score for t in scores.texts]
    for axis, values, name in (
        (left, [t.label for t in scores.texts], "label"),
        (right, [float(t.length) for t in scores.texts], "characters"),
    ):
        axis.scatter(values, found, s=6, color=COLOURS[0], alpha=0.4)
        axis.set_xlabel(name)
        axis.set_ylabel("score")
    return figure


def _scores(scores: ModelScores, result: dict[str, Any]) -> Any:
    figure, (left, right) = panels(["Scores", "Scores by length"])
    names = ("chosen", "rejected") if scores.kind == "pairs" else ("right", "wrong")
    kinds = [[t for t in scores.texts if (t.label > HALF) == good] for good in (True, False)]
    low, high = min(t.score for t in scores.texts), max(t.score for t in scores.texts)
    for name, colour, texts in zip(names, COLOURS, kinds, strict=False):
        if texts:
            bounds = (low, max(high, low + 1e-6))
            left.hist([t.score for t in texts], bins=30, range=bounds, color=colour, alpha=0.5, label=name)
            right.scatter([t.length for t in texts], [t.score for t in texts], s=6, color=colour, alpha=0.4, label=name)
    left.set_xlabel("score")
    left.set_ylabel("texts" if scores.kind != "steps" else "steps")
    left.xaxis.get_major_locator().set_params(integer=False)
    right.set_xlabel("characters")
    right.set_ylabel("score")
    for axis in (left, right):
        legend(axis, 2)
    return figure


def _best(scores: ModelScores, result: dict[str, Any]) -> Any | None:
    rows = result.get("best_of_n")
    if not rows:
        return None
    figure, (axis,) = panels(["Best of n samples, with 95% intervals"])
    ns = [row["n"] for row in rows]
    axis.plot(ns, [row["best"] for row in rows], color=COLOURS[2], linestyle="--", label="by the labels")
    axis.plot(ns, [row["value"] for row in rows], color=COLOURS[0], marker="o", label="by the reward model")
    low, high = zip(*(row["interval"] for row in rows), strict=True)
    axis.fill_between(ns, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
    axis.plot(ns, [row["mean"] for row in rows], color="#999999", linestyle=":", label="one sample")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ns, [str(n) for n in ns])
    axis.set_xlabel("n")
    axis.set_ylabel("share right")
    legend(axis, 3)
    return figure
