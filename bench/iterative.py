"""Reward models on the demo's task: measured, used for training, exploited, and refitted (docs/comparison.md).

    python bench/iterative.py output/iterative --seeds 0,1,2

For each seed, from the demo's start (chains of three operations, a teacher with 40% of the facts wrong):

    outcome   a reward model on many labelled samples of the start; GRPO with it as the only reward
    few       a reward model on few of them; GRPO with it as the only reward, more completions a step
    few-refit the same, but refitted at every step on the step's own samples and three times as many earlier ones
    refit     the first model again; three iterations, in which it is refitted every so many steps
    process   a process model on Monte Carlo labels, against the exact checker of steps; GRPO process with it
    rules     GRPO with the rule, for comparison

Parts whose results are in the output folder are not run again. `--parts few,refit` runs some of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cohort.config import GRPOConfig, GRPOProcessConfig, ProcessRewardConfig, RewardConfig, SFTConfig
from cohort.data.chains import Teacher, build_model, build_tokenizer, make_chains
from cohort.data.rows import load_rows
from cohort.evaluation.judging import score_rows
from cohort.evaluation.labelling import label_model
from cohort.formulas.chance import wilson
from cohort.report.drawing import STYLE
from cohort.report.judgement import judgement
from cohort.report.learning_plots import iterations
from cohort.report.metrics import read_metrics, series
from cohort.report.plots import plot_training
from cohort.rewards.functions.text import content
from cohort.rewards.functions.working import chain_steps
from cohort.rewards.steps import by_separator, cut
from cohort.train.reward_models.trainer import RewardTrainer
from cohort.train.trainer import Trainer
from cohort.train.trainers import SFTTrainer
from iterative_settings import (
    BY_PROBABILITY,
    FEW,
    ITERATIONS,
    LENGTH,
    OUTCOME,
    PARTS,
    POLICY,
    QUICK,
    REFIT,
    REWARD_MODEL,
    ROLLOUTS,
    RULES,
    SAMPLES,
    Size,
)


class Seed:
    """One seed's problems and folder; each method writes a part unless it exists."""

    def __init__(self, number: int, output: Path, size: Size):
        self.number, self.folder, self.size = number, output / f"seed-{number}", size
        self.demonstrations, self.train, held_out = make_chains(3, 6000, 1000, number, Teacher(number))
        self.held_out, self.judging = held_out[: size.held_out], held_out[-size.judging :]
        self.start = self.folder / "start"

    def make_start(self) -> None:
        """SFT on the teacher's demonstrations, as in the demo."""
        if (self.start / "config.json").is_file():
            return
        tokenizer = build_tokenizer()
        settings = {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "adam_beta2": 0.98}
        config = SFTConfig(
            str(self.start), seed=self.number, per_device_train_batch_size=32, max_steps=self.size.sft, **settings,
            max_completion_length=LENGTH,
        )  # fmt: skip
        model = build_model(tokenizer, self.number)
        SFTTrainer(model, config, self.demonstrations, processing_class=tokenizer).train()

    def labelled(
        self, name: str, problems: list[dict[str, Any]], kind: Any = "rows", samples: int = SAMPLES
    ) -> list[dict[str, Any]]:
        """The start's samples, labelled by the rule; with `kind` hard their steps, labelled by ROLLOUTS from each."""
        path = self.folder / f"{name}.jsonl"
        if not path.is_file():
            labels = label_model(
                str(self.start),
                load_rows(problems),
                rewards=["accuracy"],
                samples=samples,
                kind=kind,
                rollouts=ROLLOUTS,
                split=by_separator("\n"),
                temperature=1.0,
                max_completion_length=LENGTH,
                seed=self.number,
            )
            lines = [json.dumps(record) + "\n" for records in labels for record in records]
            path.write_text("".join(lines), encoding="utf-8")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def reward_model(self, name: str, rows: list[dict[str, Any]], held_out: list[dict[str, Any]], **values: Any) -> str:
        """Train a reward model from the start's weights with a new head; returns its folder."""
        folder = self.folder / name
        if not (folder / "config.json").is_file():
            kind = ProcessRewardConfig if "labels" in rows[0] else RewardConfig
            config = kind(str(folder), seed=self.number, eval_steps=0.25, **REWARD_MODEL, **values)
            RewardTrainer(str(self.start), config, rows, held_out).train()
        return str(folder)

    def judge(self, model: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        scores = score_rows(model, load_rows(rows), [], by_separator("\n"), "\n", batch_size=64)
        return judgement(scores)

    def policy(self, name: str, rewards: list[Any], method: str = "grpo", **values: Any) -> dict[str, Any]:
        """Train from the start; returns held-out accuracy along the run, and the guard's results."""
        folder = self.folder / name
        path = folder / "result.json"
        if not path.is_file():
            kind = GRPOProcessConfig if method == "grpo_process" else GRPOConfig
            steps = {} if "iterations" in values else {"max_steps": self.size.policy}
            config = kind(str(folder), seed=self.number, **{**POLICY, **steps, **values})
            trainer = Trainer(str(self.start), rewards, config, self.train, self.held_out, method=method)
            trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
            plot_training(folder)
            path.write_text(json.dumps(outcome(folder), indent=1), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))


