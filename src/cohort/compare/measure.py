"""What a comparison measures of a trained model and of the run that trained it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cohort.compare.config import Plan, completions_after
from cohort.config import OnlineConfig, TrainingConfig
from cohort.evaluation.evaluate import Evaluation, evaluate
from cohort.evaluation.models import summary
from cohort.policy.load import make_policy
from cohort.report.metrics import read_metrics, series
from cohort.rewards.compose import Rewards
from cohort.rewards.resolve import with_run_defaults
from cohort.rollouts.encoding import encode_prompts
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from cohort.train.output.record import SAMPLES
from cohort.train.trainer import Trainer
from cohort.types import Row, TrainerState, UserError


def component_of(correct: str) -> str:
    return Rewards([correct]).names[0]


def measure(plan: Plan, model: str, held_out: list[Row], config: OnlineConfig) -> dict[str, Any]:
    """Accuracy as along the curve, then pass@k and maj@k of K completions of each held-out problem."""
    policy = make_policy(model, None, config)
    prompts = encode_prompts(held_out, policy, config)
    engine = local_engine(policy, config.max_rows)
    rewards = Rewards(with_run_defaults([plan.correct], config.max_completion_length))

    def sampled(n: int, temperature: float) -> Evaluation:
        sampling = Sampling(
            temperature=temperature,
            max_tokens=config.max_completion_length,
            eos_ids=policy.eos_ids,
            stop=config.stop,
        )
        return evaluate(prompts, engine, rewards, sampling, n, config.seed, TrainerState())

    component, K = rewards.names[0], plan.final_generations
    by_curve = sampled(config.num_generations_eval, config.eval_temperature)
    accuracy = by_curve.metrics()[f"eval/{component}"]
    ks = [k for k in (2**i for i in range(K.bit_length())) if k < K] + [K]
    several = summary(sampled(K, config.temperature), component, ks)
    return {
        "problems": len(prompts),
        "accuracy": share(accuracy, plan.correct),
        "curve": [{"step": 0, "completions": 0, "accuracy": accuracy}],
        "sampled_accuracy": several["accuracy"],
        "pass@k": several["pass@k"],
        "maj@k": several["maj@k"],
    }


def share(value: float, correct: str) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"`correct: {correct}` scores {value:g} on average: name a reward function that gives 0 or 1")
    return value


def curve(plan: Plan, folder: Path, config: TrainingConfig, component: str) -> dict[str, Any]:
    """Accuracy by completions, and what was sampled in all, from the run's own records."""
    steps, values = series(read_metrics(folder), f"eval/{component}")
    if isinstance(config, OnlineConfig):
        sampled = [completions_after(config, round(step)) for step in steps]
        total = completions_after(config, config.max_steps)
    else:
        total = in_samples(folder)
        # All is sampled before the first step: a curve beside the others' is by the share of its steps.
        sampled = [round(total * step / config.max_steps) for step in steps]
    points = [
        {"step": round(step), "completions": count, "accuracy": share(value, plan.correct)}
        for step, count, value in zip(steps, sampled, values, strict=True)
    ]
    return {"completions": total, "accuracy": values[-1], "curve": points}


def in_samples(folder: Path) -> int:
    lines = (folder / SAMPLES).read_text(encoding="utf-8").split("\n")[1:]
    return sum(len(json.loads(line)["completions"]) for line in lines if line)


def training_bytes(trainer: Trainer) -> int:
    """Weights that are trained, their gradients, and the optimisers' state: the policy's, a critic's, and those of a
    reward model that is refitted."""
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
