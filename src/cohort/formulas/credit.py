"""Credit: from the rewards of a group to the advantage of each of its completions, once per sampled batch.

Sources: DeepSeekMath (DSM), arXiv 2402.03300; Dr. GRPO, arXiv 2503.20783. The paper's text does not fix the
standard deviation's normaliser nor an epsilon: ddof 1 and 1e-4 are TRL's, so that numbers compare.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Scale(Protocol):
    """rewards_PG [P, G] -> advantages_PG [P, G]."""

    def __call__(self, rewards_PG: Tensor, eps: float = 1e-4) -> Tensor: ...


def scale_by_group(rewards_PG: Tensor, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + eps), over the group (DSM section 4.1.2). [P, G] -> [P, G].

    std with ddof 1. Equal rewards give exactly 0. Raises ValueError for groups of one.
    """
    centred_PG = unscaled(rewards_PG)
    return _silenced(centred_PG / (rewards_PG.std(dim=1, keepdim=True) + eps), rewards_PG)


def scale_by_batch(rewards_PG: Tensor, eps: float = 1e-4) -> Tensor:
    """A_i = (r_i - mean_group(r)) / (std_batch(r) + eps), std over all rewards given. [P, G] -> [P, G].

    std with ddof 1 of the rewards, not of the centred ones (TRL's `scale_rewards="batch"`).
    """
    centred_PG = unscaled(rewards_PG)
    return _silenced(centred_PG / (rewards_PG.std() + eps), rewards_PG)


def unscaled(rewards_PG: Tensor, eps: float = 1e-4) -> Tensor:
    """A_i = r_i - mean(r), over the group (Dr. GRPO section 3.2). [P, G] -> [P, G]; eps has no part in it.

    Equal rewards give exactly 0. Raises ValueError for groups of one.
    """
    if rewards_PG.shape[1] < 2:
        raise ValueError(
            f"rewards of shape {tuple(rewards_PG.shape)}: a completion is judged against its siblings, "
            "so a group needs at least 2 completions"
        )
    return _silenced(rewards_PG - rewards_PG.mean(dim=1, keepdim=True), rewards_PG)


def zero_spread(rewards_PG: Tensor) -> Tensor:
    """max(r) == min(r): the group says nothing about its completions. [P, G] -> bool [P]."""
    equal_P: Tensor = torch.eq(rewards_PG.amax(dim=1), rewards_PG.amin(dim=1))
    return equal_P


def _silenced(advantages_PG: Tensor, rewards_PG: Tensor) -> Tensor:
    """0 in groups of equal rewards.

    The mean of equal numbers is not always that number in floating point (0.1 three times): the rest that
    rounding leaves, divided by a standard deviation of about 0, would push the policy at random.
    """
    return advantages_PG.masked_fill(zero_spread(rewards_PG)[:, None], 0.0)


SCALES: dict[str, Scale] = {"group": scale_by_group, "batch": scale_by_batch, "none": unscaled}
"""`scale_rewards` -> function."""
