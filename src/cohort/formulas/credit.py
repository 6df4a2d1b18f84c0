"""Credit: rewards to advantages, once per batch of rollouts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

EPS = 1e-4
"""Added to the standard deviation, as TRL does; DeepSeekMath adds nothing."""


def centred(rewards_PG: Tensor) -> Tensor:
    """r_i - mean(r) over the group; exactly 0 where all rewards of a group are equal. DeepSeekMath section 4.1.2.

    Shapes: [P, G] -> [P, G]. Raises ValueError for G < 2: a group of one has nothing to be compared with.
    """
    if rewards_PG.shape[1] < 2:
        raise ValueError(f"a group needs at least 2 completions to be compared, got {rewards_PG.shape[1]}")
    differences = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return differences.masked_fill(zero_spread(rewards_PG).unsqueeze(1), 0.0)


def scale_by_group(rewards_PG: Tensor, eps: float = EPS) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + eps) within the group, std with ddof 1. DeepSeekMath section 4.1.2.

    Shapes: [P, G] -> [P, G]. Deviation: eps, and ddof 1, which the paper leaves open; both as in TRL.
    """
    return centred(rewards_PG) / (rewards_PG.std(1, keepdim=True) + eps)


def scale_by_batch(rewards_PG: Tensor, eps: float = EPS) -> Tensor:
    """A_i = (r_i - mean(r)) / (std(R) + eps): the group's mean, the whole batch's std (ddof 1). TRL's "batch".

    Shapes: [P, G] -> [P, G].
    """
    return centred(rewards_PG) / (rewards_PG.std() + eps)


def unscaled(rewards_PG: Tensor, eps: float = EPS) -> Tensor:
    """A_i = r_i - mean(r). Dr. GRPO, arXiv 2503.20783, Eq. 5. Shapes: [P, G] -> [P, G]; eps is not used."""
    return centred(rewards_PG)


def zero_spread(rewards_PG: Tensor) -> Tensor:
    """Whether all rewards of a group are equal, [P, G] -> bool [P]; by value, since a std of equal floats may not
    be 0."""
    return rewards_PG.amax(1) == rewards_PG.amin(1)


Scale = Callable[[Tensor], Tensor]
SCALES: dict[str, Scale] = {"group": scale_by_group, "batch": scale_by_batch, "none": unscaled}
