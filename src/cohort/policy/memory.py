"""Memory: its size and peak, and what to do when it runs out."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

log = logging.getLogger("cohort")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""


def is_out_of_memory(error: Exception) -> bool:
    """CUDA raises an error class of its own; the CPU allocator's error is recognised by its message."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


Result = TypeVar("Result")


def retry_smaller(
    run: Callable[[int], Result], size: int, smallest: Callable[[], int], message: str
) -> tuple[Result, int]:
    """run(size), and again with half of the size each time memory runs out; returns the result and the last size.

    `smallest`: where the size is not above it, the error is raised. `message`: the warning, with %d for the new size.
    """
    while True:
        try:
            return run(size), size
        except RuntimeError as error:
            if not is_out_of_memory(error) or size <= smallest():
                raise
        # Outside the handler, whose traceback keeps the tensors of the failed run.
        size = max(1, size // 2)
        free_cached_memory()
        log.warning(message, size)


def free_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next tensor, unless the environment configures malloc. By default it returns
    the end of its heap to the system, which hands it out again page by page and zeroed. That takes a tenth of a step on
    a CPU and does not lower the peak."""
    chosen = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value glibc accepts


def total_bytes(device: torch.device) -> int:
    """Memory of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reset_peak(device: torch.device) -> None:
    """Start `peak_bytes` anew, where the device, or for a CPU the kernel, supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # without /proc the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since `reset_peak`: PyTorch's on a GPU, the process's resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        units = 1 if sys.platform == "darwin" else 1024
        return units * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
