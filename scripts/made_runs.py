"""Run folders that are made up: files as a run of GRPO on sums writes them, healthy or with a known fault.

The pictures of docs/ and the tests of the page are made from them. Numbers are drawn, no model is trained.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

KINDS = ("healthy", "too_hard", "cut_off", "learning_rate", "collapsed", "gamed")
LIMIT = 64
WARNINGS: dict[str, tuple[int, str, str]] = {
    "too_hard": (
        5,
        "no gradient",
        "no gradient for 3 batches: in each group all rewards are equal, since no completion is right: the prompts are "
        "too hard for this model. Easier prompts, a reward with partial credit, or sft first",
    ),
    "cut_off": (
        3,
        "truncated",
        "91% of the completions end at max_completion_length: 64, for 3 batches: what they would have answered is not "
        "seen. Raise it; where completions never end by themselves, the model does not know its chat template or end "
        "token (template, stop, or sft first)",
    ),
    "learning_rate": (
        2,
        "learning rate",
        "this step's update moved its own batch by 1.4 nats a token: learning_rate 0.001 is too high for this model. "
        "Divide it by 10; 1e-6 is usual for rewards and all weights of a large model, 1e-5 for LoRA and for imitation",
    ),
    "collapsed": (
        14,
        "collapsed",
        "the entropy fell from 0.82 to 0.02 nats a token while 41% of the completions have the highest reward: the "
        "completions of a prompt become equal. Lower learning_rate, raise temperature or epsilon_high, or set "
        "entropy_coef",
    ),
    "gamed": (
        22,
        "overoptimization",
        "gold falls from step 16 while the proxy rises: the policy games the reward. Stop there, raise beta, or mend "
        "the reward (cohort reward audit)",
    ),
}
"""Kind -> (step, name, message) of the warning that such a run gives."""


def make_run(
    folder: Path,
    kind: str = "healthy",
    *,
    steps: int = 40,
    groups: int = 6,
    size: int = 8,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Write a run's folder; returns it. `settings` replace keys of its config.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    run = MadeRun(kind, steps, groups, size, random.Random(f"{kind}{seed}"))
    files: dict[str, list[Any]] = {"metrics": [], "completions": [], "groups": [], "rows": [], "held_out": []}
    for step in range(steps + 1):
        for name, lines in run.step(step).items():
            files[name] += lines
    if kind in WARNINGS:
        step, name, message = WARNINGS[kind]
        files["warnings"] = [{"step": step, "name": name, "message": f"step {step}: {message}", "rows": [3, 7]}]
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    config = {
        "method": "grpo",
        "model": "made-up",
        "seed": seed,
        "learning_rate": 1e-3 if kind == "learning_rate" else 1e-5,
        "max_completion_length": LIMIT,
        "max_steps": steps,
        "num_generations": size,
        "beta": 0.04,
        "output_dir": str(folder),
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "ended.json").write_text(json.dumps({"step": steps, "max_steps": steps, "by": "max_steps"}))
    return folder


class MadeRun:
    """Draws the lines that a run writes at each step."""

    def __init__(self, kind: str, steps: int, groups: int, size: int, draw: random.Random):
        self.kind, self.steps, self.groups, self.size, self.draw = kind, steps, groups, size, draw
        self.problems = [(draw.randint(2, 49), draw.randint(2, 49)) for _ in range(groups * 5)]
        self.hard = [draw.random() for _ in self.problems]
        self.visited: set[int] = set()

    def progress(self, step: int) -> float:
        return step / max(1, self.steps)

    def skill(self, step: int) -> float:
        """The chance that an easy problem is solved."""
        t = self.progress(step)
        if self.kind in ("too_hard", "cut_off"):
            return 0.0
        if self.kind == "learning_rate":
            return 0.35 * math.exp(-9 * t)
        if self.kind == "collapsed":
            return 0.3 + 0.12 * min(1.0, 3 * t)
        if self.kind == "gamed":
            return 0.3 + 0.35 * t if t < 0.4 else max(0.05, 0.44 - 0.6 * (t - 0.4))
        return 0.25 + 0.65 * (1 - math.exp(-3 * t))

    def step(self, step: int) -> dict[str, list[Any]]:
        lines: dict[str, list[Any]] = {}
        evaluated = list(self.held_out(step)) if step % 10 == 0 else []
        rows: list[dict[str, Any]] = []
        if step:
            start = (step - 1) * self.groups
            numbers = [(start + i) % len(self.problems) for i in range(self.groups)]
            batch = [self.group(step, i, row) for i, row in enumerate(numbers)]
            rows = [self.metrics(step, batch)]
            lines = {"groups": [batch[0]], "rows": [self.history(group) for group in batch]}
            lines["completions"] = [line for group in batch[:2] for line in completions(group)]
        if evaluated:
            rows.append(self.evaluation(step, evaluated))
        return {**lines, "metrics": rows, "held_out": evaluated}

    def answer(self, step: int, problem: tuple[int, int], hard: float) -> tuple[str, float, bool]:
        """(text, accuracy, truncated)"""
        a, b = problem
        right = self.draw.random() < self.skill(step) * (1.25 - 0.9 * hard)
        number = a + b if right else a + b + self.draw.choice((-10, -2, -1, 1, 3, 10))
        if self.kind == "cut_off":
            return (
                f"Let us think about {a} and {b} carefully, " + "step by step, " * self.draw.randint(9, 12),
                0.0,
                self.draw.random() < 0.92,
            )
        if self.kind == "learning_rate" and self.progress(step) > 0.2:
            return " the" * self.draw.randint(3, 60), 0.0, self.draw.random() < 0.6
        if self.kind == "gamed" and self.progress(step) > 0.3:
            return "Certainly! " * self.draw.randint(2, 9) + f"The answer is {number}.", float(right), False
        if self.kind == "collapsed" and self.progress(step) > 0.3:
            return f"{a} + {b} = {a + b if hard < 0.42 else a + b - 1}", float(hard < 0.42), False
        text = self.draw.choice(
            (
                f"{a} + {b} = {number}",
                f"The sum of {a} and {b} is {number}.",
                f"I add {a} and {b} first.\n{number}",
                f"{number}",
            )
        )
        return text, float(right), False

    def group(self, step: int, number: int, row: int) -> dict[str, Any]:
        a, b = self.problems[row]
        answers = [self.answer(step, (a, b), self.hard[row]) for _ in range(self.size)]
        total = [self.total(text, score) for text, score, _ in answers]
        middle = sum(total) / len(total)
        spread = math.sqrt(sum((x - middle) ** 2 for x in total) / max(1, len(total) - 1))
        made = []
        for i, (text, score, truncated) in enumerate(answers):
            tokens = re.findall(r"\s?\w+|\s|[^\w\s]", text)
            advantage = (total[i] - middle) / (spread + 1e-4)
            numbers = list(re.finditer(r"\d+", text))
            made.append(
                {
                    "index": i,
                    "text": text,
                    "tokens": tokens,
                    "logprobs": [round(-abs(self.draw.gauss(0, 0.6)), 3) for _ in tokens],
                    "entropies": [round(abs(self.draw.gauss(0, 0.5)), 3) for _ in tokens],
                    "changes": [round(0.05 * advantage + self.draw.gauss(0, 0.03), 4) for _ in tokens],
                    "reference_logprobs": [round(-abs(self.draw.gauss(0, 0.6)), 3) for _ in tokens],
                    "advantages": round(advantage, 4),
                    "reward": round(total[i], 4),
                    "components": {"accuracy": score, "format": float(text[:1].isdigit())},
                    "spans": {"accuracy": list(numbers[-1].span())} if numbers else {},
                    "truncated": truncated,
                }
            )
        prompt = [{"role": "user", "content": f"What is {a} + {b}? Answer with the number only."}]
        return {
            "step": step,
            "group": number,
            "row": row,
            "prompt": prompt,
            "columns": {"answer": str(a + b)},
            "completions": made,
        }

    def total(self, text: str, score: float) -> float:
        style = (
            0.1 * text.count("Certainly!")
            if self.kind == "gamed"
            else 0.1 * text[:1].isdigit() * (self.kind == "healthy")
        )
        return score + style

    def history(self, group: dict[str, Any]) -> dict[str, Any]:
        rewards = [each["reward"] for each in group["completions"]]
        right = sum(each["components"]["accuracy"] > 0 for each in group["completions"])
        line = {key: group[key] for key in ("step", "row", "group")}
        line |= {"n": len(rewards), "right": right, "mean": round(sum(rewards) / len(rewards), 4), "rewards": rewards}
        if group["row"] not in self.visited:
            self.visited.add(group["row"])
            line["prompt"] = group["prompt"][-1]["content"]
        return line

    def metrics(self, step: int, batch: list[dict[str, Any]]) -> dict[str, Any]:
        every = [each for group in batch for each in group["completions"]]
        mean = {name: sum(each["components"][name] for each in every) / len(every) for name in ("accuracy", "format")}
        lengths = [len(each["tokens"]) if not each["truncated"] else LIMIT for each in every]
        equal = sum(len({each["reward"] for each in group["completions"]}) == 1 for group in batch) / len(batch)
        t, noise = self.progress(step), self.draw.uniform(0.9, 1.1)
        kl = {"learning_rate": 4.5 * t, "gamed": 0.4 * t}.get(self.kind, 0.03 * t) * noise
        entropy = 0.82 * (math.exp(-9 * t) if self.kind == "collapsed" else 1 - 0.5 * t) * noise
        gold = {
            "guard/gold": mean["accuracy"],
            "guard/proxy": sum(each["reward"] for each in every) / len(every),
            "guard/kl": kl,
        }
        return {
            "step": step,
            "epoch": step * 0.05,
            "loss": 0.04 * kl,
            "grad_norm": (0.0 if equal == 1 else 0.4) * noise,
            "learning_rate": 1e-5,
            "reward": sum(each["reward"] for each in every) / len(every),
            "reward_std": 0.3,
            "frac_reward_zero_std": equal,
            **{f"rewards/{name}/mean": value for name, value in mean.items()},
            "kl": kl,
            "entropy": entropy,
            "kl/update": (1.4 if self.kind == "learning_rate" else 0.02) * noise,
            "completions/mean_length": sum(lengths) / len(lengths),
            "completions/max_length": max(lengths),
            "completions/clipped_ratio": sum(each["truncated"] for each in every) / len(every),
            "seconds/step": 2.1 * noise,
            "seconds/generate": 1.2 * noise,
            "seconds/reward": 0.1,
            "seconds/reference": 0.2,
            "seconds/update": 0.5 * noise,
            "tokens_per_second": 900 / noise,
            "num_tokens": 1000 * step,
            **(gold if self.kind == "gamed" else {}),
        }

    def held_out(self, step: int) -> Iterator[dict[str, Any]]:
        for number in range(60):
            a, b = 2 + number * 7 % 48, 2 + number * 11 % 48
            text, score, truncated = self.answer(step, (a, b), number / 60)
            yield {
                "step": step,
                "problem": number,
                "sample": 0,
                "prompt": [{"role": "user", "content": f"What is {a} + {b}?"}],
                "completion": text,
                "tokens": len(text.split()) + 2,
                "truncated": truncated,
                "reward": score,
                "accuracy": score,
                "columns": {"answer": str(a + b)},
            }

    def evaluation(self, step: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        n, share = len(rows), sum(row["accuracy"] for row in rows) / len(rows)
        std = math.sqrt(share * (1 - share) * n / (n - 1))
        return {
            "step": step,
            "eval/reward": share,
            "eval/samples": n,
            "eval/accuracy": share,
            "eval/accuracy/std": std,
            "eval/completions/mean_length": sum(row["tokens"] for row in rows) / n,
            "seconds/eval": 3.0,
        }


def completions(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of completions.jsonl of a group."""
    for each in group["completions"]:
        yield {
            "step": group["step"],
            "why": "strangest" if each["index"] == 3 else "sample",
            "prompt": group["prompt"],
            "completion": each["text"],
            "tokens": LIMIT if each["truncated"] else len(each["tokens"]),
            "truncated": each["truncated"],
            "reward": each["reward"],
            "advantage": each["advantages"],
            **each["components"],
            "columns": group["columns"],
            "row": group["row"],
            "group": group["group"],
            "index": each["index"],
        }
