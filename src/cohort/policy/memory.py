"""Memory: its size and peak, and what to do when it runs out."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

log = logging.getLogger("cohort")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""


OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP|XPU|MPS backend|(CUDA|HIP)( driver)? error:|Triton Error \[\w+\]:) out of memory"
    r"|_STATUS_(ALLOC_FAILED|INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED)"
    r"|DefaultCPUAllocator|std::bad_alloc"
)
"""What the message of an error without a class of its own says: of the driver, Triton and Metal, of cuBLAS, cuSOLVER
and cuDNN, of the CPU allocator. Triton's "out of resource: shared memory" is of a kernel that is too large for any
batch."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, or the error was raised while such an error was handled: an operation that fails while a
    CUDA graph is recorded is followed by the failure of the recording."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (torch.OutOfMemoryError, MemoryError)) or OUT_OF_MEMORY.search(str(seen)):
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


Result = TypeVar("Result")


def retry_smaller(
    run: Callable[[int], Result], size: int, smallest: Callable[[], int], message: str
) -> tuple[Result, int]:
    """run(size), and again with half of the size each time memory runs out; returns the result and the last size. All
    tensors of a failed run that only the run knew are freed before the next.

    `smallest`: where the size is not above it, the error is raised. `message`: the warning, with %d for the new size.
    """
    while True:
        try:
            return run(size), size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or size <= smallest():
                raise
            _drop_tracebacks(error)  # somebody may keep the error, and with it the tensors of the failed run
        size = max(1, size // 2)
        gc.collect()  # the pieces of gradient checkpointing know one another
        free_cached_memory()
        log.warning(message, size)


def _drop_tracebacks(error: BaseException | None) -> None:
    """Forget through which functions, and so past which variables, the error and those that led to it went."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def free_cached_memory() -> None:
    """Return the memory that PyTorch keeps for later tensors to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


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
