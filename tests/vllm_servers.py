"""Real servers of vLLM for tests: `make test-vllm` names the executable of an environment that has it."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cohort.cli.vllm import ENVIRONMENT, serve_arguments
from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from helpers import small_model

EXECUTABLE = os.environ.get("COHORT_VLLM", "")
needs_vllm = pytest.mark.skipif(not EXECUTABLE, reason="needs a server of vLLM: make test-vllm")
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


class RealServer:
    """`vllm serve` on a folder, as `cohort vllm` starts it, on a CPU in float32."""

    def __init__(self, folder: Path, lora_rank: int | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        arguments = serve_arguments(str(folder), "127.0.0.1", self.port, lora_rank)
        self.command = [EXECUTABLE, *arguments, "--dtype", "float32", "--enforce-eager"]
        self.folder = folder
        self.process: Any = None
        self.begin()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Start, without waiting."""
        environment = {**os.environ, **ENVIRONMENT, **CPU, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        environment.pop("PYTHONPATH", None)
        with (self.folder / "vllm.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.5)

    def log(self) -> str:
        return (self.folder / "vllm.log").read_text(errors="replace")[-3000:]

    def stop(self) -> None:
        """Kill it and its workers, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


RUNNING: list[RealServer] = []
SERVABLE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 2048}  # fmt: skip
"""Sizes of a model that vLLM's attention on CPUs can run."""


def servable_policy(adapter: Any = None, architecture: str = "Qwen2", **overrides: Any) -> Policy:
    """A small policy that vLLM can serve, with an adapter or without."""
    model = small_model(architecture, **SERVABLE, **overrides)
    return make_policy(model, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True), adapter)


def served(policy: Policy, folder: Path, rank: int | None = None) -> RealServer:
    """A server of the policy's model as it is now, without its adapter, for that adapter or one of this rank.
    `stop_all` ends it."""
    model = policy.model if policy.peft is None else copy.deepcopy(policy.peft).unload()
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    if policy.peft is not None:
        rank = policy.peft.peft_config["default"].r
    server = RealServer(folder, rank)
    RUNNING.append(server)
    return server


def stop_all() -> None:
    while RUNNING:
        RUNNING.pop().stop()
