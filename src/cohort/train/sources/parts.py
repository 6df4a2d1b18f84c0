"""What a run is built from: made once by the trainer, read by its sources."""

from __future__ import annotations

from dataclasses import dataclass

from cohort.config import TrainingConfig
from cohort.methods.method import Method
from cohort.policy.model import Policy
from cohort.policy.reference import Reference
from cohort.rewards.compose import Rewards
from cohort.rollouts.engine import Engine
from cohort.train.compute_metrics import ComputeMetrics
from cohort.train.monitors.health import Health
from cohort.train.sources.source import Attachment, Observer


@dataclass(frozen=True)
class Parts:
    """The parts of a run. A source takes those it needs."""

    policy: Policy
    engine: Engine
    """Samples completions of the policy."""
    rewards: Rewards | None
    """None in methods that learn from what the dataset holds."""
    method: Method
    config: TrainingConfig
    start: Policy
    """The model that DPO compares with: the policy before its first update, or another model."""
    start_name: str | None
    """The name from which it was loaded; None: it was given as a model."""
    reference: Reference | None
    """The model of the KL term, or DPO's where it moves or costs nothing to keep; None where there is none."""
    teacher: Policy | None
    """The frozen model that on-policy distillation learns from."""
    attachments: list[Attachment]
    """Add to sampled groups what the credit needs, such as a critic's values."""
    observer: Observer | None
    """Called with all groups that are sampled for a batch."""
    health: Health
    """Says when the run does not learn."""
    compute_metrics: ComputeMetrics | None = None
    """Measures held-out pairs too."""
