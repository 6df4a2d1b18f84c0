"""Credits and coefficients of the variants: worked numbers, and independent implementations as oracles."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from cohort.formulas import coefficient, covariance, credit, divergence
from cohort.formulas import ratios as ratios_of

F64 = torch.float64


def close(result: Tensor, expected: list[float] | list[list[float]]) -> None:
    torch.testing.assert_close(result, torch.tensor(expected, dtype=result.dtype), atol=1e-6, rtol=1e-6)


def test_leave_one_out_by_hand() -> None:
    close(credit.leave_one_out(torch.tensor([[1.0, 0.0, 2.0], [5.0, 5.0, 5.0]])), [[0.0, -1.5, 1.5], [0.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="at least 2 completions"):
        credit.leave_one_out(torch.ones(1, 1))


def test_optimal_baseline_by_hand_and_the_plain_mean_at_equal_lengths() -> None:
    # baseline (1 * 2 + 0 * 4 + 2 * 2) / 8 = 0.75
    rewards = torch.tensor([[1.0, 0.0, 2.0]])
    close(credit.optimal_baseline(rewards, torch.tensor([[2.0, 4.0, 2.0]])), [[0.25, -0.75, 1.25]])
    torch.testing.assert_close(credit.optimal_baseline(rewards, torch.full((1, 3), 7.0)), credit.unscaled(rewards))
    assert credit.optimal_baseline(torch.full((1, 3), 0.1), torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0, 0, 0]]


def test_pass_at_k_by_hand() -> None:
    # One of four is right, k = 2: m = 1 - 3 / 6, s = 0.5; right (1 - m) / s = 1; wrong (0.5 - 2 / 3) / 0.5.
    close(credit.pass_at_k(torch.tensor([[True, False, False, False]]), 2), [[1.0, -1 / 3, -1 / 3, -1 / 3]])
    # Every draw of three has a right one: nothing to learn.
    assert credit.pass_at_k(torch.tensor([[True, True, False, False]]), 3).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert credit.pass_at_k(torch.tensor([[False, False]]), 1).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="1 <= k <= 2"):
        credit.pass_at_k(torch.tensor([[True, False]]), 3)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("right", range(6))
def test_pass_at_k_is_the_mean_over_all_draws(right: int, k: int) -> None:
    """Every draw of k is a group whose reward is its best; a completion gets the mean of its draws' z-scores."""
    correct = [i < right for i in range(6)]
    draws = list(itertools.combinations(range(6), k))
    rewards = torch.tensor([float(any(correct[i] for i in draw)) for draw in draws], dtype=F64)
    z = (rewards - rewards.mean()) / rewards.std(correction=0)
    expected = [
        float(torch.stack([z[d] for d, draw in enumerate(draws) if i in draw]).mean())
        if len(rewards.unique()) > 1
        else 0
        for i in range(6)
    ]
    close(credit.pass_at_k(torch.tensor([correct]), k)[0], expected)


def test_decoupled_by_hand() -> None:
    """Two rewards of different size count the same: [0, 2] and [0, 100] both have z-scores -+ 1 / sqrt 2."""
    scores = torch.tensor([[[0.0, 2.0], [1.0, 1.0]], [[100.0, 0.0], [0.0, 100.0]]], dtype=F64)
    z = 1 / math.sqrt(2)
    sums = torch.tensor([[-3 * z + z, 3 * z - z], [-z, z]], dtype=F64)
    expected = sums / sums.std()
    result = credit.decoupled(scores, torch.tensor([3.0, 1.0], dtype=F64), eps=0.0)
    torch.testing.assert_close(result, expected)


def test_decoupled_leaves_out_what_does_not_apply_and_what_does_not_vary() -> None:
    nan = math.nan
    scores = torch.tensor([[[0.0, 2.0, nan], [0.1, 0.1, 0.1]], [[nan, nan, nan], [3.0, 3.0, 3.0]]])
    result = credit.decoupled(scores, torch.ones(2), eps=0.0)
    assert result[1].tolist() == [0.0, 0.0, 0.0]
    z = 1 / math.sqrt(2)
    sums = torch.tensor([-z, z, 0, 0, 0, 0])
    torch.testing.assert_close(result[0], (sums / sums.std())[:3])


