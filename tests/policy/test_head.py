"""The head's closed form, block by block, against autograd on whole logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cohort.policy import head as module
from cohort.policy.head import Head

N, D, V = 23, 8, 50


def a_head(bias: bool = False, softcap: float | None = None, scale: float | None = None) -> Head:
    torch.manual_seed(0)
    output = nn.Linear(D, V, bias=bias)
    config = SimpleNamespace(final_logit_softcapping=softcap, logit_scale=scale)
    config.get_text_config = lambda: config
    model: Any = SimpleNamespace(get_output_embeddings=lambda: output, config=config)
    return Head(model)


@pytest.fixture(params=["whole", "cut"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary in one block for some tokens at a time, or seven entries at a time for five."""
    monkeypatch.setitem(module.BLOCK_BYTES, "cpu", 4 * V * 6 if request.param == "whole" else 4 * 5 * 7)
    monkeypatch.setattr(module, "FEW_TOKENS", 6)
    monkeypatch.setattr(module, "MANY_TOKENS", 5)


def textbook(head: Head, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies."""
    logits = head.output(hidden) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logp = torch.log_softmax(logits / temperature, -1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("bonus", [False, True], ids=["", "entropy bonus"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", [{}, {"bias": True}, {"softcap": 3.0}, {"scale": 0.4, "bias": True}], ids=str)
def test_closed_form_equals_autograd(kind: dict[str, Any], temperature: float, bonus: bool) -> None:
    head = a_head(**kind)
    hidden = (3 * torch.randn(N, D)).requires_grad_()
    targets, c = torch.randint(V, (N,)), torch.randn(N)
    weights = torch.rand(N) if bonus else None
    logprobs, entropies = textbook(head, hidden, targets, temperature)
    objective = (c * logprobs).sum() + (0 if weights is None else (weights * entropies).sum())
    parameters = [hidden, *head.output.parameters()]
    expected = torch.autograd.grad(-objective, parameters)
    seen = torch.zeros(N)

    def coefficient(span: slice, found: Tensor) -> Tensor:
        seen[span] = found
        return c[span]

    grad, measured = head.backward(hidden.detach(), targets, temperature, coefficient, weights)
    for ours, theirs in zip([grad, *(p.grad for p in parameters[1:])], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen, logprobs.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(measured, entropies.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(head.logprobs(hidden, targets, temperature), seen, rtol=0, atol=1e-6)
    torch.testing.assert_close(head.entropies(hidden, temperature), measured, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_gradients_of_several_calls_add_up() -> None:
    head = a_head(bias=True)
    hidden, targets = torch.randn(N, D), torch.randint(V, (N,))
    head.backward(hidden, targets, 1.0, lambda span, found: torch.ones_like(found))
    whole = [p.grad.clone() for p in head.output.parameters()]  # type: ignore[union-attr]
    head.output.zero_grad()
    for part in (slice(0, 9), slice(9, N)):
        head.backward(hidden[part], targets[part], 1.0, lambda span, found: torch.ones_like(found))
    for ours, theirs in zip(head.output.parameters(), whole, strict=True):
        torch.testing.assert_close(ours.grad, theirs)


def exact_weight_gradient(head: Head, hidden: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Run the backward pass; returns the sum of the products of its factors, as they are, in double precision."""
    exact, add = torch.zeros(V, D, dtype=torch.float64), module._add_product

    def watched(total: Tensor, a: Tensor, b: Tensor) -> None:
        if b.shape[0] == a.shape[1] and total.shape[0] == V:
            exact.addmm_(a.double(), b.double())
        add(total, a, b)

    monkeypatch.setattr(module, "_add_product", watched)
    c = torch.randn(len(targets), generator=torch.Generator().manual_seed(1))
    head.backward(hidden, targets, 1.0, lambda span, found: c[span])
    monkeypatch.setattr(module, "_add_product", add)
    return exact


@pytest.mark.parametrize("rows", [1, 4, 600])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_gradients_of_many_spans_are_added_in_float32(
    weights: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast the products are bfloat16 and the gradient is float32; a gradient in bfloat16 is rounded once."""
    monkeypatch.setitem(module.BLOCK_BYTES, "cpu", 4 * V * rows)
    monkeypatch.setattr(module, "FEW_TOKENS", 1)
    head = a_head(bias=True)
    head.output.to(weights)
    hidden, targets = torch.randn(600, D).to(weights), torch.randint(V, (600,))
    with torch.autocast("cpu", torch.bfloat16, enabled=weights is torch.float32):
        exact = exact_weight_gradient(head, hidden, targets, monkeypatch)
    grad, bias_grad = head.output.weight.grad, head.output.bias.grad
    assert grad is not None and bias_grad is not None and grad.dtype is bias_grad.dtype is weights
    error = float((grad.double() - exact).norm() / exact.norm())
    assert error < 2**-8
    before = grad.double().clone()
    again = exact_weight_gradient(head, hidden, targets, monkeypatch) if weights is torch.bfloat16 else None
    if again is not None:
        assert float((grad.double() - before - again).norm() / again.norm()) < 2**-7


def test_hidden_gradients_of_many_blocks_are_added_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    head, targets = a_head(), torch.randint(V, (N,))
    hidden = torch.randn(N, D)
    gradients = []
    for dtype, width in ((torch.float32, V), (torch.bfloat16, V), (torch.bfloat16, 1)):
        monkeypatch.setitem(module.BLOCK_BYTES, "cpu", 4 * N * width if width == V else 4 * N)
        monkeypatch.setattr(module, "FEW_TOKENS", 1 if width == V else N + 1)
        monkeypatch.setattr(module, "MANY_TOKENS", N)
        head.output.to(dtype)
        grad, _ = head.backward(hidden.bfloat16().to(dtype), targets, 1.0, lambda span, found: torch.ones_like(found))
        assert grad.dtype is dtype
        gradients.append(grad.double())
    exact, whole, cut = gradients
    assert float((cut - exact).norm()) < 1.2 * float((whole - exact).norm())
