"""The dtypes of weights: what is trained is float32; what is frozen keeps its own where a backward pass can use it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cohort.policy.dropout import adapter_parts

HALF = (torch.bfloat16, torch.float16)


def widen(model: Any, bf16: bool) -> list[str]:
    """Make trained weights float32, and give frozen ones a dtype that forward and backward pass can use beside them.
    `bf16`: whether products are in bfloat16, by autocast. Returns what a run should say of it."""
    told = []
    if trained := _half(model, trained=True):
        told.append(
            f"{_count(trained)} trained weights were {_name(trained)} and are float32 now: in half precision nearly "
            "every update at a usual learning rate is rounded away"
        )
        _convert(trained, torch.float32)
    frozen = _half(model, trained=False)
    if not frozen or getattr(model, "is_quantized", False):
        return told
    of_adapters = {id(p) for part in adapter_parts(model) for p in part.parameters()}
    others_learn = any(p.requires_grad and id(p) not in of_adapters for p in model.parameters())
    float16 = [p for p in frozen if p.dtype is torch.float16]
    if bf16 and float16:
        told.append(
            f"{_count(float16)} frozen weights were float16 and are bfloat16 now, as autocast's products: float16 "
            "activations overflow"
        )
        _convert(float16, torch.bfloat16)
    elif not bf16 and (float16 or others_learn):
        reason = "gradients in float16 vanish" if float16 else "without autocast (bf16) all products need one dtype"
        told.append(f"{_count(frozen)} frozen weights were {_name(frozen)} and are float32 now: {reason}")
        model.float()
    elif not bf16:
        told.append("bf16 is off and frozen weights are bfloat16: products with them are in bfloat16 all the same")
    return told


def _half(model: Any, trained: bool) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.dtype in HALF and p.requires_grad == trained]


def _convert(parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def _count(parameters: list[nn.Parameter]) -> str:
    return f"{sum(p.numel() for p in parameters):,}"


def _name(parameters: list[nn.Parameter]) -> str:
    return str(parameters[0].dtype).removeprefix("torch.")
