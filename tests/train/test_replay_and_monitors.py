"""What a reward model sees again, and what is said of its scores, on worked numbers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import TrainerControl

from cohort.data.order import derive
from cohort.train.iterations.replay import Replay, history_count
from cohort.train.monitors.overoptimization import GoldGuard, Point, parting
from cohort.train.monitors.reward_models import FAR, RewardModelGuard, Validation, length_correlation, validation_of
from cohort.types import Completion, Group, Row


def items(first: int, count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(first, first + count)]


def group(components: dict[str, list[float | None]], lengths: list[int] | None = None) -> Group:
    count = len(next(iter(components.values())))
    completions = [Completion(torch.ones(n), torch.zeros(n)) for n in lengths or [1] * count]
    return Group(torch.tensor([1]), completions, Row("?"), rewards=[0.0] * count, components=components)


@pytest.mark.parametrize(
    ("new", "share", "history"),
    [(90, 0.1, 10), (18, 0.1, 2), (9, 0.1, 1), (4, 0.1, 0), (5, 0.1, 1), (100, 0.5, 100), (30, 0.25, 10), (7, 0.0, 0)],
)
def test_history_is_its_share_of_all_that_a_refit_sees(new: int, share: float, history: int) -> None:
    """h / (new + h) = share: 10 of 100, 2 of 20, …"""
    assert history_count(new, share) == history


def test_the_reservoir_by_hand() -> None:
    """Size 3, seed 5. Items 0, 1, 2 take places 0, 1, 2. Item n > 2 draws a place of n + 1 and is kept where that is
    below 3."""
    buffer = Replay(3, seed=5)
    buffer.add(items(0, 2))
    assert [item["n"] for item in buffer.items] == [0, 1] and buffer.seen == 2
    kept = [0, 1, 2]
    for n in range(3, 12):
        place = derive(5, n) % (n + 1)
        if place < 3:
            kept[place] = n
    buffer.add(items(2, 10))
    assert [item["n"] for item in buffer.items] == kept and buffer.seen == 12
    assert kept != [0, 1, 2]


def test_the_reservoir_keeps_everything_with_the_same_chance() -> None:
    counts: Counter[int] = Counter()
    for seed in range(600):
        buffer = Replay(5, seed)
        buffer.add(items(0, 20))
        counts.update(item["n"] for item in buffer.items)
    # 600 draws with probability 5 / 20: 150, standard deviation 10.6
    assert set(counts) == set(range(20)) and all(abs(count - 150) < 45 for count in counts.values())


def test_a_restored_buffer_goes_on_as_the_first(tmp_path: object) -> None:
    whole, cut = Replay(4, 1), Replay(4, 1)
    whole.add(items(0, 30))
    cut.add(items(0, 11))
    again = Replay(4, 1)
    again.restore(cut.state())
    again.add(items(11, 19))
    assert again.items == whole.items and again.seen == whole.seen == 30
    assert again.draw(2, 7) == whole.draw(2, 7) and len(again.draw(9, 7)) == 4


VALIDATION = Validation(mean=1.0, std=2.0)


def test_numbers_of_the_guard() -> None:
    """Scores 3, 7, 5, 9: mean 6, population variance 5. Against mean 1, std 2: drift 2.5, and 9 is 4 standard
    deviations away. Within groups the scores are ±2 and the lengths ±1, -1 and +1, so that r is 0."""
    guard = RewardModelGuard({"rm": VALIDATION})
    groups = [group({"rm": [3.0, 7.0]}, [1, 3]), group({"rm": [5.0, 9.0]}, [4, 2])]
    assert guard.see(groups) == pytest.approx(
        {
            "guard/rm/drift": 2.5,
            "guard/rm/outside": 0.25,
            "guard/rm/spread": math.sqrt(5) / 2,
            "guard/rm/length_correlation": 0.0,
        }
    )


def test_length_correlation_is_within_groups() -> None:
    longer_is_better = [group({"rm": [0.0, 1.0, 2.0]}, [2, 4, 6]), group({"rm": [9.0, None]}, [1, 8])]
    assert length_correlation(longer_is_better, "rm") == pytest.approx(1.0)
    # deviations of scores -1, 0, 1 and of lengths 1, -2, 1: their product sums to 0
    assert length_correlation([group({"rm": [0.0, 1.0, 2.0]}, [4, 1, 4])], "rm") == pytest.approx(0.0)
    assert length_correlation([group({"rm": [1.0, 1.0]}, [1, 2])], "rm") == 0.0


@pytest.mark.parametrize(
    ("scores", "lengths", "patience", "said"),
    [
        ([FAR + 1, FAR + 2, FAR, FAR + 3], [1, 1, 1, 1], 1, "has a mean of 11.5, beyond ±10"),
        ([8.0, 7.0, 8.5, 7.5], [1, 1, 1, 1], 3, "scores other completions than it was tried on"),
        ([1.0, 1.1, 1.0, 1.1], [1, 1, 1, 1], 3, "hardly tells completions apart"),
        ([-1.0, 0.0, 2.0, 3.0], [1, 2, 4, 5], 3, "follows length"),
    ],
)
def test_what_the_guard_says_and_when(
    scores: list[float], lengths: list[int], patience: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard = RewardModelGuard({"rm": VALIDATION}, patience=3)
    usual = [group({"rm": [-1.0, 3.0, 1.0, 2.0]}, [2, 1, 2, 1])]
    odd = [group({"rm": list(scores)}, lengths)]
    with caplog.at_level(logging.WARNING, "cohort"):
        guard.see(odd)
        told_at_once = [record for record in caplog.records if said in record.message]
        assert len(told_at_once) == (patience == 1)
        guard.see(usual)  # the count starts again
        for _ in range(5):
            guard.see(odd)
        told = [record for record in caplog.records if said in record.message]
        assert len(told) == 1 and told[0].message.startswith("reward model rm ")
        guard.start_anew("rm", VALIDATION)
        for _ in range(3):
            guard.see(odd)
    assert len([record for record in caplog.records if said in record.message]) == 2


def test_without_validation_the_first_batch_takes_its_place() -> None:
    guard = RewardModelGuard({"rm": None})
    first = guard.see([group({"rm": [1.0, 3.0]})])
    assert first["guard/rm/drift"] == 0 and first["guard/rm/spread"] == 1
    assert guard.see([group({"rm": [2.0, 6.0]})])["guard/rm/drift"] == 2.0
    again = RewardModelGuard({"rm": None})
    again.restore(guard.state())
    assert again.validation == {"rm": Validation(2.0, 1.0)} and again.state() == guard.state()
    assert validation_of([1.0, 3.0]) == Validation(2.0, 1.0)


def series(gold: list[float], proxy: list[float], model: list[int] | None = None) -> list[Point]:
    model = model or [0] * len(gold)
    return [
        Point(step=i + 1, kl=0.5 * (i + 1), proxy=p, gold=g, model=m)
        for i, (g, p, m) in enumerate(zip(gold, proxy, model, strict=True))
    ]


RISE_AND_FALL = [0.2, 0.4, 0.5, 0.6, 0.7, 0.7, 0.6, 0.5, 0.3, 0.2]
UP = [float(i) for i in range(10)]


def test_where_gold_and_proxy_part_by_hand() -> None:
    """Windows of 2, one standard error. Best window: steps 5 and 6, gold .7, variance 0; proxy 4.5.

    After step 8 the last window has .6, .5: mean .55, variance .005, fall .15 > sqrt(.005 / 2) = .05, proxy 6.5.
    After step 7 it has .7, .6 (.65): but the best window without them is steps 4 and 5, .65: no fall.
    """
    points = series(RISE_AND_FALL, UP)
    assert parting(points[:7], window=2, sure=1) is None
    assert parting(points[:8], window=2, sure=1) == points[5]
    assert parting(points, window=2, sure=1) == points[5]
    # fall .15 is 3.0 standard errors
    assert parting(points[:8], window=2, sure=2.9) is not None
    assert parting(points[:8], window=2, sure=3.1) is None


def test_gold_that_falls_with_the_proxy_or_stays_is_no_parting() -> None:
    assert parting(series(RISE_AND_FALL, [-p for p in UP]), window=2, sure=1) is None
    assert parting(series([0.7] * 10, UP), window=2, sure=1) is None
    assert parting(series(UP, UP), window=2, sure=1) is None
    assert parting(series(RISE_AND_FALL, UP)[:3], window=2, sure=1) is None


def test_proxies_of_two_models_are_not_compared() -> None:
    """Refitted after step 6: proxies begin anew at -9. They rose since, or did not."""
    risen = series(RISE_AND_FALL, [*UP[:6], -9.0, -9.0, -8.0, -7.0], [0] * 6 + [1] * 4)
    fallen = series(RISE_AND_FALL, [*UP[:6], 12.0, 11.0, 10.0, 9.0], [0] * 6 + [1] * 4)
    assert parting(risen, window=2, sure=1) == risen[5]
    assert parting(risen[:9], window=2, sure=1) is None  # one window of the new model alone
    assert parting(fallen, window=2, sure=1) is None


@pytest.mark.parametrize("stop", [False, True])
def test_the_run_is_warned_and_stopped(stop: bool, caplog: pytest.LogCaptureFixture) -> None:
    guard = GoldGuard({"rm": 2.0, "rule": 0.0, "form": 1.0}, "rule", lambda groups: 3.5, stop)
    rising = [0.1 * i for i in range(30)]
    gold = [0.5] * 10 + [0.5 - 0.02 * i for i in range(20)]
    control, found = TrainerControl(), []
    with caplog.at_level(logging.WARNING, "cohort"):
        for step, (proxy, true) in enumerate(zip(rising, gold, strict=True), 1):
            groups = [group({"rm": [proxy, proxy], "rule": [true, None], "form": [1.0, 0.0]})]
            found.append(guard.see(groups, step, 0))
            guard.on_step_end(None, None, control)
            if control.should_training_stop:
                break
    # two times the model and once the form, the rule left out
    assert found[3] == pytest.approx({"guard/proxy": 2 * 0.3 + 0.5, "guard/gold": 0.5, "guard/kl": 3.5})
    assert len(caplog.records) == 1 and "over-optimisation: rule falls" in caplog.text
    assert control.should_training_stop is stop and ("The run stops" in caplog.text) is stop
    # Gold is flat for 10 steps, so the first of the best windows is taken: its middle is step 5.
    assert found[-1]["guard/overoptimized_from"] == 5.0
    first = next(i for i, row in enumerate(found) if "guard/overoptimized_from" in row)
    again = GoldGuard({"rm": 2.0}, "rule", lambda groups: 3.5, stop)
    again.restore(guard.state())
    assert again.points == guard.points and again.peak == replace(guard.points[4])
    assert 10 < first < 25
