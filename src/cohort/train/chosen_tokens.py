"""Tokens that are chosen among all of a step under the current policy, before its backward pass: a choice by
micro-batch would depend on how the step is cut. Each takes one more forward pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cohort.methods.coefficients import Selection
from cohort.types import Group

ByCompletion = dict[tuple[int, int], Tensor]
"""(group, completion) -> [n], 1 for the chosen tokens, else 0."""


def most_uncertain(entropies_of: dict[tuple[int, int], Tensor], share: float) -> ByCompletion:
    """The tokens at or above the (1 - share) quantile of the entropies of all tokens."""
    ordered = torch.cat([torch.zeros(0), *entropies_of.values()]).sort().values
    # the smallest value at or above torch.quantile's, which takes no more than 16 million
    first = math.ceil((len(ordered) - 1) * (1 - share) - 1e-9)
    return {key: (entropies >= ordered[first]).float() for key, entropies in entropies_of.items()}


def selected(
    logprobs_of: dict[tuple[int, int], Tensor], groups: list[Group], select: Selection, seed: int
) -> ByCompletion:
    """The tokens that `select` chooses by log-probability and advantage among all tokens. `seed`: of each step, so that
    the draw does not repeat and a resumed run makes the same one."""
    if not logprobs_of:
        return {}
    keys = sorted(logprobs_of)
    lengths = [len(logprobs_of[key]) for key in keys]
    advantages_N = torch.cat([groups[g].advantages[r] for g, r in keys])
    chosen_N = select(torch.cat([logprobs_of[key] for key in keys]), advantages_N, seed)
    return dict(zip(keys, chosen_N.split(lengths), strict=True))
