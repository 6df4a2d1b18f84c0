"""What scripts use of transformers' Trainer: state, events, evaluation of several sets, the best model, second runs."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict

from cohort import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer, UserError
from cohort.compat.metrics import named_as_in_transformers
from cohort.data.chains import build_tokenizer
from cohort.train import surface
from helpers import rows_of, small_model

PROMPTS = [{"prompt": f"{i}+{i}="} for i in range(4)]
DEMONSTRATIONS = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(8)]


def digits(completions: list[str], **columns: Any) -> list[float]:
    return [sum(map(str.isdigit, text)) / 8 for text in completions]


class Events(transformers.TrainerCallback):
    """Notes every event and checks what transformers passes with it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.metrics: dict[str, float] = {}


def _noting(name: str) -> Any:
    def event(self: Events, args: Any, state: Any, control: Any, **details: Any) -> None:
        assert isinstance(state, transformers.TrainerState) and isinstance(control, transformers.TrainerControl)
        assert {"model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader"} <= details.keys()
        assert details["lr_scheduler"].get_last_lr() == [g["lr"] for g in details["optimizer"].param_groups]
        self.seen.append(name)
        self.metrics |= details.get("metrics", {})

    return event


for _name in dir(transformers.TrainerCallback):
    if _name.startswith("on_"):
        setattr(Events, _name, _noting(_name))


def grpo(folder: Path, eval_dataset: Any = None, callbacks: Any = (), kind: Any = GRPOTrainer, **values: Any) -> Any:
    settings = {
        "num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 4, "max_steps": 2,
        "use_cpu": True, "bf16": False, "reward_preflight": False, "learning_rate": 1e-2, **values,
    }  # fmt: skip
    args = GRPOConfig(str(folder), **settings)
    return kind(small_model("Llama"), digits, args, PROMPTS, eval_dataset, build_tokenizer(), list(callbacks))


def sft(folder: Path, eval_dataset: Any = None, callbacks: Any = (), **values: Any) -> SFTTrainer:
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "use_cpu": True, "bf16": False, **values}
    args = SFTConfig(str(folder), **settings)
    return SFTTrainer(small_model("Llama"), args, DEMONSTRATIONS, eval_dataset, build_tokenizer(), list(callbacks))


def test_every_event_comes_in_transformers_order(tmp_path: Path) -> None:
    events = Events()
    values = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": -1, "num_train_epochs": 2}
    trainer = sft(tmp_path, DEMONSTRATIONS[:2], [events], per_device_train_batch_size=8, **values)
    output = trainer.train()
    step = ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"]
    assert events.seen == [
        *("on_init_end", "on_train_begin", "on_epoch_begin", *step, "on_epoch_end", "on_epoch_begin"),
        *(*step, "on_log", "on_evaluate", "on_save", "on_epoch_end", "on_log", "on_train_end"),
    ]
    state = trainer.state
    assert (state.global_step, state.max_steps, state.epoch, state.num_train_epochs) == (2, 2, 2.0, 2)
    assert isinstance(output, transformers.trainer_utils.TrainOutput) and output.global_step == 2
    losses = [row["loss"] for row in rows_of(tmp_path) if "loss" in row]
    assert output.training_loss == output.metrics["train_loss"] == pytest.approx(sum(losses) / 2)
    last = state.log_history[-1]
    assert last["train_loss"] == output.training_loss and last["train_runtime"] > 0
    speeds = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    assert last.keys() == {*speeds, "total_flos", "train_loss", "epoch", "step"}
    assert output.metrics.keys() == last.keys() - {"step"} and output.metrics["epoch"] == 2.0
    assert events.metrics["eval_loss"] == state.log_history[2]["eval_loss"] == rows_of(tmp_path)[2]["eval/loss"]


