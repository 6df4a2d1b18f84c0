"""Attention over packed groups: a prompt stands once in the stream and all its completions attend to it.

Registered with transformers' `AttentionInterface`, so every causal model that goes through it gets shared-prefix
training and decoding without model code of its own. The model passes the layout down as the keyword `grouped`.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from cohort.policy.memory import is_out_of_memory
from cohort.policy.packed import flex, tiles
from cohort.policy.packed.heads import HeadOptions, Layout, Made

log = logging.getLogger("cohort")

NAME = "cohort_grouped"
FEW_READ = 0.8
"""Share of the tokens read of the final hidden states from which on choosing them costs what it saves."""


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    grouped: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls in each layer: q [1, H, T, D], k and v [1, Hkv, T, D] after RoPE."""
    assert grouped is not None, "the grouped attention was called without a layout: use Policy, not model(...)"
    options = HeadOptions(
        layer=getattr(module, "layer_idx", None) or 0,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    out = grouped.attend(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), options)
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


class _Rearrange(torch.autograd.Function):
    """rows -> rows[index]. Its gradient gathers through the inverse: each row has one place, pads have none."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, valid: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, valid)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, valid = ctx.saved_tensors
        grad = grad.index_select(0, inverse)
        if valid is not None:
            grad = grad * valid.view(-1, *[1] * (grad.dim() - 1))
        return grad, None, None, None


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, the most negative number where not."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


class GroupLayout:
    """The flat stream of P groups: prompt, then its completions, group after group, no padding. A completion's
    last token, behind which nothing is predicted, is not in it.

    Inside attention the stream is laid out on a grid: prompts [P, L], completions [P, R, C], L the longest prompt,
    R the largest group, C the longest completion. Completions see their own prompt and themselves, causally.
    """

    def __init__(self, prompt_lengths: list[int], completion_lengths: list[list[int]], device: torch.device):
        P, L = len(prompt_lengths), max(prompt_lengths)
        R = max(len(lengths) for lengths in completion_lengths)
        C = max((n - 1 for lengths in completion_lengths for n in lengths if n), default=0)
        # Segments of the stream: where each starts on the grid, its length, its first position, its group.
        segments = np.array(
            [
                segment
                for g, (p, lengths) in enumerate(zip(prompt_lengths, completion_lengths, strict=True))
                for segment in [
                    (g * L, p, 0, g),
                    *((P * L + (g * R + r) * C, max(0, n - 1), p, g) for r, n in enumerate(lengths)),
                ]
            ]
        )
        place, length, position, group = segments.T
        starts = length.cumsum() - length
        stream = np.arange(length.sum())
        offset = stream - starts.repeat(length)
        places = place.repeat(length) + offset
        grid = np.zeros(P * L + P * R * C, dtype=np.int64)
        valid = np.zeros(P * L + P * R * C, dtype=bool)
        grid[places], valid[places] = stream, True
        completion = position > 0
        ends_of_prompts = (starts + length - 1)[~completion]
        # A completion's first token is predicted at its prompt's last, every other at the token before it.
        targets = np.array([n for lengths in completion_lengths for n in lengths], dtype=np.int64)
        index = np.arange(targets.sum()) - (targets.cumsum() - targets).repeat(targets)
        before = (starts[completion] - 1).repeat(targets) + index
        sources = np.where(index == 0, ends_of_prompts[group[completion]].repeat(targets), before)
        self._segments, self._firsts = np.split(stream, starts[1:]), np.flatnonzero(~completion)
        self.shape = (P, L, R, C)
        self.grid, self.valid = torch.from_numpy(grid).to(device), torch.from_numpy(valid).to(device)
        self.places = torch.from_numpy(places).to(device)
        self.positions = torch.from_numpy(position.repeat(length) + offset).to(device)
        self.sources = torch.from_numpy(sources).to(device)
        self.read = torch.from_numpy(np.union1d(sources, ends_of_prompts)).to(device)
        """Tokens behind which something is predicted or sampled: all that is read of the final hidden states."""
        self.alone = self.read if len(self.read) < FEW_READ * len(stream) else None
        """The same, where it pays that the last layer works for them alone."""
        self.groups = torch.from_numpy(group.repeat(length)).to(device)
        self.segments = torch.from_numpy((np.arange(len(length)) * completion).repeat(length)).to(device)
        self.prompt_lengths = torch.tensor(prompt_lengths, device=device)
        self.captured: dict[int, tuple[Tensor, Tensor]] | None = None
        self.kept: list[Made] | None = None
        """Where it is a list, layers of `trunk.py` leave in it what they make."""
        self._biases: dict[tuple[int | None, torch.dtype], tuple[Tensor, Tensor | None]] = {}
        self._tiles: dict[tuple[int, int, bool], list[tiles.Tile]] = {}
        self._flex: flex.FlexPlan | None = None

    def made(self, layer: int) -> Made | None:
        """Where the layer is to leave what it makes, or what it need not make again."""
        if self.kept is None:
            return None
        self.kept.append(Made())
        return self.kept[-1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions, only_read: bool = False) -> Tensor:
        """`only_read`: the rows of tokens that are not in `read` may hold anything."""
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
        if self.captured is not None:
            P, L, _, _ = self.shape
            prompts = (x[self.grid[: P * L]].view(P, L, *x.shape[1:]) for x in (k, v))
            keys, values = (x.transpose(1, 2).contiguous() for x in prompts)
            self.captured[head.layer] = (keys, values)
        if _flexes(q, k, v, head):
            return self._by_flex(q, k, v, head)
        if self._plain(q, v, head):
            return self._by_tiles(q, k, v, head, only_read)
        return self._by_scores(q, k, v, head)

    def _plain(self, q: Tensor, v: Tensor, head: HeadOptions) -> bool:
        """Whether the layer asks for nothing but causal attention, as far as this stream can tell."""
        _, L, _, C = self.shape
        unbounded = head.window is None or head.window >= L + C
        return head.softcap is None and head.sinks is None and unbounded and q.shape[-1] == v.shape[-1]

    def _by_tiles(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions, only_read: bool = False) -> Tensor:
        K = k.shape[1]
        heads = K, q.shape[1] // K
        key = (*heads, only_read)
        if key not in self._tiles:
            groups = [(prompt, [*map(tiles.Row, rows)]) for prompt, *rows in self.group_places()]
            self._tiles[key] = tiles.of_groups(groups, only_read, len(q), *heads, q.device)
        return tiles.TiledAttention.apply(q, k, v, self._tiles[key], head.scaling)

    def group_places(self) -> list[list[np.ndarray]]:
        """Places in the stream of each group's prompt and completions."""
        ends = [*self._firsts[1:], len(self._segments)]
        return [self._segments[a:b] for a, b in zip(self._firsts, ends, strict=True)]

    def _by_flex(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions) -> Tensor:
        if self._flex is None:
            self._flex = flex.FlexPlan(self.groups, self.segments, self.positions)
        return self._flex.attend(q, k, v, head)

    def _by_scores(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions) -> Tensor:
        P, L, R, C = self.shape
        H, D = q.shape[1:]
        K, Dv = k.shape[1], v.shape[-1]
        rep = H // K
        q, k, v = (_Rearrange.apply(x, self.grid, self.places, None) for x in (q * head.scaling, k, v))
        prompt_bias, completion_bias = self._bias_for(head.window, q.dtype)
        k_prompt = k[: P * L].view(P, L, K, D).transpose(1, 2).contiguous()
        v_prompt = v[: P * L].view(P, L, K, Dv).transpose(1, 2).contiguous()
        q_prompt = q[: P * L].view(P, L, K, rep, D).permute(0, 2, 3, 1, 4).reshape(P * K, rep * L, D)
        k_flat, v_flat = k_prompt.view(P * K, L, D), v_prompt.view(P * K, L, Dv)
        scores = head.cap(q_prompt @ k_flat.transpose(1, 2)).view(P, K, rep, L, L) + prompt_bias
        weights = head.softmax(scores, (1, K, rep, 1))
        out = (weights.view(P * K, rep * L, L) @ v_flat).view(P, K, rep, L, Dv)
        out = out.permute(0, 3, 1, 2, 4).reshape(P * L, H, Dv)
        if C:
            assert completion_bias is not None
            q_own = q[P * L :].view(P, R, C, K, rep, D).permute(0, 3, 1, 4, 2, 5).contiguous()
            k_own = k[P * L :].view(P, R, C, K, D).permute(0, 3, 1, 2, 4).reshape(P * K * R, C, D)
            v_own = v[P * L :].view(P, R, C, K, Dv).permute(0, 3, 1, 2, 4).reshape(P * K * R, C, Dv)
            # The prompt's keys are read once for all R completions: their queries are one matrix.
            shared = q_own.view(P * K, R * rep * C, D) @ k_flat.transpose(1, 2)
            own = q_own.view(P * K * R, rep * C, D) @ k_own.transpose(1, 2)
            scores = torch.cat([shared.view(P, K, R, rep, C, L), own.view(P, K, R, rep, C, C)], -1)
            weights = head.softmax(head.cap(scores) + completion_bias, (1, K, 1, rep, 1))
            shared = weights[..., :L].reshape(P * K, R * rep * C, L) @ v_flat
            own = weights[..., L:].reshape(P * K * R, rep * C, C) @ v_own
            completions = shared.view(P, K, R, rep, C, Dv) + own.view(P, K, R, rep, C, Dv)
            out = torch.cat([out, completions.permute(0, 2, 4, 1, 3, 5).reshape(P * R * C, H, Dv)])
        return _Rearrange.apply(out, self.places, self.grid, self.valid)

    def _bias_for(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Additive masks: prompts [L, L]; completions [P, 1, 1, 1, C, L + C] over prompt keys, then own keys."""
        if (window, dtype) not in self._biases:
            P, L, _, C = self.shape
            device = self.grid.device
            prompt = _bias(_causal(L, window, device), dtype)
            if C:
                columns = torch.arange(L, device=device)
                lengths = self.prompt_lengths.view(P, 1, 1)
                seen = (columns < lengths).expand(P, C, L)
                if window is not None:
                    distance = lengths + torch.arange(C, device=device).view(1, C, 1) - columns
                    seen = seen & (distance < window)
                both = torch.cat([seen, _causal(C, window, device).expand(P, C, C)], -1)
                self._biases[window, dtype] = (prompt, _bias(both, dtype).view(P, 1, 1, 1, C, L + C))
            else:
                self._biases[window, dtype] = (prompt, None)
        return self._biases[window, dtype]


_FLEXES: dict[tuple[Any, ...], bool] = {}


def _flexes(q: Tensor, k: Tensor, v: Tensor, head: HeadOptions) -> bool:
    """Whether FlexAttention gives this layer's results and gradients, tried once for its shape on a small layout:
    it must be compiled, which asks for a card and a Triton that know it."""
    if q.device.type != "cuda" or head.sinks is not None:
        return False
    key = (*q.shape[1:], *k.shape[1:], v.shape[-1], q.dtype, head.window, head.softcap)
    if key not in _FLEXES:
        _FLEXES[key] = _flex_equals_scores(q, k, v, head)
    return _FLEXES[key]


def _flex_equals_scores(q: Tensor, k: Tensor, v: Tensor, head: HeadOptions) -> bool:
    # Of several blocks, as a run's are: a single one is compiled for itself.
    layout = GroupLayout([150, 90], [[80, 45], [120, 73]], q.device)
    found = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            T, random = len(layout.places), torch.Generator(q.device).manual_seed(0)
            inputs = [
                torch.randn(T, *x.shape[1:], dtype=x.dtype, device=x.device, generator=random, requires_grad=True)
                for x in (q, k, v)
            ]
            for attend in (layout._by_flex, layout._by_scores):
                out = attend(*inputs, head)
                found.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    except (RuntimeError, TypeError, ValueError) as error:  # raised for what this PyTorch, compiler or card has not
        if is_out_of_memory(error):
            raise
        log.warning("FlexAttention does not run here (%s): attention makes its scores", str(error).split("\n")[0])
        return False
    bound = 2e-3 if q.dtype == torch.float32 else 5e-2  # TF32 products on the card
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    if worst > bound:
        log.warning("FlexAttention is off by %.0e here: attention makes its scores", worst)
    return worst <= bound


def _causal(n: int, window: int | None, device: torch.device) -> Tensor:
    steps = torch.arange(n, device=device)
    distance = steps.view(n, 1) - steps
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
