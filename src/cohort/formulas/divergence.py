"""Per-token estimates of KL(policy || reference) and their derivatives by the policy's log-probability.

With d = log pi - log ref. For samples of the current policy all of k1, k2 (nearly) and k3 estimate the KL's value, but
as a loss they have different expected gradients: k1's is zero, k2's is the reverse KL(pi || ref)'s, k3's is the forward
KL(ref || pi)'s; k3 weighted by the ratio has the reverse KL's again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """The estimate and its derivative by the policy's log-probability, both [N]."""

    value_N: Tensor
    slope_N: Tensor


def k1(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Estimate:
    """k1 = d, slope 1. Schulman, "Approximating KL divergence", 2020. Shapes: [N]."""
    return Estimate(logprobs_N - reference_logprobs_N, torch.ones_like(logprobs_N))


def k2(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Estimate:
    """k2 = d^2 / 2, slope d. Schulman, "Approximating KL divergence", 2020. Shapes: [N]."""
    difference_N = logprobs_N - reference_logprobs_N
    return Estimate(difference_N**2 / 2, difference_N)


def k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Estimate:
    """k3 = ref/pi - log(ref/pi) - 1 >= 0, slope 1 - ref/pi. DeepSeekMath Eq. 4. Shapes: [N]."""
    log_ratio_N = reference_logprobs_N - logprobs_N
    # expm1: near 0 the plain form loses every digit, and may come out negative.
    return Estimate(torch.expm1(log_ratio_N) - log_ratio_N, -torch.expm1(log_ratio_N))


def ratio_weighted(estimate: Estimate, ratio_N: Tensor) -> Estimate:
    """ratio * k, ratio = pi/old differentiated too: slope ratio (k + k'). TRL's `use_bias_correction_kl`."""
    return Estimate(ratio_N * estimate.value_N, ratio_N * (estimate.value_N + estimate.slope_N))


Estimator = Callable[[Tensor, Tensor], Estimate]
ESTIMATORS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3}
