"""The learning rate and the order of the data, as pure functions of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache

import torch

from cohort.config import TrainingConfig
from cohort.types import UserError


def share(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the highest learning rate at the 0-based `step` of `total`, by transformers' schedule of that name.
    Raises UserError for lr_scheduler_kwargs that it does not take."""
    warmup = config.warmup_steps or math.ceil(total * config.warmup_ratio)
    kwargs = json.dumps(config.lr_scheduler_kwargs, sort_keys=True)
    return _schedule(config.lr_scheduler_type, config.learning_rate, warmup, total, kwargs)(step)


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """Rate of the 0-based `step` of `total`."""
    return config.learning_rate * share(step, total, config)


@lru_cache(maxsize=8)
def _schedule(name: str, rate: float, warmup: int, total: int, kwargs: str) -> Callable[[int], float]:
    """Step -> share of the highest rate."""
    from transformers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    try:
        scheduler = get_scheduler(name, optimizer, warmup, total, json.loads(kwargs))
    except (TypeError, ValueError) as error:
        raise UserError(f"lr_scheduler_type {name} refuses lr_scheduler_kwargs {kwargs}: {error}") from None
    return scheduler.lr_lambdas[0]


def interval(every: float, total: int) -> int:
    """Steps between two events: `every` itself, or below 1 that share of all steps, rounded up. 0: never."""
    return math.ceil(total * every) if 0 < every < 1 else int(every)


def picks(size: int, first: int, count: int, seed: int, shuffle: bool) -> list[int]:
    """Items `first` to `first + count` of the endless stream of epochs over `size` rows, each epoch in an order of
    its own."""
    chosen: list[int] = []
    while len(chosen) < count:
        epoch, start = divmod(first + len(chosen), size)
        if shuffle:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(derive(seed, epoch))).tolist()
        else:
            order = list(range(size))
        chosen += order[start : start + count - len(chosen)]
    return chosen


def derive(seed: int, index: int) -> int:
    """A seed for the index-th use of `seed`: neighbours share nothing (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) % 2**63
