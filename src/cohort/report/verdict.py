"""What came of a run, in a few lines: the held-out result, the trend, how it ended, its warnings, what to type next."""

from __future__ import annotations

import json
import shlex
from math import sqrt
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from cohort.config.yaml_text import YamlError, parsed
from cohort.formulas.chance import wilson
from cohort.report.metrics import Rows, read_metrics, series

HELD_OUT = ("eval/accuracy", "eval/reward", "eval/loss", "eval/teacher_kl")
TREND = ("reward", "teacher/kl", "loss")
ENDS = {
    "max_steps": "all {max_steps} steps were made",
    "KeyboardInterrupt": "stopped by Ctrl-C at step {of}",
    "Terminated": "stopped by a signal at step {of}",
}
Z = 1.96
LONGEST = 200
"""Characters of a prompt in a command."""


def verdict(folder: str | Path) -> list[str]:
    """The lines for a run's output_dir, which may lack anything but metrics.jsonl."""
    folder = Path(folder)
    rows, config = read_metrics(folder), read_config(folder)
    ended = _json(folder / "ended.json")
    lines = [held_out(rows, ended.get("by"))[0], f"{trend(rows)}; {end(ended, rows)}"]
    warnings = _lines(folder / "warnings.jsonl")
    if warnings:
        told = ", ".join(f"{row['name']} (step {row['step']})" for row in warnings)
        lines.append(f"{len(warnings)} warning{'s' * (len(warnings) > 1)}, in {folder / 'warnings.jsonl'}: {told}")
    command = "" if ended.get("by") in ("KeyboardInterrupt", "Terminated") else _next(folder, config)
    return [*lines, f"next: {command}"] if command else lines


def held_out(rows: Rows, by: str | None) -> tuple[str, str, str]:
    """The line of the held-out result, its metric, and its change: "rose", "fell", "unchanged"; the last is empty where
    there are no two values, both where nothing was measured."""
    evaluated = [row for row in rows if any(key in row for key in HELD_OUT)]
    if not evaluated:
        return "held-out: nothing was measured (eval_dataset or val_size, with eval_strategy: steps)", "", ""
    key = next(key for key in HELD_OUT if key in evaluated[-1])
    evaluated = [row for row in evaluated if key in row]
    name, first, last = key.removeprefix("eval/").replace("_", " "), evaluated[0], evaluated[-1]
    if by == "early_stopping_patience" and all("eval/loss" in row for row in evaluated):
        last = min(evaluated, key=lambda row: float(row["eval/loss"]))  # the model that is kept
    form = "{:.1%}" if key == "eval/accuracy" else "{:.3g}"
    ends = [first] if last is first else [first, last]
    values = " → ".join(form.format(row[key]) for row in ends)
    intervals = [interval(row, key) for row in ends]
    known = [each for each in intervals if each is not None]
    of = f", {last['eval/samples']:g} held-out examples" if "eval/samples" in last else ""
    between = " and ".join(f"{form.format(low)} to {form.format(high)}" for low, high in known)
    told = f" (95%: {between}{of})" if len(known) == len(ends) else ""
    if len(ends) == 1:
        text = f"held-out {name} {values}{told} at step {last['step']}; eval_on_start: true shows what it was before"
        return text, key, ""
    change = _change(first[key], last[key], intervals)
    return f"held-out {name} {values}{told}: {change}", key, change.split()[0]


def interval(row: dict[str, Any], key: str) -> tuple[float, float] | None:
    """95% of a mean over held-out examples: Wilson's where all its values are 0 or 1, else by the standard deviation.
    None where the row has neither number nor deviation."""
    mean, n, std = row[key], row.get("eval/samples"), row.get(f"{key}/std")
    if not n or (std is None and key != "eval/accuracy"):
        return None
    if std is None or (0 <= mean <= 1 and abs(std**2 - mean * (1 - mean) * n / max(1, n - 1)) < 1e-5):
        return wilson(mean * n, n)
    half = Z * std / sqrt(n)
    return mean - half, mean + half


