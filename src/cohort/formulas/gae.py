"""Credit with a critic: generalised advantage estimation, and the critic's own loss.

Sources: GAE, arXiv 1506.02438; PPO, arXiv 1707.06347. A completion is an episode whose N actions are its tokens. The
value of token t is the critic's estimate before that token is sampled; after the last token it is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cohort.formulas.spread import EPS, all_equal, deviation


def gae(rewards_N: Tensor, values_N: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t (GAE Eq. 16). One completion, [N].

    V after the last token is 0, also for a truncated completion.
    """
    following_N = torch.cat([values_N[1:], values_N.new_zeros(min(1, len(values_N)))])
    deltas = (rewards_N + gamma * following_N - values_N).tolist()
    advantage, backwards = 0.0, []
    for delta in reversed(deltas):
        advantage = delta + gamma * lam * advantage
        backwards.append(advantage)
    return torch.tensor(backwards[::-1], dtype=values_N.dtype)


def shaped_rewards(reward: float, logprobs_N: Tensor, reference_logprobs_N: Tensor | None, kl_coef: float) -> Tensor:
    """r_t = -kl_coef (logprob_t - reference logprob_t), plus the outcome's reward at the last token (DeepSeekMath,
    arXiv 2402.03300, Eq. 2). [N]; without a reference the first term is 0."""
    if reference_logprobs_N is None:
        rewards_N = torch.zeros_like(logprobs_N)
    else:
        rewards_N = -kl_coef * (logprobs_N - reference_logprobs_N)
    rewards_N[-1:] += reward
    return rewards_N


def whiten(advantages_N: Tensor, eps: float = EPS) -> Tensor:
    """(A - mean) / sqrt(var + eps^2) over all tokens of the batch, ddof 1. [N] -> [N]; fewer than two are unchanged.

    Equal advantages give exactly 0, also where they differ by rounding (formulas/spread.py). eps is under the root, as
    in TRL and verl: the standard deviation is 1 unless A hardly varies.
    """
    if len(advantages_N) < 2:
        return advantages_N
    if all_equal(advantages_N):
        return torch.zeros_like(advantages_N)
    return (advantages_N - advantages_N.mean()) / torch.hypot(deviation(advantages_N), advantages_N.new_tensor(eps))


class ValueLoss(NamedTuple):
    """The critic's loss and its slope, for each of N tokens."""

    value_N: Tensor
    slope_N: Tensor
    """d loss / d value."""
    clipped_N: Tensor
    """bool: the clipped branch is the larger, so the token has no gradient."""


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float) -> ValueLoss:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, PPO's clip applied to the critic (in the code of
    PPO's authors, not in the paper). All [N]."""
    bounded_N = torch.minimum(torch.maximum(values_N, old_values_N - clip), old_values_N + clip)
    error_N, bounded_error_N = values_N - returns_N, bounded_N - returns_N
    clipped_N = bounded_error_N.square() > error_N.square()
    return ValueLoss(
        value_N=torch.maximum(error_N.square(), bounded_error_N.square()) / 2,
        slope_N=error_N.masked_fill(clipped_N, 0.0),
        clipped_N=clipped_N,
    )
