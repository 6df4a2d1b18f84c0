"""Runs from end to end: what is written, what resumes, what is refused."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.optimization import get_scheduler

from cohort import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer, UserError
from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.data.order import derive, picks
from cohort.rewards import RewardFunctionError
from cohort.train.output import checkpoint, folders
from cohort.train.schedule import interval, learning_rate
from helpers import StopAfter, digits, numbers, rows_of, small_model

DEMONSTRATIONS, TRAIN, HELD_OUT = make_chains(2, 40, 8, seed=0)


NO_PREFLIGHT = {"reward_preflight": False}


def grpo(folder: Path, model: Any = None, **values: Any) -> GRPOTrainer:
    settings = {
        "output_dir": str(folder),
        "learning_rate": 1e-2,
        "num_generations": 4,
        "per_device_train_batch_size": 12,
        "max_completion_length": 6,
        "max_steps": 4,
        "beta": 0.04,
        "use_cpu": True,
        "bf16": False,
        "lr_scheduler_type": "cosine",
        **values,
    }
    data = settings.pop("train_dataset", TRAIN)
    extra = {key: settings.pop(key) for key in ("eval_dataset", "callbacks", "peft_config") if key in settings}
    rewards = settings.pop("reward_funcs", digits)
    return GRPOTrainer(
        small_model(vocab_size=22) if model is None else model,
        rewards,
        GRPOConfig(**settings),
        data,
        processing_class=build_tokenizer() if not isinstance(model, str) else None,
        **extra,
    )


def at_length(completions: list[Any], log_metric: Any, **_: Any) -> list[float]:
    log_metric("calls", len(completions))
    return [float(len(completion[0]["content"])) for completion in completions]


METRICS = (
    ["step", "epoch", "loss", "reward", "reward_std", "rewards/digits/mean", "rewards/digits/std"]
    + ["frac_reward_zero_std", "kl", "entropy", "learning_rate", "grad_norm", "tokens_per_second", "num_tokens"]
    + [f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean")]
    + ["ratio/min", "ratio/max"]
    + [f"completions/{name}" for name in ("mean_length", "min_length", "max_length", "clipped_ratio")]
    + [f"seconds/{name}" for name in ("generate", "reward", "reference", "update", "step")]
)


@pytest.mark.parametrize("keeps", [True, False], ids=["decoded", "passed"])
def test_a_run_leaves_metrics_completions_and_a_model(
    tmp_path: Path, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not keeps:
        monkeypatch.setattr("cohort.config.OnlineConfig.kept_tokens", 0)
    trainer = grpo(tmp_path, eval_dataset=HELD_OUT, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    trainer.train()
    rows = rows_of(tmp_path)
    training = [row for row in rows if "reward" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4]
    assert not set(METRICS) - set(training[0])
    # decoding and scoring are two ways to the same numbers: k3 is half of the square of their rounding
    assert 0 <= training[0]["kl"] < 1e-11 and training[-1]["kl"] > 1e-6
    assert training[0]["ratio/min"] == training[0]["ratio/max"] == 1
    evaluations = [row for row in rows if "eval/digits" in row]
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    assert evaluations[0]["eval/samples"] == 8
    completions = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(completions) == 4 * 8
    assert (
        completions[0]["digits"]
        == completions[0]["reward"]
        == pytest.approx(sum(c.isdigit() for c in completions[0]["completion"]) / 10)
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, trainer.model.lm_head.weight)


@pytest.mark.parametrize(
    "settings", [{}, {"finetuning_type": "lora"}, {"num_iterations": 2, "steps_per_generation": 2}]
)
def test_resume_gives_the_curve_of_an_undisturbed_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Step 3 of the last case lies inside a batch: two chunks, two iterations over each."""
    whole = grpo(tmp_path / "whole", max_steps=6, **settings)
    whole.train()
    first = grpo(tmp_path / "cut", max_steps=6, save_steps=3, callbacks=[StopAfter(5)], **settings)
    first.train()
    assert folders.newest(tmp_path / "cut") == tmp_path / "cut" / "checkpoint-3"
    again = grpo(tmp_path / "cut", max_steps=6, **settings)
    again.train(resume_from_checkpoint=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))
    for a, b in zip(again.policy.parameters, whole.policy.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = grpo(tmp_path, save_steps=2, save_total_limit=1)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("the disk is broken")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    with pytest.raises(OSError, match="the disk is broken"):
        trainer.train()
    assert folders.newest(tmp_path) is None and not list(tmp_path.glob("partial-*"))
    monkeypatch.undo()
    grpo(tmp_path, save_steps=1, save_total_limit=1).train()
    assert [p.name for p in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-4"]
    assert not list((tmp_path / "checkpoint-4").glob("*.bin")) and not list((tmp_path / "checkpoint-4").glob("*.pt"))


def test_an_earlier_run_is_moved_aside(tmp_path: Path) -> None:
    grpo(tmp_path, max_steps=1, save_steps=1).train()
    grpo(tmp_path, max_steps=2).train()
    assert len(rows_of(tmp_path)) == 2
    assert len(rows_of(tmp_path / "earlier-1")) == 1
    assert (tmp_path / "earlier-1" / "checkpoint-1").is_dir()
    assert (tmp_path / "earlier-1" / "model.safetensors").is_file()


def test_an_adapter_does_not_land_beside_a_whole_model(tmp_path: Path) -> None:
    grpo(tmp_path, max_steps=1).train()
    grpo(tmp_path, max_steps=1, finetuning_type="lora").train()
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"adapter_model.safetensors"}
    grpo(tmp_path, max_steps=1).train()
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"model.safetensors"}
    assert not (tmp_path / "adapter_config.json").exists()


