"""Runs whose completions a server of vLLM samples: a stub of its routes, and a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohort import GRPOConfig, GRPOTrainer
from cohort.config import InvalidConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.policy.model import Policy
from cohort.types import UserError
from helpers import StopAfter, digits, numbers, rows_of, small_model
from vllm_servers import SERVABLE, needs_vllm, servable_policy, served, stop_all
from vllm_stub import Stub, stub_of

_, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)
LORA = {"finetuning_type": "lora", "lora_rank": 4}


def model() -> Any:
    return small_model(**SERVABLE)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_of(servable_policy()) as started:
        yield started


def grpo(folder: Path, engine: Any, **values: Any) -> GRPOTrainer:
    values = {"max_steps": 4, "learning_rate": 1e-3, **values}
    config = GRPOConfig(str(folder), num_generations=4, per_device_train_batch_size=8, max_completion_length=6,
                        use_cpu=True, bf16=False, engine=engine, **values)  # fmt: skip
    return GRPOTrainer(model(), digits, config, TRAIN, HELD_OUT, processing_class=build_tokenizer())


def vllm(url: str, **settings: Any) -> dict[str, Any]:
    return {"vllm": {"url": url, "start_timeout": 5, **settings}}


def learned(folder: Path) -> list[tuple[float, float]]:
    return [(row["reward"], row["loss"]) for row in rows_of(folder) if "loss" in row]


@pytest.mark.parametrize("kind", [{}, LORA], ids=["weights", "adapter"])
def test_a_run_is_the_local_run(tmp_path: Path, stub: Stub, kind: dict[str, Any]) -> None:
    grpo(tmp_path / "local", "local", vllm_importance_sampling_correction=True, eval_steps=2, **kind).train()
    (tmp_path / "vllm" / "engine_weights" / "of a killed run").mkdir(parents=True)
    trainer = grpo(tmp_path / "vllm", vllm(stub.url), eval_steps=2, **kind)
    assert trainer.args.vllm_importance_sampling_correction and trainer.args.overlap_rewards
    trainer.train()
    rows = [row for row in rows_of(tmp_path / "vllm") if "loss" in row]
    assert all(row["sampling/logp_difference"] < 1e-5 and row["sampling/mismatch_kl"] < 1e-4 for row in rows)
    assert not (tmp_path / "vllm" / "engine_weights").exists() and not stub.adapters
    for one, other in zip(learned(tmp_path / "local"), learned(tmp_path / "vllm"), strict=True):
        assert other == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("kind", [{}, LORA], ids=["weights", "adapter"])
def test_a_resumed_run_sends_its_weights_first(tmp_path: Path, stub: Stub, kind: dict[str, Any]) -> None:
    grpo(tmp_path / "whole", vllm(stub.url), save_steps=2, **kind).train()
    trainer = grpo(tmp_path / "cut", vllm(stub.url), save_steps=2, **kind)
    trainer.add_callback(StopAfter(2))
    trainer.train()
    stub.stop()
    stub.begin()  # with the weights of the beginning
    grpo(tmp_path / "cut", vllm(stub.url), save_steps=2, **kind).train(resume_from_checkpoint=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))


@pytest.mark.parametrize("kind", [{}, LORA], ids=["weights", "adapter"])
def test_batches_are_sampled_ahead_by_the_weights_of_their_number(
    tmp_path: Path, stub: Stub, kind: dict[str, Any]
) -> None:
    for name in ("first", "second"):
        trainer = grpo(tmp_path / name, vllm(stub.url), staleness=1, eval_strategy="steps", eval_steps=2, **kind)
        trainer.train()
    rows = [row for row in rows_of(tmp_path / "first") if "loss" in row]
    assert [row["sampling/staleness"] for row in rows] == [0, 1, 1, 1]
    # The stub shares the process's matrix products with training: sums may be rounded in another way.
    for one, other in zip(learned(tmp_path / "first"), learned(tmp_path / "second"), strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def test_long_completions_go_on_with_newer_adapters(tmp_path: Path, stub: Stub) -> None:
    settings = {"staleness": 2, "partial_rollouts": 2, "max_steps": 6}
    grpo(tmp_path, vllm(stub.url), **settings, **LORA).train()
    rows = [row for row in rows_of(tmp_path) if "loss" in row]
    assert len(rows) == 6 and rows[-1]["sampling/continued"] > 0
    assert all(row["sampling/logp_difference"] < 1e-5 for row in rows) and not stub.adapters


def test_what_cannot_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="engine: vllm with top_p and min_p"):
        grpo(tmp_path, vllm("http://localhost:1"), top_p=0.9, min_p=0.1)
    with pytest.raises(InvalidConfig, match=r"sleep.*staleness"):
        grpo(tmp_path, vllm("http://localhost:1", sleep=True), staleness=1)
    with pytest.raises(UserError, match="no address of a server"):
        grpo(tmp_path, vllm("localhost"))
    with pytest.raises(UserError, match="there is no server at http://localhost:1"):
        grpo(tmp_path, vllm("http://localhost:1", start_timeout=0.1)).train()


@pytest.fixture(params=[{}, LORA], ids=["weights", "adapter"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    policy: Policy = servable_policy()
    server = served(policy, tmp_path / "served", rank=request.param.get("lora_rank"))
    server.wait()
    yield request.param, server
    stop_all()


@needs_vllm
@pytest.mark.slow
def test_a_run_learns_with_a_real_server_that_is_killed(tmp_path: Path, real: tuple[dict[str, Any], Any]) -> None:
    kind, server = real
    trainer = grpo(
        tmp_path / "run", vllm(server.url, start_timeout=180), max_steps=24, learning_rate=1e-2, staleness=1, **kind
    )

    def restart() -> None:
        while trainer.state.global_step < 8:
            time.sleep(0.05)
        server.stop()
        server.begin()

    thread = threading.Thread(target=restart)
    thread.start()
    trainer.train()
    thread.join()
    rows = [row for row in rows_of(tmp_path / "run") if "loss" in row]
    assert len(rows) == 24 and all(row["sampling/logp_difference"] < 1e-4 for row in rows)
    assert rows[0]["sampling/mismatch_kl"] < 1e-3  # later batches are of older weights
    assert sum(row["reward"] for row in rows[-6:]) > sum(row["reward"] for row in rows[:6])
