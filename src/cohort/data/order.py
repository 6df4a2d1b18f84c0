"""The order of the data and the seeds of a run, as pure functions: a resumed run continues without saved state."""

from __future__ import annotations

import torch


def picks(size: int, first: int, count: int, seed: int, shuffle: bool) -> list[int]:
    """`count` row indices from position `first` of an endless stream of epochs over `size` rows. With `shuffle` each
    epoch has its own order."""
    chosen: list[int] = []
    while len(chosen) < count:
        epoch, start = divmod(first + len(chosen), size)
        if shuffle:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(derive(seed, epoch))).tolist()
        else:
            order = list(range(size))
        chosen += order[start : start + count - len(chosen)]
    return chosen


def prompt_seeds(seed: int, count: int, first: int = 0) -> list[int]:
    """The seeds of `count` prompts from position `first` on: a prompt's completions depend on its own seed alone, and
    not on what is sampled beside it, or where."""
    return [derive(seed, position) for position in range(first, first + count)]


def derive(seed: int, index: int) -> int:
    """A seed for the index-th use of `seed`, uncorrelated with its neighbours (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) % 2**63