def test_an_adapter_into_its_bases_folder_is_refused(tmp_path: Path) -> None:
    grpo(tmp_path, max_steps=1).train()
    config = GRPOConfig(str(tmp_path), finetuning_type="lora", use_cpu=True)
    with pytest.raises(UserError, match="base model's own folder: name another"):
        GRPOTrainer(str(tmp_path), "accuracy", config, [{"prompt": "1+1=", "answer": "2"}])
    assert (tmp_path / "model.safetensors").is_file()


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, max_steps=1)
    assert trainer.train(resume_from_checkpoint=True).global_step == 1
    with pytest.raises(UserError, match="is no checkpoint"):
        grpo(tmp_path, max_steps=1).train(resume_from_checkpoint=str(tmp_path / "nothing"))


def test_tiny_batches_run_with_whole_groups(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Batch 1 x accumulation 4 with 8 generations, as tutorials print it: one whole group a step."""
    with caplog.at_level(logging.INFO, "cohort"):
        trainer = grpo(
            tmp_path,
            num_generations=8,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            max_steps=1,
        )
    assert "each step: 1 prompts x 8 completions = 8 completions" in caplog.text
    assert "beta" not in caplog.text and "num_generations: 8 (paper: 64)" in caplog.text
    groups, *_ = trainer.loop.source.batch(0, trainer.state)
    assert [len(group.completions) for group in groups] == [8]


def test_lora_trains_the_adapter_and_keeps_the_base(tmp_path: Path) -> None:
    model = small_model(vocab_size=22)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = grpo(tmp_path, model, finetuning_type="lora", lora_rank=4)
    trainer.train()
    assert (tmp_path / "adapter_model.safetensors").is_file()
    after = {name.replace(".base_layer", ""): p for name, p in trainer.policy.model.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(float(p.detach().abs().sum()) > 0 for name, p in after.items() if "lora_B" in name)
    assert rows_of(tmp_path)[-1]["kl"] > 0  # against the adapter-off model
    with pytest.raises(UserError, match="linear layers of this model: down_proj"):
        grpo(tmp_path, finetuning_type="lora", lora_target="c_attn")


def test_a_model_by_path_and_plain_prompts(tmp_path: Path) -> None:
    small_model(vocab_size=22).save_pretrained(tmp_path / "m")
    build_tokenizer().save_pretrained(tmp_path / "m")
    plain = [{"prompt": row["prompt"][0]["content"], "answer": row["answer"]} for row in TRAIN]
    seen: list[Any] = []

    def reward(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
        seen.extend(zip(prompts, completions, answer, strict=True))
        return [float(len(c)) for c in completions]

    grpo(
        tmp_path / "run", str(tmp_path / "m"), train_dataset=plain, reward_funcs=[reward], max_steps=1, **NO_PREFLIGHT
    ).train()
    assert len(seen) == 12 and len({prompt for prompt, _, _ in seen}) == 3
    known = {row["prompt"]: row["answer"] for row in plain}
    assert all(isinstance(c, str) and known[p] == a for p, c, a in seen)


def test_sft_then_evaluation_loss(tmp_path: Path) -> None:
    config = SFTConfig(
        output_dir=str(tmp_path),
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        max_steps=12,
        eval_strategy="steps",
        eval_steps=4,
        use_cpu=True,
        bf16=False,
    )
    model = small_model(vocab_size=22, initializer_range=0.05)
    trainer = SFTTrainer(model, config, DEMONSTRATIONS[:32], DEMONSTRATIONS[32:], processing_class=build_tokenizer())
    trainer.train()
    losses = [row["eval/loss"] for row in rows_of(tmp_path) if "eval/loss" in row]
    assert len(losses) == 3 and losses[0] > losses[1] > losses[2]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[-1], rel=1e-6)
    with pytest.raises(UserError, match="row 1: no completion; sft learns from demonstrations"):
        SFTTrainer(small_model(vocab_size=22), config, TRAIN, DEMONSTRATIONS, processing_class=build_tokenizer())


def test_long_prompts_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mixed = [*TRAIN[:5], {"prompt": "1+1="}]
    trainer = grpo(tmp_path, max_prompt_length=5, train_dataset=mixed)
    assert len(trainer.loop.source.prompts) == 1
    assert "5 of 6 prompts are longer than 5 tokens (max_prompt_length) and are dropped" in caplog.text
    with pytest.raises(UserError, match=r"all 5 prompts are longer than 5 tokens \(the shortest has 9\)"):
        grpo(tmp_path, max_prompt_length=5, train_dataset=TRAIN[:5])


def test_bad_rewards_stop_the_run(tmp_path: Path) -> None:
    def short(completions: list[Any], **_: Any) -> list[float]:
        return [0.0]

    def nan(completions: list[Any], **_: Any) -> list[float]:
        return [float("nan")] * len(completions)

    with pytest.raises(UserError, match=r"reward function .short. returned 1 scores for 12 completions"):
        grpo(tmp_path, reward_funcs=short, **NO_PREFLIGHT).train()
    with pytest.raises(UserError, match=r"reward function .nan. returned nan for row 0"):
        grpo(tmp_path, reward_funcs=nan, **NO_PREFLIGHT).train()
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        grpo(tmp_path, reward_funcs="acuracy")


def test_models_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        grpo(tmp_path, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        grpo(tmp_path, str(tmp_path))
    with pytest.raises(UserError, match="nobody/nothing"):
        grpo(tmp_path, "nobody/nothing")


SCHEDULES = {
    "linear": {},
    "cosine": {"num_cycles": 1.5},
    "constant": {},
    "constant_with_warmup": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"min_lr": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.2},
    "polynomial": {"power": 2.0},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"num_decay_steps": 10},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 7])
def test_learning_rate_equals_transformers_schedule(name: str, warmup: int) -> None:
    kwargs = SCHEDULES[name]
    config = TrainingConfig(learning_rate=0.5, lr_scheduler_type=name, warmup_steps=warmup, lr_scheduler_kwargs=kwargs)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = get_scheduler(name, optimizer, warmup, 40, scheduler_specific_kwargs=kwargs)
    for step in range(40):
        assert learning_rate(step, 40, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()
    ratio = TrainingConfig(learning_rate=1.0, warmup_ratio=0.1)
    assert learning_rate(2, 40, ratio) == 0.5


def test_schedules_by_hand_and_their_mistakes() -> None:
    def rate(name: str, step: int, **kwargs: float) -> float:
        config = TrainingConfig(learning_rate=0.8, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs)
        return learning_rate(step, 100, config)

    assert rate("linear", 25) == pytest.approx(0.6)
    assert rate("cosine", 50) == pytest.approx(0.4)
    assert rate("cosine_with_min_lr", 50, min_lr_rate=0.1) == pytest.approx(0.8 * 0.55)
    assert rate("polynomial", 50, power=2.0, lr_end=0.0) == pytest.approx(0.2)
    assert rate("cosine_with_restarts", 50, num_cycles=2) == pytest.approx(0.8)
    with pytest.raises(UserError, match="lr_scheduler_type linear refuses lr_scheduler_kwargs"):
        rate("linear", 0, power=2)
    assert [interval(every, 9) for every in (0, 1, 4, 0.25, 0.5)] == [0, 1, 4, 3, 5]


def test_every_epoch_sees_every_row_once_in_its_own_order() -> None:
    stream = picks(10, 0, 25, seed=1, shuffle=True)
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert stream[:10] != stream[10:20]
    assert picks(10, 7, 9, seed=1, shuffle=True) == stream[7:16]
    assert picks(4, 2, 5, seed=1, shuffle=False) == [2, 3, 0, 1, 2]
    assert len({derive(seed, index) for seed in range(50) for index in range(50)}) == 2500


FAILING = """
import time

def failing(completions, trainer_state, **_):
    for completion in completions:
        text = completion[0]["content"]
        if trainer_state.global_step == 2 and broken == "raises":
            raise OverflowError(f"cannot score {text!r}")
        if trainer_state.global_step == 2 and broken == "hangs":
            time.sleep(600)
    return [float(sum(c.isdigit() for c in completion[0]["content"])) / 10 for completion in completions]
"""


@pytest.mark.parametrize(
    ("broken", "told"), [("raises", "raised OverflowError: cannot score"), ("hangs", "time limit")]
)
def test_a_reward_that_fails_stops_the_run_with_its_row_and_the_run_goes_on(
    tmp_path: Path, broken: str, told: str
) -> None:
    def trainer(how: str, folder: str, **changes: Any) -> GRPOTrainer:
        path = tmp_path / f"{how}.py"
        path.write_text(f"broken = {how!r}\n{FAILING}")
        reward = {"name": f"{path}:failing", "timeout": 2} if broken == "hangs" else f"{path}:failing"
        return grpo(tmp_path / folder, reward_funcs=[reward], save_steps=1, max_steps=4, **changes)

    with pytest.raises(RewardFunctionError) as caught:
        trainer(broken, "cut").train()
    message = str(caught.value)
    assert f"reward function 'failing' {told}" in message or told in message
    assert "at row 0 of 12\n  prompt: '" in message and "completion: '" in message
    assert broken == "hangs" or isinstance(caught.value.__cause__, OverflowError)
    assert folders.newest(tmp_path / "cut") == tmp_path / "cut" / "checkpoint-2"
    with pytest.raises(UserError, match="was made by another run:\n  reward failing, code: "):
        trainer("mended", "cut").train(resume_from_checkpoint=True)
    trainer("mended", "cut", resume_changes="allow").train(resume_from_checkpoint=True)
    trainer("mended", "whole").train()
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))


def test_rewards_are_tried_before_the_first_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cohort"):
        grpo(tmp_path / "good", reward_funcs=["accuracy", "format"], max_steps=1).train()
    assert "accuracy: right 1, wrong 0, empty 0, truncated 0; from 0 to 1; " in caplog.text
    with pytest.raises(UserError, match="a wrong answer as much as the right answer on each of 4 rows"):
        grpo(tmp_path / "bad", reward_funcs=["accuracy"], reward_weights=[0.0]).train()
    assert not (tmp_path / "bad" / "metrics.jsonl").exists()
    grpo(tmp_path / "bad", reward_funcs=["accuracy"], reward_weights=[0.0], max_steps=1, **NO_PREFLIGHT).train()


def test_totals_are_clipped_counted_and_composed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewards = [{"name": digits, "weight": 100}, {"name": "format", "gate": "digits"}]
    grpo(tmp_path / "a", reward_funcs=rewards, max_steps=2).train()
    assert caplog.text.count("reward_clip: null leaves rewards as they are") == 1
    row = rows_of(tmp_path / "a")[0]
    assert row["rewards_clipped_ratio"] > 0.5 and 0 < row["reward"] <= 5 and "rewards/format/gated_ratio" in row
    grpo(tmp_path / "b", reward_funcs=rewards, max_steps=1, reward_clip=None).train()
    free = rows_of(tmp_path / "b")[0]
    assert free["reward"] == pytest.approx(100 * free["rewards/digits/mean"], rel=1e-5)
    kept = [json.loads(line) for line in (tmp_path / "a" / "completions.jsonl").read_text().splitlines()]
    assert {row["why"] for row in kept} == {"sample", "most rewarded", "strangest"}
    best = max(kept, key=lambda row: row["reward"])
    assert best["why"] == "most rewarded" and best["columns"]["answer"] and best["digits"] > 0


def test_rewards_beside_sampling_change_nothing_but_when_they_are_called(
    tmp_path: Path,
) -> None:
    for name, overlap in (("after", False), ("beside", True)):
        grpo(tmp_path / name, reward_funcs=[digits, at_length], overlap_rewards=overlap, max_rows=4).train()
    after, beside = (numbers(rows_of(tmp_path / name)) for name in ("after", "beside"))
    calls = [row.pop("calls") for row in beside]
    assert {row.pop("calls") for row in after} == {12} and all(4 <= n <= 12 for n in calls)
    assert beside == after


def test_rewards_are_called_while_others_are_sampled(tmp_path: Path) -> None:
    called = threading.Event()
    threads: set[str] = set()

    def told(completions: list[Any], **_: Any) -> list[float]:
        threads.add(threading.current_thread().name)
        assert len(completions) % 4 == 0  # whole groups
        called.set()
        return digits(completions)

    trainer = grpo(tmp_path, reward_funcs=told, overlap_rewards=True, max_rows=4, max_steps=1, **NO_PREFLIGHT)
    generate = trainer.engine.generate

    def waits_after_a_group(*args: Any, on_group: Any, **kwargs: Any) -> Any:
        def tell(*group: Any) -> None:
            on_group(*group)
            assert called.wait(60)

        return generate(*args, **kwargs, on_group=tell)

    trainer.engine.generate = waits_after_a_group  # type: ignore[method-assign]
    trainer.train()
    assert threads == {"rewards_0"}


def test_a_reward_that_fails_beside_sampling_ends_the_run(tmp_path: Path) -> None:
    def breaks(completions: list[Any], **_: Any) -> list[float]:
        raise ValueError("no model")

    with pytest.raises(RewardFunctionError, match="'breaks' raised ValueError: no model\\n  at row 0"):
        grpo(tmp_path, reward_funcs=breaks, overlap_rewards=True, **NO_PREFLIGHT).train()


@pytest.mark.parametrize("method", ["grpo", "reward"])
def test_an_output_folder_that_cannot_be_made_is_told_before_anything_is_loaded(method: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir '.*file/out' cannot be made: .*file is a file"):
        if method == "grpo":
            GRPOTrainer("/no/such/model", "format", GRPOConfig(str(tmp_path / "file" / "out")), "/no/such/data")
        else:
            RewardTrainer("/no/such/model", RewardConfig(str(tmp_path / "file" / "out")), "/no/such/data")
    assert os.listdir(tmp_path) == ["file"]
