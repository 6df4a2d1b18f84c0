"""Iterations: the reference follows the policy, the reward model learns from its samples, a cut run goes on exactly."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import TrainerCallback

from cohort import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer, UserError
from cohort.config import OnlineRFTConfig, build, read_run
from cohort.data.chains import build_tokenizer, make_chains
from cohort.policy.model import Policy
from cohort.rewards import resolve
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Generation
from cohort.train.run import train_from_config
from cohort.train.trainer import Trainer
from helpers import ROOT, SHAPE, small_model

_, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)


def even(completions: list[Any], **_: Any) -> list[float]:
    """A rule that random text often obeys."""
    return [float(sum(c.isdigit() for c in completion[0]["content"]) % 2 == 0) for completion in completions]


RULE = f"{__file__}:even"


@pytest.fixture
def reward_model(tmp_path: Path) -> str:
    torch.manual_seed(1)
    config = transformers.Qwen2Config(**{**SHAPE, "vocab_size": 22, "num_labels": 1, "initializer_range": 0.1})
    folder = tmp_path / "rm"
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def settings(folder: Path, **values: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "learning_rate": 1e-2,
        "num_generations": 4,
        "per_device_train_batch_size": 12,
        "max_completion_length": 6,
        "beta": 0.04,
        "use_cpu": True,
        "bf16": False,
        "reward_preflight": False,
        "reward_clip": None,
        **values,
    }


def grpo(folder: Path, rewards: Any, callbacks: Any = (), **values: Any) -> GRPOTrainer:
    return GRPOTrainer(
        small_model(vocab_size=22),
        rewards,
        GRPOConfig(**settings(folder, **values)),
        TRAIN,
        HELD_OUT if "eval_strategy" in values else None,
        processing_class=build_tokenizer(),
        callbacks=list(callbacks),
    )


def checksum(tensors: Any) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


class Checksums(TrainerCallback):
    """After each step, of the policy's trained weights and of the reference's, as it is lent."""

    trainer: Trainer

    def __init__(self) -> None:
        self.policy: list[str] = []
        self.reference: list[str] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.on_step_end()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.trainer.online_reference is not None
        before = checksum(self.trainer.policy.parameters)
        trained = [i for i, p in enumerate(self.trainer.policy.model.parameters()) if p.requires_grad]
        with self.trainer.online_reference() as lent:
            every = list(lent.model.parameters())
            self.reference.append(checksum(every[i] for i in trained))
        assert checksum(self.trainer.policy.parameters) == before
        self.policy.append(before)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


@pytest.mark.parametrize("tuning", ["full", "lora", "freeze"])
@pytest.mark.parametrize("keeps", [True, False], ids=["decoded", "passed"])
def test_the_reference_is_the_policy_of_the_iterations_start(
    tmp_path: Path, tuning: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not keeps:
        monkeypatch.setattr("cohort.config.OnlineConfig.kept_tokens", 0)
    sums = Checksums()
    extra = {"full": {}, "lora": {"lora_rank": 2}, "freeze": {"freeze_trainable_layers": 1}}[tuning]
    trainer = grpo(tmp_path, even, [sums], iterations=3, steps_per_iteration=2, finetuning_type=tuning, **extra)
    sums.trainer = trainer
    trainer.train()
    assert trainer.state.max_steps == 6 and len(set(sums.policy)) == 7
    start, _, second, _, third, *_ = sums.policy
    # the reference is moved behind on_step_end: after steps 0 to 2 it is the start, after 3 and 4 the policy of step 2
    assert sums.reference == [start] * 3 + [second] * 2 + [third] * 2
    assert checksum(trainer.online_reference._weights()) == sums.policy[-1]
    training = [row for row in rows_of(tmp_path) if "loss" in row]
    assert [row["iteration"] for row in training] == [0, 0, 1, 1, 2, 2]
    assert [row["num_completions"] for row in training] == [12, 24, 36, 48, 60, 72]
    # the first batch of an iteration is the reference's own, whose log-probabilities are then the sampler's
    assert [row["kl"] < 1e-11 for row in training] == [True, False] * 3
    assert [row["seconds/reference"] == 0 for row in training] == [True, False] * 3


class OtherEngine:
    """Log-probabilities that are not the policy's to rounding."""

    def __init__(self, policy: Policy):
        self.local = LocalEngine(policy)

    def generate(self, *arguments: Any, **options: Any) -> Generation:
        completions = self.local.generate(*arguments, **options).completions
        return Generation([[replace(c, logprobs=c.logprobs + 0.01) for c in row] for row in completions])


