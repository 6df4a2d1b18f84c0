"""Importance ratios: of single tokens or of whole completions, their weights for another sampler, and the mask of
completions that the policy has moved away from.

All [N] values belong to completion tokens, completions in order; `lengths` holds the tokens of each completion.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
"""[N] -> [N], linear."""


def unchanged(values_N: Tensor) -> Tensor:
    """[N] -> [N]."""
    return values_N


def completion_sums(values_N: Tensor, lengths: list[int]) -> Tensor:
    """Each value becomes the sum over its completion. [N] -> [N]."""
    _, completion_N = _completions(values_N, lengths)
    return values_N.new_zeros(len(lengths)).index_add(0, completion_N, values_N)[completion_N]


def completion_means(values_N: Tensor, lengths: list[int]) -> Tensor:
    """Each value becomes the mean over its completion. [N] -> [N]. Backward it is the same map: it is symmetric."""
    counts_B, completion_N = _completions(values_N, lengths)
    return completion_sums(values_N, lengths) / counts_B[completion_N]


def _completions(values_N: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Lengths [B], and the completion of each token [N]."""
    counts_B = torch.tensor(lengths, device=values_N.device)
    return counts_B, torch.arange(len(lengths), device=values_N.device).repeat_interleave(counts_B)


class Level(NamedTuple):
    """What a ratio is taken over. With l the log-ratios of tokens, ratio = exp(forward(l)), and a slope by the log of
    the ratio becomes backward(slope) by the log-probabilities."""

    forward: Map
    backward: Map


EACH_TOKEN = Level(unchanged, unchanged)
"""A ratio for each token (PPO, GRPO)."""


def each_completion(lengths: list[int]) -> Level:
    """One ratio for a completion, s = exp(mean log-ratio) (GSPO, arXiv 2507.18071, Eq. 7). Its slope is spread over the
    completion, so advantages that differ between its tokens act by their mean alone."""
    mean = partial(completion_means, lengths=lengths)
    return Level(mean, mean)


def completion_of_tokens(lengths: list[int]) -> Level:
    """The same ratio s, held constant, and each token's own slope: s_t = sg(s) pi_t / sg(pi_t), sg: not differentiated
    (GSPO-token, arXiv 2507.18071, Eq. 14). The coefficient of a token is s A_t."""
    return Level(partial(completion_means, lengths=lengths), unchanged)


def _with_lengths(make: Callable[[list[int]], Level]) -> Callable[[list[int] | None], Level]:
    def level(lengths: list[int] | None) -> Level:
        assert lengths is not None, "a ratio of whole completions needs their lengths"
        return make(lengths)

    return level


LEVELS: dict[str, Callable[[list[int] | None], Level]] = {
    "token": lambda lengths: EACH_TOKEN,
    "sequence": _with_lengths(each_completion),
    "sequence_token": _with_lengths(completion_of_tokens),
}
"""`importance_sampling_level` -> function from the completions' lengths to the level."""


class SamplerWeights(NamedTuple):
    """How the ratio of the policy to another sampler becomes a weight."""

    of_completion: bool
    """One ratio, the product over a completion, instead of one for each token."""
    masks: bool
    """A ratio outside the bounds gives 0; else it gives the bound."""


SAMPLER_WEIGHTS = {
    "token_truncate": SamplerWeights(of_completion=False, masks=False),
    "token_mask": SamplerWeights(of_completion=False, masks=True),
    "sequence_truncate": SamplerWeights(of_completion=True, masks=False),
    "sequence_mask": SamplerWeights(of_completion=True, masks=True),
}
"""`vllm_importance_sampling_mode` -> what it does."""


def sampler_weights(
    logprobs_N: Tensor,
    sampler_logprobs_N: Tensor,
    mode: SamplerWeights,
    low: float | None,
    high: float | None,
    lengths: list[int] | None = None,
) -> Tensor:
    """pi / pi_sampler, kept in [low, high] or 0 outside it; not differentiated. It corrects for a sampler with other
    log-probabilities or older weights. [N].

    Truncated: IMPALA, arXiv 1802.01561. Masked, of tokens: IcePop (Ling team, 2025). `logprobs_N`: of the policy before
    it is updated on the batch. None: no bound on that side.
    """
    log_N = logprobs_N - sampler_logprobs_N
    if mode.of_completion:
        assert lengths is not None
        log_N = completion_sums(log_N, lengths)
    ratio_N = torch.exp(log_N)
    if not mode.masks:
        return ratio_N.clamp(min=low, max=high) if low is not None or high is not None else ratio_N
    outside_N = torch.zeros_like(ratio_N, dtype=torch.bool)
    if low is not None:
        outside_N |= ratio_N < low
    if high is not None:
        outside_N |= ratio_N > high
    return ratio_N.masked_fill(outside_N, 0.0)


def near_enough(
    logprobs_N: Tensor, sampler_logprobs_N: Tensor, advantages_N: Tensor, threshold: float, lengths: list[int]
) -> Tensor:
    """1 where A >= 0, or the completion's mean log(pi_sampler / pi) is at most `threshold`; else 0: the off-policy
    sequence mask (DeepSeek-V3.2, arXiv 2512.02556). [N]."""
    distance_N = completion_means(sampler_logprobs_N - logprobs_N, lengths)
    return ((advantages_N >= 0) | (distance_N <= threshold)).to(advantages_N.dtype)
