"""One token for every row through a decoder of Llama's family, in a quarter of the operations of the model's own code.

A token of a small model, or of a large one on a GPU, costs the operations' own overhead before it costs arithmetic. For
one generation the weights are laid out for it: a layer's projections of queries, keys and values are one matrix, so are
the MLP's two, norms' weights and the attention's scale are inside them, and a head's numbers lie in the pairs that the
rotary embedding turns, so that it is one product of complex numbers. Where it computes in bfloat16 the matrices are
converted once instead of at every token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from cohort.policy.attention import HeadOptions, Made
from cohort.policy.cache import DecodeCache
from cohort.policy.decoded import Decoded
from cohort.policy.matrix import Matrix
from cohort.policy.memory import total_bytes
from cohort.policy.model import Policy
from cohort.policy.products import laid_out
from cohort.policy.trunk import head_options, matrices, paired

Rows = Callable[[Tensor], Tensor]

SHARE_OF_MEMORY = 1 / 8
"""Of the device's: the most that a model with an adapter lays out anew, which is a copy of its weights."""


@dataclass(frozen=True)
class _Layer:
    head: HeadOptions
    in_heads: Rows
    """[Dm] to queries, keys and values, [(H + 2 Hkv) * D]."""
    head_norms: tuple[Tensor, Tensor] | None
    """Weights [D] of the queries' and the keys' norm, the scale inside the first."""
    out: Rows
    gate_up: Rows
    down: Rows


class FusedDecoder:
    """`FusedDecoder(trunk, dtype)` for a trunk that `fuses`; call it with the rows' last tokens and their cache."""

    def __init__(self, trunk: Any, dtype: torch.dtype):
        first = trunk.layers[0].self_attn
        self.trunk, self.eps = trunk, trunk.norm.variance_epsilon
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
            norms = (attention.q_norm.weight[self.pairs] * scale, attention.k_norm.weight[self.pairs])
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
            heads = layer.in_heads(self._normed(rows)).view(N, H + 2 * K, D)
            turning, values = heads[:, : H + K], heads[:, H + K :]
            if layer.head_norms is not None:
                of_queries, of_keys = layer.head_norms
                normed = rms_norm(turning.float(), (D,), None, self.eps)
                turning = torch.cat([normed[:, :H] * of_queries, normed[:, H:] * of_keys], 1)
            pairs = torch.view_as_complex(turning.float().reshape(N, H + K, D // 2, 2))
            turned = torch.view_as_real(pairs * turns).view(N, H + K, D).to(heads.dtype)
            attended = cache.attend(turned[:, :H], turned[:, H:], values, layer.head)
            between = rows + layer.out(attended.view(N, H * D))
            gate, up = layer.gate_up(self._normed(between)).chunk(2, -1)
            rows = between + layer.down(silu(gate) * up)
            if self.decoded is not None:
                unnormed = (heads[:, :H], heads[:, H : H + K]) if layer.head_norms is not None else ()
                turned_heads = turned[:, :H], turned[:, H:], values
                self.decoded.add(index, Made(turned_heads, unnormed, attended, (between, gate, up, rows)))
        return self.trunk.norm(rows)

    def _normed(self, rows: Tensor) -> Tensor:
        return rms_norm(rows, rows.shape[-1:], None, self.eps)

    def _turns(self, cache: DecodeCache) -> Tensor:
        positions_N = cache.positions
        if cache.reach > len(self.turns):
            every = torch.arange(2 * cache.reach, device=positions_N.device)
            cos, sin = self.trunk.rotary_emb(torch.zeros(1, device=every.device), every.unsqueeze(0))
            self.turns = torch.complex(cos[0, :, : self.D // 2], sin[0, :, : self.D // 2]).unsqueeze(1)
        return self.turns[positions_N]


class ModelDecoder:
    """The same by the model's own code, for every other model."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def __call__(self, tokens_N: Tensor, cache: DecodeCache) -> Tensor:
        return self.policy.hidden(
            {"input_ids": tokens_N[None], "position_ids": cache.positions[None], "grouped": cache}
        )


def decoder_of(policy: Policy) -> FusedDecoder | ModelDecoder:
    """For one generation: a fused decoder holds the weights as they are now."""
    trunk, dtype = policy.trunk, policy.dtype
    fused = policy.fuses and (
        policy.peft is None or has_room_for(laid_out_bytes(trunk, dtype), total_bytes(policy.device))
    )
    return FusedDecoder(trunk, dtype) if fused else ModelDecoder(policy)


def has_room_for(laid_out: float, memory: float) -> bool:
    """Whether a model with an adapter decodes by matrices of that many bytes of their own. (Where all weights are
    trained, their gradients take more.)"""
    return laid_out <= SHARE_OF_MEMORY * memory


def laid_out_bytes(trunk: Any, dtype: torch.dtype) -> int:
    """What a fused decoder's own matrices take, adapters aside."""
    modules = [module for layer in trunk.layers for module in matrices(layer)]
    return sum(module.in_features * module.out_features for module in modules) * dtype.itemsize


def _joined(parts: list[tuple[nn.Module, float, Tensor | None]], norm: Any, dtype: torch.dtype) -> Rows:
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
        return lambda rows: product(rows.to(dtype))
    into, out = laid_out(down.to(dtype), None), laid_out(up.to(dtype), None)
    return lambda rows: product(rows.to(dtype)) + out(into(rows.to(dtype)))
