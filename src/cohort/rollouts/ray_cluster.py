"""Ray itself: whether it is installed, how a run starts it or joins a cluster, and what its errors say."""

from __future__ import annotations

import re
import socket
from typing import Any

from cohort.config.engines import RayEngineConfig
from cohort.rollouts.engine import EngineError
from cohort.types import UserError

REACHED = 10.0
"""Seconds in which a cluster must accept a connection."""


def require_ray() -> Any:
    """The package ray. Raises UserError where it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise UserError(f"engine: ray needs the package ray ({error}): pip install 'cohort-rl[ray]'") from None
    return ray


def begin(ray: Any, config: RayEngineConfig, memory: int) -> None:
    """Start Ray on this machine, or join a cluster. Raises EngineError where that fails."""
    # "local": without an address, Ray would join a cluster that it knows of.
    own = {"address": "local", "num_cpus": config.workers, "object_store_memory": memory, "include_dashboard": False}
    address = config.address
    try:
        if address is not None:
            _require_reachable(address)
        ray.init(**(own if address is None else {"address": address}), configure_logging=False, log_to_driver=True)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).rstrip(".")
        if address is None:
            raise EngineError(f"engine: ray: Ray could not be started on this machine: {why}") from error
        raise EngineError(
            f"engine: ray: no Ray cluster at {address}: {why}. Give the address that `ray start --head` printed, or "
            "auto on one of the cluster's machines"
        ) from error
    has = ray.cluster_resources().get("GPU", 0)
    if address is None and config.workers * config.gpus > has:
        raise EngineError(
            f"engine: ray: {config.workers} workers need {config.gpus:g} GPUs each, and this machine has {has:g}: "
            "lower workers or gpus, or give the address of a cluster"
        )


def _require_reachable(address: str) -> None:
    """Raise OSError where nobody listens at host:port. Ray tries for minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()


def reason(error: Exception) -> str:
    """The line of Ray's message that names the cause, without colours: the last one, but where memory ran out the
    first, after which tables follow."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0 if type(error).__name__ == "OutOfMemoryError" else -1].strip()[:300]
