"""Counting bytes and floating-point operations of code that runs on tensors without storage."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """Inside, every storage that an operation makes is counted from its birth to its end, and every matrix product.

    `live` and `peak` are bytes, `flops` floating-point operations (a multiplication and an addition are two).
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0.0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count the tensor's storage, once however many tensors share it."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        # A layout's own indices have values, which it looks at.
        real = given and not any(isinstance(each, FakeTensor) for each in given)
        with unset_fake_temporarily() if real else nullcontext():
            found = function(*args, **kwargs)
        there = [each.untyped_storage() for each in given]
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and not any(each.untyped_storage() is storage for storage in there):
                self.add(each)
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=found)
        return found


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """Inside, autocast on the CPU makes softmax float32, as a GPU's does: elsewhere in the models here they agree."""

    def softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return torch.softmax(scores, dim, torch.float32)

    # Below autograd, so that a layer that checkpointing runs again does the same.
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("softmax.int", softmax, "AutocastCPU")
        yield
    finally:
        library._destroy()
