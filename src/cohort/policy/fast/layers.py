"""The layers of a decoder of Llama's family over a packed stream, with gradients of their own.

transformers' code passes over memory once for each of a layer's norms' steps, rotations, conversions and additions, and
autograd keeps most of what they make. Here a layer is two functions around its attention, each with its gradient
written out: they keep what a product needs, make the rest again, and convert what enters a product once. A head's
numbers lie in the pairs that the rotary embedding turns, so that it is one product of complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from cohort.policy.fast.linear import Matrix, is_known
from cohort.policy.fast.reuse import DecodedLayout
from cohort.policy.packed.heads import HeadOptions, Made
from cohort.policy.packed.layout import GroupLayout

FAMILY = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""transformers' layers that do what this file does; each model is compared with its own forward before it is used."""
NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
MOVING = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on the length of the sequence."""


def fuses(trunk: Any) -> bool:
    """Whether the trunk is a decoder of the family with matrices that are plain or have a plain adapter."""
    layers = getattr(trunk, "layers", None)
    if not layers or any(type(layer).__name__ not in FAMILY for layer in layers):
        return False
    known = all(is_known(module) for layer in layers for module in matrices(layer))
    norms = [trunk.norm, *(module for layer in layers for name, module in layer.named_modules() if name in NORMS)]
    known = known and all(type(norm).__name__.endswith("RMSNorm") for norm in norms)
    activation = type(layers[0].mlp.act_fn).__name__
    return known and activation in ("SiLU", "SiLUActivation") and trunk.rotary_emb.rope_type not in MOVING


def matrices(layer: Any) -> list[Any]:
    """Modules of a layer of the family: queries, keys, values, out, gate, up, down."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def paired(D: int, device: torch.device) -> Tensor:
    """[D], which of a head's numbers, as the model has them, stands where."""
    return torch.arange(D, device=device).view(2, -1).t().flatten()


def head_options(index: int, attention: Any) -> HeadOptions:
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return HeadOptions(index, attention.scaling, window, None, None)


def hidden_states(trunk: Any, ids_T: Tensor, positions_T: Tensor, layout: GroupLayout | DecodedLayout) -> Tensor:
    """The final hidden states [T, Dm] of a trunk that `fuses`. Where `layout.alone` is not None, the last layer works
    for those tokens alone, and the others are zeros."""
    rows = trunk.embed_tokens(ids_T)
    cos, sin = trunk.rotary_emb(torch.zeros(1, device=rows.device), positions_T.unsqueeze(0))
    half = cos.shape[-1] // 2
    turns = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float()).unsqueeze(1)
    read = layout.alone
    for index, layer in enumerate(trunk.layers):
        wanted = read if layer is trunk.layers[-1] else None
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            rows = checkpoint(_layer, index, layer, rows, turns, layout, wanted, use_reentrant=False)
        else:
            rows = _layer(index, layer, rows, turns, layout, wanted)
    rows = _Norm.apply(rows, trunk.norm.weight, trunk.norm.variance_epsilon)
    return rows if read is None else rows.new_zeros(len(ids_T), rows.shape[1]).index_copy(0, read, rows)


def _layer(
    index: int, layer: Any, rows: Tensor, turns: Tensor, layout: GroupLayout | DecodedLayout, read: Tensor | None
) -> Tensor:
    """`read` [W]: the tokens whose rows are wanted; None: all."""
    attention = layer.self_attn
    D, device = attention.head_dim, rows.device.type
    parameters = [Matrix.of(module) for module in matrices(layer)]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parameters[0].weight.dtype
    norms = [getattr(attention, name).weight if hasattr(attention, name) else None for name in ("q_norm", "k_norm")]
    before, after = layer.input_layernorm, layer.post_attention_layernorm
    options = _HeadsOptions(D, before.variance_epsilon, paired(D, rows.device), dtype)
    made = layout.made(index)
    heads = _Heads.apply(rows, turns, options, made, before.weight, *norms, *chain(*parameters[:3]))
    attended = layout.attend(*heads, head_options(index, attention), read is not None)
    if made is not None:
        made.attended = attended
    attended = attended.flatten(1)
    if read is not None:
        rows, attended = rows.index_select(0, read), attended.index_select(0, read)
    return _Rest.apply(rows, attended, after.variance_epsilon, dtype, made, after.weight, *chain(*parameters[3:]))


class _Norm(torch.autograd.Function):
    """Root mean square norm over the last axis: rows / sqrt(mean(rows^2) + eps) * weight (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(rows, weight)
        return _normed(rows, weight, eps, rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight = ctx.saved_tensors
        return *_norm_backward(grad, rows, weight, ctx.eps), None


def _scaled(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows over their root mean square, float32, and what they were multiplied by."""
    rows = rows.float()
    squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_()
    by = squares.div_(rows.shape[-1]).add_(eps).rsqrt_()
    return rows * by, by


