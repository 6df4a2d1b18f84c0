"""Numbers that differ by rounding teach nothing; small differences stay small; large numbers do not vanish."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from cohort.formulas import credit
from cohort.formulas.gae import whiten
from cohort.formulas.spread import all_equal, deviation
from cohort.rollouts.collect import has_equal_rewards
from cohort.train.monitors.reward_models import RewardModelGuard, Validation, length_correlation
from cohort.train.monitors.rewards import spread_shares
from cohort.train.sources.preferences import random_pair
from cohort.types import Completion, Group, Row

ULP = float(np.spacing(np.float32(0.3)))
NEARLY = [0.3, 0.3 + ULP, 0.3, 0.3 - ULP]
"""Different float32 numbers, equal up to rounding."""


def group(values: list[float], lengths: tuple[int, ...] = (1, 2, 3, 4)) -> Group:
    completions = [Completion(torch.zeros(n, dtype=torch.long), torch.zeros(n)) for n in lengths]
    return Group(torch.zeros(1), completions, Row("?"), values, {"model": list(values)})


def test_equal_up_to_rounding() -> None:
    assert len(set(torch.tensor(NEARLY).tolist())) == 3 and all_equal(torch.tensor(NEARLY))
    assert all_equal([0.1 + 0.2, 0.3]) and all_equal([0, 0]) and all_equal([2e-30, 2e-30])
    assert not all_equal([0.3, 0.3 + 1e-6]) and not all_equal([0.0, 1e-30]) and not all_equal([-1.0, 1.0])
    assert not all_equal([0.5, math.nan]) and not all_equal([0.0, math.inf]) and not all_equal([math.inf, math.inf])


@pytest.mark.parametrize("values", [[0.3] * 16, NEARLY * 4, [1e6, 1e6 + 0.0625] * 8], ids=["equal", "nearly", "large"])
def test_whitening_makes_no_step_of_rounding(values: list[float]) -> None:
    assert whiten(torch.tensor(values)).tolist() == [0.0] * 16


@pytest.mark.parametrize(("size", "expected"), [(1.0, 1.0), (1e-3, 1 / math.sqrt(1.01)), (1e-6, 1e-2)])
def test_whitening_keeps_small_differences_small(size: float, expected: float) -> None:
    """std / sqrt(std^2 + 1e-8): 1 at 1, 0.995 at 1e-3, 0.01 at 1e-6."""
    wave = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    white = whiten(size * wave / wave.std())
    assert float(white.std()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale", credit.SCALES.values(), ids=credit.SCALES)
@pytest.mark.parametrize("values", [NEARLY, [1e6, 1e6 + 0.0625, 1e6, 1e6]], ids=["nearly", "large"])
def test_rewards_that_differ_by_rounding_have_no_advantage(scale: credit.Scale, values: list[float]) -> None:
    rewards = torch.tensor([values, [0.0, 1.0, 0.5, 0.25]])
    assert scale(rewards)[0].tolist() == [0.0] * 4 and scale(rewards)[1].any()
    assert credit.zero_spread(rewards).tolist() == [True, False]
    assert credit.leave_one_out(rewards)[0].tolist() == [0.0] * 4
    assert credit.optimal_baseline(rewards, torch.ones(2, 4))[0].tolist() == [0.0] * 4


@pytest.mark.parametrize("scale", credit.STEP_SCALES.values(), ids=credit.STEP_SCALES)
def test_steps_that_differ_by_rounding_have_no_advantage(scale) -> None:
    nearly, other = scale([torch.tensor(NEARLY), torch.tensor([0.0, 1.0])])
    assert nearly.tolist() == [0.0] * 4 and other.any()


def test_rewards_decoupled_that_differ_by_rounding_or_cancel_have_no_advantage() -> None:
    scores = torch.tensor([[NEARLY, NEARLY], [NEARLY, [0.0, 1.0, 0.5, 0.25]]])
    result = credit.decoupled(scores, torch.ones(2))
    assert result[0].tolist() == [0.0] * 4 and float(result[1].abs().max()) > 1
    same = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0)).repeat(3, 1, 1)
    assert credit.decoupled(same, torch.tensor([0.1, 0.2, -0.3])).tolist() == [[0.0] * 4] * 3


def test_squares_of_large_rewards_do_not_overflow() -> None:
    large = torch.tensor([[1e25, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5]])
    for advantages in (
        credit.scale_by_group(large),
        credit.scale_by_batch(large),
        torch.stack(credit.steps_by_batch(list(large))),
        whiten(large[0])[None],
        credit.decoupled(large[None], torch.ones(1)),
    ):
        torch.testing.assert_close(advantages, expected, rtol=2e-4, atol=0)
    assert float(deviation(large)) == pytest.approx(5e24)


def test_pass_at_k_where_nearly_every_draw_has_a_correct_one() -> None:
    """17 of 64 are wrong: a draw of 16 without a correct one has the probability p = C(17, 16) / C(64, 16), 3.5e-14."""
    correct = torch.tensor([[False] * 17 + [True] * 47])
    p = math.comb(17, 16) / math.comb(64, 16)
    advantages = credit.pass_at_k(correct, 16)[0]
    assert float(advantages[-1]) == pytest.approx(math.sqrt(p / (1 - p)), rel=1e-6)
    assert abs(float(advantages.double().sum())) < 1e-6 * float(advantages.abs().sum())


def test_what_asks_whether_rewards_differ_asks_up_to_rounding() -> None:
    """Dynamic sampling, DPO's pairs, and the monitors."""
    nearly = group([0.1 + 0.2, 0.3, 0.3, 0.3])
    assert has_equal_rewards(nearly) and not has_equal_rewards(group([0.3, 0.4, 0.3, 0.3]))
    pairs = {random_pair(group([0.1 + 0.2, 0.3, 1.0, 0.3]), random.Random(seed)) for seed in range(40)}
    assert pairs == {(2, 0), (2, 1), (2, 3)}
    assert spread_shares([nearly], {"model": 1.0}) == {}
    assert length_correlation([nearly, group([0.3, 0.3, 0.1 + 0.2, 0.3])], "model") == 0
    guard = RewardModelGuard({"model": Validation(0.3, 0.0)})
    assert abs(guard.see([group([0.3 + 1e-6] * 4)])["guard/model/drift"]) < 0.02
