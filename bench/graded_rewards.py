"""GRPO with graded rewards against Online RFT with right or wrong (docs/comparison.md).

    python bench/graded_rewards.py OUT --comparison FOLDER --seeds 0,1,2,3,4,5,6,7 --learning-rate 6e-4

FOLDER is the output of `cohort compare` with `task: chains`, three operations and the method online_rft. For each seed,
from that comparison's start: an outcome reward model of many labelled samples of the start, and GRPO with its
probability as the only reward, with the comparison's settings. DeepSeekMath compares so (section 5.2.1): its Online RFT
knows right and wrong, its GRPO the scores of a reward model. What OUT holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from statistics import fmean
from typing import Any

from cohort.config import GRPOConfig
from cohort.data.chains import Teacher, make_chains
from cohort.report.intervals import of_mean
from cohort.report.metrics import read_metrics, series
from cohort.train.trainer import Trainer
from iterative import OUTCOME, Seed, Size

SAMPLES = 16
"""Samples of a problem in an evaluation."""


class Start(Seed):
    """A seed of the comparison: its problems and its start."""

    def __init__(self, number: int, output: Path, comparison: Path, mistaught: float, rate: float):
        super().__init__(number, output, Size())
        teacher = Teacher(number, mistaught, rate)
        self.demonstrations, self.train, self.held_out = make_chains(3, 6000, 300, number, teacher)
        self.judging = self.held_out
        self.start = comparison / f"seed-{number}" / "start" / "model"
        self.folder.mkdir(parents=True, exist_ok=True)

    def graded(self, learning_rate: float, steps: int) -> dict[str, Any]:
        """Ranking accuracy of the reward model, and the curve of GRPO with it."""
        judging = self.labelled("judging", self.judging)
        rows = self.labelled("many", self.train)
        size = {"max_steps": 800, "per_device_train_batch_size": 64}
        model = self.reward_model("outcome-model", rows, judging, **size, **OUTCOME)
        folder = self.folder / f"grpo-{learning_rate:g}"
        if not (folder / "model.safetensors").is_file():
            config = GRPOConfig(
                str(folder), seed=self.number, learning_rate=learning_rate, lr_scheduler_type="constant",
                adam_beta2=0.99, beta=0.0, num_generations=8, per_device_train_batch_size=128, max_steps=steps,
                max_completion_length=56, eval_strategy="steps", eval_steps=10, eval_on_start=True,
                eval_temperature=1.0, num_generations_eval=SAMPLES,
            )  # fmt: skip
            rewards = [{"model": model, "probability": True}, {"name": "accuracy", "weight": 0.0}]
            Trainer(str(self.start), rewards, config, self.train, self.held_out).train()
        ranking = self.judge(model, judging)["ranking_accuracy"]["value"]
        return {"seed": self.number, "ranking_accuracy": ranking, **curve(folder)}


def curve(folder: Path) -> dict[str, list[float]]:
    """Sampled accuracy and pass@16 after training began."""
    rows = [row for row in read_metrics(folder) if row["step"] > 0]
    keys = {"accuracy": "eval/accuracy", "pass@n": f"eval/accuracy/pass@{SAMPLES}"}
    return {name: series(rows, key)[1] for name, key in keys.items()}


def compared(comparison: Path, seed: int) -> dict[str, list[float]]:
    """The same of the comparison's Online RFT."""
    path = comparison / f"seed-{seed}" / "online_rft" / "result.json"
    points = json.loads(path.read_text(encoding="utf-8"))["curve"]
    return {key: [p[key] for p in points if p["completions"] > 0] for key in ("accuracy", "pass@n")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--comparison", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--mistaught", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=0.85)
    parser.add_argument("--alone", action="store_true", help="Without Online RFT: to choose a learning rate.")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    numbers = [int(number) for number in options.seeds.split(",")]
    results = []
    for number in numbers:
        seed = Start(number, options.output, options.comparison, options.mistaught, options.rate)
        results.append(seed.graded(options.learning_rate, options.steps))
        print(json.dumps(results[-1]), flush=True)
    for key in ("accuracy", "pass@n"):
        areas = [fmean(result[key]) for result in results]
        ends = [result[key][-1] for result in results]
        print(f"grpo, graded: {key}: area {fmean(areas):.1%}, at the end {fmean(ends):.1%}")
        if not options.alone:
            others = [compared(options.comparison, number)[key] for number in numbers]
            for what, of in (("area", fmean), ("at the end", lambda values: values[-1])):
                gaps = [of(result[key]) - of(other) for result, other in zip(results, others, strict=True)]
                mean, low, high = of_mean(gaps)
                print(f"  minus online_rft, {what}: {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points")


if __name__ == "__main__":
    main()
