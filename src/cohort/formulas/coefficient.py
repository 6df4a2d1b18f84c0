"""The coefficient: d objective / d logprob of each token, at every gradient step.

The gradient of every method is sum_t weight_t * coefficient_t * grad logprob_t (DeepSeekMath, arXiv
2402.03300, Eq. 5). The coefficient is a number, constant under differentiation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Clipped(NamedTuple):
    """What `clipped` finds for each of N tokens."""

    objective_N: Tensor
    coefficient_N: Tensor
    ratio_N: Tensor
    low_N: Tensor
    """bool: A < 0 and ratio < 1 - epsilon_low; the token has no gradient."""
    high_N: Tensor
    """bool: A > 0 and ratio > 1 + epsilon_high; the token has no gradient."""


def clipped(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, epsilon_low: float, epsilon_high: float
) -> Clipped:
    """min(ratio * A, clip(ratio, 1 - eps_low, 1 + eps_high) * A) (PPO, arXiv 1707.06347, Eq. 7).

    ratio = exp(logprob - old logprob). The coefficient is ratio * A, and 0 where the clipped branch is
    the smaller. All [N].
    """
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages_N
    return Clipped(
        objective_N=torch.minimum(free_N, bounded_N),
        coefficient_N=free_N.masked_fill(bounded_N < free_N, 0.0),
        ratio_N=ratio_N,
        low_N=(advantages_N < 0) & (ratio_N < 1 - epsilon_low),
        high_N=(advantages_N > 0) & (ratio_N > 1 + epsilon_high),
    )


def constant(logprobs_N: Tensor, advantages_N: Tensor) -> tuple[Tensor, Tensor]:
    """Objective A * logprob, coefficient A (DeepSeekMath, arXiv 2402.03300, appendix A.1). All [N].

    A is 1 in SFT; 1 for a correct completion and 0 for a wrong one in RFT.
    """
    return advantages_N * logprobs_N, advantages_N
