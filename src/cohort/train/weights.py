"""The weights of tokens in a step's objective, before its coefficients. Denominators count the whole step."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from cohort.config import PPOConfig, TrainingConfig
from cohort.formulas.aggregation import Denominators
from cohort.methods.method import Method
from cohort.types import Group


def active_lengths(groups: list[Group], config: TrainingConfig) -> Tensor:
    """[B], the number of tokens with loss of each completion: 0 where truncated completions are masked."""
    masked = config.masks_truncated
    return torch.tensor([0 if masked and c.truncated else len(c.ids) for group in groups for c in group.completions])


def token_weights(
    groups: list[Group], generation_tokens: float, method: Method, config: TrainingConfig
) -> list[list[float]]:
    """The weight of each token, by group and completion. The denominators count the whole step."""
    lengths_B = active_lengths(groups, config)
    denominators = Denominators(
        sequences=len(lengths_B),
        tokens=int(lengths_B.sum()),
        generation_tokens=generation_tokens,
        max_completion_length=config.max_completion_length,
    )
    weights_B = method.weight(lengths_B, denominators, config)
    return [w.tolist() for w in weights_B.split([len(group.completions) for group in groups])]


def imitation(groups: list[Group], weights: list[list[float]], config: TrainingConfig) -> dict[tuple[int, int], float]:
    """(group, completion) -> the weight of the log-likelihood of each of its tokens, for the correct completions with
    loss: the coefficient divided by the number of their tokens (VAPO, arXiv 2504.05118)."""
    if not config.imitation_weight:
        return {}
    threshold = cast(PPOConfig, config).reward_threshold
    correct = [
        (g, r)
        for g, group in enumerate(groups)
        for r, reward in enumerate(group.rewards)
        if reward >= threshold and weights[g][r]
    ]
    tokens = sum(len(groups[g].completions[r].ids) for g, r in correct)
    return dict.fromkeys(correct, config.imitation_weight / max(tokens, 1))
