"""The coefficient: d objective / d logprob of each token, at every gradient step.

The gradient of every method is sum_t weight_t * coefficient_t * grad logprob_t (DeepSeekMath, arXiv
2402.03300, Eq. 5). The coefficient is a constant under differentiation. `level` says whether ratios are of tokens or of
completions (`ratios.py`); everywhere l = logprob - old logprob.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cohort.formulas.ratios import EACH_TOKEN, Level, completion_means, completion_sums


class Surrogate(NamedTuple):
    """A surrogate objective of each of N tokens."""

    objective_N: Tensor
    coefficient_N: Tensor
    """d objective / d logprob."""
    ratio_N: Tensor
    """pi / pi_old."""
    low_N: Tensor
    """bool: A < 0, and a bound takes the token's gradient, or limits it in CISPO."""
    high_N: Tensor
    """bool: the same where A > 0."""


def clipped(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
    level: Level = EACH_TOKEN,
) -> Surrogate:
    """min(ratio * A, clip(ratio, 1 - eps_low, 1 + eps_high) * A) (PPO, arXiv 1707.06347, Eq. 7). All [N].

    ratio = exp(l), at the level. The coefficient is ratio * A, 0 where the clipped branch is the smaller. `delta` is an
    upper bound of the unclipped ratio where A < 0 (dual clip, arXiv 1912.09729): beyond it the objective is delta * A
    and the coefficient 0.
    """
    ratio_N = torch.exp(level.forward(logprobs_N - old_logprobs_N))
    free_N = ratio_N * advantages_N
    bounded_N = ratio_N.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages_N
    no_gradient_N = bounded_N < free_N
    objective_N = torch.minimum(free_N, bounded_N)
    if delta is not None:
        beyond_N = (advantages_N < 0) & (ratio_N > delta)
        objective_N = torch.where(beyond_N, delta * advantages_N, objective_N)
        no_gradient_N = no_gradient_N | beyond_N
    return Surrogate(
        objective_N=objective_N,
        coefficient_N=level.backward(free_N.masked_fill(no_gradient_N, 0.0)),
        ratio_N=ratio_N,
        low_N=(advantages_N < 0) & (ratio_N < 1 - epsilon_low),
        high_N=(advantages_N > 0) & (ratio_N > 1 + epsilon_high),
    )


def capped(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    epsilon_high: float,
    level: Level = EACH_TOKEN,
) -> Surrogate:
    """sg(min(ratio, 1 + eps_high)) * A * logprob, sg: not differentiated (CISPO, arXiv 2506.13585). All [N].

    The coefficient is min(ratio, 1 + eps_high) * A: no token loses its gradient.
    """
    ratio_N = torch.exp(level.forward(logprobs_N - old_logprobs_N))
    return _weighted(
        ratio_N.clamp(max=1 + epsilon_high), logprobs_N, advantages_N, ratio_N, high_N=ratio_N > 1 + epsilon_high
    )


def soft_gated(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    temperature_pos: float,
    temperature_neg: float,
    level: Level = EACH_TOKEN,
) -> Surrogate:
    """sigmoid(tau (ratio - 1)) * 4 / tau * A, tau by the sign of A (SAPO, arXiv 2511.20347). All [N].

    With s the sigmoid the coefficient is 4 s (1 - s) ratio A: ratio * A at ratio 1, and falling smoothly on both sides
    where PPO's clip cuts. A = 0 takes tau_neg.
    """
    ratio_N = torch.exp(level.forward(logprobs_N - old_logprobs_N))
    tau_N = _chosen(advantages_N > 0, temperature_pos, temperature_neg, ratio_N)
    gate_N = torch.sigmoid(tau_N * (ratio_N - 1))
    slope_N = 4 * gate_N * (1 - gate_N) * ratio_N * advantages_N
    return _unbounded(4 * gate_N / tau_N * advantages_N, level.backward(slope_N), ratio_N)


def within_total_variation(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, epsilon_low: float, epsilon_high: float
) -> Surrogate:
    """ratio * A, without tokens with pi - pi_old > eps_high where A > 0, or < -eps_low where A < 0 (DPPO with the total
    variation of "this token or another", arXiv 2602.04879). All [N].

    Where a ratio bounds the relative change, which is large for rare tokens, this bounds the probability that moves.
    """
    moved_N = logprobs_N.exp() - old_logprobs_N.exp()
    return _trusted(logprobs_N, old_logprobs_N, advantages_N, moved_N < -epsilon_low, moved_N > epsilon_high)


def within_divergence(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, epsilon_low: float, epsilon_high: float
) -> Surrogate:
    """The same with KL(pi_old || pi) of "this token or another" in place of the total variation: tokens that moved
    further than eps_high (A > 0, upwards) or eps_low (A < 0, downwards) are left out (DPPO, arXiv 2602.04879). All
    [N]."""
    old_N, new_N = old_logprobs_N.exp(), logprobs_N.exp()
    others_N = torch.log1p(-old_N.clamp(max=1 - 1e-7)) - torch.log1p(-new_N.clamp(max=1 - 1e-7))
    kl_N = old_N * (old_logprobs_N - logprobs_N) + (1 - old_N) * others_N
    low_N, high_N = (kl_N > epsilon_low) & (new_N < old_N), (kl_N > epsilon_high) & (new_N > old_N)
    return _trusted(logprobs_N, old_logprobs_N, advantages_N, low_N, high_N)