def test_a_returned_control_is_adopted_and_a_wish_to_log_too(tmp_path: Path) -> None:
    logged: list[int] = []

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **details: Any) -> Any:
            return transformers.TrainerControl(should_training_stop=state.global_step == 2, should_log=True)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **details: Any) -> None:
            logged.append(logs["step"])

    trainer = grpo(tmp_path, callbacks=[Stop], max_steps=9, logging_steps=5)
    trainer.train()
    assert trainer.state.global_step == 2 and logged == [1, 2, 2]


@pytest.mark.parametrize("given", ["dict", "DatasetDict", "streamed"])
def test_several_held_out_sets_and_one_given_to_evaluate(given: str, tmp_path: Path) -> None:
    easy, hard = Dataset.from_list(PROMPTS[:2]), Dataset.from_list(PROMPTS[2:])
    both: Any = {"easy": easy, "hard": hard}
    if given == "DatasetDict":
        both = DatasetDict(both)
    elif given == "streamed":
        both = {name: each.to_iterable_dataset() for name, each in both.items()}
    trainer = grpo(tmp_path, both, eval_strategy="steps", eval_steps=1)
    trainer.train()
    easy_row, hard_row = [row for row in rows_of(tmp_path) if "eval_easy/reward" in row or "eval_hard/reward" in row][
        -2:
    ]
    metrics = trainer.evaluate()
    assert metrics["eval_easy_reward"] == pytest.approx(easy_row["eval_easy/reward"])
    assert metrics["eval_hard_rewards/digits/mean"] == pytest.approx(hard_row["eval_hard/digits"])
    assert trainer.evaluate(both, metric_key_prefix="test")["test_hard_reward"] == metrics["eval_hard_reward"]
    assert trainer.evaluate(easy)["eval_reward"] == metrics["eval_easy_reward"]
    assert trainer.train_dataset is PROMPTS and trainer.eval_dataset is both
    with pytest.raises(UserError, match="there is no held-out data: give eval_dataset"):
        grpo(tmp_path).evaluate()


def test_speed_and_epoch_of_an_evaluation_are_named_as_in_transformers(tmp_path: Path) -> None:
    """Twelve rows are two batches of per_device_eval_batch_size, 8 by default."""
    trainer = sft(tmp_path, [*DEMONSTRATIONS, *DEMONSTRATIONS[:4]], max_steps=2, eval_strategy="epoch")
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "eval_loss" in row)
    metrics = trainer.evaluate(metric_key_prefix="test", eval_dataset=DEMONSTRATIONS)
    for row, name, samples, batches in ((logged, "eval", 12, 2), (metrics, "test", 8, 1)):
        rates = [row[f"{name}_{what}_per_second"] for what in ("samples", "steps")]
        assert row[f"{name}_runtime"] > 0 and rates[0] / rates[1] == pytest.approx(samples / batches, rel=1e-3)
    assert metrics["epoch"] == 1.0
    assert not any("runtime" in name for row in rows_of(tmp_path) for name in row)


def test_names_that_transformers_callbacks_know() -> None:
    row = {"step": 3, "eval/reward": 0.5, "eval/reward/std": 0.1, "eval/accuracy": 0.25, "eval/accuracy/pass@4": 1.0}
    assert named_as_in_transformers(row, {"accuracy": "accuracy"}) == {
        "step": 3, "eval_reward": 0.5, "eval_loss": -0.5, "eval_reward_std": 0.1, "eval_rewards/accuracy/mean": 0.25,
        "eval_rewards/accuracy/pass@4": 1.0,
    }  # fmt: skip
    assert named_as_in_transformers({"eval/rewards/accuracies": 1.0}, {}) == {"eval_rewards/accuracies": 1.0}
    of_set = {"eval_org/set/reward": 0.5, "eval_org/set/accuracy": 0.25, "seconds/eval": 1.0}
    named = {"eval_org/set_reward": 0.5, "eval_org/set_loss": -0.5, "eval_org/set_rewards/accuracy/mean": 0.25}
    assert named_as_in_transformers(of_set, {"accuracy": "accuracy"}, "eval_org/set") == {**named, "seconds/eval": 1.0}
    step = {"seconds/step": 2.0, "clip_ratio/low_mean": 0.5}
    assert named_as_in_transformers(step, {}) == {**step, "step_time": 2.0, "clip_ratio/low_min": 0.5}


