"""Coefficients of methods that see all of a step at once, before its backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cohort.config import DPOConfig, TrainingConfig
from cohort.methods.coefficients import Objective, TokenBatch
from cohort.methods.method import Method
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.train.chosen_tokens import ByCompletion

Batch = Callable[[list[tuple[int, int]], list[int]], TokenBatch]
"""From (group, completion)s and their lengths to their tokens, without log-probabilities under the policy."""


def reads_collisions(config: TrainingConfig) -> bool:
    """Whether the coefficient reads `TokenBatch.collisions`."""
    return isinstance(config, DPOConfig) and config.use_weighting


def scored_tokens(
    parts: list[Part],
    policy: Policy,
    config: TrainingConfig,
    batch: Batch,
) -> tuple[list[tuple[int, int]], TokenBatch]:
    """(the completions of the parts in order, all their tokens with log-probabilities under the policy)."""

    def of_all(measure: Callable[..., ByCompletion]) -> ByCompletion:
        return ranks.scored(
            parts, lambda own: measure(own, config.training_temperature), config.token_budget, "scoring"
        )

    logprobs = of_all(policy.logprobs)
    rows = sorted(logprobs)
    tokens = batch(rows, [len(logprobs[row]) for row in rows])
    tokens = tokens._replace(logprobs=torch.cat([logprobs[row] for row in rows]).to(policy.device))
    if reads_collisions(config):
        collisions = of_all(policy.collisions)
        tokens = tokens._replace(collisions=torch.cat([collisions[row] for row in rows]).to(policy.device))
    return rows, tokens


def foresee(
    parts: list[Part],
    policy: Policy,
    method: Method,
    config: TrainingConfig,
    batch: Batch,
    weights: list[list[float]],
) -> tuple[ByCompletion, Objective, Tensor]:
    """(coefficients by completion, what the coefficient function gave for all tokens of the step, their weights)."""
    rows, tokens = scored_tokens(parts, policy, config, batch)
    assert tokens.lengths is not None
    terms = method.coefficient(tokens, config)
    weights_N = torch.tensor([weights[g][r] for g, r in rows]).repeat_interleave(torch.tensor(tokens.lengths))
    coefficients = dict(zip(rows, terms.coefficient.split(tokens.lengths), strict=True))
    return coefficients, terms, weights_N.to(policy.device)
