"""A linear layer's weights as they are now, plain or with LoRA, for code that computes the products itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class LinearWeights(NamedTuple):
    """`LinearWeights.of(module)`: x @ (weight + up @ down).T + bias. The adapter's product is computed apart, since a
    bfloat16 weight would round a small adapter away."""

    weight: Tensor
    bias: Tensor | None = None
    down: Tensor | None = None
    """[rank, in], A of the active adapter (LoRA, arXiv 2106.09685)."""
    up: Tensor | None = None
    """[out, rank], B of the adapter times its scale."""

    @classmethod
    def of(cls, module: Any) -> LinearWeights:
        """The module's own parameters, with those of its adapter where one is active."""
        base = getattr(module, "base_layer", module)
        if base is module or module.disable_adapters:
            return cls(base.weight, base.bias)
        name = module.active_adapters[0]
        return cls(
            base.weight, base.bias, module.lora_A[name].weight, module.lora_B[name].weight * module.scaling[name]
        )

    def converted(self, dtype: torch.dtype, order: Tensor | None = None) -> LinearWeights:
        """The weights in `dtype`, with the output features of each head in `order`."""
        weight, bias, down, up = (x if x is None else x.to(dtype) for x in self)
        return LinearWeights(reorder_heads(weight, order), reorder_heads(bias, order), down, reorder_heads(up, order))

    def forward(self, rows: Tensor) -> Tensor:
        """[T, in] to [T, out]."""
        result = nn.functional.linear(rows, self.weight, self.bias)
        if self.up is None or self.down is None:
            return result
        return result.addmm_(rows @ self.down.t(), self.up.t())

    def input_gradient(self, grad: Tensor, total: Tensor | None = None) -> Tensor:
        """The gradient for the input, [T, in], of the output's gradient [T, out]; added to `total` if there is one."""
        result = grad @ self.weight if total is None else total.addmm_(grad, self.weight)
        if self.up is None or self.down is None:
            return result
        return result.addmm_(grad @ self.up, self.down)

    def weight_gradients(
        self, grad: Tensor, rows: Callable[[], Tensor], wanted: Any, order: Tensor | None = None
    ) -> list[Tensor | None]:
        """Gradients for weight, bias, down and up where `wanted`, from the output's gradient [T, out] and the input
        [T, in], which `rows` computes. `order`: brings each head's features back to the module's order."""
        of_weight, of_bias, of_down, of_up = wanted
        entered = rows() if of_weight or of_down or of_up else grad
        return [
            reorder_heads(grad.t() @ entered, order) if of_weight else None,
            reorder_heads(grad.sum(0), order) if of_bias else None,
            (grad @ self.up).t() @ entered if of_down and self.up is not None else None,
            reorder_heads(grad.t() @ (entered @ self.down.t()), order) if of_up and self.down is not None else None,
        ]


def is_supported(module: Any) -> bool:
    """Whether the module is a plain linear layer, or has one plain LoRA adapter: no dropout, no bias in the adapter, no
    variant such as DoRA."""
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
    dropout: float = getattr(module.lora_dropout[name], "p", 0.0)
    return not (module.merged or module.fan_in_fan_out or dropout > 0)


def reorder_heads(values: Any, order: Tensor | None) -> Any:
    """[heads * D, ...] with the D features of each head in `order`; None stays None."""
    return values if values is None or order is None else values.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
