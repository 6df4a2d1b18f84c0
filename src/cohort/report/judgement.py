"""Measures of a reward model's scores: as a mapping of plain numbers, a table and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from cohort.report import ranking
from cohort.report.drawing import COLOURS, STYLE, legend, panels
from cohort.report.intervals import wilson

if TYPE_CHECKING:
    from cohort.evaluation.judging import ModelScores, ScoredText

BEST_OF = (1, 2, 4, 8, 16, 32, 64)
HALF = 0.5


def judgement(scores: ModelScores) -> dict[str, Any]:
    """Numbers for JSON: `kind`, `texts`, `prompts` and, if the data allow them, `ranking_accuracy`, `auc`, `agreement`
    (share of texts whose score, at probability 1/2, agrees with the label), `calibration`, `best_of_n`, `length`,
    `position`, `first_error`. Shares have 95% intervals that count prompts (for steps: completions), because texts of
    one prompt are not independent."""
    result: dict[str, Any] = {
        "kind": scores.kind,
        "texts": len(scores.texts),
        "prompts": len({each.prompt for each in scores.texts}),
        "truncated": scores.truncated,
        "score": {"mean": fmean(each.score for each in scores.texts)},
        "ranking_accuracy": _ranking(scores),
        "length": _length(scores),
        "position": _position(scores),
    }
    if scores.kind == "pairs":
        result["calibration"] = _pair_calibration(scores)
    else:
        right = [each.label > HALF for each in scores.texts]
        result["auc"] = ranking.auc([each.score for each in scores.texts], right)
        result["agreement"] = _agreement(scores)
        result["calibration"] = _calibration(_predicted(scores), [each.label for each in scores.texts])
    if scores.kind == "rows":
        result["best_of_n"] = _best_of_n(scores)
    if scores.kind == "steps":
        result["first_error"] = _first_error(scores)
    return result


def _predicted(scores: ModelScores) -> list[float]:
    if scores.log_odds:
        return [ranking.probability(each.score) for each in scores.texts]
    return [min(1.0, max(0.0, each.score)) for each in scores.texts]


def _by_prompt(texts: Sequence[ScoredText]) -> list[list[ScoredText]]:
    groups: dict[int, list[ScoredText]] = {}
    for each in texts:
        groups.setdefault(each.prompt, []).append(each)
    return list(groups.values())


def _mean_share(values: Sequence[float]) -> dict[str, Any]:
    """The mean of the prompts' shares, with Wilson's interval for that number of prompts."""
    mean = fmean(values)
    return {"value": mean, "interval": list(wilson(min(mean, 1.0) * len(values), len(values))), "of": len(values)}


def _ranking(scores: ModelScores) -> dict[str, Any] | None:
    """Share of pairs of a right and a wrong text of a prompt that are ranked correctly: the mean over prompts that have
    both."""
    shares = [
        ranking.ranking_accuracy(*sides)
        for texts in _by_prompt(scores.texts)
        if all(sides := ([t.score for t in texts if t.label > HALF], [t.score for t in texts if t.label <= HALF]))
    ]
    return _mean_share(shares) if shares else None


def _agreement(scores: ModelScores) -> dict[str, Any]:
    equal = [(p > HALF) == (each.label > HALF) for p, each in zip(_predicted(scores), scores.texts, strict=True)]
    agrees = {id(each): float(same) for each, same in zip(scores.texts, equal, strict=True)}
    shares = [fmean(agrees[id(each)] for each in texts) for texts in _by_prompt(scores.texts)]
    return {**_mean_share(shares), "value": fmean(map(float, equal))}


def _calibration(predicted: Sequence[float], outcomes: Sequence[float]) -> dict[str, Any]:
    bins = ranking.reliability(predicted, outcomes)
    return {"ece": ranking.calibration_error(bins), "bins": [list(each) for each in bins]}


def _pair_calibration(scores: ModelScores) -> dict[str, Any]:
    """Calibration of the model's choices: predicted is the sigmoid of |difference of scores|, the outcome whether the
    choice is the data's."""
    gaps = [scores.texts[right].score - scores.texts[wrong].score for right, wrong in scores.pairs]
    return _calibration([ranking.probability(abs(gap)) for gap in gaps], [float(gap > 0) for gap in gaps])


def _best_of_n(scores: ModelScores) -> list[dict[str, Any]] | None:
    """For each n: the share right of the best of n samples by the model, and by the labels. Prompts with fewer than n
    samples are left out."""
    groups = _by_prompt(scores.texts)
    rows = []
    for n in BEST_OF:
        large = [texts for texts in groups if len(texts) >= n]
        if not large:
            break
        labels = [[float(t.label > HALF) for t in texts] for texts in large]
        chosen = [
            ranking.best_of_n([t.score for t in texts], right, n) for texts, right in zip(large, labels, strict=True)
        ]
        possible = [ranking.best_of_n(right, right, n) for right in labels]
        mean = fmean(map(fmean, labels))
        rows.append(
            {"n": n, **_mean_share(chosen), "mean": mean, "best": fmean(possible), "lift": fmean(chosen) - mean}
        )
    return rows if len(rows) > 1 else None


