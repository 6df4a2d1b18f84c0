"""Records stay below a limit, whole, and right where a run is resumed."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort.train.output import lines
from cohort.train.output.group_record import About
from cohort.train.output.record import COMPLETIONS, GROUPS, METRICS, ROWS, Recorder
from cohort.types import Completion, Group, Row


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def steps(path: Path) -> list[int]:
    return list(dict.fromkeys(row["step"] for row in read(path)))


def write(recorder: Recorder, first: int, last: int, name: str = COMPLETIONS, each: int = 2) -> None:
    for step in range(first, last + 1):
        for i in range(each):
            recorder._append(name, {"step": step, "index": i, "completion": "é" * 40})


def test_the_older_half_loses_half_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cohort")
    recorder = Recorder(tmp_path)
    recorder.start(0)
    write(recorder, 1, 8)
    path = tmp_path / COMPLETIONS
    monkeypatch.setattr(lines, "LIMIT", path.stat().st_size - 1)
    monkeypatch.setattr(lines, "FILLED", 0.8)
    assert steps(path) == list(range(1, 9))
    lines.thin(path, lines.as_they_are)
    assert steps(path) == [1, 4, 5, 6, 7, 8]
    monkeypatch.setattr(lines, "LIMIT", 5 * lines.LIMIT)
    write(recorder, 9, 1000)
    assert path.stat().st_size <= lines.LIMIT
    kept = steps(path)
    assert kept[0] == 1 and kept[-10:] == list(range(991, 1001)) and len(kept) < 45
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps) < 300, "the whole run stays visible"
    counts = {step: sum(row["step"] == step for row in read(path)) for step in kept}
    assert set(counts.values()) == {2}, "a step's lines stay together"
    assert caplog.text.count("completions.jsonl has reached") == 1
    write(recorder, 1, 50, METRICS)
    assert steps(tmp_path / METRICS) == list(range(1, 51))  # curves keep every step


def test_a_run_resumed_behind_the_thinned_half_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LIMIT", 12000)
    for name in ("whole", "cut"):
        recorder = Recorder(tmp_path / name)
        recorder.start(0)
        write(recorder, 1, 60)
    resumed = Recorder(tmp_path / "cut")
    resumed.start(50)
    assert steps(tmp_path / "cut" / COMPLETIONS)[-1] == 50
    write(resumed, 51, 90)
    write(recorder := Recorder(tmp_path / "whole"), 61, 90)
    assert (tmp_path / "cut" / COMPLETIONS).read_bytes() == (tmp_path / "whole" / COMPLETIONS).read_bytes()
    early = Recorder(tmp_path / "cut")
    early.start(3)  # before what was thinned: steps are missing before, and none twice after
    write(early, 4, 90)
    every = [(row["step"], row["index"]) for row in read(tmp_path / "cut" / COMPLETIONS)]
    assert len(set(every)) == len(every) and every == sorted(every)
    assert (tmp_path / "cut" / COMPLETIONS).stat().st_size <= 12000 and recorder.writes


def test_a_kill_while_a_file_is_thinned_leaves_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path)
    recorder.start(0)
    write(recorder, 1, 20)
    before = (tmp_path / COMPLETIONS).read_bytes()
    monkeypatch.setattr(lines, "LIMIT", len(before))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        write(recorder, 21, 21, each=1)
    assert (tmp_path / COMPLETIONS).read_bytes().startswith(before)
    again = Recorder(tmp_path)
    again.start(20)
    assert (tmp_path / COMPLETIONS).read_bytes() == before
    write(again, 21, 21)
    assert steps(tmp_path / COMPLETIONS)[-1] == 21
    assert (tmp_path / COMPLETIONS).stat().st_size < len(before)
    assert not list(tmp_path.glob("earlier-*"))


def test_lines_over_the_limit_leave_the_first_and_the_last_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LIMIT", 10)
    recorder = Recorder(tmp_path)
    recorder.start(0)
    write(recorder, 1, 9, GROUPS)
    assert steps(tmp_path / GROUPS) == [1, 8, 9]


def visit(number: int, reward: float = 1.0) -> Group:
    completions = [Completion(torch.tensor([1]), torch.zeros(1))]
    return Group(torch.tensor([1]), completions, Row(f"prompt {number}", number=number), [reward], {"own": [reward]})


def test_a_rows_prompt_stays_with_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = About("grpo", "m", None)
    monkeypatch.setattr(lines, "LIMIT", 2500)
    recorder = Recorder(tmp_path, about=about)
    recorder.start(0)
    for step in range(1, 101):
        recorder.rows(step, [visit(step % 7), visit(step % 5 + 10)], [])
    history = read(tmp_path / ROWS)
    assert (tmp_path / ROWS).stat().st_size <= 2500 and len(history) < 60
    seen: set[int] = set()
    for line in history:
        assert ("prompt" in line) == (line["row"] not in seen), line
        seen.add(line["row"])
    resumed = Recorder(tmp_path, about=about)
    resumed.start(100)
    resumed.rows(101, [visit(3), visit(99)], [])
    assert ["prompt" in line for line in read(tmp_path / ROWS)[-2:]] == [3 not in seen, True]
