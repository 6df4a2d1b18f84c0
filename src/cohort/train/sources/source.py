"""The interface of a source, which makes the batches of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cohort.policy.fast.activations import ActivationStore
from cohort.types import Group, TrainerState

Observer = Callable[[list[Group], int], dict[str, float]]
"""Called with all groups that were sampled for a batch and the number of the step that begins with it; returns what to
log."""


Attachment = Callable[[list[Group]], dict[str, float]]
"""Fills in a field of rewarded groups that credit or coefficient needs; returns what to log."""


class Batch(NamedTuple):
    """What one call of a source gives the loop."""

    groups: list[Any]
    """Groups with advantages; in a reward model's run, its examples."""
    metrics: dict[str, float]
    """What to log of the batch."""
    activations: ActivationStore | None = None
    """Of sampling, for the first update on the batch."""


class Source(Protocol):
    """Makes the batches of a run."""

    per_batch: int
    """Rows of one batch."""

    @property
    def size(self) -> int:
        """Rows of the dataset that are used; known once the source is prepared."""
        ...

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Called once, before the first update. `reuse`: the run is resumed, and files that its earlier part left in
        the folder may be used."""
        ...

    def batch(self, index: int, state: TrainerState) -> Batch:
        """The `index`-th batch of the run."""
        ...
