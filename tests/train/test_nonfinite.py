"""NaN and infinite numbers: in gradients, rewards, log-probabilities, logits and weights. A run stops with what, where
and why, or skips the step; no such weight is saved."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cohort import GRPOConfig, GRPOTrainer, PPOConfig, UserError
from cohort.config import RewardConfig, TrainingConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.methods.table import METHODS
from cohort.policy.model import Policy
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Generation, Sampling, draw
from cohort.train.critic import CriticUpdater
from cohort.train.optimizer import descend, make_optimizer
from cohort.train.reward_models.model import RewardModel
from cohort.train.reward_models.updater import RewardUpdater
from cohort.train.step import Updater
from cohort.train.trainer import Trainer
from cohort.types import NotFinite, Row
from helpers import (
    SIZES,
    byte_tokenizer,
    classifier,
    digits,
    perturbed,
    prompts_of,
    random_groups,
    rows_of,
    seeds,
    settings,
    small_model,
    small_policy,
    tokens_of,
)

_, TRAIN, _ = make_chains(2, 8, 8, seed=0)
QUICK: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 6,
                         "learning_rate": 1e-2, "max_steps": 3, "use_cpu": True, "bf16": False,
                         "reward_preflight": False}  # fmt: skip
UNBOUNDED: dict[str, Any] = {"reward_clip": None, "scale_rewards": "none", "max_grad_norm": 0.0, "beta": 0.0}


def grpo(folder: Path, reward: Any = digits, engine: Any = None, **values: Any) -> GRPOTrainer:
    config = GRPOConfig(output_dir=str(folder), **{**QUICK, **values})
    return GRPOTrainer(
        small_model(vocab_size=22), reward, config, TRAIN, processing_class=build_tokenizer(), engine=engine
    )


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.weight = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        ([math.inf, 1.0, 0.0], r"first in weight \(1 of its 3 entries\)"),
        ([math.nan, 1.0, math.nan], r"first in weight \(2 of its 3 entries\)"),
        ([1e25, 1.0, 0.0], r"norm overflows: its largest entry is 1e\+25, in weight"),
    ],
)
def test_a_gradient_that_is_not_finite_changes_nothing(
    gradient: list[float], message: str, max_grad_norm: float, caplog: pytest.LogCaptureFixture
) -> None:
    model = Linear()
    for behaviour in ("stop", "skip"):
        config = TrainingConfig(on_nonfinite=behaviour, max_grad_norm=max_grad_norm)
        optimizer = make_optimizer([model.weight], config)
        model.weight.grad = torch.tensor(gradient)
        if behaviour == "stop":
            with pytest.raises(NotFinite, match=message):
                descend(optimizer, [model.weight], 0.1, config, model)
        else:
            assert not math.isfinite(descend(optimizer, [model.weight], 0.1, config, model))
            assert "this update is skipped" in caplog.text
        assert model.weight.tolist() == [1.0, 1.0, 1.0] and model.weight.grad is None and not optimizer.state


def test_a_finite_gradient_is_clipped_and_followed() -> None:
    model, config = Linear(), TrainingConfig(max_grad_norm=1.0)
    optimizer = make_optimizer([model.weight], config)
    model.weight.grad = torch.tensor([3.0, 4.0, 0.0])
    assert descend(optimizer, [model.weight], 0.1, config) == pytest.approx(5.0)
    assert model.weight.tolist() == pytest.approx([0.9, 0.9, 1.0])
    assert optimizer.state[model.weight]["exp_avg"].tolist() == pytest.approx([0.06, 0.08, 0.0])


def huge_once(completions: list[Any], trainer_state: Any, **_: Any) -> list[float]:
    return [digit * (1e25 if trainer_state.global_step == 1 else 1.0) for digit in digits(completions)]


def test_a_run_stops_at_a_gradient_that_overflows(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, huge_once, **UNBOUNDED, save_steps=1)
    with pytest.raises(NotFinite) as caught:
        trainer.train()
    message = str(caught.value)
    assert message.startswith("step 2: the gradient's norm overflows: its largest entry is ")
    assert "|reward| up to" in message and "e+24, |advantage| up to" in message
    assert message.endswith(f"The newest checkpoint, from before, is {tmp_path / 'checkpoint-1'}")
    assert isinstance(caught.value, UserError) and isinstance(caught.value, FloatingPointError)
    assert not (tmp_path / "model.safetensors").exists()
    assert all(p.isfinite().all() for p in trainer.policy.parameters)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_run_skips_such_a_step_if_asked_to(tmp_path: Path, clip: float, caplog: pytest.LogCaptureFixture) -> None:
    values = {**UNBOUNDED, "max_grad_norm": clip}
    trainer = grpo(tmp_path, huge_once, **values, on_nonfinite="skip", save_steps=1, save_total_limit=None)
    trainer.train()
    assert [row["update_skipped"] for row in rows_of(tmp_path)] == [0.0, 1.0, 0.0]
    assert trainer.policy.version == 2 and caplog.text.count("this update is skipped") == 1
    one, two, three = (load_file(tmp_path / f"checkpoint-{i}" / "model.safetensors") for i in (1, 2, 3))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(two[name], three[name]) for name in two)
    assert all(weight.isfinite().all() for weight in three.values())
    (batch,) = (tmp_path / "nonfinite").iterdir()
    assert batch.name == "step-2.json" and f"the batch of the update that was left out is in {batch}" in caplog.text
    completion = json.loads(batch.read_text())[0]
    assert completion["completions"][0]["text"] and max(map(abs, completion["rewards"])) >= 1e24


def test_a_run_whose_updates_are_all_left_out_stops(tmp_path: Path) -> None:
    def huge_from_2(completions: list[Any], trainer_state: Any, **_: Any) -> list[float]:
        return [digit * (1e25 if trainer_state.global_step else 1.0) for digit in digits(completions)]

    values = {**UNBOUNDED, "max_steps": 9, "on_nonfinite": "skip", "max_nonfinite_updates": 3, "save_steps": 1}
    with pytest.raises(NotFinite, match=r"step 4: 3 updates in a row were left out .*The newest checkpoint, .*-3$"):
        grpo(tmp_path, huge_from_2, **values).train()
    assert len(list((tmp_path / "nonfinite").iterdir())) == 3


def test_a_reward_too_large_for_float32_is_told_before_the_step(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, lambda completions, **_: [1e39, 0.0] * (len(completions) // 2), reward_clip=None)
    with pytest.raises(NotFinite, match=r"step 1: grpo: an advantage is NaN or infinite .*\|reward\| up to 1e\+39"):
        trainer.train()


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_told_with_its_function(tmp_path: Path, score: float) -> None:
    def broken(completions: list[Any], **_: Any) -> list[float]:
        return [score] * len(completions)

    with pytest.raises(UserError, match=rf"'broken' returned {score} for row 0"):
        grpo(tmp_path, broken).train()


@pytest.mark.parametrize("vocabulary", [300, 3000, 3072], ids=["short", "long", "whole blocks"])
@pytest.mark.parametrize(
    "rule", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"temperature": 0.0}, {"temperature": 0.5}], ids=str
)
@pytest.mark.parametrize("shared", [False, True])
def test_logits_that_are_not_finite_give_a_token_without_a_logprob(
    vocabulary: int, rule: dict[str, Any], shared: bool
) -> None:
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[1, 7], logits[2] = math.nan, -math.inf
    logits[3, 5] = math.inf
    rows = torch.tensor([0, 1, 2, 3, 0, 1]) if shared else None
    tokens, logprobs = draw(logits, Sampling(**rule), torch.rand(4 if rows is None else len(rows)), rows)
    assert ((tokens >= 0) & (tokens < vocabulary)).all()
    expected = [True, False, False, False, True, False] if shared else [True, False, False, False]
    assert logprobs.isfinite().tolist() == expected


@pytest.mark.parametrize("engine", [LocalEngine, RowEngine])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [True, False], ids=["weights", "activations"])
def test_an_engine_says_why_it_cannot_sample(engine: Any, temperature: float, broken: bool) -> None:
    policy = small_policy()
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight[0, 3] = math.nan if broken else 3e38
        policy.model.model.layers[1].mlp.down_proj.weight[:, 0] *= 1e3
    found = r"first" if broken else "all weights are finite: its activations overflow float32"
    found = r"model\.layers\.1\.mlp\.up_proj\.weight \(1 of its 1536 entries\)" if broken else found
    with pytest.raises(NotFinite, match=found):
        engine(policy).generate(prompts_of(), 3, Sampling(temperature=temperature, max_tokens=20), seeds(prompts_of()))


class Broken:
    """Returns a log-probability of minus infinity."""

    def __init__(self, policy: Policy):
        self.engine = LocalEngine(policy)

    def generate(
        self, prompts: list[Tensor], n: int, sampling: Sampling, seeds: Sequence[int], **options: Any
    ) -> Generation:
        generation = self.engine.generate(prompts, n, sampling, seeds)
        generation.completions[1][2].logprobs[0] = -math.inf
        return generation


def test_an_engines_logprob_that_is_not_finite_is_told(tmp_path: Path) -> None:
    message = "step 1: the engine gave token 0 of completion 2 of prompt 1 the log-probability -inf"
    with pytest.raises(NotFinite, match=message):
        grpo(tmp_path, engine=Broken).train()


@pytest.mark.parametrize("saved", [True, False])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, saved: bool) -> None:
    trainer = grpo(tmp_path, max_steps=1, save_steps=1 if saved else 0)
    trainer.loop.run()
    with torch.no_grad():
        trainer.policy.parameters[2][0] = math.nan
    where = r"The newest checkpoint, from before, is .*checkpoint-1" if saved else r"There is no checkpoint"
    for save in (trainer.save_model, trainer.loop._save):
        with pytest.raises(NotFinite, match=rf"first model\.layers\.0\.\S+ \(.* entries\)\. {where}"):
            save()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_learning_rate_that_breaks_the_weights_leaves_no_model(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, learning_rate=1e39, max_steps=1, save_steps=1)
    with pytest.raises(NotFinite, match=r"are not saved, first model\.embed_tokens\.weight"):
        trainer.train()
    assert not list(tmp_path.glob("**/*.safetensors")) and not list(tmp_path.glob("checkpoint-*"))


def test_a_critic_that_breaks_is_told(tmp_path: Path) -> None:
    config = PPOConfig(output_dir=str(tmp_path), **QUICK)
    trainer = Trainer(
        small_model(vocab_size=22), digits, config, TRAIN, processing_class=build_tokenizer(), method="ppo"
    )
    critic: CriticUpdater = trainer.loop.companions[0]  # type: ignore[assignment]
    with torch.no_grad():
        critic.critic.head.bias.fill_(math.inf)
    with pytest.raises(NotFinite, match=r"ppo: an advantage is NaN .*\|value\| up to inf"):
        trainer.train()
    groups = random_groups(SIZES, vocabulary=22)
    critic.attach(groups)
    with pytest.raises(NotFinite, match=r"NaN or infinite, first in critic\.model\.embed_tokens\.weight"):
        critic.step(groups, tokens_of(groups), 1.0)
    with pytest.raises(NotFinite, match=r"first critic: weights\.\d+ \(1 of its 1 entries\)"):
        trainer.loop._save()


def test_a_reward_model_that_breaks_is_told() -> None:
    config = RewardConfig(bf16=False, use_cpu=True)
    model = classifier("Qwen2")
    updater = RewardUpdater(RewardModel(model, byte_tokenizer(), config), config, "bce")
    rows = [Row("a", completion="b", columns={"label": 1.0}), Row("c", completion="d", columns={"label": 0.0})]
    with torch.no_grad():
        model.score.weight[0, 0] = math.nan
    with pytest.raises(NotFinite, match=r"NaN or infinite, first in model\.embed_tokens\.weight"):
        updater.step(updater.examples(rows), 0.0, 0.1)
    assert updater.model.version == 0


def test_a_token_far_below_the_reference_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    config = settings(beta=0.04)
    policy, groups = small_policy(), random_groups(SIZES)
    for group, reference in zip(groups, perturbed(policy, groups, 0.0, 2), strict=True):
        group.reference_logprobs = reference
    updater = Updater(policy, METHODS["grpo"], config)
    assert updater.gradient(groups, tokens_of(groups))["kl/max"] < 1e-6 and not caplog.messages
    assert groups[0].reference_logprobs is not None
    groups[0].reference_logprobs[0][1] += 20.0
    for _ in range(2):
        assert updater.gradient(groups, tokens_of(groups))["kl/max"] == pytest.approx(math.exp(20) - 21, rel=1e-4)
    assert [m[:42] for m in caplog.messages] == ["the KL estimate of a token is 4.85e+08 (kl"]
