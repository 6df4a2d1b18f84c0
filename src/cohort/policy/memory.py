"""Telling an out-of-memory error from any other."""

from __future__ import annotations

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's has a class of its own; the CPU allocator's is known by its message."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def free_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
