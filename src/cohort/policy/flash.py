"""The attention of packed groups without its scores, on the CPU.

Two calls of PyTorch's flash kernel, completions on their prompt and completions on themselves, are one softmax: each
gives its log-sum-exp, which weighs its result in the whole. The kernel's gradient with the whole's result and
log-sum-exp in place of its own is each call's share of the whole's gradient, as in ring attention (arXiv 2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FORWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_BACKWARD = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def available(device: torch.device) -> bool:
    return device.type == "cpu" and _FORWARD is not None and _BACKWARD is not None


class FlashPlan:
    """Where the stream's tokens stand, by key/value head, in the two blocks that the kernel reads without copies:
    prompts [P, K, L], then completions [P, K, R, C].

    `grid` [P * L + P * R * C] is the token at each place of the layout's grid, `valid` whether it is no padding,
    `places` [T] the inverse.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], K: int, grid: Tensor, valid: Tensor, places: Tensor, lengths: Tensor
    ):
        P, L, R, C = self.shape = shape
        self.K, self.split = K, P * K * L
        device = grid.device

        def by_head(values: Tensor) -> Tensor:
            """[P * L + P * R * C, K] in the blocks' order."""
            prompts = values[: P * L].view(P, L, K).transpose(1, 2).reshape(-1)
            return torch.cat([prompts, values[P * L :].view(P, R * C, K).transpose(1, 2).reshape(-1)])

        heads = torch.arange(K, device=device)
        self.index = by_head(grid.unsqueeze(1) * K + heads)
        order = by_head(torch.arange(len(grid) * K, device=device).view(-1, K))
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order), device=device)
        self.inverse = inverse.view(-1, K)[places].view(-1)
        padded = not bool(valid.all())
        self.valid = by_head(valid.unsqueeze(1).expand(-1, K)).view(-1, 1, 1) if padded else None
        self.mask: Tensor | None = None
        """[P * K, 1, 1, L]: the most negative number on a prompt's padding."""
        if C and bool((lengths < L).any()):
            seen = torch.arange(L, device=device) < lengths.repeat_interleave(K).unsqueeze(1)
            self.mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, torch.finfo(torch.bfloat16).min)
            self.mask = self.mask.view(P * K, 1, 1, L)

    def blocks(self, stream: Tensor) -> Tensor:
        """[T, K * n, D] -> [places, n, D]."""
        T, heads, D = stream.shape
        rep = heads // self.K
        return stream.reshape(T * self.K, rep * D).index_select(0, self.index).view(-1, rep, D)

    def stream(self, prompts: Tensor, completions: Tensor | None) -> Tensor:
        """[places, n, D] -> [T, K * n, D]."""
        rows = prompts if completions is None else torch.cat([prompts, completions])
        n, D = rows.shape[1:]
        return rows.flatten(1).index_select(0, self.inverse).view(-1, self.K * n, D)

    def prompts(self, rows: Tensor) -> Tensor:
        """Prompts' part of blocks, for the kernel: [P * K, n, L, D]."""
        P, L, _, _ = self.shape
        return rows[: self.split].view(P * self.K, L, *rows.shape[1:]).transpose(1, 2)

    def sharing(self, rows: Tensor) -> Tensor:
        """Completions' part, the rows of a prompt after one another: [P * K, n, R * C, D]."""
        P, _, R, C = self.shape
        return rows[self.split :].view(P * self.K, R * C, *rows.shape[1:]).transpose(1, 2)

    def own(self, rows: Tensor) -> Tensor:
        """Completions' part, each row by itself: [P * K * R, n, C, D]."""
        P, _, R, C = self.shape
        return rows[self.split :].view(P * self.K * R, C, *rows.shape[1:]).transpose(1, 2)


