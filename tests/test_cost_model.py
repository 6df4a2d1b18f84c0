"""bench/cost_model.py on small worked numbers."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from typing import Any

import pytest

from helpers import ROOT


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("cost_model")


@pytest.fixture
def work(model: Any) -> Any:
    """16 completions of 10 tokens, the longest of 20; 4 * 5 + 16 * 10 = 180 tokens."""
    return model.Work(prompts=4, group=4, prompt_tokens=5, completion_tokens=10, longest=20)


@pytest.fixture
def parts(model: Any) -> Any:
    return model.Parts(
        parameters=100,
        token=0.5,
        position=1.0,
        row=0.25,
        reduce_bandwidth=50,
        reduce_latency=0.125,
        bucket=30,
        gather_bandwidth=40,
        bytes_token=12,
        bytes_completion=40,
        host_completion=0.5,
        engine_bandwidth=25,
    )


def test_a_ring_sends_nothing_alone_and_at_most_twice_the_size(model: Any) -> None:
    assert [model.ring_bytes(120, ranks) for ranks in (1, 2, 4)] == [0, 120, 180]
    assert model.ring_bytes(120, 10**9) == pytest.approx(240)


def test_one_rank_sends_nothing(model: Any, work: Any, parts: Any) -> None:
    assert model.phases(work, parts, 1) == {
        "generate": 20 * (1 + 16 * 0.25),
        "compute": 180 * 0.5,
        "gradients": 0,
        "groups": 0,
        "host": 0,
        "weights": 200 / 25,
    }


def test_four_ranks_divide_the_work_and_receive_three_quarters_of_the_batch(model: Any, work: Any, parts: Any) -> None:
    found = model.phases(work, parts, 4)
    assert found == {
        "generate": 20 * (1 + 4 * 0.25),
        "compute": 45 * 0.5,
        "gradients": 2 * 0.75 * 400 / 50 + 4 * 2 * 2 * 0.125,  # 4 buckets, log2(4) = 2
        "groups": 12 * (10 * 12 + 40) / 40,
        "host": 12 * 0.5,
        "weights": 8,
    }
    assert model.seconds(work, parts, 4) == sum(found.values()) == 40 + 22.5 + 14 + 48 + 6 + 8


def test_a_group_is_sampled_by_one_rank(model: Any, work: Any, parts: Any) -> None:
    seconds = [model.phases(work, parts, ranks)["generate"] for ranks in (2, 3, 4, 8)]
    assert seconds == [20 * (1 + 8 * 0.25), 20 * (1 + 8 * 0.25), 40, 40]


def test_efficiency(model: Any, work: Any, parts: Any) -> None:
    free = replace(parts, parameters=0, position=0, bytes_token=0, bytes_completion=0, host_completion=0)
    assert model.strong_efficiency(work, free, 4) == model.weak_efficiency(work, free, 4) == pytest.approx(1)
    assert model.strong_efficiency(work, parts, 4) == pytest.approx(198 / (4 * 138.5))
    # With four times the prompts: 64 completions, of which 48 are received.
    assert model.weak_efficiency(work, parts, 4) == pytest.approx(198 / (100 + 90 + 14 + 48 * (160 / 40 + 0.5) + 8))


def test_the_replicated_batch_is_good_as_long_as_its_share_is_small(model: Any, work: Any, parts: Any) -> None:
    last = model.replicated_until(work, parts, share=0.75)

    def share(ranks: int) -> float:
        of = model.phases(model.weak(work, ranks), parts, ranks)
        return float((of["groups"] + of["host"]) / sum(of.values()))

    assert share(last) <= 0.75 < share(last + 1)
    assert model.replicated_until(work, replace(parts, bytes_token=0, bytes_completion=0, host_completion=0)) == 100_000


def test_the_measured_parts_give_the_measured_step(model: Any) -> None:
    """On the one GPU that was measured: 10.0 s, and 1.7 + 5.8."""
    found = model.phases(model.G, model.H100, 1)
    assert (found["generate"], found["compute"]) == (pytest.approx(10.0, rel=0.01), pytest.approx(7.5))


def test_the_page_has_the_models_figures(model: Any) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \|(?: [\d.]+ \|){5} ([\d.]+) \| (\d+)% \|$", page, re.MULTILINE)
    assert len(rows) == 7
    for count, step, efficiency in rows:
        ranks = int(count.replace(",", ""))
        assert float(step) == pytest.approx(model.seconds(model.weak(model.G, ranks), model.H100, ranks), abs=0.06)
        assert float(efficiency) == pytest.approx(100 * model.weak_efficiency(model.G, model.H100, ranks), abs=0.51)
    good = re.findall(r"^\|.* \| ([\d,]+) GPUs \| (\d+)% \|$", page, re.MULTILINE)
    for (until, efficiency), parts in zip(good, model.DESIGNS.values(), strict=True):
        assert int(until.replace(",", "")) == model.replicated_until(model.G, parts)
        assert float(efficiency) == pytest.approx(100 * model.weak_efficiency(model.G, parts, 1000), abs=0.51)
    again = dict(re.findall(r"(\d+)% on (\d+)", page))
    same = {
        str(round(100 * model.strong_efficiency(model.G, model.H100, int(ranks)))): ranks for ranks in again.values()
    }
    assert again == same