def test_early_stopping_and_the_best_model_at_the_end(tmp_path: Path) -> None:
    """Held-out answers are wrong ones: every step makes their loss worse, and the first is the best."""
    wrong = [{**row, "completion": "9"} for row in DEMONSTRATIONS[:4]]
    stopping = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    values = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    trainer = sft(tmp_path, wrong, [stopping], max_steps=20, learning_rate=0.02, save_total_limit=1, **values)
    trainer.train()
    losses = [row["eval/loss"] for row in rows_of(tmp_path) if "eval/loss" in row]
    best = losses.index(min(losses)) + 1
    assert trainer.state.global_step == best + 2 < 20
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (min(losses), best)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert trainer.args.metric_for_best_model == "loss" and trainer.args.greater_is_better is False


def test_save_strategy_best_saves_only_the_best(tmp_path: Path) -> None:
    values = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "metric_for_best_model": "loss"}
    sft(tmp_path, DEMONSTRATIONS[:2], max_steps=4, learning_rate=3e-3, **values).train()
    losses = [row["eval/loss"] for row in rows_of(tmp_path) if "eval/loss" in row]
    best = [i + 1 for i, loss in enumerate(losses) if loss == min(losses[: i + 1])]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] and {
        path.name for path in tmp_path.glob("checkpoint-*")
    } <= {f"checkpoint-{step}" for step in best}


def test_a_second_call_of_train_begins_again_with_the_trained_weights(tmp_path: Path) -> None:
    trainer = sft(tmp_path, max_steps=2, learning_rate=3e-3)
    first = trainer.train()
    second = trainer.train()
    assert (first.global_step, second.global_step) == (2, 2) and second.training_loss < first.training_loss
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2] and len(trainer.state.log_history) == 3
    assert len(rows_of(tmp_path / "earlier-1")) == 2


def test_a_resumed_run_has_its_earlier_rows(tmp_path: Path) -> None:
    sft(tmp_path, max_steps=2, save_steps=2).train()
    trainer = sft(tmp_path, max_steps=3, save_steps=2)
    trainer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in trainer.state.log_history] == [1, 2, 3, 3]


@pytest.mark.parametrize("name", ["compute_loss", "training_step", "_calculate_rewards", "get_train_dataloader"])
def test_a_subclass_that_overrides_what_is_not_called_is_refused(name: str, tmp_path: Path) -> None:
    own = type("Mine", (GRPOTrainer,), {name: lambda self, *given: None})
    with pytest.raises(UserError, match=f"Mine overrides {name}, which is never called here"):
        grpo(tmp_path, kind=own)
    reward = type("Mine", (RewardTrainer,), {name: lambda self, *given: None})
    with pytest.raises(UserError, match=f"Mine overrides {name}"):
        reward("some/model", RewardConfig(str(tmp_path)), [])