def outcome(folder: Path) -> dict[str, Any]:
    rows = read_metrics(folder)
    steps, accuracy = series(rows, "eval/accuracy")
    parted = series(rows, "guard/overoptimized_from")
    return {
        "problems": round(series(rows, "eval/samples")[1][-1]),
        "accuracy": accuracy[-1],
        "highest": max(accuracy),
        "curve": list(zip(steps, accuracy, strict=True)),
        "proxy": [series(rows, "guard/proxy")[1][i] for i in (0, -1)],
        "kl": series(rows, "guard/kl")[1][-1],
        "overoptimized_from": parted[1][0] if parted[1] else None,
        "noticed_at": parted[0][0] if parted[0] else None,
        "seconds": sum(series(rows, "seconds/step")[1]),
    }


def frozen_part(seed: Seed, name: str, **values: Any) -> dict[str, Any]:
    """The outcome model `outcome` or `few`: its ranking accuracy, and GRPO with it as the only reward."""
    model = outcome_model(seed, name)
    judgement = seed.judge(model, seed.labelled("judging", seed.judging))
    return {"ranking_accuracy": judgement["ranking_accuracy"], **judged(seed, name, model, **values)}


def few_refit_part(seed: Seed) -> dict[str, Any]:
    """The small model, refitted on each step's samples."""
    model = outcome_model(seed, "few")
    refit = {**REFIT, "every": 1, "replay_share": 0.75, "history": str(seed.folder / "few.jsonl")}
    once = {"iterations": 1, "steps_per_iteration": seed.size.on_model, "reward_model_refit": refit}
    once_trained = judged(seed, "few-refit", model, **FEW, **once)
    after = seed.judge(str(seed.folder / "few-refit" / "reward_model"), seed.labelled("judging", seed.judging))
    return {"ranking_accuracy": after["ranking_accuracy"], **once_trained}


def outcome_model(seed: Seed, name: str) -> str:
    size = seed.size
    if name == "outcome":
        rows, steps = seed.labelled("many", seed.train[: size.many], samples=2 * SAMPLES), size.outcome
    else:
        rows, steps = seed.labelled("few", seed.train[: size.few]), size.on_few
    return seed.reward_model(
        f"{name}-model",
        rows,
        seed.labelled("judging", seed.judging),
        max_steps=steps,
        per_device_train_batch_size=64,
        **OUTCOME,
    )


def judged(seed: Seed, name: str, model: str, **values: Any) -> dict[str, Any]:
    """GRPO with the reward model as the only reward."""
    steps = {} if "iterations" in values else {"max_steps": seed.size.on_model}
    return seed.policy(name, [{"model": model, "probability": True}], **BY_PROBABILITY, **steps, **values)


def refit_part(seed: Seed) -> dict[str, Any]:
    """The outcome model in iterations with refits, and its ranking accuracy after them."""
    model, length = outcome_model(seed, "outcome"), seed.size.on_model // ITERATIONS
    refit = {**REFIT, "history": str(seed.folder / "many.jsonl")}
    refits = {"iterations": ITERATIONS, "steps_per_iteration": length, "reward_model_refit": refit}
    refitted = judged(seed, "refit", model, **refits)
    after = seed.judge(str(seed.folder / "refit" / "reward_model"), seed.labelled("judging", seed.judging))
    return {"ranking_accuracy": after["ranking_accuracy"], **refitted}


