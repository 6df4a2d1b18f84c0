"""Runs that sample by Ray, in turn with training and ahead of it, while workers and the run itself are killed:
`make test-ray`."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from helpers import StopAfter, rows_of
from sampled_ahead import SIGNALLED, batches_of, grpo, in_a_program, steps

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="needs ray: make test-ray")

RAY = {"ray": {"workers": 2, "timeout": 60}}


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows_of(folder) if "eval/reward" in row]


@pytest.mark.parametrize("staleness", [1, 2])
def test_batches_sampled_ahead_by_ray_are_those_of_copies(tmp_path: Path, staleness: int) -> None:
    keys: dict[str, Any] = {"staleness": staleness, "max_steps": 12, "eval_strategy": "steps", "eval_steps": 3}
    copies = grpo(tmp_path / "copies", **keys)
    by_ray = grpo(tmp_path / "ray", None, engine=RAY, **keys)
    expected, batches = batches_of(copies), batches_of(by_ray)
    copies.train()
    by_ray.train()
    assert batches == expected and len(batches) == 12
    assert [{version for _, version, *_ in batch} for batch in batches] == [{max(0, i - staleness)} for i in range(12)]
    # Evaluations sample the weights of their step, beside the batches.
    pairs = list(zip(evaluations(tmp_path / "copies"), evaluations(tmp_path / "ray"), strict=True))
    assert len(pairs) == 4
    assert all(one["eval/reward"] == other["eval/reward"] for one, other in pairs)


class Killing(TrainerCallback):
    """Kills a worker at some moment of every second step."""

    def __init__(self, trainer: Any):
        self.pool, self.chance = trainer.engine, random.Random(0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ready = [member.pid for member in self.pool.members if member.started is None]
        if state.global_step % 2 and ready:
            threading.Timer(self.chance.random() * 0.05, os.kill, (self.chance.choice(ready), signal.SIGKILL)).start()


@pytest.mark.parametrize("staleness", [0, 2])
def test_workers_that_are_killed_lose_and_double_nothing(tmp_path: Path, staleness: int) -> None:
    keys: dict[str, Any] = {"staleness": staleness, "max_steps": 14, "log_completions": 8}
    copies = grpo(tmp_path / "copies", **keys)
    killed = grpo(tmp_path / "killed", None, engine=RAY, **keys)
    killed.loop.callbacks.callbacks.append(Killing(killed))
    expected, batches = batches_of(copies), batches_of(killed)
    copies.train()
    killed.train()
    assert batches == expected
    assert killed.engine.lost >= 3
    for name in ("rows.jsonl", "completions.jsonl"):
        whole, cut = ((tmp_path / run / name).read_text().splitlines() for run in ("copies", "killed"))
        assert len(whole) == len(cut)


def of_session(session: int) -> list[str]:
    """The names of the processes of a session that go on."""
    names = []
    for folder in Path("/proc").iterdir():
        try:
            name, fields = (folder / "stat").read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, _, own = fields.split()[:4]
        if own == str(session) and state != "Z":
            names.append(name.partition("(")[2])
    return names


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("SIGKILL", {"staleness": 0}),
        ("SIGKILL", {"staleness": 1, "dynamic_sampling": True}),
        ("SIGKILL", {"staleness": 2}),
        ("SIGINT", {"staleness": 2}),
    ],
)
def test_a_run_that_is_ended_goes_on_as_if_it_had_not_been(tmp_path: Path, name: str, keys: dict[str, Any]) -> None:
    keys = {"engine": RAY, "max_steps": 8, "save_steps": 2, "log_completions": 8, **keys}
    ended = in_a_program(tmp_path / "cut", name, **keys)
    assert ended.returncode == {"SIGKILL": -9, "SIGINT": 1}[name], ended.stderr
    resumed, whole = (grpo(tmp_path / folder, None, **keys) for folder in ("cut", "whole"))
    batches, expected = batches_of(resumed), batches_of(whole)
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    first = 4 if name == "SIGKILL" else SIGNALLED  # the last checkpoint; one signal leaves another
    assert batches == expected[first:]
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")
    for record in ("rows.jsonl", "completions.jsonl"):
        assert (tmp_path / "cut" / record).read_text() == (tmp_path / "whole" / record).read_text()
    prompts = [row for batch in expected for row in {row for row, *_ in batch}]
    assert len(set(prompts)) == len(prompts) == 16


def test_rays_processes_end_with_a_killed_run(tmp_path: Path) -> None:
    ended = in_a_program(tmp_path, "SIGKILL", engine=RAY, staleness=2)
    assert ended.returncode == -9, ended.stderr
    session, until = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    agents = {"ray::DashboardA", "ray::RuntimeEnv"}  # they look for Ray's head for a minute
    while left := set(of_session(session)) - agents:
        assert time.monotonic() < until, left
        time.sleep(1)


def test_the_workers_of_a_run_leave_room_for_the_next(tmp_path: Path) -> None:
    # With an address, workers take the cluster's cores: it has two, and each run needs both.
    keys = {"engine": {"ray": {"workers": 2, "address": "auto"}}, "max_steps": 3}
    if not ray.is_initialized():
        grpo(tmp_path / "start", None, engine=RAY).engine.check()
    first = grpo(tmp_path / "first", None, **keys)
    first.train()
    second = grpo(tmp_path / "second", None, **keys)
    second.train()
    assert steps(tmp_path / "first") == steps(tmp_path / "second")
    assert not first.engine.members and not second.engine.members
    reward = first.evaluate()["eval_reward"]  # workers start again when they are asked
    first.engine.release()
    assert second.evaluate()["eval_reward"] == reward
    second.engine.release()


def test_a_run_that_ends_early_samples_no_further(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, None, engine=RAY, staleness=2, max_steps=100, max_completion_length=100)
    trainer.loop.callbacks.callbacks.append(StopAfter(1))
    trainer.train()
    for thread in threading.enumerate():
        if thread.name == "sampling":
            thread.join(10)
            assert not thread.is_alive()
    assert not trainer.engine.members
