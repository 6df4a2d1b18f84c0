"""Matrix products on the CPU: the faster of two libraries, and weights times a few rows, as decoding makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

FEW = range(12, 49)
"""Rows for which `weight @ rows.T` is faster than `rows @ weight.T`: 1.3 to 2.5 times from 16 to 32 rows, in float32 on
two cores with MKL; below and above it is slower, and so it is with oneDNN."""
SMALL = 2**20
"""Bytes of a float32 weight up to which MKL multiplies by its transpose faster than oneDNN by its own order, a call of
which takes 40 microseconds: 1 to 8 times for 8 to 128 rows, most where both are few."""
FLOAT32_ERROR = 2e-6
"""Of a float32 product against float64: 2e-7 to 6e-7 was seen; bfloat16 inside shows 3e-3."""


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Inside, float32 products on the CPU go to oneDNN where that is faster and still float32: MKL takes slow code on
    AMD's processors (223 GFLOP/s on two cores where oneDNN reaches 480). oneDNN is asked for by allowing bfloat16
    inside products, of which it makes use only on some processors: those are told by their error."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    if device.type != "cpu" or before not in ("none", "ieee") or not onednn_is_better():
        yield
        return
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def onednn_is_better() -> bool:
    """Whether float32 products go to oneDNN on this processor."""
    cpus = Path("/proc/cpuinfo")
    if not (torch.backends.mkldnn.is_available() and cpus.is_file() and "AuthenticAMD" in cpus.read_text()):
        return False
    matmul = torch.backends.mkldnn.matmul
    with _disable_current_modes():  # whoever asks, tensors without storage included
        random = torch.Generator().manual_seed(0)
        a, b = (torch.randn(256, 256, generator=random) for _ in range(2))
        exact = a.double() @ b.double()
        before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        try:
            error = ((a @ b).double() - exact).norm() / exact.norm()
        finally:
            matmul.fp32_precision = before
        return float(error) < FLOAT32_ERROR


class Product(Protocol):
    """A linear layer's result for rows [N, in], `plus` [N, out] added to it, in `out` where there is one."""

    def __call__(self, rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor: ...


def laid_out(weight: Tensor, bias: Tensor | None) -> Product:
    """A linear layer for many calls, of [N, in] each, while its weight stays. No gradients. On the CPU the weight is
    copied once to the order in which it is read, instead of at every call: half of the time of a few rows' product."""
    known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if known and weight.dtype is torch.float32 and weight.nbytes <= SMALL and not onednn_is_better():
        return _by_transpose(weight.detach().t().contiguous(), bias)
    if known and _lays_out(weight.dtype):
        if isinstance(weight, FakeTensor):  # without numbers, for what the copy takes
            return _placed(partial(from_the_weight, weight=weight.clone(), bias=bias))
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW.stop)
        return _placed(lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], ""))
    return _placed(partial(from_the_weight, weight=weight, bias=bias))


def _placed(product: Callable[[Tensor], Tensor]) -> Product:
    """One that leaves its result where it likes."""

    def call(rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        found = product(rows)
        if plus is not None:
            return torch.add(plus, found, out=out)
        return found if out is None else out.copy_(found)

    return call


def _by_transpose(turned: Tensor, bias: Tensor | None) -> Product:
    """By MKL, which adds to a product as it makes it and writes where it is asked to."""

    def call(rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        start = bias if plus is None else plus
        found = torch.mm(rows, turned, out=out) if start is None else torch.addmm(start, rows, turned, out=out)
        return found if plus is None or bias is None else found.add_(bias)

    return call


@cache
def _lays_out(dtype: torch.dtype) -> bool:
    """Whether this PyTorch can, tried on a product: its compiler's own operations, made for no other use."""
    with _disable_current_modes():
        rows, weight, bias = (torch.ones(shape, dtype=dtype) for shape in ((2, 16), (8, 16), (8,)))
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, FEW.stop)
            found = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
        return bool((found == 17).all())


@contextmanager
def few_rows(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers on the CPU multiply a few rows from the weight's side. No gradients."""
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype is torch.float32
    ]
    for layer in layers:
        layer.forward = partial(from_the_weight, weight=layer.weight, bias=layer.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def from_the_weight(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer's result, computed as weight @ rows.T where that is faster."""
    count = rows.numel() // rows.shape[-1]
    few = count in FEW and rows.device.type == "cpu" and rows.dtype is weight.dtype is torch.float32
    if not few or torch.is_autocast_enabled("cpu") or torch.backends.mkldnn.matmul.fp32_precision == "bf16":
        return nn.functional.linear(rows, weight, bias)
    out = weight @ rows.reshape(count, -1).t()
    if bias is not None:
        out += bias.unsqueeze(1)
    return out.t().contiguous().view(*rows.shape[:-1], -1)
