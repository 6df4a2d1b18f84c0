"""The results of `cohort compare`: tables of its runs as Markdown, CSV and JSON, and plots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from cohort.formulas.chance import wilson
from cohort.report.comparison_plots import by_completions, plot_comparison
from cohort.report.intervals import of_mean
from cohort.types import UserError

START = "start"
RESULT = "result.json"
Result = dict[str, Any]
"""One run: {"method": "grpo", "seed": 0, "accuracy": .9, "problems": 300, "curve": [{"step": 10, "completions": 1280,
"accuracy": .6}, ...], "pass@k": {"1": .8, ...}, "maj@k": {...}, "completions": 3840, "seconds": 95.1, ...}"""
Value = tuple[float, float | None, float | None]
"""(mean, low, high); low and high are None for one seed."""

MEASURES: dict[str, Callable[[Result], float]] = {
    "accuracy": lambda result: result["accuracy"],
    "sampled": lambda result: result["sampled_accuracy"],
    "pass@K": lambda result: _last(result["pass@k"]),
    "maj@K": lambda result: _last(result["maj@k"]),
}
"""Columns of the table, each a share of the held-out problems; K is the largest k. Results without answers to vote on
have no maj@k."""
MIB = 2**20


def write_comparison(folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """Write comparison.md, .csv, .json and the plots from the runs' results; returns their paths.

    Raises UserError if a run has no result.
    """
    results = {name: [_read(folder / f"seed-{seed}" / name) for seed in seeds] for name in (START, *methods)}
    rows = [table_row(name, runs) for name, runs in results.items()]
    texts = {
        "comparison.md": markdown(results, rows),
        "comparison.csv": _csv(rows),
        "comparison.json": json.dumps({"table": rows, "differences": differences(results), "runs": results}, indent=1),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in texts), *plot_comparison(results, folder)]


def _read(folder: Path) -> Result:
    path = folder / RESULT
    if not path.is_file():
        raise UserError(f"{path}: no such file; cohort compare writes it when the run has finished")
    result: Result = json.loads(path.read_text(encoding="utf-8"))
    return result


def _last(by_k: dict[str, float]) -> float:
    return by_k[max(by_k, key=int)]


def table_row(name: str, results: Sequence[Result]) -> dict[str, Any]:
    """A method's row: {"method": "grpo", "seeds": 5, "accuracy": .7, "accuracy_low": .6, "accuracy_high": .8, ...}.

    Several seeds: their means with Student's 95% interval. One seed: Wilson's interval of the accuracy over the
    held-out problems. Bytes are the largest over seeds.
    """
    row: dict[str, Any] = {"method": name, "seeds": len(results)}
    voted = all(result["maj@k"] for result in results)
    for measure, of in MEASURES.items():
        if measure == "maj@K" and not voted:
            continue
        mean, low, high = _value([of(result) for result in results])
        if measure == "accuracy" and len(results) == 1:
            problems = results[0]["problems"]
            low, high = wilson(mean * problems, problems)
        row |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
    row["completions"] = max(result["completions"] for result in results)
    row["seconds"] = fmean(result["seconds"] for result in results)
    for key in ("peak_bytes", "training_bytes"):
        row[key] = max((result[key] for result in results if key in result), default=None)
    return row


def _value(values: Sequence[float]) -> Value:
    """The mean of shares, with its interval clipped to 0 and 1."""
    if len(values) == 1:
        return values[0], None, None
    mean, low, high = of_mean(values)
    return mean, max(0.0, low), min(1.0, high)


def along_curve(result: Result, measure: str = "accuracy") -> float:
    """Mean over the evaluations after training began: the area under the curve, as a share."""
    return fmean(point[measure] for point in result["curve"] if point["completions"] > 0)


def differences(results: dict[str, list[Result]]) -> list[dict[str, Any]]:
    """Differences between each method and the one before it, paired by seed, each as (mean, low, high): of accuracy at
    the end and along the curve, of pass@K at the end, and of pass@n along the curve where evaluations have it.
    [{"method": "online_rft", "before": "rft", "end": [.1, .05, .15], "curve": ...}]. Empty for one seed."""
    names = [name for name in results if name != START]
    rows: list[dict[str, Any]] = []
    for before, name in pairwise(names):
        pairs = list(zip(results[name], results[before], strict=True))
        if len(pairs) > 1:
            measures: dict[str, Callable[[Result], float]] = {
                "end": MEASURES["accuracy"],
                "curve": along_curve,
                "pass@K": MEASURES["pass@K"],
            }
            if all("pass@n" in point for pair in pairs for result in pair for point in result["curve"]):
                measures["curve of pass@n"] = partial(along_curve, measure="pass@n")
            paired = {key: list(of_mean([of(a) - of(b) for a, b in pairs])) for key, of in measures.items()}
            rows.append({"method": name, "before": before, **paired})
    return rows


def markdown(results: dict[str, list[Result]], rows: list[dict[str, Any]]) -> str:
    """The comparison as a Markdown document."""
    start = results[START][0]
    K, seeds = max(start["pass@k"], key=int), len(results[START])
    budgets = sorted({row["completions"] for row in rows if row["method"] != START})
    measures = [name for name in MEASURES if all(name in row for row in rows)]
    several = f"`sampled`, pass@{K} and maj@{K}" if "maj@K" in measures else f"`sampled` and pass@{K}"
    heads = ["held-out accuracy", *(name.replace("@K", f"@{K}") for name in measures[1:])]
    spread = "Student's over seeds" if seeds > 1 else "Wilson's over problems, and do not cover other seeds"
    lines = [
        "# Comparison",
        "",
        f"{seeds} seed{'s' * (seeds > 1)}; each method starts from its seed's `{START}` and samples "
        f"{' or '.join(map(str, budgets))} completions; {start['problems']} held-out problems. 95% intervals are "
        f"{spread}. {several} are of {K} completions a problem. Methods that sample only the "
        "start (rft, dpo) sample all completions before their first step; their curves are placed by the share of "
        "steps done. Seconds are of sampling and updates, without evaluation. Training state: trained weights, their "
        "gradients and the optimiser's.",
        "",
        *_table(
            ["method", *heads, "completions", "seconds", "peak memory, MiB", "training state, MiB"],
            [_cells(row, measures) for row in rows],
        ),
        "",
        "Held-out accuracy by completions:",
        "",
        *_curves(results),
    ]  # fmt: skip
    compared = differences(results)
    if compared:
        changes = {"end": "at the end", "curve": "along the curve", "pass@K": f"pass@{K} at the end"}
        changes |= {"curve of pass@n": "pass@n along the curve"} if "curve of pass@n" in compared[0] else {}
        cells = [[f"{d['method']} - {d['before']}", *(_points(d[key]) for key in changes)] for d in compared]
        lines += ["", "Differences in points, paired by seed (along the curve: mean over its evaluations):", ""]
        lines += _table(["", *changes.values()], cells)
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], measures: Sequence[str]) -> list[str]:
    shares = [_percent((row[name], row[f"{name}_low"], row[f"{name}_high"])) for name in measures]
    memory = ["" if row[key] is None else f"{row[key] / MIB:.1f}" for key in ("peak_bytes", "training_bytes")]
    return [row["method"], *shares, str(row["completions"]), f"{row['seconds']:.0f}", *memory]


def _curves(results: dict[str, list[Result]]) -> list[str]:
    curves = {name: curve_of(runs) for name, runs in results.items() if name != START}
    counts = sorted({count for curve in curves.values() for count in curve})
    cells = [[name, *(_percent(curve[n]) if n in curve else "" for n in counts)] for name, curve in curves.items()]
    return _table(["method", *map(str, counts)], cells)


def curve_of(results: Sequence[Result]) -> dict[int, Value]:
    """Completions sampled -> accuracy over seeds."""
    return {count: _value(values) for count, values in by_completions(results).items()}


def _percent(value: Value) -> str:
    mean, low, high = value
    return f"{mean:.1%}" if low is None or high is None else f"{mean:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _points(value: Sequence[float]) -> str:
    mean, low, high = (100 * x for x in value)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
