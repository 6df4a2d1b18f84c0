"""A Ray cluster of two workers, started by the run: `make test-ray`."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import GRPOConfig, GRPOTrainer
from cohort.config.engines import RayEngineConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.policy.model import Policy
from cohort.rollouts.engine import EngineError, LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion
from helpers import StopAfter, digits, numbers, prompts_of, rows_of, seeds, small_model, small_policy

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="needs ray: make test-ray")

from cohort.rollouts.ray_pool import RayPool  # noqa: E402

_, TRAIN, _ = make_chains(2, 40, 8, seed=0)
PROMPTS = prompts_of((5, 9, 2, 7, 11, 3, 4, 8))
SAMPLING = Sampling(max_tokens=20, eos_ids=[1, 2, 3])


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Policy, RayPool]]:
    policy = small_policy()
    pool = RayPool(policy, RayEngineConfig(workers=2, timeout=60), 256)
    pool.check()
    yield policy, pool
    pool.release()


def ids(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in group] for group in groups]


def test_completions_are_those_of_the_local_engine_while_workers_are_killed(both: tuple[Policy, RayPool]) -> None:
    policy, pool = both
    chance = random.Random(0)
    lost = pool.lost
    for step in range(50):
        with torch.no_grad():
            for parameter in policy.parameters:
                parameter += 0.01 * torch.randn_like(parameter)
        policy.version = step
        pool.follow(policy, step)
        of_step = seeds(PROMPTS, step)
        if step % 5 == 4:
            ready = [member for member in pool.members if member.started is None]
            pid = chance.choice(ready).pid
            threading.Timer(chance.random() * 0.3, os.kill, (pid, signal.SIGKILL)).start()
        told: list[int] = []
        groups = pool.generate(
            PROMPTS, 4, SAMPLING, of_step, on_group=lambda i, _, told=told: told.append(i)
        ).completions
        assert sorted(told) == list(range(len(PROMPTS))), "every prompt is answered once"
        assert ids(groups) == ids(LocalEngine(policy).generate(PROMPTS, 4, SAMPLING, of_step).completions)
        assert {c.version for group in groups for c in group} == {step}
    assert pool.lost - lost >= 9  # the last one may die after the last answer


def test_a_worker_that_hangs_is_replaced(both: tuple[Policy, RayPool]) -> None:
    policy, pool = both
    pool.follow(policy, policy.version)
    pool.generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS))
    stopped = next(m for m in pool.members if m.started is None).pid
    lost, pool.config = pool.lost, RayEngineConfig(workers=2, timeout=5)
    os.kill(stopped, signal.SIGSTOP)
    groups = pool.generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS)).completions
    pool.config = RayEngineConfig(workers=2, timeout=60)
    assert ids(groups) == ids(LocalEngine(policy).generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS)).completions)
    assert pool.lost == lost + 1


def test_workers_join_and_leave_while_sampling(both: tuple[Policy, RayPool]) -> None:
    policy, pool = both
    pool.follow(policy, policy.version)
    expected = ids(LocalEngine(policy).generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS)).completions)
    for workers in (1, 2):
        resizing = lambda i, _, workers=workers: pool.resize(workers)  # noqa: E731
        assert ids(pool.generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS), on_group=resizing).completions) == expected
        assert ids(pool.generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS)).completions) == expected
        assert len(pool.members) == workers


def test_an_error_of_sampling_is_raised_and_the_pool_goes_on(both: tuple[Policy, RayPool]) -> None:
    policy, pool = both
    pool.follow(policy, policy.version)
    with pytest.raises(IndexError, match="out of range"):
        pool.generate([torch.tensor([500])], 2, SAMPLING, [1])
    pool.generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS))


def test_workers_that_always_fail_end_the_run(both: tuple[Policy, RayPool]) -> None:
    policy, pool = both
    pool.follow(policy, policy.version)
    pool.generate(PROMPTS, 2, SAMPLING, seeds(PROMPTS))
    while any(member.started is not None for member in pool.members):
        pool._keep_members()
    pool.config = RayEngineConfig(workers=2, timeout=2, max_failures=2)
    for member in list(pool.members):
        os.kill(member.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match=r"2 workers in a row ended without an answer"):
        pool.generate(PROMPTS, 4, SAMPLING, seeds(PROMPTS))
    pool.config = RayEngineConfig(workers=2, timeout=60)


def test_workers_that_cannot_load_the_model_end_the_run_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    here = types.ModuleType("only_here")
    monkeypatch.setitem(sys.modules, "only_here", here)
    here.Note = type("Note", (), {"__module__": "only_here"})  # type: ignore[attr-defined]
    policy = small_policy()
    policy.model.note = here.Note()
    pool = RayPool(policy, RayEngineConfig(workers=1, max_failures=2), 256)
    with pytest.raises(EngineError, match=r"2 workers in a row .*ModuleNotFoundError: No module named 'only_here'"):
        pool.check()
    pool.release()


def test_a_run_by_ray_is_the_local_run(tmp_path: Path) -> None:
    for name, engine in (("local", "local"), ("ray", {"ray": {"workers": 2}})):
        settings: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 12, "max_steps": 4}
        config = GRPOConfig(str(tmp_path / name), engine=engine, learning_rate=1e-2, max_completion_length=6,
                            use_cpu=True, bf16=False, beta=0.0, **settings)  # fmt: skip
        trainer = GRPOTrainer(small_model(vocab_size=22), digits, config, TRAIN, processing_class=build_tokenizer())
        trainer.train()
    local, ray = (rows_of(tmp_path / name) for name in ("local", "ray"))
    assert [row["reward"] for row in local] == [row["reward"] for row in ray]
    for one, other in zip(local, ray, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_a_run_in_segments_that_is_resumed_is_the_run_that_was_not(tmp_path: Path) -> None:
    def trainer(name: str) -> GRPOTrainer:
        settings: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 12, "max_steps": 6}
        config = GRPOConfig(str(tmp_path / name), engine={"ray": {"workers": 2}}, staleness=3, partial_rollouts=3,
                            learning_rate=1e-2, max_completion_length=12, use_cpu=True, bf16=False, save_steps=4,
                            **settings)  # fmt: skip
        return GRPOTrainer(small_model(vocab_size=22), digits, config, TRAIN, processing_class=build_tokenizer())

    whole, first, second = trainer("whole"), trainer("cut"), trainer("cut")
    whole.train()
    first.loop.callbacks.callbacks.append(StopAfter(4))
    first.train()
    second.train(resume_from_checkpoint=True)
    rows = [numbers(rows_of(tmp_path / name)) for name in ("whole", "cut")]
    assert rows[0] == rows[1] and rows[0][-1]["sampling/continued"] > 0