def _normed(rows: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return _scaled(rows, eps)[0].mul_(weight).to(dtype)


def _norm_backward(grad: Tensor, rows: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of rows (float32) and weight."""
    scaled, by = _scaled(rows, eps)
    weight = weight.float()
    products = grad * scaled
    along = (products @ weight).div_(rows.shape[-1]).unsqueeze(-1)
    of_weight = products.flatten(0, -2).sum(0)
    return torch.mul(grad, weight, out=products).addcmul_(scaled, along, value=-1).mul_(by), of_weight


class _HeadsOptions(NamedTuple):
    D: int
    eps: float
    pairs: Tensor
    dtype: torch.dtype


class _Heads(torch.autograd.Function):
    """Hidden states [T, Dm] to queries [T, H, D], keys and values [T, K, D]: norm, projections, norms of heads where
    there are such, rotary embedding."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        turns: Tensor,
        options: _HeadsOptions,
        made: Made | None,
        norm: Tensor,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        if made is not None and made.heads:
            found, kept = made.heads, made.unnormed
        else:
            found, kept = _heads(rows, turns, options, norm, parameters)
        if made is not None:
            made.heads, made.unnormed = found, kept
        ctx.options, ctx.turns = options, turns
        ctx.save_for_backward(rows, norm, *parameters, *kept)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        options = ctx.options
        rows, norm, *saved = ctx.saved_tensors
        parameters, kept = saved[:14], saved[14:]
        norms, projections = _parts(parameters, options)
        back = options.pairs.argsort()
        normed = _normed(rows, norm, options.eps, options.dtype)
        wanted = ctx.needs_input_grad[7:]
        of_norms: list[Tensor | None] = [None, None]
        found: list[Tensor | None] = []
        into = None
        for i in range(3):
            heads = grads[i] if i == 2 else _turned(grads[i], ctx.turns.conj())
            if norms[i] is not None:
                heads, of_norm = _norm_backward(heads, kept[i], norms[i], options.eps)
                of_norms[i] = of_norm[back]
            columns = heads.flatten(1).to(options.dtype)
            into = projections[i].back(columns, into)
            of_four = wanted[4 * i : 4 * i + 4]
            found += projections[i].gradients(columns, lambda: normed, of_four, None if i == 2 else back)
        of_rows, of_norm = _norm_backward(into, rows, norm, options.eps)
        return of_rows, None, None, None, of_norm, *of_norms, *found


def _heads(
    rows: Tensor, turns: Tensor, options: _HeadsOptions, norm: Tensor, parameters: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Queries, keys and values, and what was normed of them before it was."""
    norms, projections = _parts(parameters, options)
    normed = _normed(rows, norm, options.eps, options.dtype)
    found, kept = [], []
    for i in range(3):
        heads = projections[i].product(normed).unflatten(1, (-1, options.D))
        if norms[i] is not None:
            kept.append(heads)
            heads = _normed(heads, norms[i], options.eps, options.dtype)
        found.append(heads if i == 2 else _turned(heads, turns))
    return tuple(found), tuple(kept)


def _parts(parameters: Any, options: _HeadsOptions) -> tuple[list[Any], list[Matrix]]:
    """Norms and matrices of queries, keys and values, in pairs where they turn and in the products' type."""
    pairs = options.pairs
    norms = [*(None if norm is None else norm[pairs] for norm in parameters[:2]), None]
    found = zip(_by_four(parameters[2:]), (pairs, pairs, None), strict=True)
    return norms, [matrix.ready(options.dtype, order) for matrix, order in found]


def _by_four(parameters: Any) -> list[Matrix]:
    return [Matrix(*parameters[i : i + 4]) for i in range(0, len(parameters), 4)]


def _turned(heads: Tensor, turns: Tensor) -> Tensor:
    """[T, heads, D], pairs of numbers as complex ones, times `turns` [T, 1, D / 2]."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(heads.dtype)


class _Rest(torch.autograd.Function):
    """The layer behind its attention: rows [T, Dm] + out(attended), then + down(silu(gate) * up) of its norm."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        attended: Tensor,
        eps: float,
        dtype: torch.dtype,
        made: Made | None,
        norm: Tensor,
        *parameters: Any,
    ) -> Tensor:
        attended = attended.to(dtype)
        if made is not None and made.rest:
            between, opened, raised, found = made.rest
        else:
            out, gate, up, down = (matrix.ready(dtype) for matrix in _by_four(parameters))
            between = rows + out.product(attended)
            normed = _normed(between, norm, eps, dtype)
            opened, raised = gate.product(normed), up.product(normed)
            found = between + down.product(silu(opened).mul_(raised))
        if made is not None:
            made.rest = between, opened, raised, found
        ctx.eps, ctx.dtype = eps, dtype
        ctx.save_for_backward(attended, between, opened, raised, norm, *parameters)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        attended, between, opened, raised, norm, *parameters = ctx.saved_tensors
        eps, dtype, wanted = ctx.eps, ctx.dtype, ctx.needs_input_grad[6:]
        out, gate, up, down = (matrix.ready(dtype) for matrix in _by_four(parameters))

        def of(i: int, matrix: Matrix, columns: Tensor, rows: Callable[[], Tensor]) -> list[Tensor | None]:
            return matrix.gradients(columns, rows, wanted[4 * i : 4 * i + 4])

        columns = grad.to(dtype)
        of_gated, gate_values = down.back(columns), silu(opened)
        of_down = of(3, down, columns, lambda: gate_values * raised)
        of_raised = gate_values.mul_(of_gated)
        of_opened = torch.ops.aten.silu_backward(of_gated.mul_(raised), opened)
        into = up.back(of_raised, gate.back(of_opened))
        normed = _normed(between, norm, eps, dtype)
        of_gate = of(1, gate, of_opened, lambda: normed)
        of_up = of(2, up, of_raised, lambda: normed)
        of_between, of_norm = _norm_backward(into, between, norm, eps)
        of_between += grad
        columns = of_between.to(dtype)
        of_out = of(0, out, columns, lambda: attended)
        return of_between, out.back(columns), None, None, None, of_norm, *of_out, *of_gate, *of_up, *of_down
