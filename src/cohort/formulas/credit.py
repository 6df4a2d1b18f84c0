"""Credit: from the rewards of a group to the advantage of each of its completions, once per sampled batch.

Sources: DeepSeekMath (DSM), arXiv 2402.03300; Dr. GRPO, arXiv 2503.20783; RLOO, arXiv 2402.14740; OPO, arXiv
2505.23585; Pass@k training, arXiv 2508.10751; GDPO, arXiv 2601.05242; MaxRL, arXiv 2602.02710; GPG, arXiv 2504.02546.
DSM does not say how the standard deviation is normalised nor give an epsilon: ddof 1 and 1e-4 are TRL's, so that
results can be compared. What counts as equal is in spread.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from cohort.formulas.spread import EPS, ROUNDINGS, deviation, equal


class Scale(Protocol):
    """rewards_PG [P, G] -> advantages_PG [P, G]."""

    def __call__(self, rewards_PG: Tensor, eps: float = EPS) -> Tensor: ...


def scale_by_group(rewards_PG: Tensor, eps: float = EPS) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + eps), over the group (DSM section 4.1.2). [P, G] -> [P, G].

    std with ddof 1. Equal rewards give exactly 0. Raises ValueError for groups of one.
    """
    centred_PG = unscaled(rewards_PG)
    return _silenced(centred_PG / (deviation(rewards_PG, 1) + eps), rewards_PG)


def scale_by_batch(rewards_PG: Tensor, eps: float = EPS) -> Tensor:
    """A_i = (r_i - mean_group(r)) / (std_batch(r) + eps), std over all P * G rewards. [P, G] -> [P, G].

    std with ddof 1 of the rewards, not of the centred ones (TRL's `scale_rewards="batch"`).
    """
    centred_PG = unscaled(rewards_PG)
    return _silenced(centred_PG / (deviation(rewards_PG) + eps), rewards_PG)


def unscaled(rewards_PG: Tensor, eps: float = EPS) -> Tensor:
    """A_i = r_i - mean(r), over the group (Dr. GRPO section 3.2). [P, G] -> [P, G]; eps is unused.

    Equal rewards give exactly 0. Raises ValueError for groups of one.
    """
    if rewards_PG.shape[1] < 2:
        raise ValueError(
            f"rewards of shape {tuple(rewards_PG.shape)}: a completion is judged against its siblings, "
            "so a group needs at least 2 completions"
        )
    return _silenced(rewards_PG - rewards_PG.mean(dim=1, keepdim=True), rewards_PG)


def zero_spread(rewards_PG: Tensor) -> Tensor:
    """max(r) == min(r), up to rounding: the group has no gradient. [P, G] -> bool [P]."""
    return equal(rewards_PG.amin(dim=1), rewards_PG.amax(dim=1))


def _silenced(advantages_PG: Tensor, rewards_PG: Tensor) -> Tensor:
    """The advantages, exactly 0 in groups of equal rewards. [P, G] -> [P, G].

    In floating point the mean of equal numbers is not always that number (0.1 three times), and equal sums of rewards
    may differ (0.1 + 0.2 and 0.3): the rounding error would be a random gradient.
    """
    return advantages_PG.masked_fill(zero_spread(rewards_PG)[:, None], 0.0)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """A_i = r_i - mean of the others' r (RLOO). [P, G] -> [P, G].

    Equal rewards give exactly 0. Raises ValueError for groups of one.
    """
    G = rewards_PG.shape[1]
    return unscaled(rewards_PG) * (G / max(G - 1, 1))


def optimal_baseline(rewards_PG: Tensor, lengths_PG: Tensor) -> Tensor:
    """A_i = r_i - sum(l r) / sum(l): the baseline of least variance where the squared norm of a completion's gradient
    is proportional to its length l (OPO). [P, G], lengths in tokens -> [P, G].

    Equal rewards give exactly 0.
    """
    weights_PG = lengths_PG / lengths_PG.sum(dim=1, keepdim=True).clamp(min=1)
    return _silenced(rewards_PG - (weights_PG * rewards_PG).sum(dim=1, keepdim=True), rewards_PG)


def relative_to_mean(rewards_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) / mean(r), over the group (MaxRL). [P, G] -> [P, G].

    With rewards of 0 and 1 its expectation is the gradient of log(probability of a right answer), to order G. Equal
    rewards give exactly 0. Raises ValueError where a group of unequal rewards has a mean that is not positive.
    """
    mean_P1 = rewards_PG.mean(dim=1, keepdim=True)
    wrong_P = ~zero_spread(rewards_PG) & (mean_P1[:, 0] <= 0)
    if bool(wrong_P.any()):
        worst = rewards_PG[wrong_P][0].tolist()
        raise ValueError(f"rewards {worst} of one prompt have a mean that is not positive, and MaxRL divides by it")
    return _silenced(unscaled(rewards_PG) / torch.where(mean_P1 > 0, mean_P1, 1.0), rewards_PG)


def rescaled_by_uneven(rewards_PG: Tensor) -> Tensor:
    """A_i = (r_i - mean(r)) B / B', B all completions, B' those of groups whose rewards are not all equal (GPG).
    [P, G] -> [P, G]. Groups without a gradient then do not shrink the batch's."""
    uneven = int((~zero_spread(rewards_PG)).sum())
    return unscaled(rewards_PG) * (len(rewards_PG) / max(uneven, 1))


