"""Each method corrects errors that SFT on a flawed teacher taught: fifty one-step problems of the demo's task, seconds
each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cohort import SFTConfig, SFTTrainer, Trainer
from cohort.config import METHOD_CONFIGS
from cohort.data.chains import Problem, Teacher, answer, build_model, build_tokenizer, question, worked

QUICK: dict[str, Any] = {"use_cpu": True, "bf16": False, "max_completion_length": 16, "adam_beta2": 0.99}
EVERY: list[Problem] = [((a, b), o) for a in range(10) for o in "+-" for b in range(10)]
PROBLEMS = random.Random(1).sample(EVERY, 50)
ROWS = [{"prompt": [{"role": "user", "content": question(p)}], "answer": str(answer(p))} for p in PROBLEMS]

ONLINE = {
    "num_generations": 8,
    "per_device_train_batch_size": 200,
    "max_steps": 20,
    "lr_scheduler_type": "constant",
}
RECIPES: dict[str, dict[str, Any]] = {
    "rft": {"num_generations": 8, "learning_rate": 3e-3, "per_device_train_batch_size": 32, "max_steps": 30},
    "online_rft": {**ONLINE, "learning_rate": 2e-3},
    "dpo": {
        "num_generations": 64,
        "dpo_pairs": "best-worst",
        "beta": 0.5,
        "learning_rate": 2e-4,
        "per_device_train_batch_size": 25,
        "max_steps": 60,
    },
    "ppo": {
        **ONLINE,
        "learning_rate": 1e-3,
        "critic_learning_rate": 3e-3,
        "num_ppo_epochs": 1,
        "kl_coef": 0.0,
    },
    **{
        row: {**ONLINE, "learning_rate": 1e-3, "beta": 0.0}
        for row in ("grpo", "grpo_process", "rloo", "opo", "pass_at_k", "reinforce++")
    },
}
RECIPES["pass_at_k"]["pass_k"] = 2
REWARDS = {"grpo_process": ["chain_steps", "accuracy"]}
SLOW = {"online_rft", "ppo", "grpo", "grpo_process", "rloo", "opo", "pass_at_k", "reinforce++"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SFT on a teacher who gives a wrong value for 40% of the facts, in 60% of the uses."""
    folder, teacher, tokenizer = str(tmp_path_factory.mktemp("start")), Teacher(0), build_tokenizer()
    demonstrations = [
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": worked(problem, teacher)}]}
        for _ in range(20)
        for row, problem in zip(ROWS, PROBLEMS, strict=True)
    ]
    config = SFTConfig(
        output_dir=folder,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        per_device_train_batch_size=50,
        max_steps=80,
        **{**QUICK, "adam_beta2": 0.98},
    )
    model = build_model(tokenizer, 0, hidden_size=64, intermediate_size=192)
    SFTTrainer(model, config, demonstrations, processing_class=tokenizer).train()
    return folder


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RECIPES]
)
def test_the_method_mends_what_the_teacher_got_wrong(method: str, start: str, tmp_path: Path) -> None:
    config = METHOD_CONFIGS[method](output_dir=str(tmp_path), **QUICK, **RECIPES[method])
    trainer = Trainer(start, REWARDS.get(method, "accuracy"), config, ROWS, ROWS, method=method)
    before = trainer.evaluate()["eval_rewards/accuracy/mean"]
    trainer.train()
    after = trainer.evaluate()["eval_rewards/accuracy/mean"]
    assert 0.5 <= before <= 0.8
    assert after >= 0.88
