"""One token for every row through a decoder of Llama's family, in a quarter of the operations of the model's own code.

A token of a small model, or of a large one on a GPU, costs the operations' own overhead before it costs arithmetic. For
one generation the weights are laid out for it: a layer's projections of queries, keys and values are one matrix, so are
the MLP's two, norms' weights and the attention's scale are inside them, and a head's numbers lie in the pairs that the
rotary embedding turns, so that it is one product of complex numbers. Where it computes in bfloat16 the matrices are
converted once instead of at every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from cohort.policy.fast.layers import head_options, matrices, paired
from cohort.policy.fast.linear import Matrix
from cohort.policy.fast.products import Product, laid_out
from cohort.policy.fast.reuse import NOWHERE, Decoded
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.packed.heads import HeadOptions

SHARE_OF_MEMORY = 1 / 8
"""Of the device's: the most that a model with an adapter lays out anew, which is a copy of its weights."""


@dataclass(frozen=True)
class _Layer:
    head: HeadOptions
    in_heads: Product
    """[Dm] to queries, keys and values, [(H + 2 Hkv) * D]."""
    head_norms: Tensor | None
    """Weights [H + Hkv, D] of the queries' and the keys' norm, the scale inside the first."""
    out: Product
    gate_up: Product
    down: Product


class FusedDecoder:
    """`FusedDecoder(trunk, dtype)` for a trunk that `fuses`; call it with the rows' last tokens and their cache."""

    by_model = False
    """Which code is to read the prompts: keys of a cache are all of one kind."""

    def __init__(self, trunk: Any, dtype: torch.dtype):
        first = trunk.layers[0].self_attn
        self.trunk, self.eps = trunk, trunk.norm.variance_epsilon
        self.least = torch.tensor(self.eps)
        self.D = first.head_dim
        self.K = first.k_proj.out_features // self.D
        self.H = first.q_proj.out_features // self.D
        self.pairs = paired(self.D, first.q_proj.weight.device)
        self.layers = [self._layer(i, layer, dtype) for i, layer in enumerate(trunk.layers)]
        self.turns = torch.zeros(0)
        """[positions, 1, D / 2], complex: the rotary embedding."""
        self.scales = [layer.self_attn.scaling for layer in trunk.layers]
        self.plain = all(layer.head.window is None for layer in self.layers)
        self.decoded: Decoded | None = None
        """Where what the layers make is to be left."""

    def _layer(self, index: int, layer: Any, dtype: torch.dtype) -> _Layer:
        attention = layer.self_attn
        queries, keys, values, out, gate, up, down = matrices(layer)
        scale, norms = attention.scaling, None
        if hasattr(attention, "q_norm"):
            of_queries, of_keys = attention.q_norm.weight[self.pairs] * scale, attention.k_norm.weight[self.pairs]
            norms = torch.cat([of_queries.expand(self.H, -1), of_keys.expand(self.K, -1)])
            scale = 1.0
        in_heads = _joined(
            [(queries, scale, self.pairs), (keys, 1.0, self.pairs), (values, 1.0, None)], layer.input_layernorm, dtype
        )
        gate_up = _joined([(gate, 1.0, None), (up, 1.0, None)], layer.post_attention_layernorm, dtype)
        head = head_options(index, attention)
        head.scaling = 1.0  # it is inside the matrices
        return _Layer(head, in_heads, norms, _joined([(out, 1.0, None)], None, dtype), gate_up,
                      _joined([(down, 1.0, None)], None, dtype))  # fmt: skip

    def __call__(self, tokens_N: Tensor, cache: DecodeCache) -> Tensor:
        """The final hidden states [N, Dm] after one more token in each row; `cache.advance()` comes before."""
        N, H, K, D = len(tokens_N), self.H, self.K, self.D
        turns = self._turns(cache)
        rows = self.trunk.embed_tokens(tokens_N)
        for index, layer in enumerate(self.layers):
            room = NOWHERE if self.decoded is None else self.decoded.next(index, N)
            heads = layer.in_heads(self._normed(rows), out=room.heads).view(N, H + 2 * K, D)
            turning = heads[:, : H + K]
            if layer.head_norms is not None:
                if room.unnormed is not None:
                    room.unnormed.copy_(turning.flatten(1))
                torch.mul(rms_norm(turning.float(), (D,), None, self.eps), layer.head_norms, out=turning)
            pairs = torch.view_as_complex(turning.float().unflatten(-1, (-1, 2))).mul_(turns)
            if turning.dtype is not torch.float32:
                turning.copy_(torch.view_as_real(pairs).flatten(-2))
            queries, keys, values = heads.split((H, K, K), 1)
            attended = cache.attend(queries, keys, values, layer.head, room.attended).view(N, H * D)
            between = layer.out(attended, rows, room.between)
            gate, up = layer.gate_up(self._normed(between), out=room.gate_up).chunk(2, -1)
            rows = layer.down(silu(gate).mul_(up), between, room.rows)
        return self._normed(rows) * self.trunk.norm.weight

    def _normed(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu" or rows.dtype is not torch.float32:
            return rms_norm(rows, rows.shape[-1:], None, self.eps)
        # The same in half of the time of a few rows.
        size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return rows * torch.addcmul(self.least, size, size, value=1 / rows.shape[1]).rsqrt_()

    def _turns(self, cache: DecodeCache) -> Tensor:
        positions_N = cache.positions
        if cache.reach > len(self.turns):
            every = torch.arange(2 * cache.reach, device=positions_N.device)
            cos, sin = self.trunk.rotary_emb(torch.zeros(1, device=every.device), every.unsqueeze(0))
            self.turns = torch.complex(cos[0, :, : self.D // 2], sin[0, :, : self.D // 2]).unsqueeze(1)
        return self.turns[positions_N]


def laid_out_bytes(trunk: Any, dtype: torch.dtype) -> int:
    """What a fused decoder's own matrices take, adapters aside."""
    modules = [module for layer in trunk.layers for module in matrices(layer)]
    return sum(module.in_features * module.out_features for module in modules) * dtype.itemsize


def _joined(parts: list[tuple[nn.Module, float, Tensor | None]], norm: Any, dtype: torch.dtype) -> Product:
    """The matrices below one another: each with its scale, a head's rows in the given order, and the weight of the
    norm before it inside. So are adapters in float32; in other types, whose weights have no digits for them, they are
    products of their own."""
    found = [Matrix.of(module).ready(torch.float32, order) for module, _, order in parts]
    weights, biases, downs, ups = [], [], [], []
    for (_, scale, _), (weight, bias, down, up) in zip(parts, found, strict=True):
        inside = up is not None and dtype is torch.float32
        whole = torch.addmm(weight, up, down) if inside else weight
        weights.append(whole if scale == 1.0 else whole * scale)
        biases.append(weight.new_zeros(len(weight)) if bias is None else bias * scale)
        apart = up is not None and not inside
        downs.append(down if apart else weight.new_zeros(0, weight.shape[1]))
        ups.append(up * scale if apart else weight.new_zeros(len(weight), 0))
    whole, down, up = torch.cat(weights), torch.cat(downs), torch.block_diag(*ups)
    if norm is not None:
        whole.mul_(norm.weight.float())
        down.mul_(norm.weight.float())
    has_bias = any(bias is not None for _, bias, _, _ in found)
    product = laid_out(whole.to(dtype), torch.cat(biases).to(dtype) if has_bias else None)
    if not len(down):
        return lambda rows, plus=None, out=None: product(rows.to(dtype), plus, out)
    into, back = laid_out(down.to(dtype), None), laid_out(up.to(dtype), None)

    def both(rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        rows = rows.to(dtype)
        return product(rows, back(into(rows), plus), out)

    return both
