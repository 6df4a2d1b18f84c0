"""LLaMA-Factory's defaults for its files, and every key of its argument classes."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from cohort.compat.llama_factory import DEFAULTS, SAMPLING
from cohort.compat.llama_factory_keys import KEYS
from cohort.compat.trl_keys import KEYS as TRL_KEYS
from cohort.compat.trl_keys import RENAMED
from cohort.config import RunConfig, SFTConfig, TrainingConfig, read_run
from cohort.types import UserError

THEIRS: dict[str, Any] = json.loads((Path(__file__).parent / "llama_factory_defaults.json").read_text())
"""Every key of LLaMA-Factory's model, data, finetuning, training and generating arguments (August 2026) -> default."""
STAGES = ("sft", "dpo", "rm", "ppo", "grpo")
LEFT = {
    "output_dir", "optim", "report_to", "bf16", "logging_dir", "log_level", "hub_private_repo", "push_to_hub",
    "lr_scheduler_kwargs", "warmup_steps", "gradient_checkpointing", "eval_steps", "do_train",
    "shuffle_dataset", "resume_from_checkpoint", "trust_remote_code", "disable_tqdm", "deepspeed", "project",
}  # fmt: skip
"""Keys of TrainingArguments whose None means what ours says, or whose default changes nothing that is learned."""
THINKING = {"enable_thinking", "preserve_thinking"}
"""Keys that become arguments of the template, where they are what a template does without them."""
OWN = {"lora_alpha", "max_new_tokens", "eval_dataset", "do_train"}
"""Keys whose None is computed, alike here and there; max_new_tokens is compared by itself."""


def run_of(folder: Path, **values: Any) -> tuple[RunConfig, TrainingConfig]:
    path = folder / "run.yaml"
    given = {"model_name_or_path": "m", "dataset": "d", "output_dir": str(folder / "o"), **values}
    path.write_text(yaml.safe_dump(given))
    return read_run(path)


def of_hugging_face() -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(TrainingArguments)
        if field.default is not dataclasses.MISSING
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_short_file_has_their_defaults(stage: str, tmp_path: Path) -> None:
    run, config = run_of(tmp_path, stage=stage)
    assert config.finetuning_type == "lora" and config.learning_rate == 5e-5 and config.num_train_epochs == 3
    limit = config.max_sequence_length if stage in ("sft", "dpo", "rm") else config.max_prompt_length
    assert limit == THEIRS["cutoff_len"] == 2048
    for name, default in of_hugging_face().items():
        if name in type(config).model_fields and name not in LEFT:
            value = getattr(config, name)
            assert value == getattr(default, "value", default), name
    for name, key in KEYS.items():
        if key.ours in type(config).model_fields and name in THEIRS and name not in OWN:
            value, expected = getattr(config, key.ours), THEIRS[name]
            listed = "freeze_trainable_modules", "freeze_extra_modules", "additional_target"
            assert (value or None) == ((expected if name not in listed else None) or None), name
    assert config.max_completion_length == THEIRS["max_new_tokens"]
    assert run.do_train and run.dataset_dir == THEIRS["dataset_dir"]


def test_their_sampling_is_for_ppo_and_predictions(tmp_path: Path) -> None:
    assert {name: THEIRS[name] for name in SAMPLING} == SAMPLING
    assert {name: THEIRS.get(name, DEFAULTS[name]) for name in DEFAULTS} == DEFAULTS
    _, ppo = run_of(tmp_path, stage="ppo", top_p=1.0)
    _, grpo = run_of(tmp_path, stage="grpo")
    sampled = [[getattr(config, name) for name in SAMPLING] for config in (ppo, grpo)]
    assert sampled == [[0.95, 1.0, 50], [1.0, 1.0, 0]]
    run, _ = run_of(tmp_path, stage="sft", do_predict=True, temperature=0.5)
    assert not run.do_train and run.predict_sampling == {"temperature": 0.5, "top_p": 0.7, "top_k": 50}
    run, _ = run_of(tmp_path, stage="sft", do_predict=True, do_train=True, do_sample=False)
    assert run.do_train and run.predict_sampling == {"temperature": 0.0}


