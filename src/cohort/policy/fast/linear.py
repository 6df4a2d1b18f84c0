"""A linear layer as it computes now, plain or with LoRA, for code that multiplies by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Matrix(NamedTuple):
    """`Matrix.of(module)`: rows @ (weight + up @ down).T + bias, the two products apart: a bfloat16 weight has no
    digits for a small adapter."""

    weight: Tensor
    bias: Tensor | None = None
    down: Tensor | None = None
    """[rank, in] of the adapter that is on (LoRA, arXiv 2106.09685)."""
    up: Tensor | None = None
    """[out, rank]."""

    @classmethod
    def of(cls, module: Any) -> Matrix:
        """As the module stands: its own parameters, the adapter's scale inside `up`."""
        base = getattr(module, "base_layer", module)
        if base is module or module.disable_adapters:
            return cls(base.weight, base.bias)
        name = module.active_adapters[0]
        return cls(
            base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight * module.scaling[name]
        )

    def ready(self, dtype: torch.dtype, order: Tensor | None = None) -> Matrix:
        """For products in a type, each head's numbers of the result in `order`."""
        weight, bias, down, up = (x if x is None else x.to(dtype) for x in self)
        return Matrix(ordered(weight, order), ordered(bias, order), down, ordered(up, order))

    def product(self, rows: Tensor) -> Tensor:
        """[T, in] to [T, out]."""
        found = nn.functional.linear(rows, self.weight, self.bias)
        return found if self.up is None else found.addmm_(rows @ self.down.t(), self.up.t())

    def back(self, columns: Tensor, into: Tensor | None = None) -> Tensor:
        """From the gradient of the result to that of what entered, [T, in], added to `into` where there is one."""
        found = columns @ self.weight if into is None else into.addmm_(columns, self.weight)
        return found if self.up is None else found.addmm_(columns @ self.up, self.down)

    def gradients(
        self, columns: Tensor, rows: Callable[[], Tensor], wanted: Sequence[bool], order: Tensor | None = None
    ) -> list[Tensor | None]:
        """Of weight, bias, down and up, as far as they are `wanted`, from the gradient of the result and what entered;
        `order` puts a head's numbers back."""
        of_weight, of_bias, of_down, of_up = wanted
        entered = rows() if of_weight or of_down or of_up else None
        return [
            ordered(columns.t() @ entered, order) if of_weight else None,
            ordered(columns.sum(0), order) if of_bias else None,
            (columns @ self.up).t() @ entered if of_down else None,
            ordered(columns.t() @ (entered @ self.down.t()), order) if of_up else None,
        ]


def is_known(module: Any) -> bool:
    """A plain matrix, or one with one adapter of LoRA's own form: no dropout, no bias, no variant such as DoRA."""
    if type(module) is nn.Linear:
        return True
    if not hasattr(module, "lora_A"):
        return False
    from peft.tuners.lora import Linear

    if type(module) is not Linear or type(module.base_layer) is not nn.Linear or len(module.active_adapters) != 1:
        return False
    name = module.active_adapters[0]
    if name not in module.lora_A or name in module.lora_variant or module.lora_B[name].bias is not None:
        return False
    return not (module.merged or module.fan_in_fan_out or getattr(module.lora_dropout[name], "p", 0.0))


def ordered(values: Any, order: Tensor | None) -> Any:
    """[heads * D, ...] with each head's numbers in that order; None stays None."""
    return values if values is None or order is None else values.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
