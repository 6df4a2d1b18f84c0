"""On-policy distillation: its advantages and gradient, the teachers that are refused, a run with and without rewards,
and that a weak model reaches its teacher."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import DistillConfig, SFTConfig, SFTTrainer, Trainer, UserError
from cohort.config import GRPOConfig
from cohort.data.chains import Teacher, build_model, build_tokenizer, make_chains, question, step
from cohort.methods.table import METHODS
from cohort.train.sources.teacher import attach_teacher
from cohort.train.step import Updater
from helpers import (
    SIZES,
    StopAfter,
    assert_close,
    digits,
    gradients,
    numbers,
    padded_logprobs,
    random_groups,
    rows_of,
    saved,
    small_model,
    small_policy,
    tokens_of,
)

_, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)
QUICK: dict[str, Any] = {"bf16": False, "use_cpu": True, "max_completion_length": 6}


def other_model(**overrides: Any) -> Any:
    """Not the model that is trained, of its vocabulary."""
    return small_model(**{"vocab_size": 22, "hidden_size": 48, "num_hidden_layers": 1, **overrides})


def distill(folder: Path, given: Any, rewards: Any = None, **values: Any) -> Trainer:
    settings = {"output_dir": str(folder), "learning_rate": 1e-2, "per_device_train_batch_size": 12, "max_steps": 4}
    extra = {key: values.pop(key) for key in ("eval_dataset", "callbacks") if key in values}
    config = DistillConfig(**{**settings, **QUICK, **values})
    model, tokenizer = small_model(vocab_size=22), build_tokenizer()
    return Trainer(model, rewards, config, TRAIN, processing_class=tokenizer, method="distill", teacher=given, **extra)


def test_the_gradient_is_that_of_the_reverse_kl_at_each_token() -> None:
    """sum_t w_t (log teacher_t - log pi_t) grad log pi_t, the two at the training temperature, w = 1 / |o| / B."""
    config = DistillConfig(temperature=0.7, token_budget=40, **QUICK)
    policy, teacher = small_policy(), small_policy(hidden_size=48)
    groups = random_groups(SIZES)
    with torch.no_grad():
        for group in groups:
            for completion, logprobs in zip(group.completions, padded_logprobs(policy.model, group, 0.7), strict=True):
                completion.logprobs, completion.version = logprobs, policy.version
    metrics = attach_teacher(groups, teacher, config)
    for group, advantages in zip(groups, METHODS["distill"].credit(groups, config), strict=True):
        group.advantages = advantages
    Updater(policy, METHODS["distill"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    loss, gaps = torch.zeros(()), []
    for group in groups:
        pairs = zip(padded_logprobs(policy.model, group, 0.7), padded_logprobs(teacher.model, group, 0.7), strict=True)
        for logp, target in pairs:
            gaps.append((logp - target).detach())
            loss = loss + (gaps[-1] * logp).mean() / 9
    policy.model.zero_grad()
    loss.backward()
    assert_close(ours, gradients(policy.model), 1e-5)
    assert metrics["teacher/kl"] == pytest.approx(float(torch.cat(gaps).mean()), abs=1e-5)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_without_rewards_learns_from_the_teacher_alone(tmp_path: Path, tuning: str) -> None:
    teacher = other_model()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    options = {"eval_dataset": HELD_OUT, "eval_strategy": "steps", "eval_steps": 2, "num_generations": 2}
    distill(tmp_path, teacher, finetuning_type=tuning, **options).train()
    rows = rows_of(tmp_path)
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    assert all(row["teacher/kl"] > 0 and "seconds/teacher" in row and "reward" not in row for row in training)
    held_out = [row for row in rows if "eval/teacher_kl" in row]
    assert [row["step"] for row in held_out] == [2, 4] and held_out[0]["eval/samples"] == 8
    completions = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 4 * 8 and "reward" not in completions[0]
    assert {row["why"] for row in completions} == {"sample", "strangest"}
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_rewards_are_logged_and_change_nothing(tmp_path: Path) -> None:
    """A reward that is never given would end other runs in the trial before the first step."""
    alone = distill(tmp_path / "alone", other_model())
    alone.train()
    logged = distill(
        tmp_path / "logged", other_model(), [digits, "accuracy"], eval_dataset=HELD_OUT, eval_strategy="steps"
    )
    logged.train()
    rows = rows_of(tmp_path / "logged")
    assert {"rewards/digits/mean", "rewards/accuracy/mean", "teacher/kl"} <= set(rows[0])
    assert "eval/digits" in rows[-1]
    for a, b in zip(alone.policy.parameters, logged.policy.parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"finetuning_type": "lora"}, {"num_iterations": 2, "steps_per_generation": 2}]
)
def test_resume_gives_the_curve_of_an_undisturbed_run(tmp_path: Path, settings: dict[str, Any], overlap: bool) -> None:
    """Step 3 of the last case lies inside a batch."""
    settings = {**settings, "max_steps": 6, "overlap_rewards": overlap}
    teacher = saved(tmp_path / "teacher", other_model(), build_tokenizer())
    whole = distill(tmp_path / "whole", None, teacher=teacher, **settings)
    whole.train()
    distill(tmp_path / "cut", teacher, save_steps=3, callbacks=[StopAfter(5)], **settings).train()
    again = distill(tmp_path / "cut", teacher, **settings)
    again.train(resume_from_checkpoint=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))
    for a, b in zip(again.policy.parameters, whole.policy.parameters, strict=True):
        assert torch.equal(a, b)


def test_an_adapter_teaches_with_its_base_model(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = saved(tmp_path / "base", other_model(), build_tokenizer())
    torch.manual_seed(1)
    adapted = get_peft_model(other_model(), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = base
    adapter = saved(tmp_path / "adapter", adapted, build_tokenizer())
    trainer = distill(tmp_path / "out", adapter)
    groups = random_groups(SIZES, vocabulary=22)
    assert trainer.teacher is not None
    attach_teacher(groups, trainer.teacher, DistillConfig(**QUICK))
    with torch.no_grad():
        for group in groups:
            expected = padded_logprobs(adapted, group)
            for ours, theirs in zip(group.reference_logprobs or [], expected, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocabulary of 30 tokens and the model .* one of 22"):
        distill(tmp_path, other_model(vocab_size=30))
    exchanged = build_tokenizer()
    vocabulary = json.loads(exchanged.backend_tokenizer.to_str())
    ids = vocabulary["model"]["vocab"]
    ids["3"], ids["4"] = ids["4"], ids["3"]
    exchanged = type(exchanged)(vocab=ids, merges=[], eos_token="<|im_end|>", pad_token="<|pad|>")
    teacher = saved(tmp_path / "teacher", other_model(), exchanged)
    with pytest.raises(UserError, match=r"the token '[34]' is \d+ for the model and \d+ for the teacher"):
        distill(tmp_path / "out", teacher)
    lacking = {token: i for token, i in build_tokenizer().get_vocab().items() if token != "="}
    teacher = saved(tmp_path / "lacking", other_model(), type(exchanged)(vocab=lacking, merges=[], eos_token="+"))
    with pytest.raises(UserError, match="'=' is 20 for the model and unknown for the teacher"):
        distill(tmp_path / "out", teacher)


def test_a_teacher_may_have_more_padding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Qwen2.5-7B has for Qwen2.5-0.5B; what is sampled from the smaller layer can be looked up in the larger."""
    config, tokenizer = DistillConfig(**QUICK, output_dir=str(tmp_path)), build_tokenizer()
    small, large = small_model(vocab_size=1000), other_model(vocab_size=1010)
    with caplog.at_level(logging.INFO, "cohort"):
        Trainer(small, None, config, TRAIN, None, tokenizer, method="distill", teacher=large)
    assert any("has 10 more rows in its output layer" in message for message in caplog.messages)
    for other in (999, 1011):
        with pytest.raises(UserError, match="one of 1,000"):
            teacher = other_model(vocab_size=other)
            Trainer(small, None, config, TRAIN, None, tokenizer, method="distill", teacher=teacher)


