"""How tokens are sampled from logits, and what a generation is asked for and returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cohort.policy.fast.activations import ActivationStore
from cohort.types import Completion

BLOCK = 256
"""Entries of a long row of weights that are summed together."""

LIKELIEST = 1024
"""Tokens of a row that top-p looks at first: nearly always enough, and quicker to find than all are to sort."""
ROUNDING = 1e-9
"""By which sums of a row's probabilities may differ where they are added in another order, for each entry of the row.
Measured on a CPU: up to 4e-10."""

OnTokens = Callable[[list[int], list[int]], None]
"""Called with numbers of completions (the j-th of prompt i is i * n + j) and the next token of each, as they are
sampled."""

OnGroup = Callable[[int, list[Completion]], None]
"""Called with a prompt's number and its completions once all of them have ended; again after a generation ran out of
memory and started again."""


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


class Generation(NamedTuple):
    """What an engine returns. Generation([[c0, c1], [c2, c3]])"""

    completions: list[list[Completion]]
    """By prompt."""
    activations: ActivationStore | None = None
    """The activations of sampling, where the engine kept them: for the first update on these completions."""
    logged: dict[str, float] | None = None
    """What the engine logs of this call."""


def uniform_numbers(seeds: Sequence[int], n: int, longest: int) -> Tensor:
    """Random numbers in [0, 1) for the tokens of `n` completions of each prompt, [longest + 1, prompts * n]. Those of a
    prompt depend on its seed and on n, and not on the device or on `longest`. The last row, of zeros, is for
    completions that have ended."""
    numbers = torch.zeros(longest + 1, len(seeds) * n)
    for i, seed in enumerate(seeds):
        of_prompt = np.random.default_rng(seed).random((longest, n), dtype=np.float32)
        numbers[:longest, i * n : (i + 1) * n] = torch.from_numpy(of_prompt)
    return numbers


def draw(
    logits_NV: Tensor, sampling: Sampling, uniform_M: Tensor | None = None, rows_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sample token ids [M]; returns them with their log-probabilities [M] at the sampling temperature and before
    truncation, which are the policy's own. Greedy sampling reports temperature 1. `uniform_M`: a random number in
    [0, 1) for each sample; greedy sampling needs none. `rows_M`: the row of logits of each sample; None: one sample of
    each row.

    Where a row's logits have NaN or plus infinity, or are all minus infinity, the log-probability is NaN and the token
    is any: testing here would wait for the device at each token."""
    scaled = logits_NV if sampling.temperature in (0, 1) else logits_NV / sampling.temperature
    if sampling.temperature > 0 and not sampling.truncates:
        assert uniform_M is not None
        weights_NV = scaled.softmax(-1)
        tokens = _sampled(weights_NV, uniform_M, rows_M)
        return tokens, _entries(weights_NV, rows_M, tokens[:, None]).squeeze(1).log()
    logp = torch.log_softmax(scaled, -1)
    if sampling.temperature > 0:
        assert uniform_M is not None
        tokens = _sampled(truncate(logp, sampling).exp(), uniform_M, rows_M)
    else:
        tokens = logits_NV.argmax(-1)
        tokens = tokens if rows_M is None else tokens[rows_M]
    return tokens, _entries(logp, rows_M, tokens[:, None]).squeeze(1)


def _entries(table_NV: Tensor, rows_M: Tensor | None, index: Tensor) -> Tensor:
    """[M, *], the entries at `index` [M, *] of each sample's row."""
    return table_NV.gather(1, index) if rows_M is None else table_NV[rows_M[:, None], index]


