"""What runs in a worker of the Ray pool."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cohort.policy.model import Policy
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion


class Worker:
    """A copy of the policy and its local engine."""

    def __init__(self, base: tuple[bytes, Any, Any, bool, int], cpus: float, gpus: float):
        torch.set_num_threads(max(1, int(cpus)))
        model, tokenizer, paths, bf16, max_rows = base
        device = "cuda" if gpus else "cpu"
        # The pickle is of this run's own model.
        loaded = torch.load(io.BytesIO(model), map_location=device, weights_only=False)
        self.policy = Policy(loaded, tokenizer, bf16=bf16)
        if paths is not None:
            self.policy.paths = paths
        self.engine = local_engine(self.policy, max_rows)
        self.trained = {name: p for name, p in loaded.named_parameters() if p.requires_grad}
        self.serial = 0

    def started(self) -> int:
        """The first answer: the process's number."""
        return os.getpid()

    def generate(
        self,
        weights: list[Any],
        serial: int,
        version: int,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
    ) -> tuple[int, list[list[Completion]]]:
        """The completions, with the serial number of the weights that sampled them."""
        if serial != self.serial:
            self._load(weights[0], serial, version)
        groups = self.engine.generate(prompts, n, sampling, seeds).completions
        return self.serial, groups

    @torch.no_grad()
    def _load(self, ref: Any, serial: int, version: int) -> None:
        import ray

        self.serial = 0  # if it fails, the weights are some of these and some of those
        for name, weight in ray.get(ref).items():
            self.trained[name].copy_(weight)
        self.policy.version, self.serial = version, serial
