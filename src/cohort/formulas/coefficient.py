"""The coefficient: d objective / d logprob of each token, at every gradient step.

The gradient of every method is sum_t weight_t * coefficient_t * grad logprob_t (DeepSeekMath, arXiv
2402.03300, Eq. 5). The coefficient is a constant under differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Average = Callable[[Tensor], Tensor]
"""[N] -> [N], applied to log-ratios before exp. It is linear and symmetric: backward applies the same function."""


def each_token(values_N: Tensor) -> Tensor:
    """Ratios of single tokens: the values unchanged. [N] -> [N]."""
    return values_N


def each_completion(lengths: list[int]) -> Average:
    """Ratios of whole completions: each value becomes the mean over its completion (GSPO, arXiv 2507.18071).

    `lengths`: tokens of each completion, in the order of the values.
    """

    def average(values_N: Tensor) -> Tensor:
        counts_B = torch.tensor(lengths, device=values_N.device)
        completion_N = torch.arange(len(lengths), device=values_N.device).repeat_interleave(counts_B)
        sums_B = values_N.new_zeros(len(lengths)).index_add(0, completion_N, values_N)
        return (sums_B / counts_B.clamp(min=1))[completion_N]

    return average


def _completion_average(lengths: list[int] | None) -> Average:
    assert lengths is not None, "a ratio of whole completions needs their lengths"
    return each_completion(lengths)


LEVELS: dict[str, Callable[[list[int] | None], Average]] = {
    "token": lambda lengths: each_token,
    "sequence": _completion_average,
}
"""`importance_sampling_level` -> function from the completions' lengths to the average."""


class Clipped(NamedTuple):
    """A surrogate objective of each of N tokens."""

    objective_N: Tensor
    coefficient_N: Tensor
    """d objective / d logprob."""
    ratio_N: Tensor
    """pi / pi_old."""
    low_N: Tensor
    """bool: A < 0 and ratio < 1 - epsilon_low, where the clip acts."""
    high_N: Tensor
    """bool: A > 0 and ratio > 1 + epsilon_high, where the clip acts."""


def clipped(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
    average: Average = each_token,
) -> Clipped:
    """min(ratio * A, clip(ratio, 1 - eps_low, 1 + eps_high) * A) (PPO, arXiv 1707.06347, Eq. 7). All [N].

    ratio = exp(logprob - old logprob), averaged over completions before exp in GSPO. The coefficient is ratio * A,
    0 where the clipped branch is the smaller. `delta` is an upper bound of the unclipped ratio where A < 0 (dual clip,
    arXiv 1912.09729): beyond it the objective is delta * A and the coefficient 0.
    """
    ratio_N = torch.exp(average(logprobs_N - old_logprobs_N))
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages_N
    no_gradient_N = bounded_N < free_N
    objective_N = torch.minimum(free_N, bounded_N)
    if delta is not None:
        beyond_N = (advantages_N < 0) & (ratio_N > delta)
        objective_N = torch.where(beyond_N, delta * advantages_N, objective_N)
        no_gradient_N = no_gradient_N | beyond_N
    return Clipped(
        objective_N=objective_N,
        coefficient_N=average(free_N.masked_fill(no_gradient_N, 0.0)),
        ratio_N=ratio_N,
        low_N=(advantages_N < 0) & (ratio_N < 1 - epsilon_low),
        high_N=(advantages_N > 0) & (ratio_N > 1 + epsilon_high),
    )


def capped(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
    average: Average = each_token,
) -> Clipped:
    """sg(min(ratio, 1 + eps_high)) * A * logprob, sg: not differentiated (CISPO, arXiv 2506.13585). All [N].

    The coefficient is min(ratio, 1 + eps_high) * A: no token loses its gradient. `epsilon_low` and `delta` are unused:
    surrogates have the same parameters.
    """
    ratio_N = torch.exp(average(logprobs_N - old_logprobs_N))
    coefficient_N = ratio_N.clamp(max=1 + epsilon_high) * advantages_N
    return Clipped(
        objective_N=coefficient_N * logprobs_N,
        coefficient_N=coefficient_N,
        ratio_N=ratio_N,
        low_N=torch.zeros_like(ratio_N, dtype=torch.bool),
        high_N=(advantages_N > 0) & (ratio_N > 1 + epsilon_high),
    )


def truncated_weights(logprobs_N: Tensor, sampler_logprobs_N: Tensor, cap: float) -> Tensor:
    """min(pi / pi_sampler, C), not differentiated: corrects for a sampler with other log-probabilities or older weights
    (truncated importance sampling, IMPALA, arXiv 1802.01561). `logprobs_N`: of the policy before it is updated on the
    batch. All [N].
    """
    return torch.exp(logprobs_N - sampler_logprobs_N).clamp(max=cap)


def constant(logprobs_N: Tensor, advantages_N: Tensor) -> tuple[Tensor, Tensor]:
    """Objective A * logprob, coefficient A (DeepSeekMath, arXiv 2402.03300, appendix A.1). All [N].

    A is 1 in SFT; 1 for a correct completion and 0 for a wrong one in RFT.
    """
    return advantages_N * logprobs_N, advantages_N
