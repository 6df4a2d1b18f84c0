"""Which numbers of a model are not finite, for messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from cohort.policy.divided import full


def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name and count of the first tensor with NaN or infinite entries; None where all are finite. Waits for the device
    at each tensor."""
    for name, tensor in named:
        count = tensor.numel() - int(full(tensor.isfinite().sum()))
        if count:
            return f"{name} ({count} of its {tensor.numel()} entries)"
    return None


def why_no_logits(model: Any) -> str:
    """A message about logits that are NaN, or all minus infinity."""
    broken = first_not_finite(model.named_parameters())
    message = "no token can be sampled: the model's logits are NaN or infinite, "
    if broken is not None:
        return message + f"and so are weights: {broken}. Load another checkpoint of the model"
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return message + (
        f"though all weights are finite: its activations overflow {dtype}. Load it with model_init_kwargs: "
        "{dtype: float32}, or set bf16: false"
    )
