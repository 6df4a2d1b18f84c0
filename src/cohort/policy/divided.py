"""Tensors that are divided among ranks, beside those that are not."""

from __future__ import annotations

from torch import Tensor


def full(value: Tensor) -> Tensor:
    """The whole of a tensor that is divided among ranks; another tensor as it is. Every rank makes the call."""
    gather = getattr(value, "full_tensor", None)
    whole: Tensor = value if gather is None else gather()
    return whole