@pytest.mark.parametrize("name", ["create_model_card", "predict", "hyperparameter_search"])
def test_a_subclass_may_have_methods_that_do_not_change_training(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`predict` is for the script; who overrides create_model_card expects it to be called."""
    mine = type("Mine", (GRPOTrainer,), {name: lambda self, text: text})
    assert getattr(grpo(tmp_path, kind=mine), name)("a") == "a"
    told = "Mine overrides create_model_card, which is never called here: only your own code can call it"
    assert (told in caplog.text) == (name == "create_model_card")


def test_every_method_by_which_transformers_trains_is_refused() -> None:
    """The names that train and evaluate reach in transformers' own source, but for its bookkeeping."""
    own = ast.parse(inspect.getsource(transformers.Trainer)).body[0]
    assert isinstance(own, ast.ClassDef)
    calls = {each.name: set(re.findall(r"self\.(\w+)", ast.unparse(each))) for each in own.body
             if isinstance(each, ast.FunctionDef)}  # fmt: skip
    reached, left = set[str](), ["train", "evaluate"]
    while left:
        if (name := left.pop()) in calls and name not in reached:
            reached.add(name)
            left += calls[name]
    assert {"compute_loss", "create_optimizer", "evaluation_loop", "_save_checkpoint"} < reached
    assert not reached & surface.OF_SCRIPTS
    for name in reached - surface.BOOKKEEPING:
        if not hasattr(GRPOTrainer, name):
            with pytest.raises(UserError, match=f"Mine overrides {name}"):
                surface.require_called(type("Mine", (GRPOTrainer,), {name: None}), GRPOTrainer)


def test_a_subclass_may_override_log_and_evaluate(tmp_path: Path) -> None:
    class Mine(GRPOTrainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log({**logs, "mine": 1.0}, start_time)

        def evaluate(self, *given: Any, **named: Any) -> dict[str, float]:
            return {**super().evaluate(*given, **named), "eval_mine": 0.5}

    values = {"metric_for_best_model": "mine", "eval_strategy": "steps", "eval_steps": 2}
    trainer = grpo(tmp_path, PROMPTS[:1], kind=Mine, **values)
    trainer.train()
    assert all(row["mine"] == 1.0 for row in trainer.state.log_history) and trainer.state.best_metric == 0.5


def test_callbacks_metrics_and_state_are_handled_as_in_transformers(tmp_path: Path, capsys: Any) -> None:
    trainer = sft(tmp_path, callbacks=[transformers.PrinterCallback])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(events := Events())
    assert trainer.pop_callback(Events) is events and events not in trainer.callback_handler.callbacks
    output = trainer.train()
    trainer.log_metrics("train", output.metrics)
    trainer.save_metrics("train", output.metrics)
    trainer.save_state()
    assert "***** train metrics *****" in capsys.readouterr().out
    assert json.loads((tmp_path / "train_results.json").read_text())["train_loss"] == output.training_loss
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 3
    assert trainer.is_world_process_zero() and trainer.accelerator.is_main_process
    assert trainer.accelerator.unwrap_model(trainer.model) is trainer.model
    assert trainer.lr_scheduler.get_last_lr()[0] == trainer.optimizer.param_groups[0]["lr"]
    assert {"cohort", "trl", "sft"} <= set(trainer.model.model_tags)


def test_the_reference_is_ref_model(tmp_path: Path) -> None:
    assert grpo(tmp_path, beta=0.0).ref_model is None
    trainer = grpo(tmp_path, beta=0.1, sync_ref_model=True, ref_model_sync_steps=1)
    before = trainer.ref_model.lm_head.weight.clone()
    trainer.train()
    assert not torch.equal(before, trainer.ref_model.lm_head.weight)
    assert trainer.reward_func_names == ["digits"] and trainer.reward_funcs == [digits]


def test_an_entropy_bonus_is_told_apart_from_the_policys_loss(tmp_path: Path) -> None:
    trainer = grpo(tmp_path, entropy_coef=0.5, beta=0.0)
    trainer.train()
    for row in rows_of(tmp_path):
        assert row["policy_loss"] - row["loss"] == pytest.approx(0.5 * row["entropy"], rel=1e-3)
        assert row["entropy_coef"] == trainer.entropy_coef == 0.5


def test_a_training_set_is_one_dataset(tmp_path: Path) -> None:
    args = SFTConfig(str(tmp_path))
    with pytest.raises(UserError, match="`train_dataset` is required"):
        SFTTrainer("some/model", args)
    splits = DatasetDict({"train": Dataset.from_list(DEMONSTRATIONS)})
    with pytest.raises(UserError, match="train_dataset is a DatasetDict of 'train': give one of them"):
        SFTTrainer("some/model", args, splits)
