"""The learning rate and what is due as functions of the step: nothing to save in a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache

import torch

from cohort.config import TrainingConfig
from cohort.train.sources.source import Source
from cohort.types import UserError


def learning_rate_factor(step: int, total: int, config: TrainingConfig) -> float:
    """The learning rate of the 0-based `step` of `total` as a fraction of the highest, by transformers' schedule of
    that name. Raises UserError for lr_scheduler_kwargs that it does not take."""
    warmup = config.warmup_steps or math.ceil(total * config.warmup_ratio)
    kwargs = json.dumps(config.lr_scheduler_kwargs, sort_keys=True)
    return _schedule(config.lr_scheduler_type, config.learning_rate, warmup, total, kwargs)(step)


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """The learning rate of the 0-based `step` of `total`."""
    return config.learning_rate * learning_rate_factor(step, total, config)


@lru_cache(maxsize=8)
def _schedule(name: str, rate: float, warmup: int, total: int, kwargs: str) -> Callable[[int], float]:
    """Step -> fraction of the highest rate."""
    from transformers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    try:
        scheduler = get_scheduler(name, optimizer, warmup, total, json.loads(kwargs))
    except (TypeError, ValueError) as error:
        raise UserError(f"lr_scheduler_type {name} refuses lr_scheduler_kwargs {kwargs}: {error}") from None
    factor_of: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor_of


def interval(every: float, total: int) -> int:
    """Steps between two events: `every` itself, or below 1 that fraction of all steps, rounded up. 0: never."""
    return math.ceil(total * every) if 0 < every < 1 else int(every)


class Due:
    """What is due after which step of a run. `updates_per_batch`: optimiser steps on one batch of the source."""

    def __init__(self, config: TrainingConfig, source: Source, updates_per_batch: int):
        self.config, self.source, self.updates_per_batch = config, source, updates_per_batch

    @property
    def total(self) -> int:
        """Optimiser steps of the run; known once the source is prepared."""
        batches = math.ceil(self.config.num_train_epochs * self.source.size / self.source.per_batch)
        return self.config.max_steps if self.config.max_steps > 0 else batches * self.updates_per_batch

    def by(self, strategy: str, every: float, step: int) -> bool:
        """Whether something happens after the step: `steps`, each `every` steps (0: never; below 1: as a fraction of
        all); `epoch`, after each pass over the data."""
        if strategy == "epoch":
            return self.ends_pass(step)
        steps = interval(every, self.total)
        return strategy == "steps" and steps > 0 and step % steps == 0

    def ends_pass(self, step: int) -> bool:
        """Whether a pass over the data ends with the step."""
        return self._passes(step) > self._passes(step - 1)

    def _passes(self, step: int) -> int:
        """Complete passes over the data after so many steps."""
        return step // self.updates_per_batch * self.source.per_batch // self.source.size
