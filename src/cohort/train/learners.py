"""What a run trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from cohort.train.iterations.iterations import Iterations
from cohort.train.monitors.health import Health
from cohort.train.output.checkpoint import Companion, Saved


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
