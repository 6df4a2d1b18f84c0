"""Attention over packed groups: each prompt is in the stream once, and all its completions attend to it.

`grouped_attention` is registered with transformers' `AttentionInterface`, so every causal model that goes through that
interface trains and decodes with shared prompts without model code of ours. The forward call passes the layout to the
layers as the keyword `grouped`.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from cohort.policy.memory import is_out_of_memory
from cohort.policy.packed import tiles
from cohort.policy.packed.flex import FlexPlan
from cohort.policy.packed.options import AttentionOptions, Layout, additive_mask

log = logging.getLogger("cohort")

NAME = "cohort_grouped"
FEW_READ = 0.8
"""Where at least this share of the final hidden states is read, selecting them costs as much as it saves."""


class AttentionDropout(RuntimeError):
    """A model's attention is to drop weights at random, which the grouped attention does not do."""


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
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer: q [1, H, T, D], k and v [1, Hkv, T, D] after the rotary
    embedding."""
    assert grouped is not None, "the grouped attention was called without a layout: use Policy, not model(...)"
    if dropout and module.training:
        raise AttentionDropout(f"attention dropout of {dropout:g} is left on, which needs the model's own attention")
    if attention_mask is not None:
        if attention_mask.numel() > 1:
            raise RuntimeError("it makes an attention mask of its own")
        sliding_window = int(attention_mask)
    options = AttentionOptions(
        layer=getattr(module, "layer_idx", None) or 0,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    out = grouped.attend(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), options)
    return out.unsqueeze(0), None


def window_as_mask(*_: Any, local_size: int | None = None, config: Any = None, **__: Any) -> Tensor | None:
    """The function that transformers calls for the mask of a kind of layers: a layout masks by itself, so only a
    sliding window is passed on, [1, 1, 1, 1], since some models give it to their masks and not to their attention."""
    if local_size is None:
        return None
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise RuntimeError("its attention is divided into chunks")
    return torch.tensor([[[[local_size]]]], device="cpu")


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, window_as_mask)


class _Rearrange(torch.autograd.Function):
    """rows[index]. The gradient is a gather by the inverse permutation, since each row is used once and padding
    never."""

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


def _rearranged(rows: Tensor, index: Tensor, inverse: Tensor, valid: Tensor | None) -> Tensor:
    result: Tensor = _Rearrange.apply(rows, index, inverse, valid)  # type: ignore[no-untyped-call]  # torch's
    return result


class GroupLayout:
    """The layout of P groups packed without padding: group after group, the prompt and then its completions. A
    completion's last token predicts nothing and is left out. `flex`: FlexAttention is used where it works.

    A completion attends to its prompt and, causally, to itself. Where attention computes whole score matrices, the
    stream is put on a grid: prompts [P, L], completions [P, R, C], with L the longest prompt, R the largest group and C
    the longest completion.
    """

    def __init__(
        self, prompt_lengths: list[int], completion_lengths: list[list[int]], device: torch.device, flex: bool = False
    ):
        P, L = len(prompt_lengths), max(prompt_lengths)
        R = max(len(lengths) for lengths in completion_lengths)
        C = max((n - 1 for lengths in completion_lengths for n in lengths if n), default=0)
        # A segment is a prompt or a completion: its start on the grid, its length, its first position, its group.
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
        # A completion's first token is predicted by the prompt's last token, each other one by the token before it.
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
        """Tokens that predict another token: only their final hidden states are read."""
        self.last_layer_tokens = self.read if len(self.read) < FEW_READ * len(stream) else None
        """The tokens that the last layer computes, where that is worth a selection; None: all."""
        self.groups = torch.from_numpy(group.repeat(length)).to(device)
        self.segments = torch.from_numpy((np.arange(len(length)) * completion).repeat(length)).to(device)
        self.prompt_lengths = torch.tensor(prompt_lengths, device=device)
        self._biases: dict[tuple[int | None, torch.dtype], tuple[Tensor, Tensor | None]] = {}
        self._tiles: dict[tuple[int, int, bool], list[tiles.Tile]] = {}
        self.tries_flex = flex
        self._flex: FlexPlan | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, only_read: bool = False) -> Tensor:
        """`only_read`: results are needed for the tokens in `read` only; the other rows hold anything."""
        q, k, v = (autocasted(x) for x in (q, k, v))
        if self.tries_flex and _flex_works(q, k, v, options):
            return self._by_flex(q, k, v, options)
        if self._causal_only(q, v, options):
            return self._by_tiles(q, k, v, options, only_read)
        return self._by_scores(q, k, v, options)

    def _causal_only(self, q: Tensor, v: Tensor, options: AttentionOptions) -> bool:
        """Whether causal attention is all that the layer asks for; a window longer than the stream counts as none."""
        _, L, _, C = self.shape
        unbounded = options.window is None or options.window >= L + C
        return options.softcap is None and options.sinks is None and unbounded and q.shape[-1] == v.shape[-1]

    def _by_tiles(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, only_read: bool = False) -> Tensor:
        K = k.shape[1]
        heads = K, q.shape[1] // K
        key = (*heads, only_read)
        if key not in self._tiles:
            groups = [(prompt, [*map(tiles.TokenRun, rows)]) for prompt, *rows in self.group_places()]
            self._tiles[key] = tiles.tiles_of_groups(groups, only_read, len(q), *heads, q.device)
        return tiles.attend_tiles(q, k, v, self._tiles[key], options.scaling)

    def group_places(self) -> list[list[np.ndarray]]:
        """Indices into the stream of each group's prompt and completions, in that order."""
        ends = [*self._firsts[1:], len(self._segments)]
        return [self._segments[a:b] for a, b in zip(self._firsts, ends, strict=True)]

    def _by_flex(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        if self._flex is None:
            self._flex = FlexPlan(self.groups, self.segments, self.positions)
        return self._flex.attend(q, k, v, options)

    def _by_scores(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        P, L, R, C = self.shape
        H, D = q.shape[1:]
        K, Dv = k.shape[1], v.shape[-1]
        rep = H // K
        q, k, v = (_rearranged(x, self.grid, self.places, None) for x in (q * options.scaling, k, v))
        prompt_bias, completion_bias = self._bias_for(options.window, q.dtype)
        k_prompt = k[: P * L].view(P, L, K, D).transpose(1, 2).contiguous()
        v_prompt = v[: P * L].view(P, L, K, Dv).transpose(1, 2).contiguous()
        q_prompt = q[: P * L].view(P, L, K, rep, D).permute(0, 2, 3, 1, 4).reshape(P * K, rep * L, D)
        k_flat, v_flat = k_prompt.view(P * K, L, D), v_prompt.view(P * K, L, Dv)
        scores = options.cap(q_prompt @ k_flat.transpose(1, 2)).view(P, K, rep, L, L) + prompt_bias
        weights = options.softmax(scores, (1, K, rep, 1))
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
            weights = options.softmax(options.cap(scores) + completion_bias, (1, K, 1, rep, 1))
            shared = weights[..., :L].reshape(P * K, R * rep * C, L) @ v_flat
            own = weights[..., L:].reshape(P * K * R, rep * C, C) @ v_own
            completions = shared.view(P, K, R, rep, C, Dv) + own.view(P, K, R, rep, C, Dv)
            out = torch.cat([out, completions.permute(0, 2, 4, 1, 3, 5).reshape(P * R * C, H, Dv)])
        return _rearranged(out, self.places, self.grid, self.valid)

    def _bias_for(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Additive masks: prompts [L, L]; completions [P, 1, 1, 1, C, L + C] over prompt keys, then own keys."""
        if (window, dtype) not in self._biases:
            P, L, _, C = self.shape
            device = self.grid.device
            prompt = additive_mask(_causal(L, window, device), dtype)
            if C:
                columns = torch.arange(L, device=device)
                lengths = self.prompt_lengths.view(P, 1, 1)
                seen = (columns < lengths).expand(P, C, L)
                if window is not None:
                    distance = lengths + torch.arange(C, device=device).view(1, C, 1) - columns
                    seen = seen & (distance < window)
                both = torch.cat([seen, _causal(C, window, device).expand(P, C, C)], -1)
                self._biases[window, dtype] = (prompt, additive_mask(both, dtype).view(P, 1, 1, 1, C, L + C))
            else:
                self._biases[window, dtype] = (prompt, None)
        return self._biases[window, dtype]


def autocasted(x: Tensor) -> Tensor:
    """The tensor in autocast's dtype, where autocast is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


_FLEX_WORKS: dict[tuple[Any, ...], bool] = {}


def _flex_works(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> bool:
    """Whether FlexAttention gives the right results and gradients for a layer of this shape. Tried once for each shape
    on a small layout, since it must be compiled, which not every GPU and Triton version can."""
    if options.sinks is not None:
        return False
    key = (*q.shape[1:], *k.shape[1:], v.shape[-1], q.dtype, options.window, options.softcap)
    if key not in _FLEX_WORKS:
        _FLEX_WORKS[key] = _flex_equals_scores(q, k, v, options)
    return _FLEX_WORKS[key]


def _flex_equals_scores(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> bool:
    results = []
    try:
        # A decoding step asks in inference mode, whose tensors autograd refuses: the layout's too are made outside.
        with torch.inference_mode(False), torch.enable_grad():
            # Several blocks, as in a run: FlexAttention compiles a single block in another way.
            layout = GroupLayout([150, 90], [[80, 45], [120, 73]], q.device)
            T, random = len(layout.places), torch.Generator(q.device).manual_seed(0)
            inputs = [
                torch.randn(T, *x.shape[1:], dtype=x.dtype, device=x.device, generator=random, requires_grad=True)
                for x in (q, k, v)
            ]
            for attend in (layout._by_flex, layout._by_scores):
                out = attend(inputs[0], inputs[1], inputs[2], options)
                results.append([out, *torch.autograd.grad(out.float().square().sum(), inputs)])
    except (RuntimeError, TypeError, ValueError) as error:  # what an unsupported PyTorch, compiler or GPU raises
        if is_out_of_memory(error):
            raise
        log.warning(
            "FlexAttention does not run here (%s): attention computes whole score matrices", str(error).split("\n")[0]
        )
        return False
    bound = 2e-3 if q.dtype == torch.float32 else 5e-2  # the GPU's products are TF32
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))
    if worst > bound:
        log.warning("FlexAttention is off by %.0e here: attention computes whole score matrices", worst)
    return worst <= bound


def _causal(n: int, window: int | None, device: torch.device) -> Tensor:
    steps = torch.arange(n, device=device)
    distance = steps.view(n, 1) - steps
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)
