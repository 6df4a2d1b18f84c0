"""What is added to rewarded groups before credit: reference log-probabilities, ends of steps, the greedy completion's
reward."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from cohort.config import OnlineConfig, SampledConfig
from cohort.evaluation.evaluate import evaluate
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.reference import Reference
from cohort.rewards.compose import Rewards
from cohort.rollouts.encoding import Prompt, token_ends
from cohort.rollouts.engine import Engine, LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.types import Group, TrainerState

Lent = Callable[[], AbstractContextManager[Policy]]
"""A reference: `with lent() as policy` gives the model to score with."""


def attach_reference(groups: list[Group], reference: Lent, config: SampledConfig) -> dict[str, float]:
    """Set `reference_logprobs` of every completion; returns the time it took."""
    started = time.perf_counter()
    for group, found in zip(groups, logprobs_under(reference, groups, config), strict=True):
        group.reference_logprobs = found
    return {"seconds/reference": time.perf_counter() - started}


def attach_kl_reference(
    groups: list[Group], reference: Reference, config: OnlineConfig, engine: Engine
) -> dict[str, float]:
    """As `attach_reference`. Where the reference has the weights that sampled, as in a run's first step, its
    log-probabilities are the sampler's if these are the policy's to 1e-5, which saves a pass; and from any sampler
    where the KL is in the reward, so that the KL is exactly 0: those of another pass differ by rounding, which
    whitening over the batch would turn into a full step."""
    exact = isinstance(engine, LocalEngine) and reference.policy.dtype is torch.float32
    version = reference.policy.version
    sampled = all(completion.version == version for group in groups for completion in group.completions)
    if not ((exact or config.kl_in_reward) and sampled and reference.is_policy()):
        return attach_reference(groups, reference, config)
    for group in groups:
        group.reference_logprobs = [completion.logprobs for completion in group.completions]
    return {"seconds/reference": 0.0}


def logprobs_under(reference: Lent, groups: list[Group], config: SampledConfig) -> list[list[Tensor]]:
    """By group and completion, [n] log-probabilities under the reference."""
    parts = [
        Part(g, group.prompt_ids, range(len(group.completions)), [c.ids for c in group.completions])
        for g, group in enumerate(groups)
    ]
    with record_function("reference"), reference() as model:
        score = partial(model.logprobs, temperature=config.training_temperature)
        logprobs = ranks.scored(parts, score, config.token_budget, "scoring under the reference")
    return [[logprobs[g, r] for r in range(len(group.completions))] for g, group in enumerate(groups)]


def attach_step_ends(groups: list[Group], tokenizer: Any) -> dict[str, float]:
    """Set the index of the last token of every step of every completion."""
    for group in groups:
        for steps, completion in zip(group.steps or (), group.completions, strict=True):
            steps.ends = token_ends(completion.ids.tolist(), completion.text, steps.text_ends, tokenizer)
    return {}


def attach_greedy(groups: list[Group], engine: Engine, rewards: Rewards, sampling: Sampling) -> dict[str, float]:
    """Set the reward of each prompt's greedy completion; returns their mean and the time it took."""
    started = time.perf_counter()
    prompts = [Prompt(group.row, group.prompt_ids) for group in groups]
    totals = evaluate(prompts, engine, rewards, replace(sampling, temperature=0.0), 1, 0, TrainerState()).totals
    for group, total in zip(groups, totals, strict=True):
        group.greedy_reward = total
    return {"reward/greedy": sum(totals) / len(totals), "seconds/greedy": time.perf_counter() - started}