def pass_at_k(correct_PG: Tensor, k: int) -> Tensor:
    """Advantages of the reward "one of k drawn from the group is correct" (Pass@k training, its analytical form).

    With m = 1 - C(wrong, k) / C(G, k) and s = sqrt(m (1 - m)): a correct completion has (1 - m) / s, a wrong one
    (1 - m - C(wrong - 1, k - 1) / C(G - 1, k - 1)) / s; they sum to 0. bool [P, G] -> float32 [P, G].
    Where every draw of k has a correct one, or none has, all are exactly 0. Raises ValueError unless 1 <= k <= G.
    """
    G = correct_PG.shape[1]
    if not 1 <= k <= G:
        raise ValueError(f"pass@{k} needs 1 <= k <= {G}, the completions of a group")
    rows = []
    for correct in correct_PG.tolist():
        wrong = G - sum(correct)
        none = math.comb(wrong, k) / math.comb(G, k)  # 1 - m, without the rounding of a difference
        s = math.sqrt((1 - none) * none)
        of_wrong = none - (math.comb(wrong - 1, k - 1) / math.comb(G - 1, k - 1) if wrong else 0.0)
        rows.append([(none if right else of_wrong) / s if s > 0 else 0.0 for right in correct])
    return torch.tensor(rows)


def decoupled(scores_KPG: Tensor, weights_K: Tensor, eps: float = EPS) -> Tensor:
    """Each reward's z-score in its group, their weighted sum, and its z-score in the batch (GDPO).
    K rewards, [K, P, G] -> [P, G]; a score is NaN where the reward does not apply, and is left out of mean and std.

    ddof 1 and eps in both. A group in which no reward varies has exactly 0. Raises ValueError for groups of one.
    """
    if scores_KPG.shape[2] < 2:
        unscaled(scores_KPG[0])  # raises ValueError
    applied_KPG = ~scores_KPG.isnan()
    count_KP1 = applied_KPG.sum(dim=2, keepdim=True)
    centred_KPG = (scores_KPG - scores_KPG.nanmean(dim=2, keepdim=True)).nan_to_num(0.0)
    variance_KP1 = centred_KPG.double().square().sum(dim=2, keepdim=True) / (count_KP1 - 1).clamp(min=1)
    low_KP = scores_KPG.masked_fill(~applied_KPG, torch.inf).amin(dim=2)
    high_KP = scores_KPG.masked_fill(~applied_KPG, -torch.inf).amax(dim=2)
    varied_KP = applied_KPG.any(dim=2) & ~equal(low_KP, high_KP)
    z_KPG = centred_KPG / (variance_KP1.sqrt().to(centred_KPG.dtype) + eps)
    terms_KPG = weights_K[:, None, None] * z_KPG.masked_fill(~varied_KP[:, :, None], 0.0)
    sum_PG = terms_KPG.sum(dim=0)
    # Rewards whose terms cancel leave their rounding.
    rounding = ROUNDINGS * torch.finfo(sum_PG.dtype).eps * terms_KPG.abs().sum(dim=0).max()
    cancelled = sum_PG.max() - sum_PG.min() <= rounding
    normal_PG = (sum_PG - sum_PG.mean()) / (deviation(sum_PG) + eps)
    return normal_PG.masked_fill(cancelled | ~varied_KP.any(dim=0)[:, None], 0.0)


def steps_by_group(rewards: list[Tensor], eps: float = EPS) -> list[Tensor]:
    """r~ = (r - mean(R)) / (std(R) + eps), R all step rewards of the group (DSM section 4.1.3).

    One [S] tensor for each group, the steps of all its completions. std with ddof 1; equal rewards give exactly 0.
    """
    return [scale_by_group(rewards_S[None], eps)[0] for rewards_S in rewards]


def steps_by_batch(rewards: list[Tensor], eps: float = EPS) -> list[Tensor]:
    """As `steps_by_group`, with the standard deviation of all step rewards of the batch."""
    std = deviation(torch.cat(rewards))
    return [unscaled(rewards_S[None])[0] / (std + eps) for rewards_S in rewards]


def steps_unscaled(rewards: list[Tensor], eps: float = EPS) -> list[Tensor]:
    """r~ = r - mean(R), R all step rewards of the group; eps is unused."""
    return [unscaled(rewards_S[None])[0] for rewards_S in rewards]


def following_steps(rewards_S: Tensor, ends_S: Tensor, length: int) -> Tensor:
    """A_t = sum of r~ over the steps that end at or after token t (DSM section 4.1.3). One completion, [S] -> [N].

    `ends_S`: index of each step's last token, below `length`. Tokens after the last step's end have 0.
    """
    return rewards_to_go(rewards_S.new_zeros(length).index_add(0, ends_S, rewards_S))


def rewards_to_go(rewards_N: Tensor) -> Tensor:
    """sum over i >= t of r_i: the return of each token, undiscounted. [N] -> [N]."""
    return rewards_N.flip(0).cumsum(0).flip(0)


SCALES: dict[str, Scale] = {"group": scale_by_group, "batch": scale_by_batch, "none": unscaled}
"""`scale_rewards` -> function."""

STEP_SCALES: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "group": steps_by_group,
    "batch": steps_by_batch,
    "none": steps_unscaled,
}
"""`scale_rewards` -> function, for the rewards of steps."""