def _change(first: float, last: float, intervals: list[tuple[float, float] | None]) -> str:
    """By Newcombe's interval of a difference (Statistics in Medicine 17, 1998), from the intervals of the two."""
    before, after = intervals
    word = "rose" if last > first else "fell"
    if before is None or after is None:
        return word if last != first else "unchanged"
    up = last > first
    here, there = (last - after[0], before[1] - first) if up else (after[1] - last, first - before[0])
    return word if abs(last - first) > sqrt(here**2 + there**2) else "unchanged within the interval"


def trend(rows: Rows) -> str:
    """The first and the last tenth of the steps, at least five, by two standard errors."""
    key = next((key for key in TREND if any(key in row for row in rows)), TREND[-1])
    _, values = series(rows, key)
    count = min(max(5, len(values) // 10), len(values) // 2)
    if count < 2:
        return f"{key} {values[-1]:.3g}" if values else "no step was made"
    first, last = values[:count], values[-count:]
    error = sqrt((variance(first) + variance(last)) / count)
    moved = fmean(last) - fmean(first)
    word = "unchanged within its noise" if abs(moved) <= Z * error else "rose" if moved > 0 else "fell"
    return f"{key} {fmean(first):.3g} → {fmean(last):.3g} (means of the first and last {count} steps): {word}"


def end(ended: dict[str, Any], rows: Rows) -> str:
    if not ended:
        return f"it has no end: killed after step {rows[-1]['step'] if rows else 0}, or still running"
    of = f"{ended['step']} of {ended['max_steps']}"
    text = ENDS.get(ended["by"], "stopped at step {of} by {by}")
    return text.format(of=of, by=ended["by"], max_steps=ended["max_steps"])


def _next(folder: Path, config: dict[str, Any]) -> str:
    """The command that looks at the model: its held-out result, or one of its answers."""
    model, method = str(folder), config.get("method", "")
    data = _data(config)
    if method in ("reward_model", "process_reward_model"):
        return shlex.join(["cohort", "reward", "eval", model, *data]) if data else ""
    limit = config.get("max_completion_length")
    longest = [] if limit is None else ["--max-completion-length", str(limit)]
    plain = [] if config.get("apply_chat_template", True) else ["--plain"]
    template = ["--template", config["template"]] if config.get("template") else []
    options = [*longest, *plain, *template]
    reward = _whole_reward(config)
    if data and reward is not None:
        return shlex.join(["cohort", "eval", model, *data, "--reward", reward, *options])
    prompt = _prompt(folder)
    return shlex.join(["cohort", "generate", model, "--prompt", prompt, *options]) if prompt else ""


def _whole_reward(config: dict[str, Any]) -> str | None:
    """A reward that `cohort eval` can give: accuracy, or the first by name. Those of grpo_process may be of steps."""
    rewards = config.get("reward_funcs") or [None]
    if "accuracy" in rewards:
        return "accuracy"
    of_steps = config.get("method") == "grpo_process"
    return rewards[0] if isinstance(rewards[0], str) and not of_steps else None


def _data(config: dict[str, Any]) -> list[str]:
    """Options that name the held-out data; nothing where only the run itself can find it."""
    data = config.get("eval_dataset")
    if not data or config.get("dataset_dir"):
        return []
    options = ["--data", data]
    if config.get("eval_split", "test") != "test":
        options += ["--split", config["eval_split"]]
    for key in ("columns", "dataset_kwargs"):
        if config.get(key):
            pairs = ",".join(f"{ours}={theirs}" for ours, theirs in config[key].items())
            options += [f"--{key.replace('_', '-')}", pairs]
    if config.get("system_prompt"):
        options += ["--system-prompt", config["system_prompt"]]
    return options


def _prompt(folder: Path) -> str:
    """A short prompt of the run, as it is typed."""
    for row in _lines(folder / "completions.jsonl"):
        prompt = row.get("prompt")
        text = prompt if isinstance(prompt, str) else prompt[-1].get("content") if prompt else ""
        if isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable():
            return text
    return ""


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    try:
        values = parsed(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except YamlError:
        return {}
    return values if isinstance(values, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    rows = _lines(path)
    return rows[0] if rows else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON Lines file: a run that was killed leaves half a line."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
