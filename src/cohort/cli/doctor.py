"""`cohort doctor`: versions, device and sandbox of this machine."""

from __future__ import annotations

import platform

from cohort import __version__
from cohort.cli.console import echo

PACKAGES = ("torch", "transformers", "peft", "datasets", "math-verify", "reasoning-gym")


def doctor() -> None:
    """Print what this machine has: versions, device, threads, precision, layers of the sandbox."""
    import torch

    from cohort.policy.load import fast_bf16, find_device

    _line("python", platform.python_version())
    _line("cohort", __version__)
    for package in PACKAGES:
        _line(package, _version(package))
    device = find_device()
    _line("device", torch.cuda.get_device_name() if device.type == "cuda" else device.type)
    _line("threads", torch.get_num_threads())
    _line("fast bfloat16", "yes" if fast_bf16(device) else "no: float32 is used")

    from cohort.rewards.sandbox.layers import INSTALL, find_layers

    layers = find_layers()
    for layer, state in layers.described():
        _line(layer, state)
    _line("unit_tests", "sandboxed" if layers.safe else f"no sandbox. {INSTALL}")


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _line(name: str, value: object) -> None:
    echo(f"{name:<16}{value}")
