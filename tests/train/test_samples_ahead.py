"""staleness: batches are sampled ahead, with weights that their number tells; none is lost, and none is used twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohort import GRPOConfig, GRPOTrainer
from cohort.config import InvalidConfig
from cohort.data.chains import build_tokenizer
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.types import Group, UserError
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


PARTIAL = {"staleness": 3, "partial_rollouts": 2, "max_steps": 8}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"dynamic_sampling": True},
        {"num_iterations": 2},
        PARTIAL,
        {**PARTIAL, "dynamic_sampling": True, "overlap_rewards": True},
        {**PARTIAL, "num_iterations": 2, "max_steps": 14, "save_steps": 4},
    ],
)
def test_a_resumed_run_loses_and_doubles_nothing(tmp_path: Path, values: dict[str, Any]) -> None:
    values = {"staleness": 2, "save_steps": 3, **values}
    whole = grpo(tmp_path / "whole", **values)
    whole.train()
    first = grpo(tmp_path / "cut", **values)
    first.loop.callbacks.callbacks.append(StopAfter(values["save_steps"]))
    first.train()
    checkpoint = tmp_path / "cut" / f"checkpoint-{values['save_steps']}"
    batches = json.loads((checkpoint / "sampled.json").read_text())["batches"]
    partial = "partial_rollouts" in values
    assert [batch["whole"] for batch in batches] == ([True, False, False] if partial else [True] * len(batches))
    second = grpo(tmp_path / "cut", **values)
    second.train(resume_from_checkpoint=True)
    assert first.engine.asked + second.engine.asked == whole.engine.asked
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")


@pytest.mark.parametrize("values", [{"staleness": 2}, pytest.param(PARTIAL, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, values: dict[str, Any]) -> None:
    killed = in_a_program(tmp_path / "cut", "SIGKILL", save_steps=2, **values)
    assert killed.returncode == -9, killed.stderr
    grpo(tmp_path / "cut", save_steps=2, **values).train(resume_from_checkpoint=True)
    grpo(tmp_path / "whole", **values).train()
    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")


def test_a_second_run_of_a_trainer_takes_nothing_of_the_first(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, staleness=2)
    trainer.loop.callbacks.callbacks.append(StopAfter(1))
    trainer.train()
    trainer.loop.callbacks.callbacks.pop()
    trainer.train()
    assert [row["sampling/staleness"] for row in steps(tmp_path)] == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(("tokens", "overlap"), [(2, False), (2, True), (1, True)])
def test_segments_of_a_batch_are_by_the_weights_of_their_time(tmp_path: Path, tokens: int, overlap: bool) -> None:
    rewarded: list[tuple[int, ...]] = []

    def reward(completions: list[Any], completion_ids: list[list[int]], trainer_state: Any, **_: Any) -> list[float]:
        rewarded.extend(map(tuple, completion_ids))
        return digits(completions)

    policies: dict[int, Policy] = {}

    class Remembered(Copies):
        def follow(self, policy: Policy, version: int) -> None:
            super().follow(policy, version)
            policies[version] = self.copy

    values = {**PARTIAL, "partial_rollouts": tokens, "overlap_rewards": overlap, "reward_preflight": False}
    trainer = grpo(tmp_path, Remembered, reward, **values)
    batches = list[list[Group]]()
    finished = trainer.loop.source.finished

    def kept(sampled: Any, state: Any) -> Any:
        batches.append(sampled.groups)
        return finished(sampled, state)

    trainer.loop.source.finished = kept
    trainer.train()
    assert sorted(rewarded) == sorted(tuple(c.ids.tolist()) for b in batches for g in b for c in g.completions)
    for number, groups in enumerate(batches):
        for completion in (c for group in groups for c in group.completions):
            versions, lengths = ([pair[i] for pair in completion.segments] for i in (0, 1))
            assert versions == [number - 3, number - 2, number - 1, number - 1][: len(versions)]
            assert lengths[:-1] == [tokens] * (len(lengths) - 1)
            assert sum(lengths) == len(completion.ids) * (number >= 3)
            assert completion.version == max(0, number - 3) and bool(versions) == (number >= 3)
            assert completion.truncated == (completion.ids[-1] not in trainer.policy.eos_ids)
            assert len(completion.ids) == 6 if completion.truncated else len(completion.ids) <= 6
        for version in range(max(0, number - 3), max(1, number)):
            logprobs = policies[version].logprobs(parts_of(groups), 1.0)
            for (g, c), theirs in logprobs.items():
                completion, start = groups[g].completions[c], 0
                for by, length in completion.segments or [(0, len(completion.ids))]:
                    mine = slice(start, start := start + length)
                    distance = float((completion.logprobs[mine] - theirs[mine]).abs().max())
                    assert distance < 1e-4 if by == version else distance > 1e-4
    rows, every = steps(tmp_path), [[c for group in groups for c in group.completions] for groups in batches]
    assert [row["sampling/continued"] for row in rows] == [
        sum(len(c.segments) > 1 for c in completions) / 8 for completions in every
    ]
    assert rows[-1]["sampling/continued"] > 0 and rows[0]["sampling/continued"] == 0
    ages = [[i - v for c in every[i] for v, n in c.segments for _ in range(n)] for i in range(3, 8)]
    assert [row["sampling/staleness"] for row in rows[3:]] == pytest.approx([sum(a) / len(a) for a in ages])
    assert [row["completions/max_length"] for row in rows] == [max(len(c.ids) for c in each) for each in every]
    assert [row["completions/clipped_ratio"] for row in rows] == [sum(c.truncated for c in each) / 8 for each in every]


def parts_of(groups: list[Group]) -> Iterator[list[Part]]:
    for i, group in enumerate(groups):
        yield [Part(i, group.prompt_ids, range(4), [c.ids for c in group.completions])]


def test_begun_batches_are_sampled_anew_by_a_run_without_partial_rollouts(tmp_path: Path) -> None:
    first = grpo(tmp_path, save_steps=3, **PARTIAL)
    first.loop.callbacks.callbacks.append(StopAfter(3))
    first.train()
    values = {**PARTIAL, "partial_rollouts": None, "resume_changes": "allow"}
    second = grpo(tmp_path, save_steps=3, **values)
    second.train(resume_from_checkpoint=True)
    assert [version for version, *_ in second.engine.asked] == [3, 3, 3, 4]
    assert [row["sampling/staleness"] for row in steps(tmp_path)][5:] == [2, 3, 3]


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
    for staleness in (0, 1):
        with pytest.raises(InvalidConfig, match=f"partial_rollouts is 64 and staleness is {staleness}: .* 2 or more"):
            GRPOConfig(staleness=staleness, partial_rollouts=64)
    with pytest.raises(InvalidConfig, match="partial_rollouts is 64 and would do nothing: max_completion_length is 64"):
        GRPOConfig(staleness=2, partial_rollouts=64, max_completion_length=64)
    with pytest.raises(UserError, match=r"staleness is 3, and this engine .* engine: \{ray"):
        grpo(tmp_path, None, **PARTIAL)


def test_the_correction_is_on_unless_it_is_set() -> None:
    assert GRPOConfig(staleness=1).corrects_sampler and not GRPOConfig().corrects_sampler
    assert not GRPOConfig(staleness=1, vllm_importance_sampling_correction=False).corrects_sampler
    assert json.loads(GRPOConfig(staleness=1).model_dump_json())["staleness"] == 1
