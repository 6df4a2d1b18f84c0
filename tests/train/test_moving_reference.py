"""`sync_ref_model`: the reference is a moving average of policies, a cut run goes on exactly, what cannot be mixed is
refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from cohort import GRPOConfig, PPOConfig, Trainer, UserError
from cohort.config import OnlineRFTConfig, ReinforceConfig, TrainingConfig
from cohort.data.chains import build_tokenizer, make_chains
from helpers import StopAfter, digits, numbers, rows_of, small_model

_, TRAIN, _ = make_chains(2, 40, 8, seed=0)
CONFIGS: dict[str, type[TrainingConfig]] = {"grpo": GRPOConfig, "ppo": PPOConfig, "reinforce++": ReinforceConfig}


def run(folder: Path, method: str = "grpo", callbacks: Any = (), **values: Any) -> Trainer:
    settings = {
        "output_dir": str(folder),
        "learning_rate": 1e-2,
        "num_generations": 4,
        "per_device_train_batch_size": 12,
        "max_completion_length": 6,
        "max_steps": 5,
        "use_cpu": True,
        "bf16": False,
        "reward_preflight": False,
        "sync_ref_model": True,
        "ref_model_sync_steps": 2,
        **values,
    }
    config = CONFIGS[method](**settings)
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    return Trainer(model, digits, config, TRAIN, None, tokenizer, list(callbacks), method=method)


class Weights(TrainerCallback):
    """Of the policy and of the reference, before the first step and after each, before the reference moves."""

    trainer: Trainer

    def __init__(self) -> None:
        self.policy: list[Tensor] = []
        self.reference: list[Tensor] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.on_step_end()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer.online_reference is not None
        self.policy.append(flat(self.trainer.policy.model))
        with self.trainer.online_reference() as lent:
            self.reference.append(flat(lent.model))


def flat(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", CONFIGS)
def test_the_reference_is_the_average_of_the_policies(
    tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Weights()
    uses = {"num_ppo_epochs": 1} if method == "ppo" else {}
    with caplog.at_level(logging.INFO, "cohort"):
        seen.trainer = run(tmp_path, method, [seen], **uses)
        seen.trainer.train()
    start, second, fourth = seen.policy[0], seen.policy[2], seen.policy[4]
    once = 0.6 * second + 0.4 * start
    twice = 0.6 * fourth + 0.4 * once
    for reference, expected in zip(seen.reference, [start] * 3 + [once] * 2 + [twice], strict=True):
        torch.testing.assert_close(reference, expected, atol=1e-6, rtol=0)
    assert not torch.equal(once, start)
    assert "every 2 steps the reference becomes 0.6 * policy + 0.4 * reference" in caplog.messages


def test_the_next_batch_is_scored_by_the_moved_reference(tmp_path: Path) -> None:
    """At alpha 1 the reference is the policy: the KL of the batch that follows is 0."""
    for tuning in ("full", "lora"):
        folder = tmp_path / tuning
        run(folder, ref_model_mixup_alpha=1.0, finetuning_type=tuning).train()
        kl = [row["kl"] for row in rows_of(folder)]
        assert [value < 1e-11 for value in kl] == [True, False, True, False, True]


@pytest.mark.parametrize("steps", [2, 4], ids=["moved", "not yet moved"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_resume_gives_the_curve_of_an_undisturbed_run(tmp_path: Path, steps: int, alpha: float) -> None:
    values: dict[str, Any] = {"max_steps": 6, "ref_model_sync_steps": steps, "ref_model_mixup_alpha": alpha}
    tunings = ["full", "lora"] if alpha == 1 else ["full"]
    for tuning in tunings:
        values |= {"finetuning_type": tuning}
        whole = run(tmp_path / f"whole {tuning}", **values)
        whole.train()
        cut = tmp_path / f"cut {tuning}"
        run(cut, callbacks=[StopAfter(5)], save_steps=3, **values).train()
        again = run(cut, **values)
        again.train(resume_from_checkpoint=True)
        assert numbers(rows_of(cut)) == numbers(rows_of(tmp_path / f"whole {tuning}"))
        for a, b in zip(again.policy.parameters, whole.policy.parameters, strict=True):
            assert torch.equal(a, b)
        assert again.online_reference is not None and whole.online_reference is not None
        for a, b in zip(again.online_reference._weights(), whole.online_reference._weights(), strict=True):
            assert torch.equal(a, b)


def test_a_moved_reference_is_not_left_behind(tmp_path: Path) -> None:
    run(tmp_path, callbacks=[StopAfter(3)], save_steps=3).train()
    other = run(
        tmp_path, sync_ref_model=False, ref_model_sync_steps=512, gold_reward="accuracy", resume_changes="allow"
    )
    with pytest.raises(UserError, match="resume with the iterations or sync_ref_model that moved it"):
        other.train(resume_from_checkpoint=True)


def test_what_cannot_move_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ref_model_mixup_alpha is 0.6, and an adapter is trained"):
        run(tmp_path, finetuning_type="lora")
    refused: list[tuple[type[TrainingConfig], dict[str, Any], str]] = [
        (GRPOConfig, {"beta": 0.0}, "there is no KL term, so no reference"),
        (PPOConfig, {"kl_coef": 0.0}, "there is no KL term, so no reference"),
        (OnlineRFTConfig, {}, "there is no KL term, so no reference"),
        (GRPOConfig, {"iterations": 2, "steps_per_iteration": 2}, "sync_ref_model and iterations, 2, both move"),
        (GRPOConfig, {"max_steps": 100}, "ref_model_sync_steps is 512, and max_steps is 100"),
        (GRPOConfig, {"sync_ref_model": False, "ref_model_mixup_alpha": 0.5}, "sync_ref_model is off"),
        (GRPOConfig, {"ref_model_mixup_alpha": 0.0}, "greater than 0"),
    ]
    for kind, values, message in refused:
        with pytest.raises(ValueError, match=message):
            kind(**{"sync_ref_model": True, **values})
