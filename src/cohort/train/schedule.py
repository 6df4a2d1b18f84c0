"""The learning rate and the order of the data, as pure functions of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math

import torch

from cohort.config import TrainingConfig


def share(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the highest learning rate at the 0-based `step` of `total`: linear warm-up, then transformers'
    schedule of that name."""
    warmup = config.warmup_steps or math.ceil(total * config.warmup_ratio)
    if config.lr_scheduler_type != "constant" and step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return DECAYS[config.lr_scheduler_type](progress)


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """Rate of the 0-based `step` of `total`."""
    return config.learning_rate * share(step, total, config)


DECAYS = {
    "linear": lambda progress: max(0.0, 1 - progress),
    "cosine": lambda progress: max(0.0, 0.5 * (1 + math.cos(math.pi * progress))),
    "constant": lambda progress: 1.0,
    "constant_with_warmup": lambda progress: 1.0,
}


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
