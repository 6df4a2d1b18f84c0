"""Trainer(engine=...): any object with `generate`, or a function from the policy to one, samples in training and in
evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer, RFTConfig, RFTTrainer
from cohort.data.chains import build_tokenizer, make_chains
from cohort.policy.model import Policy
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Generation, Sampling
from cohort.types import Completion
from helpers import digits, numbers, rows_of, small_model

_, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)
SAMPLED: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 12, "max_completion_length": 6,
                           "learning_rate": 1e-2, "max_steps": 3, "use_cpu": True, "bf16": False}  # fmt: skip
EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}


class Counting:
    """The engine of this process; counts completions by temperature."""

    def __init__(self, policy: Policy):
        self.engine = LocalEngine(policy, max_rows=256)
        self.completions = {"training": 0, "evaluation": 0}

    def generate(
        self, prompts: list[Tensor], n: int, sampling: Sampling, seeds: Sequence[int], **options: Any
    ) -> Generation:
        self.completions["evaluation" if sampling.temperature == 0 else "training"] += len(prompts) * n
        return self.engine.generate(prompts, n, sampling, seeds, **options)


class PlainLoop:
    """Samples each completion by itself with the model's own forward pass, without a cache."""

    def __init__(self, policy: Policy):
        self.policy = policy

    @torch.no_grad()
    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: Any = None,
        on_group: Any = None,
        keep_tokens: int = 0,
    ) -> Generation:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.policy.model.eval()
        pairs = zip(prompts, generators, strict=True)
        groups = [[self._sample(prompt, sampling, generator) for _ in range(n)] for prompt, generator in pairs]
        self.policy.model.train()
        for i, group in enumerate(groups):
            if on_group is not None:
                on_group(i, group)
        return Generation(groups)

    def _sample(self, prompt: Tensor, sampling: Sampling, generator: torch.Generator) -> Completion:
        ids, logprobs = prompt, []
        while len(logprobs) < sampling.max_tokens and not (logprobs and int(ids[-1]) in sampling.eos_ids):
            logp = (self.policy.model(input_ids=ids[None]).logits[0, -1] / (sampling.temperature or 1)).log_softmax(-1)
            greedy = sampling.temperature == 0
            token = logp.argmax()[None] if greedy else torch.multinomial(logp.exp(), 1, generator=generator)
            ids, logprobs = torch.cat([ids, token]), [*logprobs, logp[token]]
        new = ids[len(prompt) :]
        text = self.policy.tokenizer.decode(new.tolist(), skip_special_tokens=True)
        truncated = int(new[-1]) not in sampling.eos_ids
        return Completion(new, torch.cat(logprobs), text, truncated, self.policy.version)


def grpo(folder: Path, engine: Any = None, **values: Any) -> GRPOTrainer:
    config = GRPOConfig(output_dir=str(folder), **{**SAMPLED, **EVALUATED, **values})
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    return GRPOTrainer(model, digits, config, TRAIN, HELD_OUT, processing_class=tokenizer, engine=engine)


def test_an_engine_that_counts_samples_in_training_and_in_evaluation(tmp_path: Path) -> None:
    # Without a reference, whose log-probabilities at the start are the local engine's own.
    trainer = grpo(tmp_path / "counted", Counting, beta=0.0)
    trainer.train()
    assert trainer.engine.completions == {"training": 3 * 12, "evaluation": len(HELD_OUT)}
    trainer.evaluate()
    assert trainer.engine.completions["evaluation"] == 2 * len(HELD_OUT)
    grpo(tmp_path / "default", beta=0.0).train()
    assert numbers(rows_of(tmp_path / "counted")) == numbers(rows_of(tmp_path / "default"))


@pytest.mark.parametrize("overlap", [False, True])
def test_an_engine_of_ones_own_trains_and_evaluates(tmp_path: Path, overlap: bool) -> None:
    trainer = grpo(tmp_path, PlainLoop, overlap_rewards=overlap, learning_rate=3e-2, max_steps=12, eval_steps=12)
    trainer.train()
    rows = rows_of(tmp_path)
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 12 and steps[-1]["reward"] > steps[0]["reward"]
    # The first update of a batch is on-policy, which the step can tell by the versions of the completions.
    assert all(row["ratio/min"] == row["ratio/max"] == 1 for row in steps)
    assert [row["eval/samples"] for row in rows if "eval/reward" in row] == [len(HELD_OUT)]


def test_the_logprobs_of_another_engine_are_those_of_the_policy(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, PlainLoop)
    trainer.loop.source.prepare(tmp_path, False)
    groups, _, activations, _ = trainer.loop.source.batch(0, trainer.state)
    assert activations is None
    trainer.loop.updater.gradient(groups, generation_tokens=1.0)
    for group in groups:
        for completion, logprobs, advantages in zip(
            group.completions, group.old_logprobs, group.advantages, strict=True
        ):
            if bool(advantages.any()):
                assert torch.allclose(completion.logprobs, logprobs, atol=1e-5)


def test_an_engine_may_be_given_as_an_object(tmp_path: Path) -> None:
    policy = grpo(tmp_path / "other").policy
    engine = Counting(policy)
    trainer = grpo(tmp_path / "run", engine, eval_strategy="no")
    assert trainer.engine is engine
    trainer.loop.source.batch(0, trainer.state)
    assert engine.completions["training"] == 12


def test_every_trainer_that_samples_passes_the_engine_on(tmp_path: Path) -> None:
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    rows: dict[str, Any] = {"train_dataset": TRAIN[:4], "processing_class": tokenizer, "engine": Counting}
    settings = {**SAMPLED, "max_steps": 1}
    ppo = PPOTrainer(model, digits, PPOConfig(str(tmp_path / "ppo"), **settings), **rows)
    rft = RFTTrainer(model, digits, RFTConfig(str(tmp_path / "rft"), reward_threshold=0.1, **settings), **rows)
    pairs = DPOConfig(str(tmp_path / "dpo"), dpo_pairs="best-worst", **settings)
    dpo = DPOTrainer(model, pairs, reward_funcs=digits, **rows)
    for trainer in (ppo, rft, dpo):
        trainer.train()
    assert ppo.engine.completions["training"] == 12
    assert rft.engine.completions["training"] == dpo.engine.completions["training"] == 16
