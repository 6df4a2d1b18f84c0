"""What a layer asks of the attention, and the interface that both layouts of tokens answer to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cohort.policy.packed import tiles


class Layout(Protocol):
    """Says which token attends to which: the packed stream of a training batch, or the cache of a decoding step."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """q [T, H, D], k and v [T, Hkv, D] to [T, H, D]."""
        ...


@dataclass(frozen=True, eq=False)
class AttentionOptions:
    """One layer's settings beside q, k and v. AttentionOptions(layer=0, scaling=0.125)"""

    layer: int
    scaling: float
    window: int | None = None
    """Sliding window in tokens; None: a token attends to all before it."""
    softcap: float | None = None
    sinks: Tensor | None = None
    """[H], one more logit per query head, which takes probability and has no value."""

    def softmax(self, scores: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Softmax over the last axis. `heads`: the shape that broadcasts sinks over the other axes."""
        if self.sinks is None:
            return tiles.softmax(scores)
        sink = self.sinks.to(scores.dtype).view(*heads, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]

    def cap(self, scores: Tensor) -> Tensor:
        """softcap * tanh(scores / softcap), or the scores as they are."""
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `visible`, the dtype's most negative number elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
