"""The two autograd functions of a decoder layer of Llama's family, around its attention, and its norm.

Features of a head are in the order of `rotary_pairs` between `Project` and the attention. Names of gradients: `of_x` is
the gradient for x.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from cohort.policy.fast.linear import LinearWeights


class LayerActivations(NamedTuple):
    """What the backward pass of one layer needs of its T tokens, so that the forward pass need not run again."""

    heads: tuple[Tensor, ...]
    """Queries [T, H, D], keys and values [T, Hkv, D], as the attention takes them."""
    before_head_norms: tuple[Tensor, ...]
    """Queries and keys before the norms of heads, where the model has such norms."""
    attended: Tensor
    """[T, H, D], the attention's output. In activations from decoding, queries are scaled already."""
    residual: Tensor
    """[W, Dm], the residual stream after attention; in the last layer of the tokens W that it computes."""
    gate: Tensor
    up: Tensor
    """[W, Dff], the outputs of the MLP's two projections."""
    output: Tensor
    """[W, Dm], the residual stream after the layer."""


def apply(function: Any, *arguments: Any) -> Any:
    """torch's `Function.apply` has no types."""
    return function.apply(*arguments)


class LayerSettings(NamedTuple):
    D: int
    """Size of a head."""
    eps_before: float
    """Epsilons of the norms before the attention and before the MLP."""
    eps_after: float
    pairs: Tensor
    """[D], `rotary_pairs`."""
    dtype: torch.dtype
    """The dtype of products."""


class AttentionWeights(NamedTuple):
    """The weights before the attention. Autograd functions take them as a flat sequence."""

    query_norm: Any
    key_norm: Any
    query: LinearWeights
    key: LinearWeights
    value: LinearWeights

    @property
    def flat(self) -> list[Any]:
        return [self.query_norm, self.key_norm, *chain(self.query, self.key, self.value)]

    @classmethod
    def of_flat(cls, values: Any) -> AttentionWeights:
        """Works for tensors, and for the booleans of `needs_input_grad` in their order."""
        return cls(*values[:2], *_linears(values[2:14]))


class MLPWeights(NamedTuple):
    """The weights after the attention: its output projection and the MLP's."""

    out: LinearWeights
    gate: LinearWeights
    up: LinearWeights
    down: LinearWeights

    @property
    def flat(self) -> list[Any]:
        return [*chain(*self)]

    @classmethod
    def of_flat(cls, values: Any) -> MLPWeights:
        """As `AttentionWeights.of_flat`."""
        return cls(*_linears(values))


def _linears(values: Any) -> list[LinearWeights]:
    size = len(LinearWeights._fields)
    return [LinearWeights(*values[i : i + size]) for i in range(0, len(values), size)]


class Norm(torch.autograd.Function):
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
    """Rows divided by their root mean square, float32, and the factor they were multiplied by."""
    rows = rows.float()
    squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_()
    factor = squares.div_(rows.shape[-1]).add_(eps).rsqrt_()
    return rows * factor, factor


