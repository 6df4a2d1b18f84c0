"""Weights are sent to an engine that asks for them: before the first sample and after each change, and not again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort import GRPOConfig, GRPOTrainer
from cohort.config import InvalidConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.policy.model import Policy
from cohort.rollouts.engine import EngineError, LocalEngine
from cohort.rollouts.following import following
from cohort.rollouts.sampling import Generation, Sampling
from helpers import StopAfter, digits, prompts_of, seeds, small_model, small_policy

_, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)


class Elsewhere:
    """Samples a copy of the policy, as it was when it was sent."""

    def __init__(self, policy: Policy):
        self.copy, self.sent, self.reachable = policy.copy(), list[int](), True

    def follow(self, policy: Policy, version: int) -> None:
        self.sent.append(version)
        self.copy.model.load_state_dict(policy.model.state_dict())
        self.copy.version = version

    def check(self) -> None:
        if not self.reachable:
            raise EngineError("nobody listens at elsewhere:80: start it")

    def generate(
        self, prompts: list[Tensor], n: int, sampling: Sampling, seeds: Sequence[int], *others: Any, **options: Any
    ) -> Generation:
        return LocalEngine(self.copy).generate(prompts, n, sampling, seeds, *others, **options)


def grpo(folder: Path, engine: Any = Elsewhere, **values: Any) -> GRPOTrainer:
    values = {"max_steps": 4, "learning_rate": 1e-2, "num_iterations": 2, **values}
    config = GRPOConfig(str(folder), num_generations=4, per_device_train_batch_size=8, max_completion_length=6,
                        use_cpu=True, bf16=False, **values)  # fmt: skip
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    return GRPOTrainer(model, digits, config, TRAIN, HELD_OUT, processing_class=tokenizer, engine=engine)


def test_weights_are_sent_before_the_first_sample_after_an_update_only(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.train()
    # Batches are sampled with versions 0 and 2, evaluations with 1 to 4.
    assert trainer.engine.sent == [0, 1, 2, 3, 4]
    trainer.evaluate()
    assert trainer.engine.sent == [0, 1, 2, 3, 4]


def test_a_resumed_run_sends_its_weights_first(tmp_path: Path) -> None:
    first = grpo(tmp_path, save_steps=2)
    first.loop.callbacks.callbacks.append(StopAfter(2))
    first.train()
    resumed = grpo(tmp_path, save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert first.engine.sent == [0] and resumed.engine.sent == [2]
    assert all(map(torch.equal, resumed.engine.copy.parameters, first.policy.parameters))


def test_weights_that_change_without_an_update_are_sent() -> None:
    policy = small_policy()
    engine = Elsewhere(policy)
    both: Any = following(engine, policy)
    asked = prompts_of(), 2, Sampling(max_tokens=3), seeds(prompts_of())
    both.generate(*asked)
    both.generate(*asked)
    policy.model.load_state_dict(small_policy().model.state_dict())  # as load_best_model_at_end does
    both.generate(*asked)
    assert engine.sent == [0, 0]


def test_an_engine_of_this_process_is_used_as_it_is() -> None:
    policy = small_policy()
    engine = LocalEngine(policy)
    assert following(engine, policy) is engine


def test_an_engine_that_cannot_be_reached_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    trainer = grpo(tmp_path)
    trainer.engine.reachable = False
    with pytest.raises(EngineError, match="elsewhere:80"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lokal", r"`engine` is 'lokal': use local, \{ray: \{workers: 2\}\} or \{vllm"),
        ({"ray": {"worker": 3}}, "unknown key `engine.ray.worker`"),
        ({"ray": {"workers": 0}}, "`engine.ray.workers` is 0"),
    ],
)
def test_engines_that_are_none_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        GRPOConfig(engine=value)


def test_an_engine_is_written_as_it_is_read() -> None:
    for written in ("local", {"ray": {"workers": 3}}):
        config = GRPOConfig(engine=written)
        again = config.model_dump(mode="json")["engine"]
        assert again == written or again.keys() == written.keys()
        assert GRPOConfig(engine=again).engine == config.engine


def test_rewards_run_beside_an_engine_outside_this_process() -> None:
    assert GRPOConfig(engine="ray").overlap_rewards and not GRPOConfig().overlap_rewards
    assert not GRPOConfig(engine="ray", overlap_rewards=False).overlap_rewards
