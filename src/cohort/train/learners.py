"""What a run trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from cohort.config import TrainingConfig
from cohort.policy import ranks
from cohort.train import sharded
from cohort.train.iterations.iterations import Iterations
from cohort.train.monitors.health import Health
from cohort.train.output import checkpoint
from cohort.train.output.checkpoint import Companion, Progress, Saved
from cohort.train.output.sampled import Sampled
from cohort.train.ranks import require_same_batch
from cohort.types import UserError


class StepUpdater(Protocol):
    """Takes optimiser steps: of a policy (train/step.py) or of a reward model (train/reward_models/updater.py)."""

    optimizer: torch.optim.Optimizer
    token_budget: int
    state: dict[str, float]
    """What a checkpoint keeps of it beside the optimiser's state."""

    def step(
        self, groups: list[Any], generation_tokens: float, learning_rate: float, activations: Any = None
    ) -> dict[str, float]:
        """Take one step on the groups and return its metrics."""
        ...


class Ahead(Protocol):
    """A source that has batches before their turn."""

    def finished_ahead(self) -> dict[int, Sampled]: ...

    def restore(self, batches: dict[int, Sampled]) -> None: ...


@dataclass(frozen=True)
class Learners:
    """What a run trains, and what is in its checkpoints."""

    trained: Saved
    """The policy, or the reward model."""
    updater: StepUpdater
    companions: Sequence[Companion] = ()
    """Are trained beside the policy with optimisers of their own, such as a critic."""
    iterations: Iterations | None = None
    """Is called after each step."""
    health: Health | None = None
    """Says when the run does not learn."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the run was made with (train/facts.py)."""
    ahead: Ahead | None = None
    """The source, where it samples ahead."""

    def load(self, path: Path, config: TrainingConfig) -> Progress:
        """Take everything from a checkpoint; returns the state of its run. Raises UserError for a folder that is no
        checkpoint of this run."""
        parts = sharded.has_parts(path)
        if not parts and config.distributed == "fsdp2":
            raise UserError(
                f"{path} holds whole weights, and distributed: fsdp2 resumes from parts: resume with distributed: "
                "replicated, or start a run from its model (model_name_or_path)"
            )
        load = sharded.load if parts else checkpoint.load
        progress = load(path, self.trained, self.updater.optimizer, self.companions, self.iterations)
        require_same_batch(progress.batch_size, config)
        progress.batch_size = config.batch_size
        self.updater.token_budget = progress.token_budget
        self.updater.state.update(progress.updater)
        if self.health is not None:
            self.health.restore(progress.health)
        if self.ahead is not None:
            self.ahead.restore(progress.ahead)
        return progress

    def save(self, folder: Path, progress: Progress, config: TrainingConfig) -> None:
        """Write a checkpoint; of a replicated run the main rank does."""
        trained, optimizer, iterations = self.trained, self.updater.optimizer, self.iterations
        if self.health is not None:
            progress.health = self.health.state()
        if self.ahead is not None and not config.save_only_model:
            progress.ahead = self.ahead.finished_ahead()
        if config.distributed == "fsdp2":
            sharded.save(folder, trained, optimizer, progress, iterations, self.facts, config.save_only_model)
        elif not ranks.is_main():
            return
        elif config.save_only_model:
            checkpoint.save_model_only(folder, trained, progress.step, self.facts)
        else:
            checkpoint.save(folder, trained, optimizer, progress, self.facts, self.companions, iterations)
