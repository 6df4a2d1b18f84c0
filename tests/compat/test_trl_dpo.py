"""DPOTrainer as TRL's users call it: its losses and keys train and change the weights, evaluate takes any dataset, and
the reference stays what it was. docs/trl-cases.md has the list."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, get_peft_model

from cohort import DPOConfig, DPOTrainer, UserError
from cohort.data.chains import build_tokenizer
from cohort.formulas.preference import PREFERENCE_LOSSES
from helpers import rows_of, small_model

PAIRS = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i), "rejected": "+="} for i in range(1, 5)]
MORE = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": "=="} for i in range(1, 4)]
QUICK: dict[str, Any] = {
    "learning_rate": 0.01, "per_device_train_batch_size": 2, "max_steps": 2, "report_to": "none", "bf16": False,
    "use_cpu": True,
}  # fmt: skip


def dpo(folder: Path, rows: Any = PAIRS, *, model: Any = None, **given: Any) -> DPOTrainer:
    """A trainer; arguments of the trainer by name, all others are settings."""
    names = ("eval_dataset", "peft_config", "ref_model", "compute_metrics", "processing_class")
    arguments = {name: given.pop(name) for name in names if name in given}
    config = DPOConfig(str(folder), **{**QUICK, **given})
    return DPOTrainer(model or small_model(), args=config, train_dataset=rows, **{
        "processing_class": build_tokenizer(), **arguments})  # fmt: skip


def changed(trainer: DPOTrainer) -> list[str]:
    """Names of trained parameters that a run leaves as they were."""
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] is not None
    return [name for name, value in before.items() if torch.equal(value, trainer.model.get_parameter(name))]


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
def test_every_loss_trains_and_evaluates(loss_type: str, tmp_path: Path) -> None:
    smoothing = {"label_smoothing": 1e-3} if loss_type == "exo_pair" else {}
    trainer = dpo(tmp_path, eval_dataset=MORE, eval_strategy="steps", eval_steps=2, loss_type=[loss_type], **smoothing)
    assert not changed(trainer)
    held_out = [row for row in rows_of(tmp_path) if "eval/loss" in row][-1]
    assert {"eval/rewards/chosen", "eval/logps/rejected"} <= held_out.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"use_weighting": True},
        {"ld_alpha": 0.5},
        {"f_divergence_type": "js_divergence"},
        {"gradient_checkpointing": True},
        {"truncation_mode": "keep_start", "max_length": 32, "padding_free": True, "precompute_ref_batch_size": 4},
    ],
    ids=str,
)
def test_keys_of_the_objective_and_the_data(settings: dict[str, Any], tmp_path: Path) -> None:
    assert not changed(dpo(tmp_path, **settings))


@pytest.mark.parametrize("lora", [False, True])
def test_an_adapter_is_trained_and_the_model_stays(lora: bool, tmp_path: Path) -> None:
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"])
    model = small_model() if lora else get_peft_model(small_model(), adapter)
    trainer = dpo(tmp_path, model=model, learning_rate=0.1, **({"peft_config": adapter} if lora else {}))
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert not changed(trainer)
    assert all(torch.equal(value, trainer.model.get_parameter(name)) for name, value in frozen.items())


def test_the_reference_of_a_learned_adapter_is_the_model_with_it(tmp_path: Path) -> None:
    model = get_peft_model(small_model(), LoraConfig(target_modules=["q_proj", "v_proj"]))
    torch.nn.init.normal_(next(p for name, p in model.named_parameters() if "lora_B" in name), std=0.5)
    trainer = dpo(tmp_path, model=model, eval_dataset=MORE)
    start = trainer.evaluate()
    assert start["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    trainer.train()
    assert trainer.evaluate(MORE)["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-5)


def test_evaluate_after_training_compares_with_the_model_before_it(tmp_path: Path) -> None:
    """Of a model given by name the start is loaded again: the same loss as of pairs that were there from the start."""
    small_model().save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    trainer = dpo(tmp_path / "run", model=str(tmp_path / "model"), eval_dataset=MORE, processing_class=None)
    trainer.train()
    theirs, ours = trainer.evaluate(MORE, metric_key_prefix="test"), trainer.evaluate()
    assert theirs["test_rewards/margins"] == pytest.approx(ours["eval_rewards/margins"], rel=1e-4)
    assert abs(ours["eval_rewards/margins"]) > 1e-4
    trainer = dpo(tmp_path / "run")
    trainer.train()
    with pytest.raises(UserError, match="which has changed, and it was not given by a name"):
        trainer.evaluate(MORE)


def test_precomputed_references(tmp_path: Path) -> None:
    trainer = dpo(tmp_path, eval_dataset={"a": MORE, "b": MORE}, precompute_ref_log_probs=True)
    assert trainer.evaluate(MORE)["eval_loss"] == pytest.approx(0.6931, abs=1e-4)
    trainer.train()
    assert {"eval_a_loss", "eval_b_loss"} <= trainer.evaluate().keys()
    with pytest.raises(ValueError, match="Cannot compute reference log-probs for a dataset passed to"):
        trainer.evaluate(MORE)
    endless = IterableDataset.from_generator(lambda: iter(PAIRS))
    for given in ({"rows": endless}, {"eval_dataset": endless}, {"eval_dataset": {"a": endless}}):
        with pytest.raises(ValueError, match=r"precompute_ref_log_probs.*not supported with IterableDataset"):
            dpo(tmp_path, precompute_ref_log_probs=True, **given)
    assert "eval_loss" in dpo(tmp_path).evaluate(endless)


def test_a_reference_of_its_own_and_one_that_follows(tmp_path: Path) -> None:
    reference = small_model()
    trainer = dpo(tmp_path, ref_model=reference)
    before = {name: p.clone() for name, p in reference.named_parameters()}
    assert not changed(trainer)
    assert all(torch.equal(p, trainer.ref_model.get_parameter(name)) for name, p in before.items())
    trainer = dpo(tmp_path, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.5, max_steps=1)
    start = {name: p.clone() for name, p in trainer.ref_model.named_parameters()}
    assert not changed(trainer)
    for name, policy in trainer.model.named_parameters():
        expected = (start[name] + policy) / 2
        torch.testing.assert_close(trainer.ref_model.get_parameter(name), expected.detach())
    with pytest.raises(ValueError, match="sync_ref_model moves the reference"):
        DPOConfig(sync_ref_model=True, precompute_ref_log_probs=True)


def test_a_run_with_a_moving_reference_resumes_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    settings = {
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "max_steps": 4,
        "save_steps": 2,
        "num_train_epochs": 9,
    }
    whole = dpo(tmp_path / "a", **settings)
    whole.train()
    part = dpo(tmp_path / "a", **settings)
    part.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in whole.model.named_parameters():
        torch.testing.assert_close(part.model.get_parameter(name), value)


def test_pairs_without_a_prompt_and_as_token_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in PAIRS]
    caplog.set_level(logging.INFO, "cohort")
    trainer = dpo(tmp_path, whole)
    assert "the words that chosen and rejected begin with are the prompt" in caplog.text
    assert trainer.rows[0].prompt == "1+1=" and not changed(trainer)
    ids = [{name: trainer.train_dataset[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}] * 2
    again = dpo(tmp_path, ids)
    assert again.train_dataset[1]["chosen_ids"] == ids[0]["chosen_ids"] and not changed(again)
    with pytest.raises(UserError, match="no prompt column; it has chosen, rejected, post"):
        dpo(tmp_path, [{**row, "post": "a question"} for row in whole])


def test_datasets_are_shown_as_token_ids(tmp_path: Path) -> None:
    both = DatasetDict({"a": Dataset.from_list(MORE), "b": Dataset.from_list(MORE)})
    trainer = dpo(tmp_path, Dataset.from_list([*PAIRS, {**PAIRS[0], "prompt": "1+" * 20}]), eval_dataset=both,
                  max_length=20, truncation_mode="keep_start")  # fmt: skip
    assert len(trainer.train_dataset) == 4 and trainer.train_dataset.column_names[-1] == "rejected_ids"
    prompt = trainer.processing_class(PAIRS[0]["prompt"])["input_ids"]
    assert trainer.train_dataset[0]["prompt_ids"] == trainer.train_dataset["prompt_ids"][0] == prompt
    assert set(trainer.eval_dataset) == {"a", "b"} and "chosen_ids" in next(iter(trainer.eval_dataset["b"]))
    assert dpo(tmp_path).eval_dataset is None


def test_compute_metrics_gets_the_scores_of_pairs(tmp_path: Path) -> None:
    seen = []

    def compute(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {"my_metric": 0.123}

    trainer = dpo(tmp_path, eval_dataset=MORE, compute_metrics=compute, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert trainer.state.log_history[-2]["eval_my_metric"] == 0.123 and seen == [(3, 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncation_mode": "keep_end"}, "`truncation_mode` is 'keep_end', and is not supported"),
        ({"ref_model_sync_steps": 2}, "sync_ref_model is off"),
    ],
)
def test_what_would_change_what_is_learned_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DPOConfig(**settings)