def process_part(seed: Seed) -> dict[str, Any]:
    """A process model of roll-out labels: agreement with the exact checker, and GRPO process with the model."""
    rows = seed.labelled("steps", seed.train[: seed.size.stepwise], kind="hard", samples=2)
    judging = seed.labelled("judging-steps", seed.judging, kind="hard")
    steps = {"max_steps": seed.size.process, "per_device_train_batch_size": 64}
    model = seed.reward_model("process-model", rows, judging, **steps)
    exact = [{**row, "labels": exact_labels(row)} for row in judging]
    judged = seed.judge(model, exact)
    labels = [(float(a), b) for row, by_rule in zip(judging, exact, strict=True)
              for a, b in zip(row["labels"], by_rule["labels"], strict=True)]  # fmt: skip
    agreement = {
        "of_labels": sum(a == b for a, b in labels) / len(labels),
        "of_model": judged["agreement"],
        "steps": len(labels),
    }
    return {
        "agreement": agreement,
        **seed.policy("process", [{"model": model}], method="grpo_process", **BY_PROBABILITY),
    }


def exact_labels(row: dict[str, Any]) -> list[float]:
    """1 for each step before the first one that the checker calls wrong, else 0. Roll-outs give these labels, because
    after a wrong step they do not reach the answer."""
    steps = cut(content(row["completion"]), by_separator("\n")).texts
    scores = chain_steps([row["prompt"]], [steps])[0]
    right, labels = True, []
    for score in scores:
        right = right and score > 0
        labels.append(float(right))
    return labels


def rules_part(seed: Seed) -> dict[str, Any]:
    return seed.policy("rules", RULES)


WORK: dict[str, Callable[[Seed], dict[str, Any]]] = {
    "outcome": partial(frozen_part, name="outcome"),
    "few": partial(frozen_part, name="few", **FEW),
    "few-refit": few_refit_part,
    "refit": refit_part,
    "process": process_part,
    "rules": rules_part,
}


def run(seed: Seed, parts: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    seed.folder.mkdir(parents=True, exist_ok=True)
    seed.make_start()
    figures = {}
    for part in parts:
        started = time.perf_counter()
        figures[part] = WORK[part](seed)
        say(f"seed {seed.number}, {part} ({time.perf_counter() - started:.0f} s now): {line(figures[part])}")
    return figures


def line(result: dict[str, Any]) -> str:
    low, high = wilson(result["accuracy"] * result["problems"], result["problems"])
    words = [f"held-out accuracy {result['curve'][0][1]:.1%} -> {result['accuracy']:.1%} [{low:.1%}, {high:.1%}]"]
    words.append(f"highest {result['highest']:.1%}, proxy {result['proxy'][0]:.3g} -> {result['proxy'][1]:.3g}")
    words.append(f"KL {result['kl']:.3g}")
    if result.get("ranking_accuracy"):
        ranking = result["ranking_accuracy"]
        words.append(f"ranking accuracy {ranking['value']:.1%} {[round(x, 3) for x in ranking['interval']]}")
    if "agreement" in result:
        of = result["agreement"]
        words.append(f"of {of['steps']} steps the labels agree with the checker on {of['of_labels']:.1%}, the model on "
                     f"{of['of_model']['value']:.1%}")  # fmt: skip
    if result["overoptimized_from"] is not None:
        at = result["overoptimized_from"], result["noticed_at"]
        words.append("over-optimised from step {:.0f}, noticed at step {:.0f}".format(*at))
    return ", ".join(words)


def plot_iterations(seeds: list[Seed], output: Path) -> Path | None:
    """Plot iterations 0, 1 and 2 of all seeds in one figure."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = iterations([read_metrics(seed.folder / "refit") for seed in seeds])
        if figure is None:
            return None
        figure.savefig(output / "iterations.png", dpi=150)
    return output / "iterations.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=0, help="Threads of this process; 0: all.")
    parser.add_argument("--quick", action="store_true", help="A few steps of each part, as a check that it runs.")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    size = QUICK if options.quick else Size()
    seeds = [Seed(int(number), options.output, size) for number in options.seeds.split(",")]
    parts = options.parts.split(",")
    figures = {seed.number: run(seed, parts, lambda text: print(text, flush=True)) for seed in seeds}
    (options.output / "results.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    if "refit" in parts:
        print(plot_iterations(seeds, options.output))


if __name__ == "__main__":
    main()
