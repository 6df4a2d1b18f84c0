"""What time_to_accuracy.py has both libraries learn: a start, problems, rewards and settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_model import real_model, sums

HELD_OUT = 300


@dataclass(frozen=True)
class SmallDemo:
    """`cohort demo --small`: chains of operations, from an SFT checkpoint of the seed's."""

    goal = 0.8
    every = 5
    """Steps between evaluations."""
    steps = 90

    def problems(self, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        from cohort.data.chains import Teacher, make_chains
        from cohort.demo import small

        return make_chains(small.OPERATIONS, small.TRAIN, small.HELD_OUT, seed, Teacher(seed))

    def start(self, seed: int, folder: Path) -> str:
        """The model that both libraries train; made in `folder` where it is missing."""
        from cohort import SFTTrainer
        from cohort.data.chains import build_model, build_tokenizer
        from cohort.demo import small

        start = folder / "start"
        if not (start / "config.json").is_file():
            tokenizer = build_tokenizer()
            build_model(tokenizer, seed).save_pretrained(folder / "random")
            tokenizer.save_pretrained(folder / "random")
            SFTTrainer(str(folder / "random"), small.sft_config(start, seed), self.problems(seed)[0]).train()
        return str(start)

    def train(self, seed: int) -> list[dict[str, Any]]:
        return self.problems(seed)[1]

    def held_out(self, seed: int) -> list[dict[str, Any]]:
        return self.problems(seed)[2][:HELD_OUT]

    def config(self, folder: Path, seed: int, steps: int) -> Any:
        from cohort.demo import small

        changes = {"eval_strategy": "no", "eval_on_start": False, "use_cpu": True, "max_steps": steps}
        return small.grpo_config(folder, seed).model_copy(update=changes)

    def rewards(self, library: str) -> list[Any]:
        from cohort.demo import small
        from cohort.rewards import accuracy, format_reward, overlong_penalty

        return list(small.GRPO_REWARDS) if library == "ours" else [
            accuracy, format_reward, overlong_penalty(small.LENGTH)
        ]  # fmt: skip


@dataclass(frozen=True)
class RealModel:
    """SmolLM2-135M-Instruct on sums of two numbers, accuracy its only reward; in bfloat16 if the processor has it."""

    goal = 0.6
    every = 3
    steps = 30

    def start(self, seed: int, folder: Path) -> str:
        return str(real_model())

    def train(self, seed: int) -> list[dict[str, Any]]:
        return sums(seed)[HELD_OUT:]

    def held_out(self, seed: int) -> list[dict[str, Any]]:
        return sums(seed)[:HELD_OUT]

    def config(self, folder: Path, seed: int, steps: int) -> Any:
        import torch

        from cohort import GRPOConfig
        from cohort.policy.load import fast_bf16

        return GRPOConfig(
            output_dir=str(folder),
            seed=seed,
            learning_rate=2e-5,
            lr_scheduler_type="constant",
            adam_beta2=0.99,
            beta=0.0,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=32,
            max_steps=steps,
            use_cpu=True,
            bf16=fast_bf16(torch.device("cpu")),
        )

    def rewards(self, library: str) -> list[Any]:
        from cohort.rewards import accuracy

        return ["accuracy"] if library == "ours" else [accuracy]
