"""What a layer asks of attention, and what it keeps of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cohort.policy.packed import tiles


class Layout(Protocol):
    """Who attends to whom. `attend` takes q [T, H, D] and k, v [T, Hkv, D] and returns [T, H, D]."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions) -> Tensor: ...


class HeadOptions:
    """What a layer asks of its attention beside q, k, v: scaling, sliding window, logit softcap, sinks."""

    __slots__ = ("layer", "scaling", "sinks", "softcap", "window")

    def __init__(self, layer: int, scaling: float, window: int | None, softcap: float | None, sinks: Tensor | None):
        self.layer, self.scaling, self.window, self.softcap, self.sinks = (
            layer,
            scaling,
            window,
            softcap,
            sinks,
        )

    def softmax(self, scores: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Softmax over the last axis; a sink is one more logit per query head, shaped `heads` to broadcast."""
        if self.sinks is None:
            return tiles.softmax(scores)
        sink = self.sinks.to(scores.dtype).view(*heads, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]

    def cap(self, scores: Tensor) -> Tensor:
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


@dataclass
class Made:
    """What a layer made of its tokens, as far as the gradient asks for it: filled by a pass over prompts or by
    decoding, and taken in place of a pass where it is filled."""

    heads: tuple[Tensor, ...] = ()
    """Queries [T, H, D], keys and values [T, K, D], as attention takes them; of decoding, queries scaled."""
    unnormed: tuple[Tensor, ...] = ()
    """Queries and keys before the norms of heads, where there are such."""
    attended: Tensor | None = None
    """[T, H, D]."""
    rest: tuple[Tensor, ...] = ()
    """Behind attention: the rows between, gate, up, and the layer's result; in the last layer of what is read alone."""
