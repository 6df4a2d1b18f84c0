"""The learning rate as a pure function of the step: nothing to save in a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache

import torch

from cohort.config import TrainingConfig
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