def test_the_reference_scores_what_another_engine_sampled(tmp_path: Path) -> None:
    args, tokenizer = GRPOConfig(**settings(tmp_path, max_steps=1)), build_tokenizer()
    trainer = Trainer(small_model(vocab_size=22), even, args, TRAIN, processing_class=tokenizer, engine=OtherEngine)
    trainer.train()
    row = rows_of(tmp_path)[0]
    assert row["seconds/reference"] > 0 and row["kl"] < 1e-11


def test_ppo_moves_its_reference_too(tmp_path: Path) -> None:
    sums = Checksums()
    values = settings(tmp_path, num_generations=1, num_ppo_epochs=1, iterations=2, steps_per_iteration=2)
    del values["beta"]
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    trainer = PPOTrainer(model, even, PPOConfig(**values), TRAIN, processing_class=tokenizer, callbacks=[sums])
    sums.trainer = trainer
    trainer.train()
    assert sums.reference == [sums.policy[0]] * 3 + [sums.policy[2]] * 2


REFIT = {"rule": RULE, "learning_rate": 1e-2, "per_device_train_batch_size": 8}


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_what_each_refit_sees_and_leaves(tmp_path: Path, reward_model: str) -> None:
    """3 steps of 12 completions: 36 new; history is 36 * .25 / .75 = 12 of what there was: nothing at first."""
    refit = {**REFIT, "replay_share": 0.25, "replay_size": 50}
    trainer = grpo(tmp_path / "run", reward_model, iterations=3, steps_per_iteration=3, reward_model_refit=refit)
    iterations = trainer.iterations
    assert iterations is not None and iterations.refit is not None and iterations.guard is not None
    before = checksum(iterations.refit.updater.model.parameters)
    trainer.train()
    rows = rows_of(tmp_path / "run")
    refits = [row for row in rows if "reward_model/new" in row]
    assert [row["step"] for row in refits] == [3, 6, 9]
    assert [row["reward_model/new"] for row in refits] == [36] * 3
    assert [row["reward_model/history"] for row in refits] == [0, 12, 12]
    training = [row for row in rows if "loss" in row]
    # the rule is called and logged, and does not count
    assert all("rewards/even/mean" in row for row in training)
    assert all(row["reward"] == pytest.approx(row["rewards/rm/mean"], abs=1e-6) for row in training)
    assert iterations.refit.replay.seen == 108 and len(iterations.refit.replay.items) == 50
    assert checksum(iterations.refit.updater.model.parameters) != before
    # what rewards is what was trained, and what is saved
    _, saved = resolve(str(tmp_path / "run" / "reward_model"))
    prompt, text = TRAIN[0]["prompt"], [{"role": "assistant", "content": "12"}]
    scores = [f(prompts=[prompt], completions=[text]) for f in (saved, trainer.rewards.parts[0].function)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    known = iterations.guard.validation["rm"]
    assert saved.scorer.model.config.held_out == {"mean": known.mean, "std": known.std}


@pytest.mark.parametrize(
    ("loss", "value", "message"),
    [
        (
            "preference",
            1.0,
            "no pair of a right and a wrong completion. By same, of the 6 groups since the last refit 6 are all right",
        ),
        ("preference", 0.0, "refit 6 are all wrong"),
        ("bce", 0.0, "nothing to tell apart: every label is 0. By same, of the 6 groups"),
        ("bce", None, "no sample with a label. By same, of the 6 groups since the last refit 6 are not judged"),
    ],
)
def test_a_refit_without_anything_to_tell_apart_says_why(
    tmp_path: Path, reward_model: str, caplog: pytest.LogCaptureFixture, loss: str, value: float | None, message: str
) -> None:
    (tmp_path / "rule.py").write_text(f"def same(completions, **_):\n    return [{value}] * len(completions)\n")
    refit = {**REFIT, "loss_type": loss, "rule": f"{tmp_path / 'rule.py'}:same"}
    trainer = grpo(tmp_path / "run", reward_model, iterations=2, steps_per_iteration=2, reward_model_refit=refit)
    trainer.train()
    refits = [row for row in rows_of(tmp_path / "run") if "reward_model/new" in row]
    assert len(refits) == 2 and message in caplog.text
    assert caplog.text.count("has nothing to tell apart") == 1
    assert (tmp_path / "run" / "reward_model" / "config.json").is_file()


@pytest.mark.parametrize("loss", ["bce", "preference"])
def test_what_the_model_learnt_before_is_history(tmp_path: Path, reward_model: str, loss: str) -> None:
    kind = {"completion": "12", "label": 1} if loss == "bce" else {"chosen": "12", "rejected": "13"}
    before = [{"prompt": [{"role": "user", "content": f"{n}"}], **kind} for n in range(40)]
    (tmp_path / "before.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before))
    refit = {**REFIT, "loss_type": loss, "replay_share": 0.5, "history": str(tmp_path / "before.jsonl")}
    trainer = grpo(tmp_path / "run", reward_model, iterations=2, steps_per_iteration=1, reward_model_refit=refit)
    assert trainer.iterations is not None and trainer.iterations.refit is not None
    replay = trainer.iterations.refit.replay
    assert [item["prompt"][0]["content"] for item in replay.items] == [f"{n}" for n in range(40)]
    trainer.train()
    refits = [row for row in rows_of(tmp_path / "run") if "reward_model/new" in row]
    assert all(row["reward_model/history"] == row["reward_model/new"] > 0 for row in refits)
    assert replay.seen == 40 + sum(row["reward_model/new"] for row in refits)


def test_refits_within_an_iteration(tmp_path: Path, reward_model: str) -> None:
    """Every 2 steps of an iteration of 5: after 2 and 4, and at its end."""
    values = {"reward_model_refit": {**REFIT, "every": 2, "max_samples": 10}, "steps_per_iteration": 5, "beta": 0.0}
    grpo(tmp_path / "run", reward_model, iterations=2, **values).train()
    refits = [row for row in rows_of(tmp_path / "run") if "reward_model/new" in row]
    assert [row["step"] for row in refits] == [2, 4, 5, 7, 9, 10]
    assert [row["reward_model/new"] for row in refits] == [10] * 6
    assert [row["reward_model/history"] for row in refits] == [0] + [1] * 5


@pytest.mark.parametrize(("tuning", "loss"), [("full", "bce"), ("lora", "preference"), ("full", "mse")])
def test_resume_in_the_middle_of_an_iteration(tmp_path: Path, reward_model: str, tuning: str, loss: str) -> None:
    values = {
        "iterations": 2,
        "steps_per_iteration": 4,
        "num_iterations": 2,  # a checkpoint inside a batch as well
        "reward_model_refit": {**REFIT, "loss_type": loss, "every": 2, "replay_share": 0.3},
        "gold_reward": RULE,
        "finetuning_type": tuning,
        **({"lora_rank": 2} if tuning == "lora" else {}),
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    whole = grpo(tmp_path / "whole", reward_model, **values)
    whole.train()
    grpo(tmp_path / "cut", reward_model, [StopAfter(7)], save_steps=5, **values).train()
    assert sorted(path.name for path in (tmp_path / "cut").glob("checkpoint-*")) == ["checkpoint-5"]
    again = grpo(tmp_path / "cut", reward_model, **values)
    again.train(resume_from_checkpoint=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))
    assert checksum(again.policy.parameters) == checksum(whole.policy.parameters)
    a, b = again.iterations, whole.iterations
    assert a is not None and b is not None and a.refit is not None and b.refit is not None
    assert checksum(a.refit.updater.model.parameters) == checksum(b.refit.updater.model.parameters)
    assert a.refit.replay.items == b.refit.replay.items
    assert a.gold.points == b.gold.points and len(b.gold.points) == 4
    assert a.guard.state() == b.guard.state()


def test_pairs_and_labels_of_a_group(tmp_path: Path, reward_model: str) -> None:
    from cohort.train.iterations.refit import ITEMS
    from cohort.types import Completion, Group, Row

    texts, scores = ["a", "b", "c", "a", "d"], [0.0, 2.0, 1.0, 1.0, None]
    completions = [Completion(torch.ones(1), torch.zeros(1), text=text) for text in texts]
    group = Group(torch.ones(1), completions, Row("q"), components={"rule": scores})

    def labels(loss: str) -> list[tuple[str, float]]:
        return [(item["completion"], item["label"]) for item in ITEMS[loss](group, "rule")]

    assert labels("bce") == [("a", 0.0), ("b", 1.0), ("c", 1.0), ("a", 1.0)]
    assert labels("mse") == [("a", 0.0), ("b", 2.0), ("c", 1.0), ("a", 1.0)]
    assert ITEMS["preference"](group, "rule") == [{"prompt": "q", "chosen": "b", "rejected": "a"}]
    chat = Group(torch.ones(1), completions, Row([{"role": "user", "content": "q"}]), components={"rule": scores})
    assert ITEMS["bce"](chat, "rule")[1]["completion"] == [{"role": "assistant", "content": "b"}]


def test_a_model_that_learns_tells_the_policys_samples_apart(tmp_path: Path, reward_model: str) -> None:
    """The frozen policy's samples, labelled by a rule that a small model can learn: its loss falls refit by refit."""
    refit = {**REFIT, "rule": f"{__file__}:ends_with_a_digit", "num_train_epochs": 5, "learning_rate": 3e-3}
    values = {"learning_rate": 0.0, "iterations": 3, "steps_per_iteration": 2, "per_device_train_batch_size": 48}
    grpo(tmp_path / "run", reward_model, reward_model_refit=refit, **values).train()
    found = [row for row in rows_of(tmp_path / "run") if "reward_model/loss" in row]
    losses = [row["reward_model/loss"] for row in found]
    assert losses[0] > losses[1] > losses[2] and found[2]["reward_model/accuracy"] > 0.9


def ends_with_a_digit(completions: list[Any], **_: Any) -> list[float]:
    return [float(completion[0]["content"][-1:].isdigit()) for completion in completions]


def test_the_run_stops_where_gold_falls(tmp_path: Path, reward_model: str, caplog: pytest.LogCaptureFixture) -> None:
    """The policy learns to write digits, and the gold reward wants none."""
    trainer = grpo(
        tmp_path / "run",
        digits,
        max_steps=60,
        learning_rate=3e-3,
        gold_reward=f"{__file__}:no_digits",
        stop_on_overoptimization=True,
        beta=0.0,
        per_device_train_batch_size=32,
    )
    trainer.train()
    state = trainer.state
    rows = rows_of(tmp_path / "run")
    assert 16 <= state.global_step < 60 and "over-optimisation: no_digits falls" in caplog.text
    assert rows[-1]["guard/overoptimized_from"] <= state.global_step - 8
    assert rows[0]["guard/kl"] == pytest.approx(0, abs=1e-5) and rows[-1]["guard/kl"] > 1
    assert rows[-1]["guard/proxy"] == pytest.approx(rows[-1]["rewards/digits/mean"], rel=1e-5)
    assert rows[-1]["guard/gold"] == pytest.approx(rows[-1]["rewards/no_digits/mean"], rel=1e-5)


def digits(completions: list[Any], **_: Any) -> list[float]:
    return [sum(c.isdigit() for c in completion[0]["content"]) / 6 for completion in completions]


def no_digits(completions: list[Any], **_: Any) -> list[float]:
    return [1 - score for score in digits(completions)]


def test_kl_to_the_start_is_the_difference_of_log_probabilities(tmp_path: Path) -> None:
    """A reference that follows is no start; with and without it the guard's KL is the same."""
    found = []
    for values in ({"max_steps": 4}, {"max_steps": 4, "beta": 0.0}, {"iterations": 4, "steps_per_iteration": 1}):
        folder = tmp_path / str(len(found))
        common = {"gold_reward": RULE, "learning_rate": 1e-2, "epsilon": 10.0}
        grpo(folder, even, **common, **{"beta": 1e-9, **values}).train()
        found.append([row["guard/kl"] for row in rows_of(folder) if "guard/kl" in row])
    assert found[0][0] == pytest.approx(0, abs=1e-5) and found[0][-1] > 0.01
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"iterations": 2}, "give the length of each as steps_per_iteration"),
        ({"iterations": 2, "steps_per_iteration": 3, "num_iterations": 2}, "use a multiple of 2"),
        ({"iterations": 2, "steps_per_iteration": 3, "max_steps": 7}, "2 iterations of 3 steps are 6"),
        ({"reward_model_refit": {}}, "would act after the last step"),
        ({"reward_model_refit": {"every": 2, "rul": "accuracy"}}, "did you mean `reward_model_refit.rule`?"),
        ({"reward_model_refit": {"every": 2, "replay_share": 1.0}}, "reward_model_refit.replay_share"),
        ({"stop_on_overoptimization": True}, "name a rule as gold_reward"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="file: ") as error:
        build(GRPOConfig, values, "file")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("rewards", "values", "said"),
    [
        ([even], {"iterations": 2, "steps_per_iteration": 2, "beta": 0.0}, "would do nothing: there is no KL term"),
        ([even], {"reward_model_refit": {"every": 2}, "max_steps": 4}, "there is none to refit"),
        (["rm", even], {"reward_model_refit": {"every": 2, "reward": "rm2"}, "max_steps": 4}, "did you mean 'rm'?"),
        (["rm", "rm"], {"reward_model_refit": {"every": 2}, "max_steps": 4}, "say which with `reward`: rm, rm_2"),
        (["rm"], {"reward_model_refit": {"every": 2, "rule": "acuracy"}, "max_steps": 4}, "did you mean 'accuracy'?"),
        (["rm"], {"gold_reward": "acuracy", "max_steps": 4}, "did you mean 'accuracy'?"),
    ],
)
def test_rewards_that_do_not_fit(
    tmp_path: Path, reward_model: str, rewards: list[Any], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        grpo(tmp_path / "run", [reward_model if reward == "rm" else reward for reward in rewards], **values)
    assert said in str(error.value)


def test_online_rft_has_no_reference_to_move(tmp_path: Path) -> None:
    values = settings(tmp_path, iterations=2, steps_per_iteration=2)
    del values["beta"]
    with pytest.raises(UserError, match="would do nothing"):
        Trainer(small_model(vocab_size=22), even, OnlineRFTConfig(**values), TRAIN, processing_class=build_tokenizer(),
                method="online_rft")  # fmt: skip


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, reward_model: str) -> None:
    plain = grpo(tmp_path / "run", even, max_steps=2, save_steps=2)
    plain.train()
    values: dict[str, Any] = {"iterations": 2, "steps_per_iteration": 2, "resume_changes": "allow"}
    with pytest.raises(UserError, match=r"has no iteration\.json"):
        grpo(tmp_path / "run", even, **values).train(resume_from_checkpoint=True)
    grpo(tmp_path / "other", even, save_steps=2, **values).train()
    values["reward_model_refit"] = REFIT
    with pytest.raises(UserError, match=r"has no reward_model\.safetensors"):
        grpo(tmp_path / "other", [even, reward_model], **values).train(resume_from_checkpoint=True)


