"""weight * coefficient * (onehot - softmax) / temperature equals autograd's gradient of the textbook objective."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cohort.formulas import aggregation, coefficient, divergence
from cohort.formulas.loss_types import LOSS_TYPES

VOCABULARY, TEMPERATURE, BETA = 13, 0.7, 0.3
LENGTHS = [4, 9, 1, 7, 5, 6]
ACTIVE = [4, 9, 1, 7, 0, 6]
"""The fifth completion is masked: its tokens are in the stream but carry no loss."""
MAX = 10
EPSILON_LOW, EPSILON_HIGH = 0.2, 0.28
GENERATION_TOKENS = 31.5


class Batch(NamedTuple):
    logits: Tensor
    ids: Tensor
    mask: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor


def batch(dtype: torch.dtype, on_policy: bool) -> Batch:
    generator = torch.Generator().manual_seed(11)
    rows = len(LENGTHS)
    logits = torch.randn(rows, MAX, VOCABULARY, generator=generator, dtype=torch.float64).to(dtype) * 2
    ids = torch.randint(VOCABULARY, (rows, MAX), generator=generator)
    logprobs = (logits / TEMPERATURE).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    drift = torch.tensor([0.9, -0.1, -0.8, 0.15, 0.7, -1.3, 0.05], dtype=dtype).repeat(9)[: rows * MAX]
    reference = logprobs + 0.8 * torch.randn(rows, MAX, generator=generator, dtype=torch.float64).to(dtype)
    advantages = torch.tensor([1.3, -0.8, 0.6, -1.1, 0.9, 0.0], dtype=dtype)
    mask = torch.arange(MAX)[None] < torch.tensor(LENGTHS)[:, None]
    old = logprobs if on_policy else logprobs + drift.view(rows, MAX)
    return Batch(logits, ids, mask, old, reference, advantages)


def textbook(data: Batch, loss_type: str, estimator: str | None, weighted: bool) -> tuple[Tensor, Tensor]:
    """The loss on padded rows as the papers write it, and its gradient by autograd."""
    logits = data.logits.clone().requires_grad_()
    probabilities = torch.softmax(logits / TEMPERATURE, dim=-1)
    pi = probabilities.gather(-1, data.ids[..., None]).squeeze(-1)
    ratio = pi / data.old.exp()
    advantage = data.advantages[:, None]
    if loss_type == "cispo":
        per_token = ratio.clamp(max=1 + EPSILON_HIGH).detach() * advantage * pi.log()
    else:
        per_token = torch.min(ratio * advantage, ratio.clamp(1 - EPSILON_LOW, 1 + EPSILON_HIGH) * advantage)
    if estimator is not None:
        inverse = data.reference.exp() / pi
        log = inverse.log()
        kl = {"k1": -log, "k2": log**2 / 2, "k3": inverse - log - 1}[estimator]
        per_token = per_token - BETA * (kl * ratio if weighted else kl)
    sums = torch.stack([row[:n].sum() for row, n in zip(per_token, ACTIVE, strict=True)])
    if loss_type == "grpo":
        objective = torch.stack([s / n for s, n in zip(sums, ACTIVE, strict=True) if n]).sum() / len(LENGTHS)
    elif loss_type == "bnpo":
        objective = sums.sum() / sum(ACTIVE)
    elif loss_type == "dr_grpo":
        objective = (sums / MAX).mean()
    else:
        assert loss_type in ("dapo", "cispo")
        objective = sums.sum() / GENERATION_TOKENS
    loss = -objective
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def closed_form(data: Batch, loss_type: str, estimator: str | None, weighted: bool) -> tuple[Tensor, Tensor]:
    """The same from the formulas, on the flat stream of completion tokens."""
    scaled = data.logits[data.mask] / TEMPERATURE
    onehot = torch.nn.functional.one_hot(data.ids[data.mask], VOCABULARY).to(scaled.dtype)
    logprobs_N = (scaled.log_softmax(-1) * onehot).sum(-1)
    lengths_B = torch.tensor(ACTIVE, dtype=scaled.dtype)
    counts = aggregation.Denominators(len(ACTIVE), sum(ACTIVE), GENERATION_TOKENS, MAX)
    weights_N = LOSS_TYPES[loss_type].weight(lengths_B, counts).repeat_interleave(torch.tensor(LENGTHS))
    advantages_N = data.advantages.repeat_interleave(torch.tensor(LENGTHS))
    surrogate = LOSS_TYPES[loss_type].surrogate
    part = surrogate(logprobs_N, data.old[data.mask], advantages_N, EPSILON_LOW, EPSILON_HIGH)
    objective_N, coefficient_N = part.objective_N, part.coefficient_N
    if estimator is not None:
        estimate = divergence.ESTIMATORS[estimator](logprobs_N, data.reference[data.mask])
        estimate = divergence.ratio_weighted(estimate, part.ratio_N) if weighted else estimate
        objective_N = objective_N - BETA * estimate.value_N
        coefficient_N = coefficient_N - BETA * estimate.slope_N
    gradient = torch.zeros_like(data.logits)
    slopes = (weights_N * coefficient_N)[:, None] * (onehot - scaled.softmax(-1)) / TEMPERATURE
    gradient[data.mask] = -slopes
    return -(weights_N * objective_N).sum(), gradient


KL = [(None, False), *[(name, weighted) for name in divergence.ESTIMATORS for weighted in (False, True)]]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(("estimator", "weighted"), KL)
@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_closed_form_equals_autograd(
    loss_type: str,
    estimator: str | None,
    weighted: bool,
    on_policy: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    data = batch(dtype, on_policy)
    loss, gradient = closed_form(data, loss_type, estimator, weighted)
    textbook_loss, textbook_gradient = textbook(data, loss_type, estimator, weighted)
    assert (gradient - textbook_gradient).norm() < tolerance * textbook_gradient.norm()
    assert loss.item() == pytest.approx(textbook_loss.item(), rel=10 * tolerance, abs=tolerance)


def test_the_off_policy_batch_is_clipped_on_both_sides_and_left_free_too() -> None:
    data = batch(torch.float64, on_policy=False)
    logprobs = (data.logits / TEMPERATURE).log_softmax(-1).gather(-1, data.ids[..., None])[..., 0]
    advantages = data.advantages[:, None].expand_as(logprobs)
    seen = coefficient.clipped(
        logprobs[data.mask], data.old[data.mask], advantages[data.mask], EPSILON_LOW, EPSILON_HIGH
    )
    assert seen.low_N.sum() >= 2 and seen.high_N.sum() >= 2
    assert torch.equal(seen.coefficient_N == 0, seen.low_N | seen.high_N | (advantages[data.mask] == 0))
    outside = (seen.ratio_N < 1 - EPSILON_LOW) | (seen.ratio_N > 1 + EPSILON_HIGH)
    assert (outside & (seen.coefficient_N != 0)).sum() >= 2


@pytest.mark.parametrize("estimator", divergence.ESTIMATORS)
@pytest.mark.parametrize("weighted", [False, True])
def test_slopes_equal_autograds(estimator: str, weighted: bool) -> None:
    logprobs = torch.linspace(-6, -0.01, 50, dtype=torch.float64, requires_grad=True)
    reference = torch.linspace(-0.5, -5, 50, dtype=torch.float64)
    old = torch.linspace(-5, -0.3, 50, dtype=torch.float64)
    estimate = divergence.ESTIMATORS[estimator](logprobs, reference)
    if weighted:
        estimate = divergence.ratio_weighted(estimate, (logprobs - old).exp())
    slope = torch.autograd.grad(estimate.value_N.sum(), logprobs)[0]
    torch.testing.assert_close(estimate.slope_N.detach(), slope, rtol=1e-10, atol=1e-12)


def test_the_coefficient_is_autograds_slope_of_the_clipped_objective() -> None:
    logprobs = torch.linspace(-3, -0.01, 200, dtype=torch.float64, requires_grad=True)
    old = torch.full_like(logprobs, -1.4).detach()
    for advantage in (1.7, -0.4):
        advantages = torch.full_like(old, advantage)
        seen = coefficient.clipped(logprobs, old, advantages, EPSILON_LOW, EPSILON_HIGH)
        slope = torch.autograd.grad(seen.objective_N.sum(), logprobs)[0]
        torch.testing.assert_close(seen.coefficient_N.detach(), slope, rtol=1e-12, atol=1e-14)