def _length(scores: ModelScores) -> dict[str, Any]:
    """Bias by length: rank correlation of score and length, of all texts and of right and wrong ones alone; ranking
    accuracy of pairs in which the right text is the longer one, and the shorter one."""
    result: dict[str, Any] = {}
    kinds: dict[str, Callable[[ScoredText], bool]] = {
        "all": lambda t: True,
        "right": lambda t: t.label > HALF,
        "wrong": lambda t: t.label <= HALF,
    }
    for name, belongs in kinds.items():
        texts = [t for t in scores.texts if belongs(t)]
        result[f"correlation_{name}"] = ranking.spearman([t.score for t in texts], [float(t.length) for t in texts])
    for name, sign in (("longer", 1), ("shorter", -1)):
        wins = [
            float(a.score > b.score) + 0.5 * (a.score == b.score)
            for texts in _by_prompt(scores.texts)
            for a in texts
            if a.label > HALF
            for b in texts
            if b.label <= HALF and sign * (a.length - b.length) > 0
        ]
        result[f"ranking_accuracy_right_{name}"] = fmean(wins) if wins else None
    return result


def _position(scores: ModelScores) -> dict[str, Any]:
    """The largest change of a score when texts are batched in another order; for steps also the rank correlation of
    score and index in the completion."""
    result: dict[str, Any] = {"largest_change_by_order": max(abs(t.score - t.reordered) for t in scores.texts)}
    if scores.kind == "steps":
        places = [float(t.step) for t in scores.texts]
        result["correlation_step"] = ranking.spearman([t.score for t in scores.texts], places)
        result["correlation_step_labels"] = ranking.spearman([t.label for t in scores.texts], places)
    return result


def _first_error(scores: ModelScores) -> dict[str, Any] | None:
    """Share of completions with an error whose first wrong step is identified, share of correct completions in which
    no step is called wrong, and their harmonic mean f1 (ProcessBench, arXiv 2412.06559, section 3.3)."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for texts in _by_prompt(scores.texts):
        predicted = next((t.step for t in texts if t.score <= 0), None)
        true = next((t.step for t in texts if t.label <= HALF), None)
        shares[true is None].append(float(predicted == true))
    if not shares[True] or not shares[False]:
        return None
    wrong, right = fmean(shares[False]), fmean(shares[True])
    return {"with_error": wrong, "without": right, "f1": 2 * wrong * right / (wrong + right) if wrong + right else 0.0}


def judgement_table(title: str, result: dict[str, Any]) -> Table:
    """The numbers for a terminal."""
    table = Table(title=Text(title), box=box.SIMPLE, title_justify="left", show_header=False)
    for name, text in [*_quality_lines(result), *_bias_lines(result)]:
        table.add_row(name, Text(text))
    return table


def _quality_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    texts, prompts = ("steps", "completions") if result["kind"] == "steps" else ("texts", "prompts")
    lines = [("scored", f"{result['texts']} {texts}, {result['prompts']} {prompts}")]
    if result["ranking_accuracy"]:
        lines.append(("ranking accuracy", _with_interval(result["ranking_accuracy"])))
    if result.get("auc") is not None:
        lines.append(("AUC", f"{result['auc']:.3f}"))
    if result.get("agreement"):
        lines.append(("agreement with the labels", _with_interval(result["agreement"])))
    lines.append(("calibration error (ECE)", f"{result['calibration']['ece']:.3f}"))
    for each in result.get("best_of_n") or []:
        text = f"{_with_interval(each)}, lift {each['lift']:+.1%}; by the labels {each['best']:.1%}"
        lines.append((f"best of {each['n']}", text))
    if result.get("first_error"):
        text = "with error {with_error:.1%}, without {without:.1%}, F1 {f1:.1%}".format(**result["first_error"])
        lines.append(("first error found", text))
    return lines


def _bias_lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    length, position = result["length"], result["position"]
    lines = [
        ("score by length", _listed(length, "correlation_", "{:+.2f}")),
        ("ranking, the right one", _listed(length, "ranking_accuracy_right_", "{:.1%}")),
        ("score by step's place", _listed(position, "correlation_", "{:+.2f}")),
        ("change by order of texts", f"{position['largest_change_by_order']:.1e}"),
        ("texts cut at the limit", f"{result['truncated']:.1%}" if result["truncated"] else ""),
    ]
    return [(name, text) for name, text in lines if text]


def _listed(values: dict[str, Any], start: str, form: str) -> str:
    """The values whose names begin with `start`: "all +0.12, right -0.03"."""
    return ", ".join(
        f"{name.removeprefix(start).replace('_', ' ')} {form.format(value)}"
        for name, value in values.items()
        if name.startswith(start) and value is not None
    )


def _with_interval(share: dict[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['value']:.1%} [{low:.1%}, {high:.1%}]"


def plot_judgement(scores: ModelScores, result: dict[str, Any], folder: Path) -> list[Path]:
    """Write reliability.png, scores.png and, with several samples of a prompt, best_of_n.png; returns their paths."""
    import matplotlib

    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in {"reliability.png": _reliability, "scores.png": _scores, "best_of_n.png": _best}.items():
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
