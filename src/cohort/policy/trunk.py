"""The layers of a decoder of Llama's family over a packed stream, with gradients of their own.

transformers' code passes over memory once for each of a layer's norms' steps, rotations, conversions and additions, and
autograd keeps most of what they make. Here a layer is two functions around its attention, each with its gradient
written out: they keep what a product needs, make the rest again, and convert what enters a product once. A head's
numbers lie in the pairs that the rotary embedding turns, so that it is one product of complex numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu
from torch.utils.checkpoint import checkpoint

from cohort.policy.attention import GroupLayout, HeadOptions

FAMILY = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""transformers' layers that do what this file does; each model is compared with its own forward before it is used."""
MOVING = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on the length of the sequence."""

FEW_READ = 0.8
"""Share of the tokens read of the final hidden states from which on choosing them costs what it saves."""


def fuses(trunk: Any) -> bool:
    """Whether the trunk is a decoder of the family with plain matrices: no adapters, no quantised weights."""
    layers = getattr(trunk, "layers", None)
    if not layers or any(type(layer).__name__ not in FAMILY for layer in layers):
        return False
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    linears = [module for layer in layers for name, module in layer.named_modules() if name.split(".")[-1] in names]
    plain = len(linears) == len(names) * len(layers) and all(type(module) is nn.Linear for module in linears)
    activation = type(layers[0].mlp.act_fn).__name__
    return plain and activation in ("SiLU", "SiLUActivation") and trunk.rotary_emb.rope_type not in MOVING


def paired(D: int, device: torch.device) -> Tensor:
    """[D], which of a head's numbers, as the model has them, stands where."""
    return torch.arange(D, device=device).view(2, -1).t().flatten()


def head_options(index: int, attention: Any) -> HeadOptions:
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return HeadOptions(index, attention.scaling, window, None, None)


def hidden_states(trunk: Any, ids_T: Tensor, positions_T: Tensor, layout: GroupLayout) -> Tensor:
    """The final hidden states [T, Dm] of a trunk that `fuses`. Where `layout.read` leaves out enough of them, the last
    layer works for it alone, and the others are zeros."""
    rows = trunk.embed_tokens(ids_T)
    cos, sin = trunk.rotary_emb(torch.zeros(1, device=rows.device), positions_T.unsqueeze(0))
    half = cos.shape[-1] // 2
    turns = torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float()).unsqueeze(1)
    read = layout.read if len(layout.read) < FEW_READ * len(ids_T) else None
    for index, layer in enumerate(trunk.layers):
        wanted = read if layer is trunk.layers[-1] else None
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            rows = checkpoint(_layer, index, layer, rows, turns, layout, wanted, use_reentrant=False)
        else:
            rows = _layer(index, layer, rows, turns, layout, wanted)
    rows = _Norm.apply(rows, trunk.norm.weight, trunk.norm.variance_epsilon)
    return rows if read is None else rows.new_zeros(len(ids_T), rows.shape[1]).index_copy(0, read, rows)


def _layer(index: int, layer: Any, rows: Tensor, turns: Tensor, layout: GroupLayout, read: Tensor | None) -> Tensor:
    """`read` [W]: the tokens whose rows are wanted; None: all."""
    attention, mlp = layer.self_attn, layer.mlp
    D, device = attention.head_dim, rows.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else attention.q_proj.weight.dtype
    pairs = paired(D, rows.device)
    norms = [getattr(attention, name).weight if hasattr(attention, name) else None for name in ("q_norm", "k_norm")]
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    before, after = layer.input_layernorm, layer.post_attention_layernorm
    heads = _Heads.apply(
        rows, turns, _HeadsOptions(D, before.variance_epsilon, pairs, dtype), before.weight, *norms,
        *(projection.weight for projection in projections), *(projection.bias for projection in projections),
    )  # fmt: skip
    attended = layout.attend(*heads, head_options(index, attention), read is not None).flatten(1)
    if read is not None:
        rows, attended = rows.index_select(0, read), attended.index_select(0, read)
    matrices = attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    return _Rest.apply(
        rows, attended, after.variance_epsilon, dtype, after.weight,
        *(matrix.weight for matrix in matrices), *(matrix.bias for matrix in matrices),
    )  # fmt: skip


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
        ctx: Any, rows: Tensor, turns: Tensor, options: _HeadsOptions, norm: Tensor, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        norms, weights, biases = _parts(parameters, options)
        normed = _normed(rows, norm, options.eps, options.dtype)
        found, kept = [], []
        for i in range(3):
            heads = linear(normed, weights[i], biases[i]).unflatten(1, (-1, options.D))
            if norms[i] is not None:
                kept.append(heads)
                heads = _normed(heads, norms[i], options.eps, options.dtype)
            found.append(heads if i == 2 else _turned(heads, turns))
        ctx.options, ctx.turns = options, turns
        ctx.save_for_backward(rows, norm, *parameters, *kept)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        options = ctx.options
        rows, norm, *saved = ctx.saved_tensors
        parameters, kept = saved[:8], saved[8:]
        norms, weights, _ = _parts(parameters, options)
        back = options.pairs.argsort()
        normed = _normed(rows, norm, options.eps, options.dtype)
        wanted = ctx.needs_input_grad[4:]
        found: list[Tensor | None] = [None] * 8
        into = None
        for i in range(3):
            heads = grads[i] if i == 2 else _turned(grads[i], ctx.turns.conj())
            if norms[i] is not None:
                heads, of_norm = _norm_backward(heads, kept[i], norms[i], options.eps)
                found[i] = of_norm[back]
            columns = heads.flatten(1).to(options.dtype)
            into = columns @ weights[i] if into is None else into.addmm_(columns, weights[i])
            if wanted[2 + i]:
                found[2 + i] = _ordered(columns.t() @ normed, None if i == 2 else back)
            if wanted[5 + i]:
                found[5 + i] = _ordered(columns.sum(0), None if i == 2 else back)
        of_rows, of_norm = _norm_backward(into, rows, norm, options.eps)
        return of_rows, None, None, of_norm, *found


