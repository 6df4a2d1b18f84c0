"""staleness: batches are sampled ahead, with weights that their number tells; none is lost, and none is used twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cohort import GRPOConfig, GRPOTrainer
from cohort.config import InvalidConfig
from cohort.data.chains import build_tokenizer
from cohort.types import UserError
from helpers import StopAfter, digits, small_model
from sampled_ahead import TRAIN, Copies, grpo, in_a_program, steps


@pytest.mark.parametrize("staleness", [1, 2])
def test_a_batch_is_sampled_by_the_weights_of_an_earlier_one(tmp_path: Path, staleness: int) -> None:
    trainer = grpo(tmp_path, staleness=staleness, eval_strategy="steps", eval_steps=3)
    trainer.train()
    trained = [each for each in trainer.engine.asked if each[2] == "sampling"]
    assert [version for version, *_ in trained] == [max(0, i - staleness) for i in range(6)]
    assert len({seeds for _, seeds, _ in trained}) == 6
    assert [row["sampling/staleness"] for row in steps(tmp_path)] == [min(i, staleness) for i in range(6)]
    assert steps(tmp_path)[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
    assert abs(steps(tmp_path)[-1]["sampling/importance_sampling_ratio/mean"] - 1) > 1e-4
    assert steps(tmp_path)[-1]["sampling/mismatch_kl"] > abs(steps(tmp_path)[0]["sampling/mismatch_kl"])
    # Evaluations sample the weights of their step.
    assert [version for version, *_, name in trainer.engine.asked if name != "sampling"] == [3, 6]


def test_several_updates_of_a_batch_count_in_its_age(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, num_iterations=2)
    trainer.train()
    assert [version for version, *_ in trainer.engine.asked] == [0, 0, 2]
    assert [row["sampling/staleness"] for row in steps(tmp_path)] == [0, 0, 2, 2, 2, 2]


def test_staleness_0_is_the_run_without_it(tmp_path: Path) -> None:
    grpo(tmp_path / "plain", None, staleness=0).train()
    grpo(tmp_path / "copies", staleness=0).train()
    plain, copies = steps(tmp_path / "plain"), steps(tmp_path / "copies")
    assert [row["reward"] for row in plain] == [row["reward"] for row in copies]
    for one, other in zip(plain, copies, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5) and "sampling/staleness" not in other


@pytest.mark.parametrize("values", [{}, {"dynamic_sampling": True}, {"num_iterations": 2}])
def test_a_resumed_run_loses_and_doubles_nothing(tmp_path: Path, values: dict[str, Any]) -> None:
    whole = grpo(tmp_path / "whole", staleness=2, **values)
    whole.train()
    first = grpo(tmp_path / "cut", staleness=2, save_steps=3, **values)
    first.loop.callbacks.callbacks.append(StopAfter(3))
    first.train()
    assert (tmp_path / "cut" / "checkpoint-3" / "sampled.json").is_file()
    second = grpo(tmp_path / "cut", staleness=2, save_steps=3, **values)
    second.train(resume_from_checkpoint=True)
    assert first.engine.asked + second.engine.asked == whole.engine.asked
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    killed = in_a_program(tmp_path / "cut", "SIGKILL", staleness=2, save_steps=2)
    assert killed.returncode == -9, killed.stderr
    grpo(tmp_path / "cut", staleness=2, save_steps=2).train(resume_from_checkpoint=True)
    grpo(tmp_path / "whole", staleness=2).train()
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")


def test_a_second_run_of_a_trainer_takes_nothing_of_the_first(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, staleness=2)
    trainer.loop.callbacks.callbacks.append(StopAfter(1))
    trainer.train()
    trainer.loop.callbacks.callbacks.pop()
    trainer.train()
    assert [row["sampling/staleness"] for row in steps(tmp_path)] == [0, 1, 2, 2, 2, 2]


def test_an_error_beside_training_ends_the_run(tmp_path: Path) -> None:
    def failing(completions: list[Any], trainer_state: Any = None, **_: Any) -> list[float]:
        if trainer_state is not None and trainer_state.global_step >= 2:
            raise RuntimeError("the judge is gone")
        return digits(completions)

    config = GRPOConfig(str(tmp_path), num_generations=4, per_device_train_batch_size=8, max_completion_length=6,
                        use_cpu=True, bf16=False, max_steps=6, staleness=1)  # fmt: skip
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    trainer = GRPOTrainer(model, failing, config, TRAIN, processing_class=tokenizer, engine=Copies)
    with pytest.raises(Exception, match="the judge is gone"):
        trainer.train()
    assert len(steps(tmp_path)) == 3


def test_sampling_goes_on_beside_training(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, lambda policy: Copies(policy, 0.2), max_steps=3)
    taken: list[int] = []
    step = trainer.updater.step

    def slow(*arguments: Any, **options: Any) -> Any:
        before = len(trainer.engine.asked)
        time.sleep(0.5)
        taken.append(len(trainer.engine.asked) - before)
        return step(*arguments, **options)

    trainer.updater.step = slow
    trainer.train()
    assert taken[:2] == [1, 1], "a batch was sampled while each of the first two was learned"


def test_what_cannot_sample_ahead_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"staleness is 1, and this engine .* engine: \{ray"):
        grpo(tmp_path, None)
    with pytest.raises(InvalidConfig, match="rewarded while the reward model changes"):
        GRPOConfig(staleness=1, steps_per_iteration=2, reward_model_refit={})


def test_the_correction_is_on_unless_it_is_set() -> None:
    assert GRPOConfig(staleness=1).corrects_sampler and not GRPOConfig().corrects_sampler
    assert not GRPOConfig(staleness=1, vllm_importance_sampling_correction=False).corrects_sampler
    assert json.loads(GRPOConfig(staleness=1).model_dump_json())["staleness"] == 1