def test_rewards_to_go_by_hand() -> None:
    close(credit.rewards_to_go(torch.tensor([1.0, -2.0, 0.0, 4.0])), [3.0, 2.0, 4.0, 4.0])


def test_process_advantages_by_hand() -> None:
    """Steps of two completions: 1, 0 and 0.5, 0.5, 0.5 (mean 0.5, std sqrt(0.5 / 4)); the first one's steps end at
    tokens 1 and 3 of 4: both follow token 0, one follows token 2."""
    std = math.sqrt(0.5 / 4)
    (normal,) = credit.steps_by_group([torch.tensor([1.0, 0.0, 0.5, 0.5, 0.5], dtype=F64)], eps=0.0)
    close(normal, [0.5 / std, -0.5 / std, 0.0, 0.0, 0.0])
    close(credit.following_steps(normal[:2], torch.tensor([1, 3]), 4), [0.0, 0.0, -0.5 / std, -0.5 / std])
    close(credit.following_steps(torch.tensor([1.0, -0.5]), torch.tensor([1, 3]), 5), [0.5, 0.5, -0.5, -0.5, 0.0])
    # Two steps that end in one token both count there.
    close(credit.following_steps(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]), 2), [3.0, 3.0])


def test_where_an_error_stands_makes_a_difference() -> None:
    """Summed, the steps' rewards of both completions are 0."""
    (normal,) = credit.steps_by_group([torch.tensor([1.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 1.0])])
    ends = torch.tensor([0, 1, 2, 3])
    early, late = (credit.following_steps(part, ends, 4) for part in normal.split(4))
    assert early[0].abs() < 1e-6 and (early[1:] < -1).all() and (late[1:] > 1).all()


def test_scales_of_step_rewards() -> None:
    groups = [torch.tensor([0.0, 1.0, 2.0], dtype=F64), torch.tensor([5.0, 5.0], dtype=F64)]
    assert [r.tolist() for r in credit.steps_unscaled(groups)] == [[-1.0, 0.0, 1.0], [0.0, 0.0]]
    std = float(torch.tensor([0.0, 1.0, 2.0, 5.0, 5.0], dtype=F64).std())
    close(credit.steps_by_batch(groups, eps=0.0)[0], [-1 / std, 0.0, 1 / std])
    assert credit.steps_by_group(groups)[1].tolist() == credit.steps_by_batch(groups)[1].tolist() == [0.0, 0.0]


def test_dual_clip_bounds_a_negative_advantage_below() -> None:
    ratios = torch.tensor([0.5, 1.1, 2.5, 4.0, 4.0], dtype=F64)
    advantages = torch.tensor([-1.0, -1.0, -1.0, -2.0, 2.0], dtype=F64)
    result = coefficient.clipped(ratios.log(), torch.zeros(5, dtype=F64), advantages, 0.2, 0.2, delta=3.0)
    close(result.objective_N, [-0.8, -1.1, -2.5, -6.0, 2.4])
    close(result.coefficient_N, [0.0, -1.1, -2.5, 0.0, 0.0])


def test_cispo_caps_the_weight_and_drops_no_token() -> None:
    ratios = torch.tensor([0.1, 1.1, 2.0, 2.0], dtype=F64)
    advantages = torch.tensor([-1.0, 1.0, 1.0, -3.0], dtype=F64)
    result = coefficient.capped(ratios.log(), torch.zeros(4, dtype=F64), advantages, 0.28)
    close(result.coefficient_N, [-0.1, 1.1, 1.28, -3.84])
    torch.testing.assert_close(result.objective_N, result.coefficient_N * ratios.log())
    assert result.high_N.tolist() == [False, False, True, False]