def _normed(rows: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return _scaled(rows, eps)[0].mul_(weight).to(dtype)


def _norm_backward(grad: Tensor, rows: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients for the rows, float32, and for the weight."""
    scaled, factor = _scaled(rows, eps)
    weight = weight.float()
    products = grad * scaled
    along = (products @ weight).div_(rows.shape[-1]).unsqueeze(-1)
    of_weight = products.flatten(0, -2).sum(0)
    return torch.mul(grad, weight, out=products).addcmul_(scaled, along, value=-1).mul_(factor), of_weight


class Project(torch.autograd.Function):
    """The residual stream [T, Dm] to queries [T, H, D], keys and values [T, Hkv, D]: norm, projections, norms of heads
    where the model has them, rotary embedding. `known`: activations that hold the result."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        rotations: Tensor,
        settings: LayerSettings,
        known: LayerActivations | None,
        norm: Tensor,
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        if known is None:
            heads, before_norms = project(rows, rotations, settings, norm, AttentionWeights.of_flat(weights))
        else:
            heads, before_norms = known.heads, known.before_head_norms
        ctx.settings, ctx.rotations = settings, rotations
        ctx.save_for_backward(rows, norm, *weights, *before_norms)
        return heads

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        settings: LayerSettings = ctx.settings
        rows, norm, *saved = ctx.saved_tensors
        wanted = AttentionWeights.of_flat(ctx.needs_input_grad[5:])
        weights = AttentionWeights.of_flat(saved)
        before_norms = saved[len(weights.flat) :]
        norms, projections = _reordered(weights, settings)
        back = settings.pairs.argsort()
        normed = _normed(rows, norm, settings.eps_before, settings.dtype)
        of_norms: list[Tensor | None] = [None, None]
        of_weights: list[Tensor | None] = []
        total = None
        for i, (projection, its_wanted) in enumerate(zip(projections, wanted[2:], strict=True)):
            is_value = i == 2
            heads = grads[i] if is_value else _rotated(grads[i], ctx.rotations.conj())
            if norms[i] is not None:
                heads, of_norm = _norm_backward(heads, before_norms[i], norms[i], settings.eps_before)
                of_norms[i] = of_norm[back]
            grad = heads.flatten(1).to(settings.dtype)
            total = projection.input_gradient(grad, total)
            of_weights += projection.weight_gradients(grad, lambda: normed, its_wanted, None if is_value else back)
        assert total is not None
        of_rows, of_norm = _norm_backward(total, rows, norm, settings.eps_before)
        return of_rows, None, None, None, of_norm, *of_norms, *of_weights


def project(
    rows: Tensor, rotations: Tensor, settings: LayerSettings, norm: Tensor, weights: AttentionWeights
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Queries, keys and values; and queries and keys as they were before the norms of heads, where there are such."""
    norms, projections = _reordered(weights, settings)
    normed = _normed(rows, norm, settings.eps_before, settings.dtype)
    results, before_norms = [], []
    for i, projection in enumerate(projections):
        heads = projection.forward(normed).unflatten(1, (-1, settings.D))
        if norms[i] is not None:
            before_norms.append(heads)
            heads = _normed(heads, norms[i], settings.eps_before, settings.dtype)
        results.append(heads if i == 2 else _rotated(heads, rotations))
    return tuple(results), tuple(before_norms)


def _reordered(weights: AttentionWeights, settings: LayerSettings) -> tuple[list[Any], list[LinearWeights]]:
    """Norms and projections of queries, keys and values in the dtype of products, the features of queries and keys in
    the order of `rotary_pairs`. Values have no norm."""
    pairs = settings.pairs
    norms = [*(None if norm is None else norm[pairs] for norm in (weights.query_norm, weights.key_norm)), None]
    linears = zip((weights.query, weights.key, weights.value), (pairs, pairs, None), strict=True)
    return norms, [linear.converted(settings.dtype, order) for linear, order in linears]


def _rotated(heads: Tensor, rotations: Tensor) -> Tensor:
    """[T, heads, D], neighbouring features taken as complex numbers, times `rotations` [T, 1, D / 2]."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(heads.dtype)


class MLP(torch.autograd.Function):
    """The layer after its attention: residual = rows + out(attended), then residual + down(silu(gate) * up) of the
    normed residual. `known`: activations that hold the result."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        attended: Tensor,
        settings: LayerSettings,
        known: LayerActivations | None,
        norm: Tensor,
        *weights: Any,
    ) -> Tensor:
        attended = attended.to(settings.dtype)
        if known is None:
            residual, gate, up, output = mlp_forward(rows, attended, settings, norm, MLPWeights.of_flat(weights))
        else:
            residual, gate, up, output = known.residual, known.gate, known.up, known.output
        ctx.settings = settings
        ctx.save_for_backward(attended, residual, gate, up, norm, *weights)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        attended, residual, gate, up, norm, *saved = ctx.saved_tensors
        settings: LayerSettings = ctx.settings
        dtype, eps = settings.dtype, settings.eps_after
        weights = MLPWeights(*(linear.converted(dtype) for linear in MLPWeights.of_flat(saved)))
        wanted = MLPWeights.of_flat(ctx.needs_input_grad[5:])
        of_output = grad.to(dtype)
        of_product, activated = weights.down.input_gradient(of_output), silu(gate)
        of_down = weights.down.weight_gradients(of_output, lambda: activated * up, wanted.down)
        of_up = activated.mul_(of_product)
        of_gate = torch.ops.aten.silu_backward(of_product.mul_(up), gate)
        total = weights.up.input_gradient(of_up, weights.gate.input_gradient(of_gate))
        normed = _normed(residual, norm, eps, dtype)
        of_gate_weights = weights.gate.weight_gradients(of_gate, lambda: normed, wanted.gate)
        of_up_weights = weights.up.weight_gradients(of_up, lambda: normed, wanted.up)
        of_residual, of_norm = _norm_backward(total, residual, norm, eps)
        of_residual += grad
        of_sum = of_residual.to(dtype)
        of_out = weights.out.weight_gradients(of_sum, lambda: attended, wanted.out)
        of_attended = weights.out.input_gradient(of_sum)
        return of_residual, of_attended, None, None, of_norm, *of_out, *of_gate_weights, *of_up_weights, *of_down


def mlp_forward(
    rows: Tensor, attended: Tensor, settings: LayerSettings, norm: Tensor, weights: MLPWeights
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residual stream after attention, gate, up, and the layer's output. `attended` [W, H * D] in the products'
    dtype."""
    out, gate, up, down = (linear.converted(settings.dtype) for linear in weights)
    residual = rows + out.forward(attended)
    normed = _normed(residual, norm, settings.eps_after, settings.dtype)
    gated, raised = gate.forward(normed), up.forward(normed)
    return residual, gated, raised, residual + down.forward(silu(gated).mul_(raised))
