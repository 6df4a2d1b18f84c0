"""Coefficients: the derivative of a token's objective by its log-probability, at each gradient step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clipped(NamedTuple):
    """`clipped`'s value, derivative, ratio, and where each side of the clip acted; each [N]."""

    objective_N: Tensor
    coefficient_N: Tensor
    ratio_N: Tensor
    low_N: Tensor
    high_N: Tensor


def clipped(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, epsilon_low: float, epsilon_high: float
) -> Clipped:
    """J = min(ratio A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) A), ratio = exp(logp - old).

    dJ/dlogp = ratio A, and 0 where the clipped branch is the smaller one: A < 0 and ratio < 1 - epsilon_low, or
    A > 0 and ratio > 1 + epsilon_high. PPO, arXiv 1707.06347, Eq. 7. Shapes: all [N].
    """
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    bounded_N = ratio_N.clamp(1 - epsilon_low, 1 + epsilon_high)
    objective_N = torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)
    low_N = (advantages_N < 0) & (ratio_N < 1 - epsilon_low)
    high_N = (advantages_N > 0) & (ratio_N > 1 + epsilon_high)
    coefficient_N = (ratio_N * advantages_N).masked_fill(low_N | high_N, 0.0)
    return Clipped(objective_N, coefficient_N, ratio_N, low_N, high_N)


def constant(logprobs_N: Tensor, advantages_N: Tensor) -> tuple[Tensor, Tensor]:
    """J = A logp, dJ/dlogp = A: SFT and rejection sampling. DeepSeekMath Eqs. 6-15. Shapes: all [N]."""
    return advantages_N * logprobs_N, advantages_N