def test_the_ratio_of_a_completion_is_its_geometric_mean() -> None:
    ratios = torch.tensor([2.0, 0.5, 4.0, 3.0], dtype=F64)
    level = ratios_of.each_completion([3, 1])
    result = coefficient.clipped(ratios.log(), torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), 9, 9, None, level)
    close(result.ratio_N, [4 ** (1 / 3)] * 3 + [3.0])


@pytest.mark.parametrize(
    ("mode", "low", "high", "expected"),
    [
        ("token_truncate", None, 2.0, [0.5, 1.0, 2.0, 2.0]),
        ("token_truncate", 0.8, None, [0.8, 1.0, 3.0, 2.0]),
        ("token_mask", 0.8, 2.5, [0.0, 1.0, 0.0, 2.0]),
        ("sequence_truncate", None, 1.2, [1.2, 1.2, 1.2, 1.2]),
        ("sequence_mask", None, 1.8, [1.5, 1.5, 1.5, 0.0]),
        ("sequence_mask", 1.6, None, [0.0, 0.0, 0.0, 2.0]),
    ],
)
def test_weights_for_another_sampler(mode: str, low: float | None, high: float | None, expected: list[float]) -> None:
    """Ratios 0.5, 1, 3 (their product 1.5) of one completion and 2 of another."""
    logprobs = torch.tensor([0.5, 1.0, 3.0, 2.0]).log()
    weights = ratios_of.sampler_weights(logprobs, torch.zeros(4), ratios_of.SAMPLER_WEIGHTS[mode], low, high, [3, 1])
    close(weights, expected)


def test_completions_that_moved_away_are_left_out_where_the_advantage_is_negative() -> None:
    """Mean log(pi_sampler / pi) of 0.5, 0.1 and 0.5; the third has a positive advantage."""
    distance = torch.tensor([0.9, 0.1, 0.1, 0.5])
    advantages = torch.tensor([-1.0, -1.0, -1.0, 1.0])
    kept = ratios_of.near_enough(-distance, torch.zeros(4), advantages, 0.3, [2, 1, 1])
    assert kept.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_covariance_chooses_tokens() -> None:
    logprobs, advantages = torch.tensor([-4.0, 0.0, -1.0, -3.0]), torch.tensor([3.0, 1.0, -1.0, -3.0])
    covariances = covariance.covariances(logprobs, advantages)
    close(covariances, [-6.0, 2.0, -1.0, 3.0])
    assert covariance.highest(covariances, 0.5).tolist() == [0.0, 1.0, 0.0, 1.0]
    assert covariance.highest(covariances, 1e-4).tolist() == [0.0, 0.0, 0.0, 1.0], "at least one token"
    assert covariance.between(covariances, 1.0, 1.0, 2.5, 0).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert covariance.between(covariances, 0.5, 9.0, 10.0, 0).tolist() == [0.0] * 4
    many = torch.linspace(0, 1, 1000)
    drawn = covariance.between(many, 0.1, 0.5, 2.0, 3)
    assert drawn.sum() == 100 and bool((many[drawn.bool()] > 0.5).all())
    assert torch.equal(drawn, covariance.between(many, 0.1, 0.5, 2.0, 3))
    assert not torch.equal(drawn, covariance.between(many, 0.1, 0.5, 2.0, 4))


LEVEL_NAMES = ["token", "sequence", "sequence_token"]


def log_ratio_at(level: str, logprobs: Tensor, old: Tensor, lengths: list[int]) -> Tensor:
    """The log-ratio of each token, differentiable as its paper has it."""
    log_ratio = logprobs - old
    if level == "token":
        return log_ratio
    means = torch.cat([part.mean().expand(len(part)) for part in log_ratio.split(lengths)])
    return means if level == "sequence" else means.detach() + logprobs - logprobs.detach()


