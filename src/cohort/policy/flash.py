"""The attention of packed groups by PyTorch's own kernel for CPUs, which keeps no scores, tile by tile.

In float32 with MKL it takes 0.4 to 0.9 of the time of the products in `tiles.py`. In bfloat16, and on processors where
MKL is the slower library, they are the faster ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._python_dispatch import _disable_current_modes

from cohort.policy.products import onednn_is_better
from cohort.policy.tiles import Tile

TILES = 4
"""Times as many scores in a tile as where they are kept for a moment."""


def flashes(q: Tensor) -> bool:
    """Whether the kernel is the faster way for these queries."""
    return q.device.type == "cpu" and q.dtype is torch.float32 and not onednn_is_better() and _knows_the_kernel()


@cache
def _knows_the_kernel() -> bool:
    """Whether this PyTorch's kernel, which has no public gradient, gives what it is asked for here."""
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        random = torch.Generator().manual_seed(0)
        q, k, v, grad = (torch.randn(2, 1, 3, 8, generator=random) for _ in range(4))
        mask = torch.full((1, 1, 3, 3), -1e30).triu(1)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        expected = (q @ k.transpose(2, 3) * 0.5 + mask).softmax(-1) @ v
        gradients = torch.autograd.grad(expected, inputs, grad)
        try:
            out, lse = _forward(q, k, v, mask, 0.5)
            found = _backward(grad, q, k, v, out, lse, mask, 0.5)
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
        pairs = zip((out, *found), (expected, *gradients), strict=True)
        return all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in pairs)


def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = kernel(q, k, v, attn_mask=mask, scale=scale)
        return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found: tuple[Tensor, Tensor, Tensor] = kernel(grad, q, k, v, out, lse, 0.0, False, attn_mask=mask, scale=scale)
        return found


class FlashAttention(torch.autograd.Function):
    """`TiledAttention`'s place: q [T, H, D], k and v [T, K, D] of a packed stream to [T, H, D]. A row whose query is in
    no tile holds anything."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: list[Tile], scale: float) -> Tensor:
        (T, H, D), K = q.shape, k.shape[1]
        out = q.new_empty(T * K + 1, H // K * D)
        sums = []
        for tile in plan:
            result, lse = _forward(*_read(tile, q, k, v), _mask(tile), scale)
            out.index_copy_(0, tile.own, result.reshape(-1, out.shape[1]))
            sums.append(lse)
        ctx.plan, ctx.scale = plan, scale
        ctx.save_for_backward(q, k, v, out, *sums)
        return out[:-1].view(T, H, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, *sums = ctx.saved_tensors
        (T, H, D), K = q.shape, k.shape[1]
        gq = q.new_zeros(T * K + 1, H // K * D)  # a plan may leave queries out
        gk, gv = (k.new_zeros(T * K + 1, D) for _ in range(2))
        grads = torch.cat([grad.reshape(T * K, -1), grad.new_zeros(1, H // K * D)])  # of padding: none
        for tile, lse in zip(ctx.plan, sums, strict=True):
            U, L, R, C = tile.shape
            inputs = _read(tile, q, k, v)
            g, result = (x.index_select(0, tile.own).view(inputs[0].shape) for x in (grads, out))
            of_q, *of_both = _backward(g, *inputs, result, lse, _mask(tile), ctx.scale)
            gq.index_copy_(0, tile.own, of_q.reshape(-1, gq.shape[1]))
            for total, found in zip((gk, gv), of_both, strict=True):
                by_row = found.view(U, R, L + C, D)
                total.index_add_(0, tile.own, by_row[:, :, L:].reshape(-1, D))
                total.index_add_(0, tile.shared, by_row[:, :, :L].sum(1).view(-1, D))
        return gq[:-1].view(T, H, D), gk[:-1].view(T, K, D), gv[:-1].view(T, K, D), None, None


def _read(tile: Tile, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [U * R, 1, C * rep, D], keys and values [U * R, 1, L + C, D], shared ones before own ones."""
    U, L, R, C = tile.shape
    T, K, D = k.shape
    queries = q.reshape(T * K, -1).index_select(0, tile.own_read).view(U * R, 1, -1, D)
    found = []
    for rows in (k.reshape(T * K, D), v.reshape(T * K, D)):
        own, shared = rows.index_select(0, tile.own_read), rows.index_select(0, tile.shared_read)
        both = [shared.view(U, 1, L, D).expand(-1, R, -1, -1), own.view(U, R, C, D)]
        found.append(torch.cat(both, 2).view(U * R, 1, L + C, D))
    return queries, found[0], found[1]


def _mask(tile: Tile) -> Tensor:
    """[1 or U * R, 1, C * rep, L + C], 0 where a query sees a key."""
    _, L, R, _ = tile.shape
    causal = pad(tile.causal, (L, 0))[None, None]
    if tile.padding is None:
        return causal
    padding = pad(tile.padding, (0, causal.shape[-1] - L)).repeat_interleave(R, 0).unsqueeze(1)
    return causal + padding
