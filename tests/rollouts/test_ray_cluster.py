"""What is said where a cluster is not there, and of Ray's errors; without Ray."""

from __future__ import annotations

import socket

import pytest

from cohort.config.engines import RayEngineConfig
from cohort.rollouts.engine import EngineError
from cohort.rollouts.ray_cluster import begin, reason


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}"])
def test_an_address_at_which_nobody_listens_is_refused_at_once(address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(free.getsockname()[1])
        with pytest.raises(EngineError, match=r"no Ray cluster at .*\[Errno.*ray start --head"):
            begin(None, RayEngineConfig(address=address), 2**28)


class OneGPU:
    """In place of the package: a machine with one GPU."""

    def init(self, **options: object) -> None:
        assert options["address"] == "local"

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "GPU": 1.0}


def test_workers_for_which_there_are_no_gpus_are_refused() -> None:
    begin(OneGPU(), RayEngineConfig(workers=2, gpus=0.5), 2**28)
    with pytest.raises(EngineError, match="2 workers need 1 GPUs each, and this machine has 1"):
        begin(OneGPU(), RayEngineConfig(workers=2, gpus=1), 2**28)


def test_a_reason_is_the_line_that_names_the_cause() -> None:
    text = "The actor died:\n\x1b[36mray::Worker\x1b[39m\n  File x\nImportError: no \x1b[31mmodule\x1b[0m\n\n"
    assert reason(RuntimeError(text)) == "ImportError: no module"
    assert reason(RuntimeError()) == "RuntimeError"
    memory = type("OutOfMemoryError", (Exception,), {})
    assert reason(memory("1 worker(s) were killed: 22GB used / 23GB limit\nTop 10 memory users")).endswith("23GB limit")
