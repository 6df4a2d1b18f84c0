"""The decoder layers of Llama's family over a packed stream, with hand-written gradients.

transformers' code makes one pass over memory for each step of a norm, for each rotation, conversion and addition, and
autograd keeps most of the results. Here a layer is two autograd functions around its attention. They keep only what a
matrix product needs for its gradient, recompute the rest, and convert the input of a product once. The features of a
head are reordered so that the two that the rotary embedding rotates stand side by side: the embedding is then one
product of complex numbers.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cohort.policy.fast.functions import (
    MLP,
    AttentionWeights,
    LayerActivations,
    LayerSettings,
    MLPWeights,
    Norm,
    Project,
    apply,
    mlp_forward,
    project,
)
from cohort.policy.fast.linear import LinearWeights, is_supported
from cohort.policy.packed.options import AttentionOptions

FAMILY = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""transformers' layers that compute what this file computes. Each model is compared with its own forward before use."""
NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings whose angles depend on the length of the sequence."""


class StreamLayout(Protocol):
    """The layout of a packed stream as the layers use it."""

    @property
    def last_layer_tokens(self) -> Tensor | None:
        """The tokens that the last layer computes; None: all."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, only_read: bool = False) -> Tensor: ...


class KnownLayout(Protocol):
    """The layout of a stream whose activations are known."""

    @property
    def last_layer_tokens(self) -> Tensor | None: ...

    def take_activations(self, layer: int) -> LayerActivations:
        """The layer's activations, once: the stream gives its memory up."""
        ...

    def attend_known(
        self, heads: tuple[Tensor, ...], options: AttentionOptions, only_read: bool, known: Tensor
    ) -> Tensor:
        """The known result [T, H, D], connected to the heads for the backward pass."""
        ...


def why_unsupported(backbone: Any) -> str:
    """Why the backbone's layers cannot be replaced by those of this file: it is no decoder of the family, or a linear
    layer is neither plain nor has a plain LoRA adapter. Empty where they can."""
    layers = getattr(backbone, "layers", None)
    other = [type(layer).__name__ for layer in layers or () if type(layer).__name__ not in FAMILY]
    if not layers or other:
        return f"{other[0] if other else type(backbone).__name__} is not of Llama's family"
    if not all(is_supported(module) for layer in layers for module in linear_modules(layer)):
        return "a linear layer is quantised, or has an adapter other than plain LoRA"
    norms = [backbone.norm, *(module for layer in layers for name, module in layer.named_modules() if name in NORMS)]
    if not all(type(norm).__name__.endswith("RMSNorm") for norm in norms):
        return "a norm is not an RMSNorm"
    activation = type(layers[0].mlp.act_fn).__name__
    if activation not in ("SiLU", "SiLUActivation"):
        return f"the MLP's activation is {activation}"
    rope_type = backbone.rotary_emb.rope_type
    return f"the rotary embedding {rope_type} depends on the length" if rope_type in LENGTH_DEPENDENT else ""


def linear_modules(layer: Any) -> list[Any]:
    """The linear layers of a layer: query, key, value, output, gate, up and down projection."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def rotary_pairs(D: int, device: torch.device) -> Tensor:
    """[D], the order of a head's features in which the two that are rotated together are neighbours."""
    return torch.arange(D, device=device).view(2, -1).t().flatten()


def attention_options(index: int, attention: Any) -> AttentionOptions:
    """The settings of a layer's attention module."""
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return AttentionOptions(index, attention.scaling, window)


def hidden_states(backbone: Any, ids_T: Tensor, positions_T: Tensor, layout: StreamLayout) -> Tensor:
    """The final hidden states [T, Dm]. Rows that `layout.last_layer_tokens` leaves out are zeros."""
    rows, rotations = _embedded(backbone, ids_T, positions_T)
    for index, layer in enumerate(backbone.layers):
        tokens = _tokens_of(index, backbone, layout)
        if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled():
            rows = checkpoint(_layer, index, layer, rows, rotations, layout, tokens, use_reentrant=False)
        else:
            rows = _layer(index, layer, rows, rotations, layout, tokens)
    return _final(backbone, rows, len(ids_T), layout)


