"""Division by a spread: the one rule for rewards, rewards of steps, returns and advantages.

Numbers that differ by no more than their rounding are equal, and what is divided by their spread is exactly 0: an
optimiser such as Adam makes a full step of the smallest gradient. Where they differ, EPS is added to the standard
deviation, so that small differences stay small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-4
"""Added to every standard deviation that divides: TRL's number."""
ROUNDINGS = 4
"""Numbers are equal where they differ by no more than so many units in the last place of the largest."""


def equal(low: Tensor, high: Tensor) -> Tensor:
    """high - low <= ROUNDINGS * u * max(|low|, |high|), u: the relative precision of the dtype (float32: 1.2e-7).

    The lowest and the highest of some numbers -> bool, of the same shape. False where one is not finite.
    """
    spread = high - low
    tolerance = ROUNDINGS * torch.finfo(spread.dtype).eps * torch.maximum(low.abs(), high.abs())
    return (spread <= tolerance) & spread.isfinite()


def all_equal(values: Tensor | Sequence[float]) -> bool:
    """Whether all of at least one number are equal up to rounding, Python's to that of float32."""
    numbers = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float32)
    return bool(equal(numbers.min(), numbers.max()))


def deviation(values: Tensor, dim: int | None = None) -> Tensor:
    """The standard deviation, ddof 1, over `dim`, which is kept, or over all. In float64: squares of float32 numbers
    above 1e19 are infinite, and divided by them all advantages would be 0."""
    wide = values.double()
    return (wide.std() if dim is None else wide.std(dim=dim, keepdim=True)).to(values.dtype)
