"""Matrix products on the CPU: the faster of two libraries, and the products of a few rows in decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

MKLDNN: Any = torch.backends.mkldnn
"""PyTorch's stubs do not have its settings."""
FEW = range(12, 49)
"""Rows for which `weight @ rows.T` is faster than `rows @ weight.T`: 1.3 to 2.5 times from 16 to 32 rows, in float32 on
two cores with MKL; below and above it is slower, and so it is with oneDNN."""
SMALL = 2**20
"""Bytes of a float32 weight up to which MKL, with the weight transposed, is faster than oneDNN with its own memory
order, whose call takes 40 microseconds: 1 to 8 times for 8 to 128 rows, most for few rows and small weights."""
FLOAT32_ERROR = 2e-6
"""Largest relative error of a float32 product against float64. Measured: 2e-7 to 6e-7, and 3e-3 where the library
computes in bfloat16."""


class _Inside:
    """The threads within `fast_float32`: what it sets is the process's, and batches are sampled beside training."""

    lock, number, before = Lock(), 0, "none"


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Within the context, float32 products on the CPU use oneDNN where it is faster and still computes in float32. On
    AMD's processors MKL reaches 223 GFLOP/s on two cores, oneDNN 480. PyTorch selects oneDNN when products may use
    bfloat16, which oneDNN does on some processors only; these are detected by their error."""
    if device.type != "cpu" or not onednn_is_better():
        yield
        return
    matmul = MKLDNN.matmul
    with _Inside.lock:
        if _Inside.number == 0:
            _Inside.before = matmul.fp32_precision
        applies = _Inside.before in ("none", "ieee")
        if applies:
            _Inside.number += 1
            matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        if applies:
            with _Inside.lock:
                _Inside.number -= 1
                if _Inside.number == 0:
                    matmul.fp32_precision = _Inside.before


@cache
def onednn_is_better() -> bool:
    """Whether float32 products should use oneDNN on this processor."""
    cpus = Path("/proc/cpuinfo")
    if not (MKLDNN.is_available() and cpus.is_file() and "AuthenticAMD" in cpus.read_text()):
        return False
    matmul = MKLDNN.matmul
    with _disable_current_modes():  # also under modes whose tensors have no storage
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
    """A linear layer: rows [N, in] to [N, out], plus `plus` [N, out] if given, written to `out` if given."""

    def __call__(self, rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor: ...


def prepared(weight: Tensor, bias: Tensor | None, onednn: bool) -> Product:
    """A linear layer for many calls with an unchanged weight, without gradients. On the CPU the weight is copied once
    to the memory order that the product reads, instead of at every call: half of the time for a few rows. `onednn`:
    whether the policy's float32 products are oneDNN's."""
    supported = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if supported and weight.dtype is torch.float32 and weight.nbytes <= SMALL and not onednn:
        return _by_transpose(weight.detach().t().contiguous(), bias)
    if supported and _can_reorder(weight.dtype):
        if isinstance(weight, FakeTensor):  # no values: only the size of the copy matters
            return _allocating(partial(from_the_weight, weight=weight.clone(), bias=bias))
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), FEW.stop)
        return _allocating(lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], ""))
    return _allocating(partial(from_the_weight, weight=weight, bias=bias))


def _allocating(product: Callable[[Tensor], Tensor]) -> Product:
    """A Product of a function that allocates its own result."""

    def call(rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        result = product(rows)
        if plus is not None:
            return torch.add(plus, result, out=out)
        return result if out is None else out.copy_(result)

    return call


def _by_transpose(transposed: Tensor, bias: Tensor | None) -> Product:
    """A Product by MKL, which adds and writes to a given tensor in the same call."""

    def call(rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        start = bias if plus is None else plus
        result = torch.mm(rows, transposed, out=out) if start is None else torch.addmm(start, rows, transposed, out=out)
        return result if plus is None or bias is None else result.add_(bias)

    return call


@cache
def _can_reorder(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operations of its compiler that reorder weights, tried on a small product."""
    with _disable_current_modes():
        rows, weight, bias = (torch.ones(shape, dtype=dtype) for shape in ((2, 16), (8, 16), (8,)))
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, FEW.stop)
            result = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
        return bool((result == 17).all())


@contextmanager
def few_rows(model: nn.Module) -> Iterator[None]:
    """Within the context, the model's linear layers on the CPU compute `weight @ rows.T` where that is faster. No
    gradients."""
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
    """A linear layer's result, computed as weight @ rows.T for a few float32 rows on the CPU."""
    count = rows.numel() // rows.shape[-1]
    few = count in FEW and rows.device.type == "cpu" and rows.dtype is weight.dtype is torch.float32
    if not few or torch.is_autocast_enabled("cpu") or MKLDNN.matmul.fp32_precision == "bf16":
        return nn.functional.linear(rows, weight, bias)
    out = weight @ rows.reshape(count, -1).t()
    if bias is not None:
        out += bias.unsqueeze(1)
    return out.t().contiguous().view(*rows.shape[:-1], -1)
