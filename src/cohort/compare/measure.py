"""Measurements of a comparison: of a model (accuracy, pass@k, maj@k) and of the run that trained it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cohort.compare.config import Comparison, completions_after
from cohort.config import OnlineConfig, TrainingConfig
from cohort.evaluation.evaluate import Evaluation
from cohort.evaluation.loaded_model import LoadedModel
from cohort.evaluation.models import summary
from cohort.report.metrics import read_metrics, series
from cohort.rewards.check.references import require_references
from cohort.rewards.component import column_of
from cohort.rewards.compose import Rewards
from cohort.rewards.resolve import with_run_defaults
from cohort.train.output.record import SAMPLES
from cohort.train.trainer import Trainer
from cohort.types import Row, UserError


def component_of(correct: str) -> str:
    return Rewards([correct]).names[0]


def measure(comparison: Comparison, model: str, held_out: list[Row], config: OnlineConfig) -> dict[str, Any]:
    """Accuracy, sampled as for the training curve; then accuracy, pass@k and maj@k of K completions of each held-out
    problem."""
    loaded = LoadedModel(model, config)
    prompts = loaded.encode(held_out)
    rewards = Rewards(with_run_defaults([comparison.correct], config.max_completion_length))
    require_references(rewards, held_out)

    def evaluated(n: int, temperature: float) -> Evaluation:
        sampling = loaded.sampling(temperature=temperature, max_tokens=config.max_completion_length, stop=config.stop)
        return loaded.evaluate(prompts, rewards, sampling, n, config.seed)

    component, K = rewards.names[0], comparison.final_generations
    accuracy = evaluated(config.num_generations_eval, config.eval_temperature).metrics()[f"eval/{column_of(component)}"]
    ks = [k for k in (2**i for i in range(K.bit_length())) if k < K] + [K]
    several = summary(evaluated(K, config.temperature), rewards.parts[0], ks)
    return {
        "problems": len(prompts),
        "accuracy": as_accuracy(accuracy, comparison.correct),
        "curve": [{"step": 0, "completions": 0, "accuracy": accuracy}],
        "sampled_accuracy": several["accuracy"],
        "pass@k": several["pass@k"],
        "maj@k": several["maj@k"],
    }


def as_accuracy(value: float, correct: str) -> float:
    """The mean score, which must be from 0 to 1. Raises UserError for another one."""
    if not 0 <= value <= 1:
        raise UserError(f"`correct: {correct}` scores {value:g} on average: name a reward function that gives 0 or 1")
    return value


def curve(comparison: Comparison, folder: Path, config: TrainingConfig, component: str) -> dict[str, Any]:
    """The run's accuracy by completions sampled, and the completions it sampled in all, from its own records; where an
    evaluation samples several completions of a problem, pass@n too."""
    metrics, key = read_metrics(folder), f"eval/{column_of(component)}"
    steps, values = series(metrics, key)
    several = series(metrics, f"{key}/pass@{config.num_generations_eval}")[1]
    passes: Sequence[float | None] = several or [None] * len(steps)
    if isinstance(config, OnlineConfig):
        sampled = [completions_after(config, round(step)) for step in steps]
        total = completions_after(config, config.max_steps)
    else:
        total = completions_in_samples(folder)
        # All completions are sampled before the first step: points are placed by the share of steps done.
        sampled = [round(total * step / config.max_steps) for step in steps]
    points = [
        {"step": round(step), "completions": count, "accuracy": as_accuracy(value, comparison.correct)}
        | ({} if solved is None else {"pass@n": solved})
        for step, count, value, solved in zip(steps, sampled, values, passes, strict=True)
    ]
    return {"completions": total, "accuracy": values[-1], "curve": points}


def completions_in_samples(folder: Path) -> int:
    lines = (folder / SAMPLES).read_text(encoding="utf-8").split("\n")[1:]
    return sum(len(json.loads(line)["completions"]) for line in lines if line)


def training_bytes(trainer: Trainer) -> int:
    """Bytes of trained weights, their gradients and the optimisers' states: of the policy, of a critic, and of a reward
    model that is refitted."""
    optimizers = [trainer.loop.updater.optimizer, *(companion.optimizer for companion in trainer.loop.companions)]
    if trainer.iterations is not None and trainer.iterations.refit is not None:
        optimizers.append(trainer.iterations.refit.updater.optimizer)
    total = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            total += 2 * sum(parameter.nbytes for parameter in group["params"])
        for state in optimizer.state.values():
            total += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    return total
