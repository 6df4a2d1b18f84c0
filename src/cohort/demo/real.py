"""The demo with a real model: SmolLM2-135M-Instruct learns two-number sums from its own answers, by GRPO.

It writes problems and a configuration, and trains as `cohort train` does with that configuration.
"""

from __future__ import annotations

import json
import random
import shlex
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from cohort.config import read_run
from cohort.demo.packaged_model import cache_folder, converted
from cohort.formulas.chance import wilson
from cohort.report.live import LiveDisplay
from cohort.report.page.write import write_report
from cohort.report.plots import plot_training
from cohort.report.tables import before_after_table, examples_panel, share_with_interval
from cohort.train.output.record import require_folder
from cohort.train.run import train_from_config

LARGEST = 49
HELD_OUT = 300
STEPS = 24
PROMPTS, GROUP = 8, 8
REWARDS = "rewards.py"
REWARD = '''"""The demo's reward. The built-in `accuracy` takes "23 + 48" for 71: a model finds that out."""

import re


def accuracy(completions, answer, **_):
    """1 where the last number of the text is the answer."""
    numbers = [re.findall(r"[0-9]+", completion[0]["content"]) or [""] for completion in completions]
    return [float(found[-1] == right) for found, right in zip(numbers, answer, strict=True)]
'''

QUESTION = "What is {a} + {b}? Answer with the number only."


def run_demo(seed: int, output: Path, console: Console, file: Path) -> dict[str, Any]:
    """Train the model in `file`, a GGUF, and write everything under `output`. Returns the content of summary.json."""
    require_folder(str(output))
    started = time.perf_counter()
    console.print(
        "SmolLM2-135M-Instruct adds two numbers, and is mostly wrong. GRPO samples 8\n"
        "answers to each question and makes the right ones likelier; nobody shows it a\n"
        "solution."
    )
    if not (cache_folder() / "config.json").is_file():
        console.print("Converting the packaged model, this once (half a minute, 540 MB) ...", highlight=False)
    model = converted(file, cache_folder())
    path = write_run(model, output, seed)
    run, settings = read_run(path)
    with LiveDisplay("GRPO on its own answers", console) as display:
        train_from_config(run, settings, callbacks=[display])
    before, after = answers(output, 0), answers(output, STEPS)
    summary = _summary(before, after, seed, time.perf_counter() - started)
    (output / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    _show(console, before, after, summary, output, path)
    return summary


def problems(seed: int) -> list[dict[str, str]]:
    """All sums of two numbers from 2 to LARGEST as rows, in an order of the seed's."""
    numbers = range(2, LARGEST + 1)
    rows = [{"prompt": QUESTION.format(a=a, b=b), "answer": str(a + b)} for a in numbers for b in numbers]
    random.Random(seed).shuffle(rows)
    return rows


def write_run(model: Path, output: Path, seed: int) -> Path:
    """Write the problems, HELD_OUT of them held out, and the run's configuration; returns the path of the latter."""
    output.mkdir(parents=True, exist_ok=True)
    rows = problems(seed)
    (output / REWARDS).write_text(REWARD, encoding="utf-8")
    for name, part in (("held_out_problems", rows[:HELD_OUT]), ("train_problems", rows[HELD_OUT:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (output / f"{name}.jsonl").write_text(text, encoding="utf-8")
    path = output / "demo.yaml"
    path.write_text(yaml.safe_dump(configuration(model, output, seed), sort_keys=False), encoding="utf-8")
    return path


def configuration(model: Path, output: Path, seed: int) -> dict[str, Any]:
    """The content of demo.yaml."""
    return {
        "method": "grpo",
        "model": str(model),
        "dataset": str(output / "train_problems.jsonl"),
        "eval_dataset": str(output / "held_out_problems.jsonl"),
        # overlong asks of a right answer that it ends. Of wrong ones too, it would outweigh the few right ones of the
        # first steps, and answers would shrink to a bare wrong number.
        "reward_funcs": [f"{output / REWARDS}:accuracy", {"name": "overlong", "gate": "accuracy"}],
        "output_dir": str(output),
        "seed": seed,
        "learning_rate": 2.0e-5,
        "lr_scheduler_type": "linear",
        "adam_beta2": 0.99,
        "beta": 0.0,
        "per_device_train_batch_size": PROMPTS * GROUP,
        "num_generations": GROUP,
        "max_steps": STEPS,
        "max_completion_length": 24,
        "eval_strategy": "steps",
        "eval_steps": STEPS,
        "eval_on_start": True,
    }


def answers(output: Path, step: int) -> list[dict[str, Any]]:
    """The held-out answers of one evaluation, in the order of the problems."""
    with open(output / "held_out.jsonl", encoding="utf-8") as file:
        return [row for row in map(json.loads, file) if row["step"] == step]


def _summary(before: list[Any], after: list[Any], seed: int, seconds: float) -> dict[str, Any]:
    summary: dict[str, Any] = {"seed": seed, "problems": len(before), "steps": STEPS}
    for name, rows in (("before", before), ("after", after)):
        correct = sum(row["accuracy"] > 0 for row in rows)
        summary[f"accuracy_{name}"] = correct / len(rows)
        summary[f"interval_{name}"] = list(wilson(correct, len(rows)))
        summary[f"tokens_{name}"] = sum(row["tokens"] for row in rows) / len(rows)
    return {**summary, "seconds": round(seconds, 1)}


def _show(
    console: Console, before: list[Any], after: list[Any], summary: dict[str, Any], output: Path, path: Path
) -> None:
    n = summary["problems"]
    correct = [summary[f"accuracy_{name}"] * n for name in ("before", "after")]
    rows = [
        ("accuracy, greedy", share_with_interval(correct[0], n), share_with_interval(correct[1], n)),
        ("tokens of an answer", f"{summary['tokens_before']:.1f}", f"{summary['tokens_after']:.1f}"),
    ]
    console.print(before_after_table(f"{n} held-out problems, with 95% intervals", rows))
    learned = [
        (was["prompt"][-1]["content"], was["completion"], now["completion"])
        for was, now in zip(before, after, strict=True)
        if now["accuracy"] > 0 >= was["accuracy"]
    ]
    console.print(examples_panel(learned[:2]))
    plots = ", ".join(plot.name for plot in plot_training(output))
    where = shlex.quote(str(output))
    console.print(
        f"{summary['seconds']:.0f} s in all. In {output}: the model (loads with AutoModelForCausalLM), metrics.jsonl,\n"
        f"completions.jsonl, held_out.jsonl, summary.json, {plots}.\n\n"
        f"Ask it:           cohort generate {where} --prompt 'What is 27 + 15? Answer with the number only.'\n"
        f"Train once more:  cohort train {shlex.quote(str(path))} seed=1 output_dir=output/second\n"
        "Your own data:    docs/tutorial.md\n"
        f"Look at it:       {write_report([output])} (in a browser)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
