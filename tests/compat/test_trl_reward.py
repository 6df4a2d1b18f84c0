"""RewardTrainer as TRL's users call it. docs/trl-cases.md has the list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, get_peft_model

from cohort import RewardConfig, RewardTrainer, UserError
from helpers import byte_tokenizer, classifier, rows_of, saved, small_model

WHOLE = [{"chosen": f"{i}+{i}={2 * i}", "rejected": f"{i}+{i}=x"} for i in range(1, 5)]
CHAT = [
    {
        key: [{"role": "user", "content": f"{i}+{i}="}, {"role": "assistant", "content": text}]
        for key, text in (("chosen", str(2 * i)), ("rejected", "x"))
    }
    for i in range(1, 5)
]
QUICK: dict[str, Any] = {
    "learning_rate": 0.01, "per_device_train_batch_size": 2, "max_steps": 2, "report_to": "none", "bf16": False,
    "use_cpu": True, "eval_strategy": "no",
}  # fmt: skip


def decoder(**settings: Any) -> Any:
    return classifier("Qwen2", **settings)


def reward(folder: Path, rows: Any = WHOLE, *, model: Any = None, **given: Any) -> RewardTrainer:
    """A trainer; arguments of the trainer by name, all others are settings."""
    names = ("eval_dataset", "peft_config", "compute_metrics", "processing_class")
    arguments = {name: given.pop(name) for name in names if name in given}
    config = RewardConfig(str(folder), **{**QUICK, **given})
    return RewardTrainer(decoder() if model is None else model, args=config, train_dataset=rows, **{
        "processing_class": byte_tokenizer(), **arguments})  # fmt: skip


def changed(trainer: RewardTrainer) -> list[str]:
    """Names of trained parameters that a run leaves as they were."""
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] is not None
    return [name for name, value in before.items() if torch.equal(value, trainer.model.get_parameter(name))]


@pytest.mark.parametrize("rows", [WHOLE, CHAT], ids=["text", "chat"])
def test_pairs_without_a_prompt_train(rows: list[Any], tmp_path: Path) -> None:
    trainer = reward(tmp_path, rows, eval_dataset=rows[:2])
    assert not changed(trainer)
    if rows is WHOLE:  # the text is scored as it is in the data
        assert trainer.train_dataset[0]["chosen_ids"] == byte_tokenizer()(WHOLE[0]["chosen"])["input_ids"]


@pytest.mark.parametrize("names", [("chosen_ids", "rejected_ids"), ("chosen_input_ids", "rejected_input_ids")])
def test_pairs_as_token_ids(names: tuple[str, str], tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    rows = [
        {name: tokenizer(row[key])["input_ids"] for name, key in zip(names, ("chosen", "rejected"), strict=True)}
        for row in WHOLE
    ]
    if "input" in names[0]:
        with pytest.warns(FutureWarning, match="will not be supported in v1"):
            trainer = reward(tmp_path, Dataset.from_list(rows))
    else:
        trainer = reward(tmp_path, Dataset.from_list(rows))
    assert trainer.train_dataset.column_names[:2] == ["chosen_ids", "rejected_ids"]
    of_text = reward(tmp_path, WHOLE)
    assert list(trainer.train_dataset["chosen_ids"]) == list(of_text.train_dataset["chosen_ids"])
    assert not changed(trainer)


def test_a_language_model_by_name_gets_a_head_and_a_template(tmp_path: Path) -> None:
    name = saved(tmp_path / "lm", small_model(vocab_size=len(byte_tokenizer())), byte_tokenizer(template=False))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    for path in (tmp_path / "own.jinja", saved(tmp_path / "other", decoder(), byte_tokenizer())):
        trainer = reward(tmp_path / "run", CHAT, model=name, processing_class=None, chat_template_path=str(path))
        assert not changed(trainer)
        written = (tmp_path / "run" / "chat_template.jinja").read_text()
        assert (written == template) == (path == tmp_path / "own.jinja")
    with pytest.raises(UserError, match=r"chat_template_path: .*none\.jinja: no such file"):
        reward(tmp_path / "run", CHAT, chat_template_path=str(tmp_path / "none.jinja"))


def test_a_template_gets_each_rows_arguments_and_tools(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    contents = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.chat_template = "{{ 'A' if loud else 'a' }}{{ tools | length if tools else 0 }}" + contents
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    rows = [{**row, "chat_template_kwargs": {"loud": i == 1}, "tools": [tool] * i} for i, row in enumerate(CHAT)]
    trainer = reward(tmp_path, rows, processing_class=tokenizer)
    begins = [tokenizer.decode(trainer.train_dataset[i]["rejected_ids"][:2]) for i in range(3)]
    assert begins == ["a0", "A1", "a2"]


@pytest.mark.parametrize("given", ["adapter", "config"])
def test_an_adapter_is_trained_with_the_head_and_the_model_stays(given: str, tmp_path: Path) -> None:
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["score"], task_type="SEQ_CLS")
    model = get_peft_model(decoder(), adapter) if given == "adapter" else decoder()
    trainer = reward(tmp_path, model=model, **({} if given == "adapter" else {"peft_config": adapter}))
    frozen = {name: p.clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert any("score" in name for name, p in trainer.model.named_parameters() if p.requires_grad)
    assert not changed(trainer)
    assert all(torch.equal(value, trainer.model.get_parameter(name)) for name, value in frozen.items())


def test_metrics_under_trls_names(tmp_path: Path) -> None:
    def compute(prediction: Any) -> dict[str, float]:
        chosen, rejected = prediction.predictions.T
        return {"mine": float((chosen - rejected).mean())}

    trainer = reward(tmp_path, eval_dataset=WHOLE, compute_metrics=compute, eval_strategy="steps", eval_steps=2)
    trainer.train()
    held_out = trainer.state.log_history[-2]
    assert held_out["eval_mine"] == pytest.approx(held_out["eval_margin"], rel=1e-4)
    assert held_out["eval_min_reward"] <= held_out["eval_mean_reward"] <= held_out["eval_max_reward"]
    first = rows_of(tmp_path)[0]
    expected = [trainer.reward_model.scorer.encode_ids(row[f"{side}_ids"]) for row in trainer.train_dataset
                for side in ("chosen", "rejected")]  # fmt: skip
    scores = torch.tensor(trainer.reward_model.scorer.score(expected, 8)).view(-1, 2)
    assert trainer.evaluate()["eval_margin"] == pytest.approx(float((scores[:, 0] - scores[:, 1]).mean()), rel=1e-4)
    assert {"accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens"} <= first.keys()


@pytest.mark.parametrize("form", ["dataset", "iterable", "dict"])
def test_evaluate_takes_any_dataset(form: str, tmp_path: Path) -> None:
    given: Any = {
        "dataset": Dataset.from_list(WHOLE),
        "iterable": IterableDataset.from_generator(lambda: iter(WHOLE)),
        "dict": DatasetDict({"a": Dataset.from_list(WHOLE), "b": Dataset.from_list(WHOLE[:2])}),
    }[form]
    metrics = reward(tmp_path).evaluate(given)
    assert {"eval_a_loss", "eval_b_accuracy"} <= metrics.keys() if form == "dict" else "eval_loss" in metrics
    trainer = reward(tmp_path, eval_dataset=given)
    if form == "dict":
        assert set(trainer.eval_dataset) == {"a", "b"} and "chosen_ids" in trainer.eval_dataset["a"][0]
    else:
        assert "chosen_ids" in next(iter(trainer.eval_dataset))


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"center_rewards_coefficient": 0.01, "activation_offloading": True, "dataset_num_proc": 2},
    ],
    ids=str,
)
def test_keys(settings: dict[str, Any], tmp_path: Path) -> None:
    margins = [{**row, "margin": 0.1 * i} for i, row in enumerate(WHOLE)]
    assert not changed(reward(tmp_path, margins, **settings))


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reward models require `num_labels=1`"):
        reward(tmp_path, model=decoder(num_labels=2))
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        reward(tmp_path, None)
    with pytest.raises(UserError, match="`eos_token` is '<end>', and is not supported"):
        RewardConfig(eos_token="<end>")
    with pytest.raises(UserError, match="compute_metrics is for pairs"):
        labelled = [{"prompt": "1", "completion": str(i), "label": i % 2} for i in range(4)]
        reward(tmp_path, labelled, compute_metrics=lambda _: {})