def test_rules_that_are_only_watched_count_nowhere(tmp_path: Path) -> None:
    """Neither with a weight for each reward, nor where each reward is normalised by itself."""
    for name, values in {"plain": {}, "each": {"multi_objective_aggregation": "normalize_then_sum"}}.items():
        found = []
        for gold in (None, f"{__file__}:no_digits"):
            folder = tmp_path / f"{name}{gold is None}"
            grpo(folder, [even, digits], reward_weights=[1.0, 0.5], max_steps=2, gold_reward=gold, **values).train()
            found.append([(row["reward"], row["loss"], row["grad_norm"]) for row in rows_of(folder)])
        assert found[0] == found[1]


def test_the_example_runs(tmp_path: Path, reward_model: str) -> None:
    """On a small policy and a small reward model, with other data; everything else is the example's own."""
    small_model(vocab_size=22).save_pretrained(tmp_path / "policy")
    build_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRAIN[:8]))
    overrides = {
        "model": str(tmp_path / "policy"),
        "dataset": str(tmp_path / "rows.jsonl"),
        "eval_dataset": str(tmp_path / "rows.jsonl"),
        "reward_funcs": [{"model": reward_model}],
        "steps_per_iteration": 1,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 6,
        "output_dir": str(tmp_path / "out"),
        "columns": {},
        "system_prompt": None,
        "reward_preflight": False,
    }
    path = ROOT / "examples" / "iterative_grpo.yaml"
    train_from_config(*read_run(path, [f"{key}={json.dumps(value)}" for key, value in overrides.items()]))
    rows = rows_of(tmp_path / "out")
    assert [row["iteration"] for row in rows if "loss" in row] == [0, 1, 2]
    assert [row["reward_model/new"] for row in rows if "reward_model/new" in row] == [4, 4, 4]
    assert all("guard/kl" in row and "guard/rm/drift" in row for row in rows if "loss" in row)
    written = (tmp_path / "out" / "config.yaml").read_text()
    again = read_run(tmp_path / "out" / "config.yaml")[1]
    assert again.iterations == 3 and again.max_steps == 3 and again.reward_model_refit.replay_share == 0.1, written
