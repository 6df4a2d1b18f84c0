"""A decoding step for models of Llama's family, in a quarter of the operations of the model's own code.

For one token of a small model, or of a large model on a GPU, launching the operations takes longer than their
arithmetic. For the length of one generation the weights are therefore rearranged: the query, key and value projections
are one matrix, the gate and up projections are one matrix, and both contain the weights of the norm before them and the
attention's scale. The features of a head are reordered so that the rotary embedding is one product of complex numbers.
In bfloat16 the matrices are converted once instead of at every token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from cohort.policy.fast.activations import NO_SLOTS, ActivationStore
from cohort.policy.fast.layers import attention_options, linear_modules, rotary_pairs
from cohort.policy.fast.linear import LinearWeights
from cohort.policy.fast.products import Product, prepared
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.packed.options import AttentionOptions

SHARE_OF_MEMORY = 1 / 8
"""Share of the device's memory that the rearranged copy of a model with an adapter may take."""


@dataclass(frozen=True)
class _Layer:
    options: AttentionOptions
    query_key_value: Product
    """[Dm] to queries, keys and values, [(H + 2 Hkv) * D]."""
    head_norms: Tensor | None
    """[H + Hkv, D], the weights of the norms of query and key heads, with the attention's scale in the queries'."""
    out: Product
    gate_up: Product
    down: Product


class FusedDecoder:
    """For a backbone that is of the family; holds the weights as they are now. A call takes the rows' last tokens and
    their cache. `onednn`: as in `prepared`."""

    uses_model_code = False
    """Whether prompts must be prefilled by the model's own code: it orders the features of keys in another way."""

    def __init__(self, backbone: Any, dtype: torch.dtype, onednn: bool):
        first = backbone.layers[0].self_attn
        self.backbone, self.eps = backbone, backbone.norm.variance_epsilon
        self.least = torch.tensor(self.eps)
        self.D = first.head_dim
        self.K = first.k_proj.out_features // self.D
        self.H = first.q_proj.out_features // self.D
        self.pairs = rotary_pairs(self.D, first.q_proj.weight.device)
        self.layers = [self._layer(i, layer, dtype, onednn) for i, layer in enumerate(backbone.layers)]
        self.rotations = torch.zeros(0)
        """[positions, 1, D / 2], the rotary embedding as complex numbers."""
        self.scales = [layer.self_attn.scaling for layer in backbone.layers]
        self.has_window = any(layer.options.window is not None for layer in self.layers)

    def _layer(self, index: int, layer: Any, dtype: torch.dtype, onednn: bool) -> _Layer:
        attention = layer.self_attn
        queries, keys, values, out, gate, up, down = linear_modules(layer)
        scale, norms = attention.scaling, None
        if hasattr(attention, "q_norm"):
            of_queries, of_keys = attention.q_norm.weight[self.pairs] * scale, attention.k_norm.weight[self.pairs]
            norms = torch.cat([of_queries.expand(self.H, -1), of_keys.expand(self.K, -1)])
            scale = 1.0
        query_key_value = _joined(
            [(queries, scale, self.pairs), (keys, 1.0, self.pairs), (values, 1.0, None)],
            layer.input_layernorm,
            dtype,
            onednn,
        )
        gate_up = _joined([(gate, 1.0, None), (up, 1.0, None)], layer.post_attention_layernorm, dtype, onednn)
        options = replace(attention_options(index, attention), scaling=1.0)  # the scale is inside the matrices
        return _Layer(options, query_key_value, norms, _joined([(out, 1.0, None)], None, dtype, onednn), gate_up,
                      _joined([(down, 1.0, None)], None, dtype, onednn))  # fmt: skip

    def __call__(self, tokens_N: Tensor, cache: DecodeCache, store: ActivationStore | None = None) -> Tensor:
        """The final hidden states [N, Dm] after one more token in each row; call `cache.advance()` before. `store`:
        keeps the activations."""
        N, H, K, D = len(tokens_N), self.H, self.K, self.D
        rotations = self._rotations(cache)
        rows = self.backbone.embed_tokens(tokens_N)
        for index, layer in enumerate(self.layers):
            slots = NO_SLOTS if store is None else store.slots(index, N)
            heads = layer.query_key_value(self._normed(rows), out=slots.heads).view(N, H + 2 * K, D)
            rotated = heads[:, : H + K]
            if layer.head_norms is not None:
                if slots.before_head_norms is not None:
                    slots.before_head_norms.copy_(rotated.flatten(1))
                torch.mul(rms_norm(rotated.float(), (D,), None, self.eps), layer.head_norms, out=rotated)
            pairs = torch.view_as_complex(rotated.float().unflatten(-1, (-1, 2))).mul_(rotations)
            if rotated.dtype is not torch.float32:
                rotated.copy_(torch.view_as_real(pairs).flatten(-2))
            queries, keys, values = heads.split((H, K, K), 1)
            attended = cache.attend(queries, keys, values, layer.options, slots.attended).view(N, H * D)
            residual = layer.out(attended, rows, slots.residual)
            gate, up = layer.gate_up(self._normed(residual), out=slots.gate_up).chunk(2, -1)
            rows = layer.down(silu(gate).mul_(up), residual, slots.output)
        hidden: Tensor = self._normed(rows) * self.backbone.norm.weight
        return hidden

    def _normed(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cpu" or rows.dtype is not torch.float32:
            return rms_norm(rows, rows.shape[-1:], None, self.eps)
        # The same norm in half of the time for a few rows.
        size = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return rows * torch.addcmul(self.least, size, size, value=1 / rows.shape[1]).rsqrt_()

    def _rotations(self, cache: DecodeCache) -> Tensor:
        positions_N = cache.positions
        if cache.reach > len(self.rotations):
            every = torch.arange(2 * cache.reach, device=positions_N.device)
            cos, sin = self.backbone.rotary_emb(torch.zeros(1, device=every.device), every.unsqueeze(0))
            self.rotations = torch.complex(cos[0, :, : self.D // 2], sin[0, :, : self.D // 2]).unsqueeze(1)
        return self.rotations[positions_N]


def rearranged_bytes(backbone: Any, dtype: torch.dtype) -> int:
    """Size of the rearranged matrices of a fused decoder, without adapters."""
    modules = [module for layer in backbone.layers for module in linear_modules(layer)]
    return sum(int(module.in_features * module.out_features) for module in modules) * dtype.itemsize


def _joined(
    parts: list[tuple[nn.Module, float, Tensor | None]], norm: Any, dtype: torch.dtype, onednn: bool
) -> Product:
    """One product for several linear layers (module, scale, order of head features), stacked, with the weight of the
    norm before them inside. Adapters are added to the weights in float32; in other dtypes, which would round them away,
    they stay products of their own."""
    linears = [LinearWeights.of(module).converted(torch.float32, order) for module, _, order in parts]
    weights, biases, downs, ups = [], [], [], []
    bias: Any
    down: Any
    up: Any
    for (_, scale, _), (weight, bias, down, up) in zip(parts, linears, strict=True):
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
    has_bias = any(bias is not None for _, bias, _, _ in linears)
    product = prepared(whole.to(dtype), torch.cat(biases).to(dtype) if has_bias else None, onednn)
    if not len(down):
        return lambda rows, plus=None, out=None: product(rows.to(dtype), plus, out)
    into, back = (prepared(each.to(dtype), None, onednn) for each in (down, up))

    def both(rows: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        rows = rows.to(dtype)
        return product(rows, back(into(rows), plus), out)

    return both
