"""The table of `loss_type`: the surrogate objective of a token, and the weight of a completion's tokens.

A new loss variant is a line of this table, with its functions in this file unless another file of `formulas` has them,
and its name in the field `loss_type` of config/grpo.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from cohort.formulas.aggregation import Denominators, bnpo, dapo, dr_grpo, grpo
from cohort.formulas.coefficient import Clipped, capped, clipped


class LossType(NamedTuple):
    """LossType(clipped, dapo)"""

    surrogate: Callable[..., Clipped]
    """Called as `clipped` is: the tokens' log-probabilities and advantages to objective and coefficient."""
    weight: Callable[[Tensor, Denominators], Tensor]
    """Completion lengths [B] and the step's counts -> weight [B] of each token of the completion."""


LOSS_TYPES = {
    "grpo": LossType(clipped, grpo),
    "bnpo": LossType(clipped, bnpo),
    "dr_grpo": LossType(clipped, dr_grpo),
    "dapo": LossType(clipped, dapo),
    "cispo": LossType(capped, dapo),
}
