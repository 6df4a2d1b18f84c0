"""Progress: nothing for what is quick, log lines now and then for what is not, a display in their place."""

from __future__ import annotations

import logging
import time

import pytest

from cohort import progress


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.15)
    monkeypatch.setattr(progress, "displays", [])


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cohort.progress"]


def test_what_is_quick_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cohort")
    assert list(progress.track([1, 2, 3], "evaluating", "prompts")) == [1, 2, 3]
    time.sleep(0.15)
    assert lines(caplog) == [] and progress.running == []


def test_what_takes_long_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cohort")
    with progress.Task("evaluating", 1000, "prompts") as task:
        task.add(120)
        time.sleep(0.32)
    assert lines(caplog) == [
        "evaluating: 120 of 1,000 prompts, 0 s",
        "evaluating: 120 of 1,000 prompts, 0 s",
        "evaluating: done in 0 s",
    ]


def test_what_raises_is_not_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cohort")
    with pytest.raises(ZeroDivisionError), progress.Task("loading the model"):
        time.sleep(0.14)
        raise ZeroDivisionError
    assert lines(caplog) == ["loading the model: 0 s"] and progress.running == []


def test_a_display_takes_the_place_of_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cohort")
    shown: list[list[str]] = []

    class Display:
        def update(self) -> None:
            shown.append(progress.shown_lines())

    progress.displays.append(Display())
    with progress.Task("loading"):
        time.sleep(0.14)
    assert lines(caplog) == []
    assert shown == [["loading: 0 s"], []]
