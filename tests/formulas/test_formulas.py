"""Worked numbers and properties of the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cohort.formulas import aggregation, coefficient, credit, divergence
from cohort.formulas.loss_types import LOSS_TYPES

F64 = torch.float64


def rewards(*groups: list[float]) -> Tensor:
    return torch.tensor(groups, dtype=F64)


def close(seen: Tensor, expected: list[float] | list[list[float]], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(seen, torch.tensor(expected, dtype=seen.dtype), rtol=0, atol=tolerance)


# --- credit ---


def test_three_rewards_centred_and_scaled() -> None:
    close(credit.unscaled(rewards([1, 0, 2])), [[0, -1, 1]])
    close(credit.scale_by_group(rewards([1, 0, 2]), eps=0.0), [[0, -1, 1]])
    close(credit.scale_by_group(rewards([1, 0, 2])), [[0, -1 / 1.0001, 1 / 1.0001]])


def test_standard_deviation_has_ddof_one() -> None:
    four = rewards([1.0, -0.5, 1.0, -1.0])
    close(credit.unscaled(four), [[0.875, -0.625, 0.875, -1.125]])
    close(credit.scale_by_group(four, eps=0.0), [[0.849, -0.606, 0.849, -1.091]], tolerance=5e-4)


def test_eps_is_added_to_the_standard_deviation() -> None:
    half = 1 / (1 + math.sqrt(2))
    close(credit.scale_by_group(rewards([0.0, 2e-4]), eps=1e-4), [[-half, half]])


def test_batch_scale_uses_the_spread_of_all_rewards_around_the_groups_mean() -> None:
    # All rewards 1, 3, 5, 9: mean 4.5, squares 12.25 + 2.25 + 0.25 + 20.25 = 35, variance 35 / 3 with ddof 1.
    std = math.sqrt(35 / 3)
    expected = [[-1 / std, 1 / std], [-2 / std, 2 / std]]
    close(credit.scale_by_batch(rewards([1, 3], [5, 9]), eps=0.0), expected)
    close(credit.scale_by_batch(rewards([1, 3], [5, 9]), eps=std), [[x / 2 for x in row] for row in expected])


@pytest.mark.parametrize("scale", credit.SCALES.values(), ids=credit.SCALES)
def test_a_hard_prompts_best_is_positive_and_an_easy_prompts_worst_negative(scale: credit.Scale) -> None:
    advantages = scale(rewards([10, 10.1, 9.9, 12], [95, 95.2, 94.9, 90]))
    assert advantages[0].argmax() == 3 and advantages[0, 3] > 0 and (advantages[0, :3] < 0).all()
    assert advantages[1].argmin() == 3 and advantages[1, 3] < 0 and (advantages[1, :3] > 0).all()


@pytest.mark.parametrize("scale", credit.SCALES.values(), ids=credit.SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 0.0, 1.0, -0.7])
def test_equal_rewards_give_exactly_zero(scale: credit.Scale, dtype: torch.dtype, value: float) -> None:
    group = torch.full((1, 3), value, dtype=dtype)
    assert scale(group).tolist() == scale(group, eps=0.0).tolist() == [[0.0, 0.0, 0.0]]
    mixed = torch.cat([group, torch.tensor([[0.0, 1.0, 0.5]], dtype=dtype)])
    assert scale(mixed)[0].tolist() == [0.0, 0.0, 0.0]
    assert scale(mixed)[1].abs().sum() > 0


def test_a_tiny_spread_is_a_spread() -> None:
    group = rewards([0.5, 0.5 + 1e-9])
    assert credit.zero_spread(group).tolist() == [False]
    assert credit.unscaled(group)[0, 1] > 0


def test_zero_spread_by_group() -> None:
    seen = credit.zero_spread(rewards([0.1, 0.1, 0.1], [0, 0, 1], [1, 1, 1]))
    assert seen.tolist() == [True, False, True] and seen.dtype == torch.bool


@pytest.mark.parametrize("scale", credit.SCALES.values(), ids=credit.SCALES)
def test_a_group_of_one_is_refused(scale: credit.Scale) -> None:
    with pytest.raises(ValueError, match=r"\(2, 1\).*at least 2"):
        scale(rewards([1.0], [0.0]))


def test_a_reward_that_is_no_number_stays_visible() -> None:
    assert credit.scale_by_group(rewards([1.0, math.nan, 0.0])).isnan().all()


groups_of_rewards = st.integers(2, 6).flatmap(
    lambda g: st.lists(st.lists(st.integers(-20, 20), min_size=g, max_size=g), min_size=1, max_size=4)
)


@settings(deadline=None, max_examples=60)
@given(groups_of_rewards, st.sampled_from(sorted(credit.SCALES)), st.randoms(use_true_random=False))
def test_credit_follows_the_order_of_rows(values: list[list[int]], name: str, random) -> None:
    rewards_PG = torch.tensor(values, dtype=F64)
    prompts = random.sample(range(rewards_PG.shape[0]), rewards_PG.shape[0])
    within = random.sample(range(rewards_PG.shape[1]), rewards_PG.shape[1])
    scale = credit.SCALES[name]
    torch.testing.assert_close(scale(rewards_PG[prompts][:, within]), scale(rewards_PG)[prompts][:, within])


@settings(deadline=None, max_examples=60)
@given(groups_of_rewards, st.sampled_from(sorted(credit.SCALES)), st.integers(-1000, 1000))
def test_credit_ignores_a_shift_and_sums_to_zero(values: list[list[int]], name: str, shift: int) -> None:
    rewards_PG = torch.tensor(values, dtype=F64)
    advantages = credit.SCALES[name](rewards_PG)
    torch.testing.assert_close(credit.SCALES[name](rewards_PG + shift), advantages, rtol=0, atol=1e-7)
    assert advantages.sum(dim=1).abs().max() < 1e-8


@settings(deadline=None, max_examples=60)
@given(groups_of_rewards, st.floats(0.25, 40))
def test_group_scale_ignores_the_unit_of_the_reward(values: list[list[int]], unit: float) -> None:
    rewards_PG = torch.tensor(values, dtype=F64)
    seen = credit.scale_by_group(rewards_PG * unit, eps=0.0)
    expected = credit.scale_by_group(rewards_PG, eps=0.0)
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-9)


# --- coefficient ---


def test_clipping_in_its_four_corners_and_inside() -> None:
    ratio = torch.tensor([2.0, 0.5, 2.0, 0.5, 1.1, 0.9, 1.0], dtype=F64)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 3.0, -3.0, 0.0], dtype=F64)
    old = torch.full_like(ratio, -1.5)
    seen = coefficient.clipped(old + ratio.log(), old, advantages, 0.2, 0.28)
    close(seen.objective_N, [1.28, 0.5, -2.0, -0.8, 3.3, -2.7, 0.0])
    close(seen.coefficient_N, [0.0, 0.5, -2.0, 0.0, 3.3, -2.7, 0.0])
    close(seen.ratio_N, ratio.tolist())
    assert seen.high_N.tolist() == [True, False, False, False, False, False, False]
    assert seen.low_N.tolist() == [False, False, False, True, False, False, False]


def test_on_policy_the_coefficient_is_the_advantage() -> None:
    logprobs = torch.tensor([-0.1, -2.0, -7.0])
    advantages = torch.tensor([0.3, -1.7, 0.0])
    seen = coefficient.clipped(logprobs, logprobs, advantages, 0.2, 0.2)
    assert seen.ratio_N.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(seen.coefficient_N, advantages) and torch.equal(seen.objective_N, advantages)


def test_constant_is_weighted_log_likelihood() -> None:
    objective, slope = coefficient.constant(torch.tensor([-0.5, -2.0, -1.0]), torch.tensor([1.0, 0.0, -2.0]))
    assert objective.tolist() == [-0.5, 0.0, 2.0] and slope.tolist() == [1.0, 0.0, -2.0]


# --- divergence ---


def test_estimators_at_log_ratio_of_log_two() -> None:
    logprobs, reference = torch.tensor([math.log(0.5)], dtype=F64), torch.tensor([math.log(0.25)], dtype=F64)
    d = math.log(2)
    seen = {name: estimator(logprobs, reference) for name, estimator in divergence.ESTIMATORS.items()}
    expected = {"k1": (d, 1.0), "k2": (d * d / 2, d), "k3": (0.5 + d - 1, 0.5)}
    for name, (value, slope) in expected.items():
        close(seen[name].value_N, [value])
        close(seen[name].slope_N, [slope])
        weighted = divergence.ratio_weighted(seen[name], torch.tensor([3.0], dtype=F64))
        close(weighted.value_N, [3 * value])
        close(weighted.slope_N, [3 * (value + slope)])


@settings(deadline=None, max_examples=200)
@given(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32))
def test_k3_is_never_negative(logprob: float, reference: float) -> None:
    seen = divergence.k3(torch.tensor([logprob]), torch.tensor([reference]))
    assert seen.value_N.item() >= 0.0


def test_k3_is_never_negative_for_small_differences() -> None:
    d = torch.cat([torch.logspace(-9, 0, 2000), -torch.logspace(-9, 0, 2000)])
    seen = divergence.k3(d, torch.zeros_like(d)).value_N
    exact = torch.special.expm1(-d.double()) + d.double()
    assert (seen >= 0).all()
    torch.testing.assert_close(seen.double(), exact, rtol=1e-3, atol=1e-7)


def test_k3_gradient_does_not_vanish_far_below_the_reference() -> None:
    logprobs = torch.tensor([-16.0], requires_grad=True)
    reference = torch.tensor([-1.0])
    ((reference - logprobs).exp() - (reference - logprobs) - 1).sum().backward()
    slope = divergence.k3(logprobs.detach(), reference).slope_N
    assert logprobs.grad is not None
    torch.testing.assert_close(slope, logprobs.grad)
    assert slope.item() == pytest.approx(1 - math.exp(15), rel=1e-6)


def expected_gradient(name: str, weighted: bool, logits: Tensor, reference: Tensor) -> Tensor:
    """E over v ~ pi of slope(v) * grad log pi(v) with respect to the logits, all v enumerated."""
    logprobs = logits.log_softmax(-1)
    estimate = divergence.ESTIMATORS[name](logprobs, reference)
    if weighted:
        estimate = divergence.ratio_weighted(estimate, torch.ones_like(logprobs))
    weights = logprobs.exp() * estimate.slope_N
    return weights - weights.sum() * logprobs.exp()


def kl_gradient(logits: Tensor, reference: Tensor, forward: bool) -> Tensor:
    leaf = logits.clone().requires_grad_()
    p, q = leaf.log_softmax(-1), reference
    kl = (q.exp() * (q - p)).sum() if forward else (p.exp() * (p - q)).sum()
    return torch.autograd.grad(kl, leaf)[0]


@pytest.mark.parametrize(
    ("name", "weighted", "which"),
    [
        ("k1", False, "none"),
        ("k1", True, "reverse"),
        ("k2", False, "reverse"),
        ("k3", False, "forward"),
        ("k3", True, "reverse"),
    ],
)
def test_whose_gradient_each_estimator_gives(name: str, weighted: bool, which: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(7, generator=generator, dtype=F64)
    reference = torch.randn(7, generator=generator, dtype=F64).log_softmax(-1)
    seen = expected_gradient(name, weighted, logits, reference)
    reverse, forward = kl_gradient(logits, reference, False), kl_gradient(logits, reference, True)
    expected = {"none": torch.zeros_like(reverse), "reverse": reverse, "forward": forward}[which]
    torch.testing.assert_close(seen, expected, rtol=1e-10, atol=1e-12)
    assert (reverse - forward).norm() > 0.05 * reverse.norm()


# --- aggregation ---


def test_weights_of_two_completions_and_a_masked_one() -> None:
    lengths = torch.tensor([3, 0, 5])
    counts = aggregation.Denominators(sequences=3, tokens=8, generation_tokens=9.5, max_completion_length=6)
    close(aggregation.grpo(lengths, counts), [1 / 9, 0, 1 / 15], tolerance=1e-7)
    close(aggregation.bnpo(lengths, counts), [1 / 8, 0, 1 / 8], tolerance=1e-7)
    close(aggregation.dr_grpo(lengths, counts), [1 / 18, 0, 1 / 18], tolerance=1e-7)
    close(aggregation.dapo(lengths, counts), [1 / 9.5, 0, 1 / 9.5], tolerance=1e-7)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_a_step_of_masked_completions_weighs_nothing(name: str) -> None:
    counts = aggregation.Denominators(sequences=2, tokens=0, generation_tokens=0.0, max_completion_length=6)
    assert LOSS_TYPES[name].weight(torch.tensor([0, 0]), counts).tolist() == [0.0, 0.0]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=12),
    st.sampled_from(sorted(LOSS_TYPES)),
    st.integers(1, 11),
)
def test_weights_do_not_depend_on_how_a_step_is_cut(lengths: list[int], name: str, cut: int) -> None:
    counts = aggregation.Denominators(len(lengths), sum(lengths), float(sum(lengths)), 40)
    weigh, lengths_B = LOSS_TYPES[name].weight, torch.tensor(lengths)
    parts = [weigh(lengths_B[:cut], counts), weigh(lengths_B[cut:], counts)]
    assert torch.equal(torch.cat(parts), weigh(lengths_B, counts))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_a_constant_loss_of_one_averages_to_one(lengths: list[int]) -> None:
    lengths_B = torch.tensor(lengths, dtype=F64)
    counts = aggregation.Denominators(len(lengths), sum(lengths), float(sum(lengths)), 40)
    for name in ("grpo", "bnpo", "dapo"):
        total = (LOSS_TYPES[name].weight(lengths_B, counts) * lengths_B).sum().item()
        assert total == pytest.approx(1.0, abs=1e-12)
    filled = (aggregation.dr_grpo(lengths_B, counts) * lengths_B).sum().item()
    assert filled == pytest.approx(sum(lengths) / (40 * len(lengths)), abs=1e-12)
