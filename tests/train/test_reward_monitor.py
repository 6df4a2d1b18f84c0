"""What is kept and said of a batch's completions while a run goes on."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest
import torch

from cohort.rollouts.notable import notable
from cohort.train.monitors.rewards import RewardMonitor, spread_shares
from cohort.types import Completion, Group, Row


def group(components: dict[str, list[float | None]], texts: list[str] | None = None) -> Group:
    count = len(next(iter(components.values())))
    texts = texts or ["word"] * count
    rewards = [sum(value or 0 for value in row) for row in zip(*components.values(), strict=True)]
    completions = [Completion(torch.tensor([1]), torch.zeros(1), text=text) for text in texts]
    return Group(torch.tensor([1]), completions, Row("?"), rewards=rewards, components=components)


def test_the_most_rewarded_and_the_strangest_are_kept_with_the_first() -> None:
    plain = [f"the answer to this is {i} because it is" for i in range(10, 22)]
    one = group({"a": [0.0] * 6}, plain[:6])
    two = group({"a": [0, 0, 3, 0, 1, 0]}, [*plain[6:10], plain[10], "}}}{{{$$$" * 40])
    four = [((0, 0), "sample"), ((0, 1), "sample"), ((1, 2), "most rewarded"), ((1, 5), "strangest")]
    assert notable([one, two], 4) == four
    kept = dict(notable([one, two], 8))
    assert Counter(kept.values()) == {"most rewarded": 2, "strangest": 2, "sample": 4}
    assert kept[1, 2] == kept[1, 4] == "most rewarded" and list(kept) == sorted(kept)
    assert [why for _, why in notable([one, two], 3)] == ["sample", "most rewarded", "strangest"]
    assert notable([one, two], 2) == [((0, 0), "sample"), ((0, 1), "sample")]
    assert notable([one, two], 0) == [] and len(notable([one, two], 99)) == 12


@pytest.mark.parametrize("odd", ["", "again and again " * 60, "the answer to this is 12", "\x00\ud800 ::;;"])
def test_what_is_strange(odd: str) -> None:
    usual = [f"First take {i}, then add {i + 1}; that gives {2 * i + 1} apples for each." for i in range(7)]
    kept = dict(notable([group({"a": [0.0] * 8}, [*usual[:4], odd, *usual[4:]])], 4))
    assert kept[0, 4] == "strangest"


def test_shares_of_the_spread_within_groups() -> None:
    groups = [group({"a": [0, 1], "b": [0, 3], "c": [5, 5]}), group({"a": [1, 1], "b": [2, 2], "c": [9, None]})]
    # Weighted variances: 1 * 0.25, 0.25 * 2.25, 0.
    assert spread_shares(groups, {"a": 1, "b": 0.5, "c": 1}) == pytest.approx({"a": 4 / 13, "b": 9 / 13, "c": 0})
    assert spread_shares(groups[1:], {"a": 1, "b": 1, "c": 1}) == {}


Told = list[tuple[str, str, int]]


def observed(monitor: RewardMonitor, batches: list[list[Group]]) -> list[Told]:
    """What is told after each batch."""
    told: list[Told] = [[] for _ in batches]
    for batch, messages in zip(batches, told, strict=True):
        monitor.observe(batch, lambda *message, messages=messages: messages.append(message))
    return told


def test_what_is_told_and_when() -> None:
    monitor = RewardMonitor(["silent", "full", "loud", "quiet"], [1, 1, 10, 1], patience=3)
    scores: dict[str, list[float | None]] = {"silent": [0, None, *[0] * 6], "full": [1] * 8, "loud": [0, 1, 2, 1] * 2}
    batch = [group({**scores, "quiet": [0, 0.5, 0, 0] * 2})]
    told = observed(monitor, [batch] * 4)
    assert [len(messages) for messages in told[:3]] == [0, 0, 3] and [m[0] for m in told[3]] == [m[0] for m in told[2]]
    (silent, full, loud), names = told[2], [name for name, _, _ in told[2]]
    assert names == ["silent silent", "full saturated", "loud dominant"]
    assert silent[1].startswith(
        "reward silent has been 0 for every completion of 3 batches of this run: it never fires"
    )
    assert "reward full has been at its highest, 1, for at least 95% of the completions of 3 batches" in full[1]
    assert "reward loud has made at least 90% of the spread" in loud[1] and "(now 100%)" in loud[1]
    # Others still teach: that one is learned is no fault.
    assert [level for _, _, level in told[2]] == [logging.WARNING, logging.INFO, logging.WARNING]


def test_a_change_starts_the_count_again() -> None:
    batches = [[group({"a": [x] * 10})] for x in (0.0, 1.0, *[0.0] * 20)]
    told = observed(RewardMonitor(["a"], [1], patience=2), batches)
    assert [i for i, messages in enumerate(told) if messages] == [21], "one that fired once may be silent for long"
    assert observed(RewardMonitor(["a"], [1], patience=1), [[group({"a": [None, None]})]]) == [[]]


@pytest.mark.parametrize(("earlier", "level"), [(1.0, logging.WARNING), (0.0, logging.INFO)])
def test_a_reward_that_is_learned_is_no_fault(earlier: float, level: int) -> None:
    """At its highest from the start the task is too easy; after it rose, it is learned."""
    batches = [[group({"a": [earlier] * 5 + [1.0] * 5})], *[[group({"a": [1.0] * 10})]] * 3]
    *_, last = observed(RewardMonitor(["a"], [1], patience=3), batches)
    assert [(name, found) for name, _, found in last] == [("a saturated", level)]


@pytest.mark.parametrize(("judges", "high", "told"), [((), 10, True), ((), 4, False), (("loud",), 10, False)])
def test_what_dominates_by_its_scale(judges: tuple[str, ...], high: float, told: bool) -> None:
    """`loud` makes all but 1% of the spread; with scores of up to 4 only since `rare` seldom varies yet. One that says
    what is right may."""
    rare = [group({"loud": [0.0, high], "rare": [0.0, 0.0]}) for _ in range(9)]
    batch = [*rare, group({"loud": [0.0, high], "rare": [0.0, 1.0]})]
    *_, last = observed(RewardMonitor(["loud", "rare"], [1, 1], judges, patience=2), [batch] * 2)
    assert bool(last) is told


def test_a_penalty_that_does_not_fire_is_neither_silent_nor_saturated() -> None:
    monitor = RewardMonitor(["a", "b"], [1, 1], penalties=["a"], patience=1)
    batch = [group({"a": [0.0] * 20, "b": [1.0, 0.0] * 10})]
    assert observed(monitor, [batch] * 2) == [[], []]


def test_a_restored_monitor_goes_on() -> None:
    batch = [group({"a": [0.0] * 20})]
    whole, cut, again = (RewardMonitor(["a"], [1], patience=2) for _ in range(3))
    observed(cut, [batch])
    again.restore(json.loads(json.dumps(cut.state())))
    assert observed(again, [batch])[0] == observed(whole, [batch] * 2)[1] != []
