"""What reward models are trained on and made of: bad rows and models that do not fit are told, long texts counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cohort import GRPOConfig, ProcessRewardConfig, RewardConfig, RewardTrainer
from cohort.config import RewardModelConfig
from cohort.data.rows import load_rows
from cohort.train.reward_models.model import make_reward_model
from cohort.train.reward_models.updater import RewardUpdater
from cohort.types import UserError
from helpers import QUICK_REWARD, byte_tokenizer, classifier, digit_rows, pair_rows, saved, step_rows, token_classifier


def one(**columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": "a", **columns}]


OUTCOME, PROCESS = RewardConfig(), ProcessRewardConfig()
BAD: list[tuple[list[dict[str, Any]], RewardModelConfig, str]] = [
    (one(chosen="b", rejected="b"), OUTCOME, r"row 1: chosen and rejected are identical \('b'\)"),
    (one(completion="b", label=1.5), OUTCOME, "row 1: `label` is 1.5, out of range: .*loss_type: mse"),
    (one(completion="b", label="x"), OUTCOME, "row 1: `label` holds 'x'; it must be a finite"),
    (one(completion="b"), OUTCOME, "row 1: a reward model learns from .*this row has prompt, completion"),
    (digit_rows(3) + pair_rows(1), OUTCOME, "row 4: a reward model learns from"),
    (pair_rows(1) + digit_rows(1), OUTCOME, "row 2: needs `chosen` and `rejected`, as the first row has"),
    ([{**pair_rows(1)[0], "margin": "wide"}], OUTCOME, "row 1: `margin` holds 'wide'"),
    (digit_rows(2), RewardConfig(center_rewards_coefficient=0.1), "center_rewards_coefficient is for pairs"),
    ([{**row, "label": 1} for row in digit_rows(3)], OUTCOME, "every label is 1: there is nothing to tell apart"),
    (pair_rows(2), RewardConfig(every_token=True), "every_token is for rows with labels"),
    (digit_rows(9), RewardConfig(early_stopping_patience=2), "early_stopping_patience needs held-out data"),
    (one(completion="b\nc", labels=[1]), PROCESS, r"row 1: 1 labels for 2 steps; the steps are \['b', 'c'\]"),
    (one(completion="b\nc", labels=[1, 3]), PROCESS, "row 1: `labels` holds 3, out of range"),
    (digit_rows(2), PROCESS, "row 1: a process reward model learns from .*`labels`, a list"),
    (2 * one(completion="b c", labels=[1]), PROCESS, r"no completion of the 2 rows has more than one step: '\\n' ends"),
]


@pytest.mark.parametrize(("rows", "config", "message"), BAD)
def test_data_that_teaches_nothing_is_told(rows: Any, config: RewardModelConfig, message: str) -> None:
    of_steps = isinstance(config, ProcessRewardConfig)
    model = token_classifier("Qwen2") if of_steps else classifier("Qwen2")
    with pytest.raises(UserError, match=message):
        RewardTrainer(model, config, rows, processing_class=byte_tokenizer(template=False))


def test_models_that_do_not_fit_are_told(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(template=False)
    two = classifier("Qwen2", num_labels=2)
    two.save_pretrained(tmp_path / "two")
    tokenizer.save_pretrained(tmp_path / "two")
    for model in (str(tmp_path / "two"), two):
        with pytest.raises(UserError, match="has 2 labels: a reward model has one"):
            RewardTrainer(model, RewardConfig(), digit_rows(4), processing_class=tokenizer)
    with pytest.raises(UserError, match="every_token: BertForSequenceClassification does not score a text at its last"):
        RewardTrainer(
            classifier("Bert"),
            RewardConfig(every_token=True),
            digit_rows(4),
            processing_class=byte_tokenizer(bert=True),
        )
    with pytest.raises(UserError, match="pooling: mean is for a reward model of texts with head: mlp"):
        trunk = saved(tmp_path / "trunk", classifier("Qwen2").base_model, tokenizer)
        RewardTrainer(trunk, RewardConfig(pooling="mean"), digit_rows(4))
    with pytest.raises(UserError, match="scores every token: train it with method: process_reward_model"):
        RewardTrainer(token_classifier("Qwen2"), RewardConfig(), digit_rows(4), processing_class=tokenizer)
    with pytest.raises(UserError, match="scores the text: train it with method: reward_model"):
        RewardTrainer(classifier("Qwen2"), ProcessRewardConfig(), step_rows(4), processing_class=tokenizer)
    with pytest.raises(UserError, match="args is a GRPOConfig"):
        RewardTrainer(classifier("Qwen2"), GRPOConfig(), digit_rows(4))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"'\./none' could not be loaded"):
        RewardTrainer("./none", RewardConfig(), digit_rows(4), processing_class=tokenizer)
    (tmp_path / "empty").mkdir()
    transformers_config = classifier("Qwen2").config
    transformers_config.architectures = None
    transformers_config.save_pretrained(tmp_path / "empty")
    with pytest.raises(UserError, match="could not be loaded"):
        RewardTrainer(str(tmp_path / "empty"), RewardConfig(), digit_rows(4), processing_class=tokenizer)


def test_trls_steps_are_taken() -> None:
    rows = [{"prompt": "go>", "completions": ["9", "1"], "labels": [True, False]}]
    config = ProcessRewardConfig(**QUICK_REWARD)
    model = make_reward_model(token_classifier("Qwen2"), byte_tokenizer(template=False), config)
    updater = RewardUpdater(model, config, "process")
    same = [{"prompt": "go>", "completion": "9\n1", "labels": [1, 0]}]
    assert updater.examples(load_rows(rows)) == updater.examples(load_rows(same))


def test_labels_of_steps_that_are_cut_off_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "go>", "completion": "1\n2\n9", "labels": [0.1, 0.2, 0.9]},
        {"prompt": "g", "completion": "1\n9", "labels": [0.3, 0.8]},
        {"prompt": "g", "completion": "9" * 20, "labels": [0.7]},
    ]
    config = ProcessRewardConfig(max_length=7, truncation="cut", **QUICK_REWARD)
    bert = RewardTrainer(
        token_classifier("Bert"), config, rows, processing_class=byte_tokenizer(bert=True, template=False)
    )
    assert [example.targets for example in bert.examples] == [(0.1,), (0.3, 0.8)]
    assert "3 step labels in 2 of 3 rows stand at steps that max_length cuts off: they are left out" in caplog.text
    assert "1 of 3 rows are longer than 7 tokens (max_length) and are dropped" in caplog.text


@pytest.mark.parametrize("kind", ["pairs", "rows"])
def test_thoughts_that_the_template_leaves_out_are_told(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}{% endfor %}"
    )
    texts = [[{"role": "assistant", "content": f"<think>{why}</think>{i}"}] for i in range(2) for why in ("so", "no")]
    prompt = [{"role": "user", "content": "?"}]
    pairs = [{"prompt": prompt, "chosen": texts[0], "rejected": texts[3]}]
    rows = [{"prompt": prompt, "completion": text, "label": i % 2} for i, text in enumerate(texts)]
    data = pairs if kind == "pairs" else rows
    RewardTrainer(classifier("Qwen2"), RewardConfig(**QUICK_REWARD), data, processing_class=tokenizer)
    assert caplog.text.count("chat template leaves out a part of the completion that starts '<think>so</think>0'") == 1


def test_too_long_texts_are_left_out_or_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trunk = saved(tmp_path / "trunk", classifier("Qwen2").base_model, byte_tokenizer(template=False))
    rows = [*digit_rows(5), {"prompt": "x" * 20, "completion": "yyyy", "label": 1}]
    dropped = RewardTrainer(trunk, RewardConfig(max_length=8, **QUICK_REWARD), rows)
    assert (
        len(dropped.examples) == 5
        and "1 of 6 rows are longer than 8 tokens (max_length) and are dropped" in caplog.text
    )
    kept = RewardTrainer(trunk, RewardConfig(max_length=8, truncation="cut", **QUICK_REWARD), rows)
    letters = byte_tokenizer()("xxxxyyyy")["input_ids"]
    assert kept.examples[5].texts[0].inputs["input_ids"] == letters and "and are cut" in caplog.text