def _sampled(weights_NV: Tensor, uniform_M: Tensor, rows_M: Tensor | None) -> Tensor:
    """An index [M] for each sample, by weight. Takes one random number a sample, where torch.multinomial takes one for
    each entry (5 of 53 ms of a decoding step at 16 rows and 8,000 entries). A long row is summed in blocks, and only
    the sampled block entry by entry."""
    V, uniform_M1 = weights_NV.shape[1], uniform_M[:, None]
    if V <= 8 * BLOCK:
        sums = weights_NV.cumsum(-1)
        sums = sums if rows_M is None else sums[rows_M]
        return _first_above(sums, uniform_M1 * sums[:, -1:]).squeeze(1)
    whole = V // BLOCK * BLOCK
    blocks = [weights_NV[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1), weights_NV[:, whole:].sum(-1, keepdim=True)]
    sums = torch.cat(blocks, 1).cumsum(-1)
    sums = sums if rows_M is None else sums[rows_M]
    at_M1 = uniform_M1 * sums[:, -1:]
    block_M1 = _first_above(sums, at_M1)
    before_M1 = torch.where(block_M1 > 0, sums.gather(1, (block_M1 - 1).clamp(min=0)), 0.0)
    index = block_M1 * BLOCK + torch.arange(BLOCK, device=block_M1.device)
    inside = _entries(weights_NV, rows_M, index.clamp(max=V - 1)).masked_fill_(index >= V, 0.0).cumsum(-1)
    token_M1 = block_M1 * BLOCK + _first_above(inside, (at_M1 - before_M1).clamp(min=0.0))
    return token_M1.clamp(max=V - 1).squeeze(1)


def _first_above(sums: Tensor, at_M1: Tensor) -> Tensor:
    """[M, 1], the first entry whose cumulative sum exceeds `at`, which is kept below the total against rounding. An
    index of an entry also where the sums are NaN, which exceed nothing."""
    total_M1 = sums[:, -1:]
    below_M1 = torch.nextafter(total_M1, torch.zeros_like(total_M1))
    index_M1 = torch.searchsorted(sums, torch.minimum(at_M1, below_M1), right=True)
    return index_M1.clamp(max=sums.shape[1] - 1)


def truncate(logp_NV: Tensor, sampling: Sampling) -> Tensor:
    """-inf outside top-k, then top-p, then min-p, each applied to the result of the one before, as in transformers."""
    if 0 < sampling.top_k < logp_NV.shape[1]:
        smallest = logp_NV.topk(sampling.top_k, -1).values[:, -1:]
        logp_NV = logp_NV.masked_fill(logp_NV < smallest, -torch.inf)
    if sampling.top_p < 1:
        logp_NV = logp_NV.masked_fill(~_nucleus(logp_NV, sampling.top_p), -torch.inf)
    if sampling.min_p > 0:
        top = logp_NV.max(-1, keepdim=True).values
        logp_NV = logp_NV.masked_fill(logp_NV < top + torch.tensor(sampling.min_p).log(), -torch.inf)
    return logp_NV


def _nucleus(logp_NV: Tensor, top_p: float) -> Tensor:
    """bool [N, V], the tokens before which the probability is below `top_p`, in descending order and equal ones in the
    vocabulary's: the most likely one always stays. Sorts a long row only where LIKELIEST tokens do not decide."""
    if logp_NV.shape[1] <= 4 * LIKELIEST:
        return _sorted_nucleus(logp_NV, top_p)
    index = logp_NV.topk(LIKELIEST, -1).indices.sort(-1).values  # topk gives equal ones in any order
    values, order = logp_NV.gather(1, index).sort(dim=-1, descending=True, stable=True)
    before = _sums_before((values - logp_NV.logsumexp(-1, keepdim=True)).exp())
    stays = before < top_p
    # Undecided: the least likely one that stays is as likely as the last of these, so that others may stay or be equal
    # to it; or rounding decides.
    decided = values.masked_fill(~stays, torch.inf).amin(-1) > values[:, -1]
    decided &= ((before - top_p).abs() > ROUNDING * logp_NV.shape[1]).all(-1)
    stays_NV = torch.zeros_like(logp_NV, dtype=torch.bool).scatter_(1, index.gather(1, order), stays)
    if len(undecided := (~decided).nonzero().squeeze(1)):
        stays_NV[undecided] = _sorted_nucleus(logp_NV[undecided], top_p)
    return stays_NV


def _sorted_nucleus(logp_NV: Tensor, top_p: float) -> Tensor:
    ordered, order = logp_NV.sort(dim=-1, descending=True, stable=True)
    cut = _sums_before(ordered.softmax(-1)) >= top_p
    return ~cut.scatter(1, order, cut)


def _sums_before(probabilities: Tensor) -> Tensor:
    return probabilities.cumsum(-1) - probabilities
