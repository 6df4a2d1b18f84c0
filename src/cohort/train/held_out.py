"""Held-out rows and their metrics: sampled and scored completions where there are rewards, else the method's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from cohort.config import DistillConfig, DPOConfig, SampledConfig
from cohort.evaluation.evaluate import Evaluation, evaluate
from cohort.methods.table import METHODS
from cohort.progress import Task
from cohort.rollouts.encoding import encode_prompts
from cohort.rollouts.sampling import Sampling
from cohort.train.sources.demonstrations import Demonstrations
from cohort.train.sources.pair_reference import PairReference
from cohort.train.sources.parts import Parts
from cohort.train.sources.preferences import HeldOutPairs
from cohort.train.sources.teacher import held_out_metrics
from cohort.types import Row, TrainerState

Measure = Callable[[TrainerState], "dict[str, float] | Evaluation"]


def measure_of(rows: list[Row], parts: Parts) -> Measure:
    """The function that measures the policy on the rows: an Evaluation where there are rewards, else metrics."""
    policy, config = parts.policy, parts.config
    if parts.rewards is not None:
        return _sampled(rows, parts)
    if parts.teacher is not None:
        prompts = encode_prompts(rows, policy, config)
        of_teacher = prompts, policy, parts.engine, parts.teacher, cast(DistillConfig, config)
        return _shown(rows, lambda: held_out_metrics(*of_teacher))
    if parts.method.source == "preferences":
        pairs = HeldOutPairs(rows, policy, cast(DPOConfig, config), PairReference(parts), parts.compute_metrics)
        return _shown(rows, pairs.metrics)
    return _shown(rows, Demonstrations(rows, policy, config, METHODS["sft"]).held_out_loss)


def _sampled(rows: list[Row], parts: Parts) -> Measure:
    config, rewards = parts.config, parts.rewards
    assert rewards is not None
    prompts = encode_prompts(rows, parts.policy, config)
    sampling = Sampling(
        temperature=config.eval_temperature,
        max_tokens=config.max_completion_length,
        eos_ids=parts.policy.eos_ids,
        stop=config.stop if isinstance(config, SampledConfig) else [],
    )
    n = config.num_generations_eval
    return lambda state: evaluate(prompts, parts.engine, rewards, sampling, n, config.seed, state)


def _shown(rows: list[Row], metrics: Callable[[], dict[str, float]]) -> Measure:
    """The function with its progress."""

    def shown(state: TrainerState) -> dict[str, float]:
        with Task(f"evaluating {len(rows):,} rows"):
            return metrics()

    return shown
