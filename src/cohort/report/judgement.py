"""Measures of a reward model's scores: as a mapping of plain numbers and as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from cohort.formulas.chance import like_chance, wilson
from cohort.report import ranking
from cohort.report.tables import safe_text

if TYPE_CHECKING:
    from cohort.evaluation.judging import ModelScores, ScoredText

BEST_OF = (1, 2, 4, 8, 16, 32, 64)
HALF = 0.5


def judgement(scores: ModelScores) -> dict[str, Any]:
    """Numbers for JSON: `kind`, `texts`, `prompts` and, if the data allow them, `ranking_accuracy`, `auc`, `agreement`
    (share of texts whose score, at probability 1/2, agrees with the label), `majority` (share of the more frequent
    label), `calibration`, `best_of_n`, `length`,
    `position`, `first_error`. Shares have 95% intervals that count prompts (for steps: completions), because texts of
    one prompt are not independent. Of labels that are values (1 to 5, -1 and 1): `ranking_accuracy` by their order,
    `correlation` and, of a model that gives values, `error`."""
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
    if has_values(scores):
        return {**result, **_of_values(scores)}
    if scores.kind == "pairs":
        result["calibration"] = _pair_calibration(scores)
    else:
        right = [each.label > HALF for each in scores.texts]
        result["auc"] = ranking.auc([each.score for each in scores.texts], right)
        result["agreement"] = _agreement(scores)
        result["majority"] = max(sum(right), len(right) - sum(right)) / len(right)
        result["calibration"] = _calibration(_predicted(scores), [each.label for each in scores.texts])
    if scores.kind == "rows":
        result["best_of_n"] = _best_of_n(scores)
    if scores.kind == "steps":
        result["first_error"] = _first_error(scores)
    return result


def chance(result: dict[str, Any]) -> str | None:
    """What says that the model is no better than chance; None where nothing does."""
    ranked = result["ranking_accuracy"]
    if result["kind"] == "pairs":
        return like_chance({"samples": ranked["of"], "accuracy": ranked["value"]}) if ranked else None
    if "correlation" in result:
        return like_chance({"samples": result["texts"], "correlation": result["correlation"]["linear"] or 0.0})
    if ranked and "interval" in ranked and ranked["interval"][0] > HALF:
        return None  # it orders texts, wherever it draws the line between right and wrong
    agreement = result["agreement"]
    return like_chance({"samples": agreement["of"], "accuracy": agreement["value"], "majority": result["majority"]})


def has_values(scores: ModelScores) -> bool:
    """Whether the labels are values, not right and wrong or probabilities."""
    labels = {each.label for each in scores.texts}
    several = len(labels) > 2 and not scores.log_odds
    return scores.kind == "rows" and (several or any(not 0 <= label <= 1 for label in labels))


def _of_values(scores: ModelScores) -> dict[str, Any]:
    found, labels = [t.score for t in scores.texts], [t.label for t in scores.texts]
    shares = [share for texts in _by_prompt(scores.texts) if (share := _in_order(texts)) is not None]
    if not shares:  # one text a prompt: over all texts
        shares = [share for share in [_in_order(scores.texts)] if share is not None]
    gaps = [a - b for a, b in zip(found, labels, strict=True)]
    return {
        "ranking_accuracy": {"value": fmean(shares), "of": len(shares)} if shares else None,
        "correlation": {"rank": ranking.spearman(found, labels), "linear": ranking.pearson(found, labels)},
        "error": None
        if scores.log_odds
        else {"mean_absolute": fmean(map(abs, gaps)), "root_mean_square": fmean(gap * gap for gap in gaps) ** 0.5},
        "length": {name: value for name, value in _length(scores).items() if name == "correlation_all"},
    }


def _in_order(texts: Sequence[ScoredText]) -> float | None:
    """The share of pairs of texts with different labels that the scores put in the labels' order; equal scores count
    half. None if all labels are equal."""
    wins = [float(a.score > b.score) + 0.5 * (a.score == b.score) for a in texts for b in texts if a.label > b.label]
    return fmean(wins) if wins else None


def _contests(scores: ModelScores) -> list[tuple[ScoredText, ScoredText]]:
    """The (right, wrong) texts that are compared: the data's pairs, or of each prompt every right with every wrong."""
    if scores.kind == "pairs":
        return [(scores.texts[right], scores.texts[wrong]) for right, wrong in scores.pairs]
    return [
        (a, b) for texts in _by_prompt(scores.texts) for a in texts if a.label > HALF for b in texts if b.label <= HALF
    ]


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
    wins: dict[int, list[float]] = {}
    for right, wrong in _contests(scores):
        wins.setdefault(right.prompt, []).append(ranking.ranking_accuracy([right.score], [wrong.score]))
    return _mean_share([fmean(of_prompt) for of_prompt in wins.values()]) if wins else None


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
            ranking.ranking_accuracy([right.score], [wrong.score])
            for right, wrong in _contests(scores)
            if sign * (right.length - wrong.length) > 0
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
    no step is called wrong, and their harmonic mean f1 (ProcessBench, arXiv 2412.06559, section 3.3). Completions of
    which steps were cut off are left out: the first error may be among these."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for texts in _by_prompt([t for t in scores.texts if t.prompt not in scores.incomplete]):
        predicted = next((t.step for t in texts if t.score <= 0), None)
        true = next((t.step for t in texts if t.label <= HALF), None)
        shares[true is None].append(float(predicted == true))
    if not shares[True] or not shares[False]:
        return None
    wrong, right = fmean(shares[False]), fmean(shares[True])
    return {"with_error": wrong, "without": right, "f1": 2 * wrong * right / (wrong + right) if wrong + right else 0.0}


def judgement_table(title: str, result: dict[str, Any]) -> Table:
    """The numbers for a terminal."""
    table = Table(title=safe_text(title), box=box.SIMPLE, title_justify="left", show_header=False)
    for name, text in [*_quality_lines(result), *_bias_lines(result)]:
        table.add_row(name, safe_text(text))
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
    if result.get("correlation"):
        lines.append(("score by label", _listed(result["correlation"], "", "{:+.2f}")))
    if result.get("error"):
        lines.append(("error", _listed(result["error"], "", "{:.3g}")))
    if result.get("calibration"):
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
    if "interval" not in share:
        return f"{share['value']:.1%}"
    low, high = share["interval"]
    return f"{share['value']:.1%} [{low:.1%}, {high:.1%}]"