@torch.no_grad()
def hidden_states_and_activations(
    backbone: Any, ids_T: Tensor, positions_T: Tensor, layout: StreamLayout
) -> tuple[Tensor, list[LayerActivations]]:
    """The final hidden states [T, Dm], and what each layer computed on the way."""
    rows, rotations = _embedded(backbone, ids_T, positions_T)
    kept = []
    for index, layer in enumerate(backbone.layers):
        tokens = _tokens_of(index, backbone, layout)
        attention_weights, mlp_weights = _weights(layer)
        settings = _settings(layer, rows)
        heads, before_norms = project(rows, rotations, settings, layer.input_layernorm.weight, attention_weights)
        options = attention_options(index, layer.self_attn)
        attended = layout.attend(heads[0], heads[1], heads[2], options, tokens is not None)
        residual, of_attention = _selected(tokens, rows, attended)
        parts = mlp_forward(
            residual, of_attention.to(settings.dtype), settings, layer.post_attention_layernorm.weight, mlp_weights
        )
        kept.append(LayerActivations(heads, before_norms, attended, *parts))
        rows = parts[-1]
    return _final(backbone, rows, len(ids_T), layout), kept


def hidden_states_of_known(backbone: Any, ids_T: Tensor, positions_T: Tensor, layout: KnownLayout) -> Tensor:
    """The final hidden states [T, Dm] of a stream whose activations are known: only the backward pass computes."""
    rows, rotations = _embedded(backbone, ids_T, positions_T)
    for index, layer in enumerate(backbone.layers):
        tokens = _tokens_of(index, backbone, layout)
        rows = _layer(index, layer, rows, rotations, layout, tokens, layout.take_activations(index))
    return _final(backbone, rows, len(ids_T), layout)


def _embedded(backbone: Any, ids_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings [T, Dm], and the rotary embedding [T, 1, D / 2] as complex numbers."""
    rows = backbone.embed_tokens(ids_T)
    cos, sin = backbone.rotary_emb(torch.zeros(1, device=rows.device), positions_T.unsqueeze(0))
    half = cos.shape[-1] // 2
    return rows, torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float()).unsqueeze(1)


def _tokens_of(index: int, backbone: Any, layout: StreamLayout | KnownLayout) -> Tensor | None:
    """The tokens for which the layer computes what follows its attention; None: all."""
    return layout.last_layer_tokens if index == len(backbone.layers) - 1 else None


def _final(backbone: Any, rows: Tensor, length: int, layout: StreamLayout | KnownLayout) -> Tensor:
    """The last norm; rows that the last layer did not compute are zeros."""
    rows = apply(Norm, rows, backbone.norm.weight, backbone.norm.variance_epsilon)
    tokens = layout.last_layer_tokens
    return rows if tokens is None else rows.new_zeros(length, rows.shape[1]).index_copy(0, tokens, rows)


def _weights(layer: Any) -> tuple[AttentionWeights, MLPWeights]:
    linears = [LinearWeights.of(module) for module in linear_modules(layer)]
    attention = layer.self_attn
    query_norm, key_norm = (
        getattr(attention, name).weight if hasattr(attention, name) else None for name in ("q_norm", "k_norm")
    )
    return AttentionWeights(query_norm, key_norm, *linears[:3]), MLPWeights(*linears[3:])


def _settings(layer: Any, rows: Tensor) -> LayerSettings:
    device, D = rows.device.type, layer.self_attn.head_dim
    weight = LinearWeights.of(layer.self_attn.q_proj).weight
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    eps = layer.input_layernorm.variance_epsilon, layer.post_attention_layernorm.variance_epsilon
    return LayerSettings(D, *eps, rotary_pairs(D, rows.device), dtype)


def _layer(
    index: int,
    layer: Any,
    rows: Tensor,
    rotations: Tensor,
    layout: Any,
    tokens: Tensor | None,
    known: LayerActivations | None = None,
) -> Tensor:
    """The residual stream [T, Dm] after the layer; of `tokens` [W] alone where they are given. `known`: the layer's
    activations, taken instead of computed."""
    attention_weights, mlp_weights = _weights(layer)
    settings, options = _settings(layer, rows), attention_options(index, layer.self_attn)
    heads = apply(Project, rows, rotations, settings, known, layer.input_layernorm.weight, *attention_weights.flat)
    only_read = tokens is not None
    if known is None:
        attended = layout.attend(*heads, options, only_read)
    else:
        attended = layout.attend_known(heads, options, only_read, known.attended)
    residual, attended = _selected(tokens, rows, attended)
    output: Tensor = apply(
        MLP, residual, attended, settings, known, layer.post_attention_layernorm.weight, *mlp_weights.flat
    )
    return output


def _selected(tokens: Tensor | None, rows: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream [W, Dm] and the attention's output [W, H * D] of the tokens that go on."""
    attended = attended.flatten(1)
    if tokens is None:
        return rows, attended
    return rows.index_select(0, tokens), attended.index_select(0, tokens)
