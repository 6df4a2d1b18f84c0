"""The interface of a source, which makes the batches of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from cohort.config import TrainingConfig
from cohort.methods.method import Method
from cohort.policy.fast.activations import ActivationStore
from cohort.types import Group, NotFinite, TrainerState

Observer = Callable[[list[Group], int], dict[str, float]]
"""Called with all groups that were sampled for a batch and the number of the step that begins with it; returns what to
log."""


Attachment = Callable[[list[Group]], dict[str, float]]
"""Fills in a field of rewarded groups that credit or coefficient needs; returns what to log."""


def give_credit(groups: list[Group], method: Method, config: TrainingConfig) -> None:
    """Set the advantages of the groups. Raises NotFinite where one is NaN or infinite, unless such steps are to be
    skipped."""
    for group, advantages in zip(groups, method.credit(groups, config), strict=True):
        group.advantages = advantages
    every = [advantages for group in groups for advantages in group.advantages]
    if config.on_nonfinite == "skip" or not every or bool(torch.cat(every).isfinite().all()):
        return
    broken = next(group for group in groups if not all(bool(a.isfinite().all()) for a in group.advantages))
    raise NotFinite(
        f"{method.name}: an advantage is NaN or infinite for the prompt of {broken.row.source or broken.row.prompt}, "
        f"whose completions have {extremes([broken])}: bound the rewards (reward_clip, or the clip of one of "
        "reward_funcs)"
    )


def extremes(groups: list[Group]) -> str:
    """The largest absolute rewards, advantages and log-ratios of the groups, for messages."""
    rewards = [torch.tensor(group.rewards, dtype=torch.float64) for group in groups]
    advantages = [a for group in groups for a in group.advantages]
    ratios = [
        completion.logprobs - reference
        for group in groups
        for completion, reference in zip(group.completions, group.reference_logprobs or [], strict=False)
    ]
    values = [x for group in groups for x in group.values or []]
    named = {"reward": rewards, "advantage": advantages, "log-ratio to the reference": ratios, "value": values}
    largest = {name: torch.cat(each).abs() for name, each in named.items() if sum(map(len, each))}
    return ", ".join(f"|{name}| up to {float(numbers.max()):.3g}" for name, numbers in largest.items())


class Batch(NamedTuple):
    """What one call of a source gives the loop."""

    groups: list[Any]
    """Groups with advantages; in a reward model's run, its examples."""
    metrics: dict[str, float]
    """What to log of the batch."""
    activations: ActivationStore | None = None
    """Of sampling, for the first update on the batch."""
    dropped: Sequence[Group] = ()
    """Sampled and rewarded too, and not in the batch."""


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
