"""What is drawn from a row of logits, and when a completion ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

OnTokens = Callable[[list[int], list[int]], None]
"""Called with completions (the j-th of prompt i is i * n + j) and the next token of each, as they are drawn."""


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


def draw(logits_NV: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids [N] and their log-probabilities [N] at the sampling temperature, before any truncation, so that
    they are the policy's own. Greedy draws report temperature 1."""
    scaled = logits_NV if sampling.temperature in (0, 1) else logits_NV / sampling.temperature
    logp = torch.log_softmax(scaled, -1)
    if sampling.temperature == 0:
        tokens = logits_NV.argmax(-1)
    else:
        tokens = _drawn(truncate(logp, sampling).exp(), generator)
    return tokens, logp.gather(1, tokens[:, None]).squeeze(1)


def _drawn(weights_NV: Tensor, generator: torch.Generator) -> Tensor:
    """One index of each row, [N], drawn by weight: one random number a row, where torch.multinomial takes one for each
    entry (5 of 53 ms of a decoding step at 16 rows and 8,000 entries)."""
    sums_NV = weights_NV.cumsum(-1)
    total_N1 = sums_NV[:, -1:]
    at_N1 = torch.rand(total_N1.shape, generator=generator, device=total_N1.device) * total_N1
    # Rounding may reach the total, behind which there is no entry.
    below_N1 = torch.nextafter(total_N1, torch.zeros_like(total_N1))
    return torch.searchsorted(sums_NV, torch.minimum(at_N1, below_N1), right=True).squeeze(1)


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