def _parts(parameters: Any, options: _HeadsOptions) -> tuple[list[Any], list[Any], list[Any]]:
    """Norms, matrices and biases of queries, keys and values, in pairs where they turn and in the products' type."""
    pairs = options.pairs
    norms = [*(None if norm is None else norm[pairs] for norm in parameters[:2]), None]
    matrices = [x if x is None else x.to(options.dtype) for x in parameters[2:8]]
    turning = [x if i % 3 == 2 or x is None else _ordered(x, pairs) for i, x in enumerate(matrices)]
    return norms, turning[:3], turning[3:]


def _ordered(values: Tensor, order: Tensor | None) -> Tensor:
    """[heads * D, ...] with each head's numbers in that order."""
    return values if order is None else values.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)


def _turned(heads: Tensor, turns: Tensor) -> Tensor:
    """[T, heads, D], pairs of numbers as complex ones, times `turns` [T, 1, D / 2]."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(heads.dtype)


class _Rest(torch.autograd.Function):
    """The layer behind its attention: rows [T, Dm] + out(attended), then + down(silu(gate) * up) of its norm."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, attended: Tensor, eps: float, dtype: torch.dtype, norm: Tensor, *parameters: Any
    ) -> Tensor:
        (out, gate, up, down, *biases) = (x if x is None else x.to(dtype) for x in parameters)
        attended = attended.to(dtype)
        between = rows + linear(attended, out, biases[0])
        normed = _normed(between, norm, eps, dtype)
        opened, raised = linear(normed, gate, biases[1]), linear(normed, up, biases[2])
        ctx.eps, ctx.dtype = eps, dtype
        ctx.save_for_backward(attended, between, opened, raised, norm, *parameters)
        return between + linear(silu(opened).mul_(raised), down, biases[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        attended, between, opened, raised, norm, *parameters = ctx.saved_tensors
        dtype, wanted = ctx.dtype, ctx.needs_input_grad[5:]
        out, gate, up, down = (x.to(dtype) for x in parameters[:4])
        columns = grad.to(dtype)
        of_gated, gate_values = columns @ down, silu(opened)
        of_down, of_down_bias = _of_matrix(columns, lambda: gate_values * raised, wanted[3], wanted[7])
        of_raised = gate_values.mul_(of_gated)
        of_opened = torch.ops.aten.silu_backward(of_gated.mul_(raised), opened)
        into = (of_opened @ gate).addmm_(of_raised, up)
        normed = _normed(between, norm, ctx.eps, dtype)
        of_gate, of_gate_bias = _of_matrix(of_opened, lambda: normed, wanted[1], wanted[5])
        of_up, of_up_bias = _of_matrix(of_raised, lambda: normed, wanted[2], wanted[6])
        of_between, of_norm = _norm_backward(into, between, norm, ctx.eps)
        of_between += grad
        columns = of_between.to(dtype)
        of_out, of_out_bias = _of_matrix(columns, lambda: attended, wanted[0], wanted[4])
        return (
            of_between, columns @ out, None, None, of_norm, of_out, of_gate, of_up, of_down, of_out_bias, of_gate_bias,
            of_up_bias, of_down_bias,
        )  # fmt: skip


def _of_matrix(columns: Tensor, rows: Any, weight: bool, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's weight and bias, where they are wanted, from its result's and what entered it."""
    return columns.t() @ rows() if weight else None, columns.sum(0) if bias else None
