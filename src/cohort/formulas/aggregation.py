"""Aggregation: the weight of each token of a completion, so that loss = sum_i weight_i * sum_t loss_{i,t}.

Denominators are counts of the whole optimiser step, over every micro-batch and rank, so that the split into
micro-batches cannot change the gradient. `lengths_B` counts the active tokens of each completion, those that carry
loss; a masked completion has 0, gets weight 0, and still counts among the sequences. Weights have the dtype of the
lengths, or torch's default dtype where lengths are integers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Denominators:
    """The counts of one optimiser step.

    Denominators(sequences=32, tokens=2048, generation_tokens=2112.5, max_completion_length=256)
    """

    sequences: int
    """Completions in the step, masked ones included."""
    tokens: int
    """Active completion tokens in the step."""
    generation_tokens: float
    """Active completion tokens of the generation batch, divided by the optimiser steps that share it."""
    max_completion_length: int
    """The limit in tokens."""


def grpo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """1 / (|o_i| * sequences), the mean of completions' means (DeepSeekMath, arXiv 2402.03300, Eq. 3).

    [B] -> [B]. A token of a long completion weighs less than one of a short completion.
    """
    return _active(lengths_B) / (lengths_B.clamp(min=1) * denominators.sequences)


def bnpo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """1 / tokens: a mean over the step's active tokens (TRL's `bnpo`, there per micro-batch). [B] -> [B]."""
    return _active(lengths_B) / max(denominators.tokens, 1)


def dr_grpo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """1 / (sequences * max_completion_length): every token weighs the same, however long its completion (Dr. GRPO,
    arXiv 2503.20783, section 3.2). [B] -> [B]."""
    return _active(lengths_B) / (denominators.sequences * denominators.max_completion_length)


def dapo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """1 / generation_tokens, a mean over the active tokens of the sampled batch (DAPO, arXiv 2503.14476, section 3.3).
    [B] -> [B]."""
    return _active(lengths_B) / max(denominators.generation_tokens, 1.0)


def luspo(lengths_B: Tensor, denominators: Denominators) -> Tensor:
    """1 / sequences: a completion counts by its length, which undoes the 1/|o| of a sequence's mean (LUSPO, arXiv
    2602.05261). [B] -> [B]."""
    return _active(lengths_B) / denominators.sequences


def _active(lengths_B: Tensor) -> Tensor:
    """1 for a completion with active tokens, 0 for a masked one; dtype kept. [B] -> [B]."""
    return lengths_B.sign()
