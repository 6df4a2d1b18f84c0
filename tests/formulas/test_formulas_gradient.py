"""weight * coefficient * (onehot - softmax) / temperature equals autograd's gradient of the textbook objective."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cohort.config import GRPOConfig
from cohort.formulas import aggregation, coefficient, divergence
from cohort.formulas.loss_types import LOSS_TYPES, Tokens

VOCABULARY, TEMPERATURE, BETA = 13, 0.7, 0.3
LENGTHS = [4, 9, 1, 7, 5, 6]
ACTIVE = [4, 9, 1, 7, 0, 6]
"""The fifth completion is masked: its tokens are in the stream but carry no loss."""
MAX = 10
EPSILON_LOW, EPSILON_HIGH = 0.2, 0.28
GENERATION_TOKENS = 31.5
SETTINGS: dict[str, dict[str, float]] = {
    "sapo": {"sapo_temperature_pos": 0.75, "sapo_temperature_neg": 1.25},
    "vespo": {"vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 2.0, "vespo_lambda_neg": 1.5},
    "kl_cov": {"kl_cov_coef": 0.7},
}
"""Settings of single loss types, none at its default."""


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


def settings_of(loss_type: str) -> GRPOConfig:
    bounds = {"epsilon": EPSILON_LOW, "epsilon_high": EPSILON_HIGH}
    unbounded = loss_type in ("sapo", "vespo", "kl_cov")
    bounds = {} if unbounded else {"epsilon_high": EPSILON_HIGH} if loss_type == "cispo" else bounds
    return GRPOConfig(loss_type=loss_type, num_generations=6, **bounds, **SETTINGS.get(loss_type, {}))


def selected_of(data: Batch) -> Tensor:
    """Some tokens, as if chosen by covariance. [rows, MAX]."""
    return torch.arange(data.ids.numel()).view_as(data.ids).remainder(3).eq(1).to(data.logits.dtype)


def surrogate(data: Batch, loss_type: str, pi: Tensor) -> Tensor:
    """The surrogate objective of each token as its paper writes it; probabilities pi and the result are [rows, MAX]."""
    advantage, old, selected = data.advantages[:, None], data.old.exp(), selected_of(data)
    ratio, config = pi / old, settings_of(loss_type)
    clipped = torch.min(ratio * advantage, ratio.clamp(1 - EPSILON_LOW, 1 + EPSILON_HIGH) * advantage)
    if loss_type == "cispo":
        return ratio.clamp(max=1 + EPSILON_HIGH).detach() * advantage * pi.log()
    if loss_type == "sapo":
        tau = torch.where(advantage > 0, config.sapo_temperature_pos, config.sapo_temperature_neg).to(pi.dtype)
        return torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantage
    if loss_type == "gmpo":
        rows = []
        for row, n, a in zip(ratio.log(), LENGTHS, data.advantages, strict=True):
            sign = torch.sign(a)
            bounded = torch.min(sign * row[:n], sign * row[:n].clamp(-EPSILON_LOW, EPSILON_HIGH)) * sign
            rows.append((bounded.mean().exp() * a).expand(MAX))
        return torch.stack(rows)
    if loss_type == "vespo":
        w = torch.stack([row[:n].prod() for row, n in zip(ratio, LENGTHS, strict=True)]).detach()[:, None]
        k = torch.where(advantage >= 0, config.vespo_k_pos, config.vespo_k_neg).to(pi.dtype)
        lam = torch.where(advantage >= 0, config.vespo_lambda_pos, config.vespo_lambda_neg).to(pi.dtype)
        return lam.exp() * w**k * (-lam * w).exp() * advantage * pi.log()
    if loss_type == "dppo_tv":
        moved = (pi - old).detach()
        return ratio * advantage * torch.where(advantage > 0, moved <= EPSILON_HIGH, moved >= -EPSILON_LOW)
    if loss_type == "dppo_kl":
        kl = (old * (old / pi).log() + (1 - old) * ((1 - old) / (1 - pi)).log()).detach()
        up, down = (kl <= EPSILON_HIGH) | (pi <= old), (kl <= EPSILON_LOW) | (pi >= old)
        return ratio * advantage * torch.where(advantage > 0, up, down)
    if loss_type == "clip_cov":
        return clipped * (1 - selected)
    if loss_type == "kl_cov":
        return ratio * advantage - config.kl_cov_coef * ratio.log().abs() * selected
    return clipped


def textbook(data: Batch, loss_type: str, estimator: str | None, weighted: bool) -> tuple[Tensor, Tensor]:
    """The loss on padded rows as the papers write it, and its gradient by autograd."""
    logits = data.logits.clone().requires_grad_()
    probabilities = torch.softmax(logits / TEMPERATURE, dim=-1)
    pi = probabilities.gather(-1, data.ids[..., None]).squeeze(-1)
    ratio = pi / data.old.exp()
    per_token = surrogate(data, loss_type, pi)
    if estimator is not None:
        inverse = data.reference.exp() / pi
        log = inverse.log()
        kl = {"k1": -log, "k2": log**2 / 2, "k3": inverse - log - 1}[estimator]
        per_token = per_token - BETA * (kl * ratio if weighted else kl)
    sums = torch.stack([row[:n].sum() for row, n in zip(per_token, ACTIVE, strict=True)])
    if loss_type in ("grpo", "sapo", "gmpo"):
        objective = torch.stack([s / n for s, n in zip(sums, ACTIVE, strict=True) if n]).sum() / len(LENGTHS)
    elif loss_type == "bnpo":
        objective = sums.sum() / sum(ACTIVE)
    elif loss_type == "dr_grpo":
        objective = (sums / MAX).mean()
    elif loss_type == "luspo":
        objective = sums.mean()
    else:
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
    tokens = Tokens(
        logprobs_N, data.old[data.mask], advantages_N, lengths=LENGTHS, selected=selected_of(data)[data.mask]
    )
    part = LOSS_TYPES[loss_type].surrogate(tokens, settings_of(loss_type))
    objective_N, coefficient_N = part.objective_N, part.coefficient_N
    if estimator is not None:
        estimate = divergence.ESTIMATORS[estimator](logprobs_N, data.reference[data.mask])
        ratio_N = (logprobs_N - data.old[data.mask]).exp()
        estimate = divergence.ratio_weighted(estimate, ratio_N) if weighted else estimate
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
    if loss_type == "kl_cov" and on_policy:
        pytest.skip("|log ratio| has no slope where the policies are equal")
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
