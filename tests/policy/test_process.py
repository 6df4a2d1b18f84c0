"""The process of a run: one, with every global generator seeded."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cohort import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer
from cohort.cli.app import app
from cohort.data.chains import build_tokenizer
from cohort.evaluation.generate import Generator
from cohort.evaluation.models import evaluate_model
from helpers import byte_tokenizer, classifier, digit_rows, saved, small_model

ROWS = [{"prompt": f"{i}+{i}=", "answer": str(2 * i % 10)} for i in range(4)]


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def noisy(completions: list[Any], **_: Any) -> list[float]:
    return [random.random() + float(np.random.rand()) for _ in completions]


def trainer(folder: Path, **changes: Any) -> GRPOTrainer:
    values = {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 4,
              "bf16": False, "use_cpu": True, "reward_preflight": False, "seed": 7, **changes}  # fmt: skip
    model = small_model("Llama")
    return GRPOTrainer(model, noisy, GRPOConfig(str(folder), **values), ROWS, processing_class=build_tokenizer())


def test_a_runs_seed_is_that_of_every_generator(tmp_path: Path) -> None:
    rewards = []
    for changes in ({}, {}, {"seed": 8}):
        random.seed()
        np.random.seed()
        run = trainer(tmp_path, **changes)
        run.train()
        rewards.append([row["reward"] for row in run.state.log_history[:-1]])
    assert rewards[0] == rewards[1] != rewards[2]


def test_uses_of_a_model_seed_all_of_them_too(tmp_path: Path) -> None:
    model = saved(tmp_path / "m", small_model("Llama"), build_tokenizer())
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def reward_trainer() -> None:
        config = RewardConfig(str(tmp_path / "r"), use_cpu=True, bf16=False, seed=3)
        RewardTrainer(classifier("Bert"), config, digit_rows(8), processing_class=byte_tokenizer(bert=True))

    uses = [
        reward_trainer,
        lambda: Generator(model, seed=3),
        lambda: evaluate_model(model, str(tmp_path / "rows.jsonl"), max_completion_length=4, seed=3),
    ]
    for use in uses:
        draws = []
        for _ in range(2):
            random.seed()
            np.random.seed()
            use()
            draws.append(drawn()[:2])
        assert draws[0] == draws[1]


def test_commands_of_one_process_refuse_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["compare", "examples/compare_chains.yaml"], ["demo", "--output", str(tmp_path / "demo")]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 and "WORLD_SIZE is 2: this command is one process" in done.output
    assert not list(tmp_path.iterdir())
