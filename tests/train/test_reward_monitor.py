"""What is kept and said of a batch's completions while a run goes on."""

from __future__ import annotations

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


def test_each_complaint_comes_once_and_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    monitor = RewardMonitor(["silent", "full", "loud", "quiet"], [1, 1, 10, 1], patience=3)
    batch = [group({"silent": [0, None, 0, 0], "full": [1] * 4, "loud": [0, 1, 2, 1], "quiet": [0, 0.5, 0, 0]})]
    with caplog.at_level(logging.WARNING, "cohort"):
        told = [monitor.observe(batch) for _ in range(6)]
    assert [len(messages) for messages in told] == [0, 0, 3, 0, 0, 0]
    silent, full, loud = told[2]
    assert silent == "reward silent has been 0 for every completion of 3 batches: it never fires"
    assert "reward full has been at its highest, 1, for at least 95% of the completions of 3 batches" in full
    assert "reward loud has made at least 90% of the spread" in loud and "(now 100%)" in loud
    assert len(caplog.records) == 3


def test_a_change_starts_the_count_again() -> None:
    monitor = RewardMonitor(["a"], [1], patience=2)
    zero, one = [group({"a": [0, 0]})], [group({"a": [0, 1]})]
    assert [monitor.observe(batch) for batch in (zero, one, zero)] == [[], [], []]
    assert len(monitor.observe(zero)) == 1
    assert RewardMonitor(["a"], [1], 1).observe([group({"a": [None, None]})]) == []


def test_a_penalty_that_does_not_fire_is_not_saturated() -> None:
    monitor = RewardMonitor(["a", "b"], [1, 1], patience=1)
    messages = monitor.observe([group({"a": [0.0, 0, -1, 0], "b": [1, 0, 1, 0]})])
    assert messages == []
