"""The covariance of log-probability and advantage, which drives the policy's entropy down (The entropy mechanism of
reinforcement learning for reasoning language models, arXiv 2505.22617, section 3), and the tokens chosen by it."""

from __future__ import annotations

import torch
from torch import Tensor


def covariances(logprobs_N: Tensor, advantages_N: Tensor) -> Tensor:
    """(log pi - mean log pi) (A - mean A) of each token, the means over all tokens of the step. [N]."""
    return (logprobs_N - logprobs_N.mean()) * (advantages_N - advantages_N.mean())


def between(covariances_N: Tensor, fraction: float, low: float, high: float, seed: int) -> Tensor:
    """1 for `fraction` of all tokens (at least one), drawn at random among those with low < covariance < high; else 0
    (Clip-Cov). [N]. The same seed draws the same tokens."""
    candidates = ((covariances_N > low) & (covariances_N < high)).nonzero().squeeze(1)
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    return _ones_at(candidates[order[: _count(len(covariances_N), fraction)]], covariances_N)


def highest(covariances_N: Tensor, fraction: float) -> Tensor:
    """1 for `fraction` of all tokens (at least one), those of the highest covariance; else 0 (KL-Cov). [N]."""
    count = min(_count(len(covariances_N), fraction), len(covariances_N))
    return _ones_at(covariances_N.topk(count).indices, covariances_N)


def _count(tokens: int, fraction: float) -> int:
    return max(1, int(tokens * fraction))


def _ones_at(index: Tensor, like_N: Tensor) -> Tensor:
    return torch.zeros_like(like_N).index_fill(0, index, 1.0)
