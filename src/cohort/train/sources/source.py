"""What makes the batches of a run: the interface of a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cohort.types import Group, TrainerState

Observer = Callable[[list[Group], int], dict[str, float]]
"""Looks at all groups that were sampled for a batch, and the step that begins with it; returns what to log."""


Attachment = Callable[[list[Group]], dict[str, float]]
"""Fills in a field of rewarded groups that credit or coefficient needs; returns what to log."""


class Source(Protocol):
    """The `index`-th batch of groups with advantages, and what to log of it."""

    per_batch: int
    """Rows of one batch."""

    @property
    def size(self) -> int:
        """Rows of the dataset that are used; known once the source is prepared."""
        ...

    def prepare(self, folder: Path, reuse: bool) -> None:
        """Called once, while the policy is as it started. `reuse`: the run goes on, and what an earlier part of it
        left in the folder may be used."""
        ...

    def batch(self, index: int, state: TrainerState) -> tuple[list[Group], dict[str, float]]: ...
