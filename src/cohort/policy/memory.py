"""Memory: how much there is, how much was in use at most, and telling its lack from any other error."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's has a class of its own; the CPU allocator's is known by its message."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def free_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next tensor, where nothing in the environment says otherwise. It gives the
    end of its heap back to the system, which hands it out again page by page, zeroed: a tenth of a step on a CPU, for
    no smaller a peak."""
    chosen = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most it takes; larger blocks are mapped by themselves


def total_bytes(device: torch.device) -> int:
    """Memory of the card, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def reset_peak(device: torch.device) -> None:
    """Let `peak_bytes` count from now on, where the device (for a CPU: the kernel) can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or /proc is closed: the peak is the process's
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
