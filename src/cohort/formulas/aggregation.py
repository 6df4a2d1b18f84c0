"""Aggregation: the weight of each completion's tokens in the step's loss, sum_i w_i sum_t. Denominators are global
counts of one optimiser step, so that no way of cutting the step into micro-batches or ranks changes the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Denominators:
    """Denominators(sequences=256, tokens=6144, generation_tokens=6144.0, max_completion_length=32)"""

    sequences: int
    """Completions in the optimiser step, masked ones included."""
    tokens: int
    """Completion tokens with loss in the optimiser step."""
    generation_tokens: float
    """Completion tokens with loss in the sampled batch, divided by the optimiser steps that share it."""
    max_completion_length: int


def grpo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """w_i = 1 / (|o_i| sequences): each completion's mean, then the mean. DeepSeekMath Eq. 3.

    Shapes: tokens with loss of each completion [B] -> [B]; a completion without any weighs 0.
    """
    return torch.where(lengths_B > 0, 1.0 / (lengths_B.clamp(min=1) * denominators.sequences), 0.0)


def bnpo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """w = 1 / tokens of the step. TRL's "bnpo". Shapes: [B] -> [B]."""
    return _same(lengths_B, 1.0 / max(1, denominators.tokens))


def dr_grpo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """w = 1 / (sequences max_completion_length). Dr. GRPO, arXiv 2503.20783, section 3.2. Shapes: [B] -> [B]."""
    return _same(lengths_B, 1.0 / (denominators.sequences * denominators.max_completion_length))


def dapo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """w = 1 / tokens of the sampled batch (its share of the step). DAPO, arXiv 2503.14476, Eq. 8. [B] -> [B]."""
    return _same(lengths_B, 1.0 / max(1.0, denominators.generation_tokens))


def _same(lengths_B: Tensor, weight: float) -> Tensor:
    return torch.where(lengths_B > 0, weight, 0.0)


Aggregation = Callable[[Tensor, Denominators], Tensor]
LOSS_TYPES: dict[str, Aggregation] = {"grpo": grpo, "bnpo": bnpo, "dr_grpo": dr_grpo, "dapo": dapo}