class GroupedFlash(torch.autograd.Function):
    """q [T, H, D], k and v [T, K, D] of a packed stream to [T, H, D]: prompts attend causally to themselves,
    completions to their prompt and causally to themselves."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: FlashPlan, scale: float) -> Tensor:
        queries, keys, values = (plan.blocks(x) for x in (q, k, v))
        rep = queries.shape[1]
        k_prompt, v_prompt = (_repeated(plan.prompts(x), rep) for x in (keys, values))
        out, lse = _flash(plan.prompts(queries), k_prompt, v_prompt, True, None, scale)
        completions, lse_completions = None, None
        if plan.shape[3]:
            shared, lse_shared = _flash(plan.sharing(queries), k_prompt, v_prompt, False, plan.mask, scale)
            k_own, v_own = (_repeated(plan.own(x), rep) for x in (keys, values))
            completions, lse_own = _flash(plan.own(queries), k_own, v_own, True, None, scale)
            lse_completions = torch.logaddexp(lse_shared, lse_own)
            completions.mul_((lse_own - lse_completions).exp_().unsqueeze(-1))
            completions.addcmul_(shared, (lse_shared - lse_completions).exp_().unsqueeze(-1).to(shared.dtype))
        result = plan.stream(out, completions)
        ctx.plan, ctx.scale = plan, scale
        ctx.save_for_backward(q, k, v, result, lse, lse_completions)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, result, lse, lse_completions = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        queries, keys, values, outs, grads = (plan.blocks(x) for x in (q, k, v, result, grad))
        if plan.valid is not None:
            grads = grads * plan.valid
        rep = queries.shape[1]
        of_prompts = (plan.prompts(x) for x in (grads, queries))
        k_prompt, v_prompt = (_repeated(plan.prompts(x), rep) for x in (keys, values))
        _, L, R, C = plan.shape
        lse_prompts = lse.view(-1, L, rep).transpose(1, 2)
        gq, gk, gv = _flash_backward(
            *of_prompts, k_prompt, v_prompt, plan.prompts(outs), lse_prompts, True, None, scale
        )
        gq_completions = gk_own = gv_own = None
        if lse_completions is not None:
            gq_completions, gk_shared, gv_shared = _flash_backward(
                plan.sharing(grads), plan.sharing(queries), k_prompt, v_prompt, plan.sharing(outs),
                lse_completions.view(-1, R * C, rep).transpose(1, 2), False, plan.mask, scale,
            )  # fmt: skip
            gq_own, gk_own, gv_own = _flash_backward(
                plan.own(grads), plan.own(queries), *(_repeated(plan.own(x), rep) for x in (keys, values)),
                plan.own(outs), lse_completions.view(-1, C, rep).transpose(1, 2), True, None, scale,
            )  # fmt: skip
            gk, gv, gq_completions = gk + gk_shared, gv + gv_shared, gq_completions + gq_own
        return (
            plan.stream(gq, gq_completions),
            plan.stream(_summed(gk), None if gk_own is None else _summed(gk_own)),
            plan.stream(_summed(gv), None if gv_own is None else _summed(gv_own)),
            None,
            None,
        )


def _repeated(rows: Tensor, rep: int) -> Tensor:
    """Keys or values [B, 1, S, D] as the heads of `rep` queries see them, without a copy."""
    return rows.expand(-1, rep, -1, -1)


def _summed(rows: Tensor) -> Tensor:
    """The gradient of the one that `rep` heads saw, [places, 1, D]."""
    return rows.sum(1, keepdim=True)


def _as(q: Tensor, mask: Tensor | None) -> Tensor | None:
    """The kernel reads a mask as numbers of the queries' type, whatever it is."""
    return None if mask is None else mask.to(q.dtype)


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Result [places, rep, D] and log-sum-exp [places, rep] of q [B, rep, S, D]."""
    assert _FORWARD is not None
    out, lse = _FORWARD(q, k, v, 0.0, causal, attn_mask=_as(q, mask), scale=scale)
    return out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients [places, rep, D] of q, k and v [B, rep, S, D]."""
    assert _BACKWARD is not None
    found = _BACKWARD(grad, q, k, v, out, lse, 0.0, causal, attn_mask=_as(q, mask), scale=scale)
    gq, gk, gv = (x.transpose(1, 2).flatten(0, 1) for x in found)
    return gq, gk, gv