def _trusted(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, too_low_N: Tensor, too_high_N: Tensor
) -> Surrogate:
    """ratio * A, without tokens that are too low where A < 0 or too high where A > 0."""
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    low_N, high_N = (advantages_N < 0) & too_low_N, (advantages_N > 0) & too_high_N
    objective_N = (ratio_N * advantages_N).masked_fill(low_N | high_N, 0.0)
    return Surrogate(objective_N, objective_N, ratio_N, low_N, high_N)


def geometric_mean(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    lengths: list[int],
) -> Surrogate:
    """exp(mean over the completion of min(s l, s clip(l, -eps_low, eps_high)) s) * A, s the sign of A (GMPO, arXiv
    2507.20673). All [N]; A must be the same for all tokens of a completion.

    The bounds are of the log-ratio of each token. The coefficient is this geometric mean times A, 0 where the bound
    acts.
    """
    l_N = logprobs_N - old_logprobs_N
    low_N, high_N = (advantages_N < 0) & (l_N < -epsilon_low), (advantages_N > 0) & (l_N > epsilon_high)
    bounded_N = torch.where(low_N, -epsilon_low, torch.where(high_N, epsilon_high, l_N))
    ratio_N = torch.exp(completion_means(bounded_N, lengths))
    objective_N = ratio_N * advantages_N
    return Surrogate(objective_N, objective_N.masked_fill(low_N | high_N, 0.0), ratio_N, low_N, high_N)


LOG_WEIGHT_BOUNDS = (-18.420680743952367, 20.0)
"""VESPO's log-weight stays between log(1e-8) and 20, as in TRL."""


class Gamma(NamedTuple):
    """VESPO's weight e^lambda w^k e^(-lambda w): 1 at w = 1."""

    k: float
    lam: float


def variational(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    positive: Gamma,
    negative: Gamma,
    lengths: list[int],
    sampler_weights_N: Tensor | None = None,
) -> Surrogate:
    """sg(e^lambda w^k e^(-lambda w)) * A * logprob, w the ratio of the whole completion (the product over its tokens),
    k and lambda by the sign of A, sg: not differentiated (VESPO, arXiv 2602.10693). All [N].

    The coefficient is this weight times A. `sampler_weights_N`: policy to sampler, multiplied into w.
    """
    log_w_N = completion_sums((logprobs_N - old_logprobs_N).clamp(-20.0, 20.0), lengths)
    ratio_N = log_w_N.clamp(*LOG_WEIGHT_BOUNDS).exp()
    if sampler_weights_N is not None:
        log_w_N = log_w_N + completion_sums(sampler_weights_N.log().clamp(*LOG_WEIGHT_BOUNDS), lengths)
    log_w_N = log_w_N.clamp(*LOG_WEIGHT_BOUNDS)
    k_N = _chosen(advantages_N >= 0, positive.k, negative.k, log_w_N)
    lam_N = _chosen(advantages_N >= 0, positive.lam, negative.lam, log_w_N).clamp(min=1e-4)
    phi_N = torch.exp(lam_N + k_N * log_w_N - lam_N * log_w_N.exp())
    return _weighted(phi_N, logprobs_N, advantages_N, ratio_N)


def penalised(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    selected_N: Tensor,
    coef: float,
    level: Level = EACH_TOKEN,
) -> Surrogate:
    """ratio * A - coef |l| for the selected tokens, ratio * A for the others (KL-Cov, arXiv 2505.22617). All
    [N]; `selected_N`: 1 or 0."""
    l_N = logprobs_N - old_logprobs_N
    ratio_N = torch.exp(level.forward(l_N))
    free_N = ratio_N * advantages_N
    penalty_N = coef * selected_N
    return _unbounded(free_N - penalty_N * l_N.abs(), level.backward(free_N) - penalty_N * l_N.sign(), ratio_N)


def _chosen(condition_N: Tensor, where_true: float, where_false: float, like_N: Tensor) -> Tensor:
    """One of two numbers for each token, in the dtype of `like_N`."""
    return torch.where(condition_N, like_N.new_tensor(where_true), like_N.new_tensor(where_false))


def _weighted(
    weights_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, ratio_N: Tensor, high_N: Tensor | None = None
) -> Surrogate:
    """weight * A * logprob, the weight not differentiated."""
    coefficient_N = weights_N * advantages_N
    never_N = torch.zeros_like(ratio_N, dtype=torch.bool)
    limited_N = never_N if high_N is None else high_N & (advantages_N > 0)
    return Surrogate(coefficient_N * logprobs_N, coefficient_N, ratio_N, never_N, limited_N)


def _unbounded(objective_N: Tensor, coefficient_N: Tensor, ratio_N: Tensor) -> Surrogate:
    never_N = torch.zeros_like(ratio_N, dtype=torch.bool)
    return Surrogate(objective_N, coefficient_N, ratio_N, never_N, never_N)


def self_weighted(logprobs_N: Tensor, advantages_N: Tensor) -> tuple[Tensor, Tensor]:
    """Objective A * p * logprob, coefficient A * p, where p = exp(logprob) is a constant under differentiation: dynamic
    fine-tuning (arXiv 2508.05629, Eq. 9). All [N]."""
    weighted_N = advantages_N * logprobs_N.detach().exp()
    return weighted_N * logprobs_N, weighted_N


def constant(logprobs_N: Tensor, advantages_N: Tensor) -> tuple[Tensor, Tensor]:
    """Objective A * logprob, coefficient A (DeepSeekMath, arXiv 2402.03300, appendix A.1). All [N].

    A is 1 in SFT; 1 for a correct completion and 0 for a wrong one in RFT.
    """
    return advantages_N * logprobs_N, advantages_N
