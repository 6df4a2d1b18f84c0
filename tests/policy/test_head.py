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