@pytest.mark.parametrize("surrogate", ["clipped", "dual", "capped", "soft_gated", "penalised"])
@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_coefficients_are_autograds(surrogate: str, level: str) -> None:
    lengths = [3, 1, 4]
    generator = torch.Generator().manual_seed(5)
    logprobs = torch.randn(8, generator=generator, dtype=F64).requires_grad_()
    old = (logprobs + 0.6 * torch.randn(8, generator=generator, dtype=F64)).detach()
    advantages = torch.randn(8, generator=generator, dtype=F64)
    chosen = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0], dtype=F64)
    at = ratios_of.LEVELS[level](lengths)
    ratio = log_ratio_at(level, logprobs, old, lengths).exp()
    clip = torch.min(ratio * advantages, ratio.clamp(0.9, 1.15) * advantages)
    dual = torch.min(ratio.clamp(max=1.4) * advantages, ratio.clamp(0.9, 1.15) * advantages)
    tau = torch.where(advantages > 0, torch.tensor(0.9, dtype=F64), torch.tensor(1.2, dtype=F64))
    cases = {
        "clipped": (clip, coefficient.clipped(logprobs, old, advantages, 0.1, 0.15, level=at)),
        "dual": (dual, coefficient.clipped(logprobs, old, advantages, 0.1, 0.15, 1.4, at)),
        "capped": (
            ratio.clamp(max=1.15).detach() * advantages * logprobs,
            coefficient.capped(logprobs, old, advantages, 0.15, at),
        ),
        "soft_gated": (
            torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantages,
            coefficient.soft_gated(logprobs, old, advantages, 0.9, 1.2, at),
        ),
        "penalised": (
            ratio * advantages - 0.5 * chosen * (logprobs - old).abs(),
            coefficient.penalised(logprobs, old, advantages, chosen, 0.5, at),
        ),
    }
    objective, result = cases[surrogate]
    (expected,) = torch.autograd.grad(objective.sum(), logprobs)
    torch.testing.assert_close(result.coefficient_N.detach(), expected)
    torch.testing.assert_close(result.objective_N.detach(), objective.detach())


def test_a_completions_ratio_keeps_or_erases_the_credit_of_tokens() -> None:
    """At ratio 1 and A = 1, 1, -1, -1: one ratio differentiated as a whole gives 0 everywhere, GSPO-token gives A."""
    advantages, zeros = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.zeros(4)
    whole, of_tokens = (
        coefficient.clipped(zeros, zeros, advantages, 0.2, 0.2, level=ratios_of.LEVELS[level]([4])).coefficient_N
        for level in ("sequence", "sequence_token")
    )
    assert whole.tolist() == [0.0] * 4 and of_tokens.tolist() == advantages.tolist()


def test_maxrl_divides_by_the_mean_and_gpg_by_the_share_of_uneven_groups() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 2.0, 0.0]])
    zero = [0.0] * 4
    close(credit.relative_to_mean(rewards), [[3.0, -1.0, -1.0, -1.0], zero, zero, [1.0, -1.0, 1.0, -1.0]])
    close(credit.rescaled_by_uneven(rewards), [[1.5, -0.5, -0.5, -0.5], zero, zero, [2.0, -2.0, 2.0, -2.0]])
    with pytest.raises(ValueError, match="not positive"):
        credit.relative_to_mean(torch.tensor([[-1.0, 0.0]]))


def test_a_completions_ratio_weights_its_divergence_and_is_differentiated() -> None:
    lengths = [3, 2]
    generator = torch.Generator().manual_seed(6)
    logprobs = torch.randn(5, generator=generator, dtype=F64).requires_grad_()
    old, reference = (torch.randn(5, generator=generator, dtype=F64) for _ in range(2))
    log_ratio = torch.cat([part.mean().expand(len(part)) for part in (logprobs - old).split(lengths)])
    d = logprobs - reference
    (expected,) = torch.autograd.grad((log_ratio.exp() * ((-d).exp() + d - 1)).sum(), logprobs)
    with torch.no_grad():
        estimate = divergence.k3(logprobs, reference)
        result = divergence.ratio_weighted(estimate, log_ratio.exp(), ratios_of.each_completion(lengths))
    torch.testing.assert_close(result.slope_N, expected)