def test_one_line_names_the_defaults(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cohort")
    run_of(tmp_path, stage="sft", num_train_epochs=1, save_strategy="epoch", eval_strategy="steps", logging_steps=7)
    (line,) = [message for message in caplog.messages if "LLaMA-Factory's defaults" in message]
    assert line.endswith(
        "finetuning_type=lora, cutoff_len=2048, learning_rate=5e-05, per_device_train_batch_size=8, "
        "save_total_limit=None, eval_steps=7"
    )


def test_what_the_file_says_stays(tmp_path: Path) -> None:
    _, config = run_of(tmp_path, stage="rm", finetuning_type="full", learning_rate=1e-3, save_steps=7, max_steps=2)
    assert (config.finetuning_type, config.learning_rate, config.save_steps) == ("full", 1e-3, 7)
    _, config = run_of(tmp_path, stage="rm", early_stopping_steps=3)
    assert config.eval_strategy == "steps"


def test_all_their_keys_are_known() -> None:
    known = {*KEYS, *TRL_KEYS, *RENAMED, *TrainingConfig.model_fields}
    assert [name for name in THEIRS if name not in known] == []
    assert [name for name in of_hugging_face() if name not in known] == []


@pytest.mark.parametrize("stage", STAGES)
def test_their_defaults_written_out_change_nothing(
    stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    of_stage = {
        "sft": {"pref_beta", "pref_loss", "dpo_label_smoothing", "ppo_buffer_size", "ppo_epochs"},
        "dpo": {"ppo_buffer_size", "ppo_epochs"},
        "rm": {"pref_beta", "pref_loss", "dpo_label_smoothing", "ppo_buffer_size", "ppo_epochs"},
        "ppo": {"pref_beta", "pref_loss", "dpo_label_smoothing"},
        "grpo": {"pref_beta", "pref_loss", "dpo_label_smoothing", "ppo_buffer_size", "ppo_epochs"},
    }[stage]
    skipped = {*of_stage, *SAMPLING, "model_name_or_path", "dataset", "stage", "model_revision"} | THINKING
    written = {name: value for name, value in THEIRS.items() if value is not None and name not in skipped}
    if stage in ("ppo", "grpo"):
        written |= {"num_generations": 8}
    short, long = run_of(tmp_path, stage=stage, **{k: v for k, v in written.items() if k == "num_generations"}), None
    caplog.clear()
    long = run_of(tmp_path, stage=stage, **written)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert short[1].model_dump() == long[1].model_dump()


SECRETS = ("hf_hub_token", "swanlab_api_key", "swanlab_lark_secret", "swanlab_lark_webhook_url")


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_not_shown(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_of(tmp_path, stage="sft", **{name: "hidden-123"})
    assert any(message.startswith(f"{name}=... has no effect") for message in caplog.messages)
    assert not any("hidden-123" in message for message in caplog.messages)


REFUSED = [
    ({"use_eaft_loss": True}, "`use_eaft_loss` is True, and is not supported"),
    ({"ref_model_adapters": "a"}, "`ref_model_adapters` is 'a', and is not supported"),
    ({"mixture_of_depths": "convert"}, "every layer computes every token"),
    ({"adapter_name_or_path": "a"}, "merge the adapter into its model first"),
    ({"adapter_name_or_path": "a", "do_train": True, "do_predict": True}, "merge the adapter into its model first"),
    ({"do_train": False}, "do_train, do_eval and do_predict are false"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_refused_keys_say_why(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_of(tmp_path, stage="sft", **values)


def test_losses_of_sft(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, config = run_of(tmp_path, stage="sft", use_dft_loss=True, train_on_prompt=True)
    assert isinstance(config, SFTConfig)
    assert (config.loss_type, config.completion_only_loss, config.assistant_only_loss) == ("dft", False, False)
    _, config = run_of(tmp_path, stage="sft", use_dft_loss=False, train_on_prompt=False)
    assert isinstance(config, SFTConfig)
    assert (config.loss_type, config.completion_only_loss, config.assistant_only_loss) == ("nll", None, True)
    run_of(tmp_path, stage="dpo", use_dft_loss=True)
    assert "use_dft_loss=True has no effect here: only the stage sft has it" in caplog.messages


def test_an_adapter_predicts_by_itself(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, stage="sft", adapter_name_or_path="a", do_predict=True, eval_dataset="e")
    assert (run.model, run.do_train, run.do_predict) == ("a", False, True)
