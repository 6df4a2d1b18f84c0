"""Counts the bytes and floating-point operations of code that runs on fake tensors."""

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
    """A context in which the bytes of every new storage are counted until it is freed, and the FLOPs of every product.

    `live` is the bytes now, `peak` the most so far; a multiplication and an addition are two FLOPs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.live = self.peak = self.flops = 0.0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count the tensor's storage; tensors that share a storage count once."""
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
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        # The layout's indices are real tensors: code reads their values.
        real = inputs and not any(isinstance(each, FakeTensor) for each in inputs)
        with unset_fake_temporarily() if real else nullcontext():
            result = function(*args, **kwargs)
        storages = [each.untyped_storage() for each in inputs]
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and not any(each.untyped_storage() is storage for storage in storages):
                self.add(each)
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """A context in which the CPU's autocast runs softmax in float32, as CUDA's does. For language models the two differ
    in nothing else."""

    def softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)):
            return torch.softmax(scores, dim, torch.float32)

    # Registered below autograd, so that it applies when checkpointing recomputes a layer too.
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("softmax.int", softmax, "AutocastCPU")
        yield
    finally:
        library._destroy()
