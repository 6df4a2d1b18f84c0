"""The attention of packed groups by FlexAttention (arXiv 2412.05496) on CUDA: one compiled kernel over the stream,
which skips blocks that are masked whole and keeps no scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from cohort.policy.packed.options import AttentionOptions

BLOCK, ROWS = 128, 1024
"""Tokens of a block, and query rows whose mask is computed at a time."""
COMPILED = 128
"""The most kernels compiled in a process: with and without gradients, for each window and shape of heads. PyTorch's
default is 8; beyond it the call computes all scores, or fails."""


@cache
def _compiled() -> Callable[..., Any]:
    """flex_attention, compiled at its first call for all lengths."""
    compiled, dynamo = torch.compile(flex_attention, dynamic=True), torch._dynamo.config
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"

    def call(*args: Any, **options: Any) -> Any:
        with dynamo.patch(limit, COMPILED):
            return compiled(*args, **options)

    return call


def _blocks(seen: Callable[[Any, Any, Tensor, Tensor], Tensor], T: int, device: torch.device) -> BlockMask:
    """Which blocks of the [T, T] mask are visible in full and which in part, ROWS query rows at a time. (PyTorch's
    `create_block_mask` computes the whole mask at once, or is compiled for each kind of stream.)"""
    count = -(-T // BLOCK)
    places = torch.arange(count * BLOCK, device=device)
    inside, places = places < T, places.clamp(max=T - 1)
    counts = []
    for rows, exist in zip(places.split(ROWS), inside.split(ROWS), strict=True):
        visible = seen(None, None, rows[:, None], places) & exist[:, None] & inside
        counts.append(visible.view(-1, BLOCK, count, BLOCK).sum((1, 3)))
    pairs = torch.cat(counts)
    whole = pairs == BLOCK**2
    parts = (pairs > 0) & ~whole
    listed: list[Any] = []
    blocks: Any
    for blocks in (parts, whole):
        order = blocks.to(torch.int8).argsort(descending=True, stable=True)
        listed += [blocks.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]]
    kind: Any = BlockMask
    mask: BlockMask = kind.from_kv_blocks(*listed, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(T, T))
    return mask


class FlexPlan:
    """The masks of a stream. A token attends to the earlier tokens of its prompt and of its own completion. `group`
    [T], `segment` [T]: 0 for prompts, else a number for each completion; `position` [T]."""

    def __init__(self, group: Tensor, segment: Tensor, position: Tensor):
        self.group, self.segment, self.position = group, segment, position
        self.attention: Any = _compiled() if group.device.type == "cuda" else flex_attention
        self._masks: dict[int | None, BlockMask] = {}

    def _mask(self, window: int | None) -> BlockMask:
        if window not in self._masks:
            group, segment, position = self.group, self.segment, self.position
            limit: Any = window

            def seen(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
                mine = (segment[kv] == 0) | (segment[kv] == segment[q])
                visible: Tensor = (group[q] == group[kv]) & mine & (kv <= q)
                return visible

            def near(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
                visible: Tensor = seen(b, h, q, kv) & (position[q] - position[kv] < limit)
                return visible

            self._masks[window] = _blocks(seen if window is None else near, len(group), group.device)
        return self._masks[window]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """q [T, H, D], k [T, K, D] and v [T, K, Dv] to [T, H, Dv]."""
        softcap: Any = options.softcap

        def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            result: Tensor = softcap * torch.tanh(score / softcap)
            return result

        if (rep := q.shape[1] // k.shape[1]) > 1:
            # With one key head for each query head the backward pass spreads a prompt's keys, to which the whole group
            # attends, over more workers.
            k, v = (x.repeat_interleave(rep, 1) for x in (k, v))
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
        out = self.attention(
            q,
            k,
            v,
            score_mod=None if softcap is None else capped,
            block_mask=self._mask(options.window),
            scale=options.scaling,
        )
        result: Tensor = out[0].transpose(0, 1)
        return result
