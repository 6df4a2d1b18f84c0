"""The machine that a run is planned for: memory and rates, from options or measured here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cohort.types import UserError

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Machine:
    """Machine("cuda", True, 80 * 2**30, 400e12, 2e12)"""

    device: str
    """cuda or cpu."""
    bf16: bool
    """Whether autocast to bfloat16 is on."""
    memory: float
    """Bytes."""
    flops: float
    """Floating-point operations a second, of a large matrix product."""
    bandwidth: float
    """Bytes of memory read a second."""


def parse_size(text: str, option: str) -> float:
    """Bytes: parse_size("80GiB", "--memory") -> 85899345920.0. Raises UserError for another text."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]i?)?b?\s*", text.lower())
    try:
        size = float(match[1]) * UNITS[match[2] or ""] if match else 0.0
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise UserError(f"{option} {text!r}: give a size such as 80GiB or 24GB")
    return size


def parse_rate(text: str, option: str) -> float:
    """A rate a second: parse_rate("400e12", "--flops") -> 4e14. Raises UserError for another text."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UserError(f"{option} {text!r}: give a number a second, such as 400e12")
    return rate


def find_machine(
    use_cpu: bool, bf16: bool | None, memory: float | None, flops: float | None, bandwidth: float | None
) -> Machine:
    """The machine to plan for. With `memory` it is a GPU of that size, unless `use_cpu`; without it is this machine's
    device. Rates that are None are measured on this machine. Raises UserError if there is no GPU to measure."""
    import torch

    from cohort.policy.load import fast_bf16, find_device
    from cohort.policy.memory import total_bytes

    here = find_device(use_cpu)
    device = "cuda" if not use_cpu and (memory is not None or here.type == "cuda") else "cpu"
    if device == "cuda" and here.type != "cuda" and (flops is None or bandwidth is None):
        raise UserError(
            "there is no GPU here to measure: give its rates with --flops and --bandwidth, such as --flops 400e12 "
            "--bandwidth 2e12, or plan for this machine with use_cpu=true"
        )
    if bf16 is None:
        bf16 = True if device == "cuda" and here.type != "cuda" else fast_bf16(here)
    if memory is None:
        memory = float(total_bytes(here))
    dtype = torch.bfloat16 if bf16 else torch.float32
    return Machine(device, bf16, memory, flops or measured_flops(here, dtype), bandwidth or measured_bandwidth(here))


def measured_flops(device: Any, dtype: Any) -> float:
    """Operations a second of a large matrix product."""
    import torch

    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / _best(lambda: a @ a, device)


def measured_bandwidth(device: Any) -> float:
    """Bytes a second that a sum over a large tensor reads."""
    import torch

    big = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    return big.nbytes / _best(lambda: big.sum(), device)


def _best(work: Callable[[], Any], device: Any) -> float:
    """Seconds of the fastest of six calls."""
    import torch

    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
