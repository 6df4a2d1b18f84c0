"""What is drawn from a row of logits, and when a completion ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cohort.types import Completion

BLOCK = 256
"""Entries of a row that are summed at once."""

OnTokens = Callable[[list[int], list[int]], None]
"""Called with completions (the j-th of prompt i is i * n + j) and the next token of each, as they are drawn."""

OnGroup = Callable[[int, list[Completion]], None]
"""Called with a prompt's number and its completions once all of them have ended; anew where a generation that ran out
of memory starts again."""


@dataclass(frozen=True)
class Sampling:
    """Sampling(temperature=1.0, top_p=0.95, max_tokens=256, eos_ids=[2]); temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 1024
    eos_ids: list[int] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)

    @property
    def truncates(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


def draw(logits_NV: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids [N] and their log-probabilities [N] at the sampling temperature, before any truncation, so that
    they are the policy's own. Greedy draws report temperature 1."""
    scaled = logits_NV if sampling.temperature in (0, 1) else logits_NV / sampling.temperature
    if sampling.temperature > 0 and not sampling.truncates:
        weights_NV = scaled.softmax(-1)
        tokens = _drawn(weights_NV, generator)
        return tokens, weights_NV.gather(1, tokens[:, None]).squeeze(1).log()
    logp = torch.log_softmax(scaled, -1)
    greedy = sampling.temperature == 0
    tokens = logits_NV.argmax(-1) if greedy else _drawn(truncate(logp, sampling).exp(), generator)
    return tokens, logp.gather(1, tokens[:, None]).squeeze(1)


def _drawn(weights_NV: Tensor, generator: torch.Generator) -> Tensor:
    """One index of each row, [N], drawn by weight: one random number a row, where torch.multinomial takes one for each
    entry (5 of 53 ms of a decoding step at 16 rows and 8,000 entries). A long row is summed in blocks, and only one
    block of it entry by entry."""
    N, V = weights_NV.shape
    uniform_N1 = torch.rand(N, 1, generator=generator, device=weights_NV.device)
    if V <= 8 * BLOCK:
        sums_NV = weights_NV.cumsum(-1)
        return _place(sums_NV, uniform_N1 * sums_NV[:, -1:]).squeeze(1)
    whole = V // BLOCK * BLOCK
    blocks = [weights_NV[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1), weights_NV[:, whole:].sum(-1, keepdim=True)]
    sums = torch.cat(blocks, 1).cumsum(-1)
    at_N1 = uniform_N1 * sums[:, -1:]
    block_N1 = _place(sums, at_N1)
    before_N1 = torch.where(block_N1 > 0, sums.gather(1, (block_N1 - 1).clamp(min=0)), 0.0)
    index = block_N1 * BLOCK + torch.arange(BLOCK, device=block_N1.device)
    inside = weights_NV.gather(1, index.clamp(max=V - 1)).masked_fill_(index >= V, 0.0).cumsum(-1)
    return (block_N1 * BLOCK + _place(inside, (at_N1 - before_N1).clamp(min=0.0))).squeeze(1)


def _place(sums: Tensor, at_N1: Tensor) -> Tensor:
    """[N, 1], the first entry whose sum is above `at`. Rounding may reach the total, behind which there is no entry."""
    total_N1 = sums[:, -1:]
    below_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    return torch.searchsorted(sums, torch.minimum(at_N1, below_N1), right=True)


def truncate(logp_NV: Tensor, sampling: Sampling) -> Tensor:
    """-inf outside top-k, then top-p, then min-p, each on what the one before left: transformers' order."""
    if 0 < sampling.top_k < logp_NV.shape[1]:
        smallest = logp_NV.topk(sampling.top_k, -1).values[:, -1:]
        logp_NV = logp_NV.masked_fill(logp_NV < smallest, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logp_NV.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays where the mass before it has not reached top_p: the most likely one always does.
        cut = probabilities.cumsum(-1) - probabilities >= sampling.top_p
        logp_NV = logp_NV.masked_fill(cut.scatter(1, order, cut), -torch.inf)
    if sampling.min_p > 0:
        top = logp_NV.max(-1, keepdim=True).values
        logp_NV = logp_NV.masked_fill(logp_NV < top + torch.tensor(sampling.min_p).log(), -torch.inf)
    return logp_NV