def test_what_cannot_be_distilled_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="distill learns from a teacher and there is none"):
        distill(tmp_path, None)
    with pytest.raises(UserError, match="given twice, as an argument and as 'a'"):
        distill(tmp_path, other_model(), teacher="a")
    with pytest.raises(UserError, match=r"model '\./none': the directory does not exist"):
        distill(tmp_path, "./none")
    model = small_model(vocab_size=22)
    with pytest.raises(UserError, match="the teacher is the model itself"):
        Trainer(model, None, DistillConfig(**QUICK), TRAIN, None, build_tokenizer(), method="distill", teacher=model)
    with pytest.raises(UserError, match="method distill learns from a teacher"):
        Trainer(model, digits, GRPOConfig(**QUICK), TRAIN, None, build_tokenizer(), teacher=other_model())
    with pytest.raises(UserError, match=r"may have 35 tokens, and the teacher .* has 16 positions"):
        distill(tmp_path, other_model(max_position_embeddings=16), max_completion_length=26)
    with pytest.raises(UserError, match="no reward_funcs to weigh"):
        distill(tmp_path, other_model(), reward_weights=[1.0])


@pytest.mark.parametrize(
    "key",
    [
        {"beta": 0.1},
        {"scale_rewards": "none"},
        {"dynamic_sampling": True, "num_generations": 2},
        {"gold_reward": "accuracy"},
    ],
)
def test_keys_without_a_meaning_are_refused(key: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(key))} is .* and would do nothing"):
        DistillConfig(**key)
    with pytest.raises(ValueError, match="takes one advantage for a completion"):
        DistillConfig(importance_sampling_level="sequence")


