"""Small runs by every kind of method, for any number of ranks.
Each run has 12 completions or rows a step, of all ranks together, and leaves its folder; `gradients` leaves the
gradients of one batch under several methods."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from cohort import Trainer
from cohort.config import METHOD_CONFIGS, RewardConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.methods.table import METHODS
from cohort.policy import ranks
from cohort.train.reward_models.trainer import RewardTrainer
from cohort.train.step import Updater
from cohort.world import world_size
from helpers import (
    SHAPE,
    StopAfter,
    byte_tokenizer,
    classifier,
    digit_rows,
    digits,
    random_groups,
    small_model,
    small_policy,
    tokens_of,
)
from helpers import gradients as gradients_of

DEMONSTRATIONS, TRAIN, HELD_OUT = make_chains(2, 40, 5, seed=0)
WRONG = [{"role": "assistant", "content": "<answer>0</answer>"}]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": WRONG} for row in DEMONSTRATIONS]
TOTAL = 12
QUICK: dict[str, Any] = {
    "learning_rate": 1e-2,
    "max_completion_length": 6,
    "max_steps": 3,
    "use_cpu": True,
    "bf16": False,
    "save_steps": 2,
    "disable_tqdm": True,
    "eval_strategy": "steps",
    "eval_steps": 3,
}
SAMPLED: dict[str, Any] = {"num_generations": 4}
GRADIENTS: dict[str, dict[str, Any]] = {
    "grpo": {"beta": 0.0},
    "rloo": {},
    "online_rft": {},
    "sft": {},
}


def even(completions: list[Any], **_: Any) -> list[float]:
    """1 where the number of digits is even: what random text often is."""
    return [float(sum(c.isdigit() for c in completion[0]["content"]) % 2 == 0) for completion in completions]


def first_digits(steps: list[list[str]], **_: Any) -> list[list[float]]:
    """A score for each step: 1 where it begins with a digit."""
    return [[float(text[:1].isdigit()) for text in texts] for texts in steps]


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {**SAMPLED, "num_iterations": 2, "max_steps": 4}),
    "grpo small budget": ("grpo", {**SAMPLED, "token_budget": 24, "beta": 0.0}),
    "grpo lora": ("grpo", {**SAMPLED, "finetuning_type": "lora"}),
    "grpo masked": ("grpo", {**SAMPLED, "mask_truncated_completions": True, "loss_type": "dapo"}),
    "grpo chosen tokens": ("grpo", {**SAMPLED, "top_entropy_quantile": 0.5, "entropy_coef": 0.01}),
    "grpo steered entropy": (
        "grpo",
        {**SAMPLED, "use_adaptive_entropy": True, "entropy_target": 2.95, "entropy_coef_delta": 0.5, "beta": 0.0},
    ),
    "clip_cov": ("grpo", {**SAMPLED, "loss_type": "clip_cov", "clip_cov_lb": 0.0, "clip_cov_ratio": 0.1}),
    "gspo": ("grpo", {**SAMPLED, "importance_sampling_level": "sequence", "num_iterations": 2}),
    "dynamic sampling": ("grpo", {**SAMPLED, "dynamic_sampling": True, "beta": 0.0, "rewards": [even]}),
    "dapo": (
        "grpo",
        {
            **SAMPLED,
            "loss_type": "dapo",
            "dynamic_sampling": True,
            "overlap_rewards": True,
            "beta": 0.0,
            "rewards": [even],
        },
    ),
    "grpo_process": ("grpo_process", {**SAMPLED, "step_pattern": "[+=-]", "rewards": [first_digits, digits]}),
    "saved often": ("grpo", {**SAMPLED, "max_steps": 8, "save_steps": 1, "num_iterations": 2, "save_total_limit": 2}),
    "rloo": ("rloo", SAMPLED),
    "remax": ("remax", SAMPLED),
    "ppo": ("ppo", {"num_mini_batches": 2, "num_ppo_epochs": 2, "critic_learning_rate": 2e-2}),
    "ppo shared": ("ppo", {"critic": "shared", "num_generations": 2, "num_ppo_epochs": 1}),
    "dpo": ("dpo", {}),
    "dpo best-worst": ("dpo", {**SAMPLED, "dpo_pairs": "best-worst", "eval_strategy": "no"}),
    "sft": ("sft", {}),
    "rft": ("rft", {**SAMPLED, "reward_threshold": 0.2}),
}
SHARDED = "fsdp2 "
"""Before the name of a run: its model is divided among ranks."""


def run(folder: Path, name: str, callbacks: Sequence[Any] = (), **changes: Any) -> Trainer:
    is_sharded, name = name.startswith(SHARDED), name.removeprefix(SHARDED)
    method, settings = RUNS[name]
    settings = {**QUICK, **settings, **({"distributed": "fsdp2"} if is_sharded else {}), **changes}
    rewards = settings.pop("rewards", None if method == "sft" or name == "dpo" else digits)
    rows = {"sft": DEMONSTRATIONS, "dpo": PAIRS}.get(name, TRAIN)
    held_out = {"sft": DEMONSTRATIONS[:5], "dpo": PAIRS[:5], "dpo best-worst": None}.get(name, HELD_OUT)
    config = METHOD_CONFIGS[method](
        per_device_train_batch_size=TOTAL // world_size(), output_dir=str(folder), **settings
    )
    model = small_model(vocab_size=22)
    return Trainer(model, rewards, config, rows, held_out, build_tokenizer(), callbacks, method=method)


def reward_model(folder: Path, **changes: Any) -> RewardTrainer:
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "disable_tqdm": True, **changes}
    config = RewardConfig(str(folder), per_device_train_batch_size=TOTAL // world_size(), **settings)
    return RewardTrainer(classifier("Bert"), config, digit_rows(24), digit_rows(5, 1), byte_tokenizer(bert=True))


def mixture_of_experts(folder: Path, **changes: Any) -> Trainer:
    config = METHOD_CONFIGS["grpo"](
        per_device_train_batch_size=TOTAL // world_size(),
        output_dir=str(folder),
        router_aux_loss_coef=0.1,
        token_budget=40,
        **{**QUICK, **SAMPLED, "eval_strategy": "no", **changes},
    )
    return Trainer(small_model("Qwen3Moe", vocab_size=22), digits, config, TRAIN, None, build_tokenizer())


def iterative(folder: Path, **changes: Any) -> Trainer:
    torch.manual_seed(1)
    scorer = transformers.Qwen2Config(**{**SHAPE, "num_labels": 1, "vocab_size": 22, "pad_token_id": 0})
    path = folder.with_name("scorer")
    if ranks.is_main():
        transformers.Qwen2ForSequenceClassification(scorer).save_pretrained(path)
        build_tokenizer().save_pretrained(path)
    settings = {key: value for key, value in QUICK.items() if key not in ("max_steps", "eval_strategy")}
    config = METHOD_CONFIGS["grpo"](
        per_device_train_batch_size=TOTAL // world_size(),
        output_dir=str(folder),
        iterations=2,
        steps_per_iteration=2,
        reward_model_refit={"rule": f"{__file__}:even", "learning_rate": 1e-3, "replay_share": 0.25},
        gold_reward=f"{__file__}:even",
        reward_clip=None,
        **{**settings, **SAMPLED, **changes},
    )
    ranks.gather(None, "waiting for the scorer")
    return Trainer(small_model(vocab_size=22), [{"model": str(path)}], config, TRAIN, None, build_tokenizer())


def gradients(folder: Path) -> None:
    """Of one batch with groups of several sizes, off policy, with a reference; some completions have no advantage."""
    for method, values in GRADIENTS.items():
        policy = small_policy()
        groups = random_groups([(5, [4, 7, 1]), (9, [3, 8, 6]), (2, [11, 2, 5])])
        groups[1].advantages[0] = torch.zeros(3)
        config = METHOD_CONFIGS[method](use_cpu=True, bf16=False, token_budget=20, **values)
        Updater(policy, METHODS[method], config).gradient(groups, tokens_of(groups))
        if ranks.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: g.contiguous() for name, g in gradients_of(policy.model).items()},
                folder / f"{method}.safetensors",
            )


OTHERS: dict[str, Callable[..., Trainer | RewardTrainer]] = {
    "reward model": reward_model,
    "experts": mixture_of_experts,
    "iterative": iterative,
}


def start(folder: Path, name: str, **changes: Any) -> Trainer | RewardTrainer:
    return OTHERS[name](folder, **changes) if name in OTHERS else run(folder, name, **changes)


def main(output: str, *names: str) -> None:
    ranks.join(60, use_cpu=True)
    if names[0] in ("stop", "resume", "killed"):
        {"stop": stop, "resume": resume, "killed": killed}[names[0]](output, *names[1:])
        return
    for name in names:
        folder = Path(output) / name.replace(" ", "_")
        if name == "gradients":
            gradients(folder)
        else:
            start(folder, name).train()


def stop(output: str, *names: str) -> None:
    """Runs that end behind their first checkpoint."""
    for name in names:
        run(Path(output) / name.replace(" ", "_"), name, callbacks=[StopAfter(2)]).train()


def resume(output: str, *names: str) -> None:
    for name in names:
        run(Path(output) / name.replace(" ", "_"), name).train(resume_from_checkpoint=True)


def killed(output: str, rank: str, seconds: str, name: str) -> None:
    """A run whose rank, or each rank of `all`, ends without a word after so many seconds."""
    if rank in ("all", str(ranks.number())):
        threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()
    resume(output, name)
