"""Estimates of the divergence between policy and reference, one value for each sampled token.

The names are from Schulman, "Approximating KL divergence" (2020); d = logprob - reference logprob. An unbiased estimate
of a divergence need not have that divergence's gradient. As a loss on samples of the current policy only the gradient
matters, and the dependence of the samples on the policy is not differentiated.

| estimate | expected value | expected gradient as a loss | with the ratio weight |
|---|---|---|---|
| k1 | KL(pi, ref) | 0: it does nothing | KL(pi, ref)'s |
| k2 | second-order approximation | KL(pi, ref)'s | E[k2]'s own |
| k3 | KL(pi, ref) | KL(ref, pi)'s, the forward one | KL(pi, ref)'s |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cohort.formulas.ratios import EACH_TOKEN, Level


class Estimate(NamedTuple):
    """A divergence and its slope, for each of N tokens."""

    value_N: Tensor
    slope_N: Tensor
    """d value / d logprob of the policy."""


def k1(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Estimate:
    """k1 = d; slope 1. Unbiased for KL(pi, ref), either sign; as a loss its expected gradient is 0. [N]."""
    d_N = logprobs_N - reference_logprobs_N
    return Estimate(d_N, torch.ones_like(d_N))


def k2(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Estimate:
    """k2 = d^2 / 2; slope d. As a loss its expected gradient is the reverse KL(pi, ref)'s. [N]."""
    d_N = logprobs_N - reference_logprobs_N
    return Estimate(d_N.square() / 2, d_N)


def k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Estimate:
    """k3 = exp(-d) + d - 1; slope 1 - exp(-d) (DeepSeekMath, arXiv 2402.03300, Eq. 4). [N], never negative.

    Unbiased for KL(pi, ref) on the policy's samples; as a loss its expected gradient is the forward
    KL(ref, pi)'s.
    The slope is not clamped, so that it is right where the policy is far below the reference.
    """
    d_N = logprobs_N - reference_logprobs_N
    excess_N = torch.expm1(-d_N)
    # expm1 may be wrong in the last place, which without the bound would give a negative KL.
    return Estimate((excess_N + d_N).clamp(min=0.0), -excess_N)


def ratio_weighted(estimate: Estimate, ratio_N: Tensor, level: Level = EACH_TOKEN) -> Estimate:
    """value * ratio, ratio = pi / pi_old differentiated too: slope ratio * slope + backward(ratio * value). All [N].

    `level`: what the ratio is taken over. With the weight, k1 and k3 have the gradient of the reverse KL(pi, ref), also
    on samples of an older policy (TRL's `use_bias_correction_kl`).
    """
    value_N = ratio_N * estimate.value_N
    return Estimate(value_N, ratio_N * estimate.slope_N + level.backward(value_N))


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Estimate]] = {"k1": k1, "k2": k2, "k3": k3}
"""`kl_estimator` -> function."""