def test_trls_names_of_the_teacher_are_read() -> None:
    config = DistillConfig(teacher_model_name_or_path="some/model", teacher_model_init_kwargs=None)
    assert config.teacher == "some/model" and config.teacher_model_init_kwargs == {}


PROBLEMS = [((a, b), "+") for a in range(6) for b in range(6)]


def answers(teacher: Teacher) -> list[dict[str, Any]]:
    """The 36 sums of digits up to 5 with the teacher's answers, right and wrong."""
    return [
        {
            "prompt": [{"role": "user", "content": question((digits, sign))}],
            "completion": [
                {"role": "assistant", "content": f"<answer>{teacher.value(digits[0], sign, digits[1])}</answer>"}
            ],
            "answer": str(step(digits[0], sign, digits[1])),
        }
        for digits, sign in PROBLEMS
    ]


def taught(folder: Path, rows: list[dict[str, Any]], steps: int, seed: int) -> SFTTrainer:
    config = SFTConfig(
        output_dir=str(folder),
        seed=seed,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        adam_beta2=0.98,
        per_device_train_batch_size=36,
        max_steps=steps,
        **QUICK,
    )
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    held_out = [{key: row[key] for key in ("prompt", "answer")} for row in answers(Teacher(0))]
    model = build_model(tokenizer, seed, **sizes)
    trainer = SFTTrainer(model, config, rows, held_out, processing_class=tokenizer, reward_funcs=["accuracy"])
    trainer.train()
    return trainer


@pytest.mark.slow
def test_the_weak_start_reaches_its_teacher(tmp_path: Path) -> None:
    """A model that imitated the demo's flawed teacher learns what another model knows, from its log-probabilities of
    the weak one's own answers. Over five seeds: teacher 1.0, start .69 to .89, distilled 1.0."""
    seed = 0
    flawed = Teacher(seed)
    teacher = taught(tmp_path / "teacher", answers(Teacher(seed, mistaught=0.0)), 100, seed)
    start = taught(tmp_path / "start", [row for _ in range(5) for row in answers(flawed)], 60, seed + 1)
    known, before = (trainer.evaluate()["eval_rewards/accuracy/mean"] for trainer in (teacher, start))
    assert known > 0.95 and before < 0.9
    config = DistillConfig(
        output_dir=str(tmp_path / "distilled"),
        learning_rate=1.5e-3,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        per_device_train_batch_size=72,
        max_steps=60,
        **QUICK,
    )
    prompts = [{key: row[key] for key in ("prompt", "answer")} for row in answers(Teacher(seed))]
    tokenizer = start.policy.tokenizer
    trainer = Trainer(
        start.model, ["accuracy"], config, prompts, prompts, tokenizer, method="distill", teacher=teacher.model
    )
    trainer.train()
    rows = rows_of(tmp_path / "distilled")
    assert rows[0]["teacher/kl"] > 0.2 and sum(row["teacher/kl"] for row in rows[-5:]) / 5 < 0.1
    assert trainer.evaluate()["eval_rewards/accuracy/mean"] >= known - 0.06
