"""What TRL's scripts import and do with arguments."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments

import cohort
from cohort import (
    DPOConfig,
    GRPOConfig,
    ModelConfig,
    RLOOConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    TrlParser,
    UserError,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)
from cohort.config import METHOD_CONFIGS, REWARD_CONFIGS
from cohort.data.chains import build_tokenizer
from helpers import small_model


def test_attributes_are_set_with_the_checks_of_construction(tmp_path: Path, caplog: Any) -> None:
    args = GRPOConfig(str(tmp_path), dataloader_num_workers=4)
    args.learning_rate = 1e-3
    args.evaluation_strategy = "steps"
    args.run_name = "mine"
    assert (args.learning_rate, args.eval_strategy, args.run_name) == (1e-3, "steps", "mine")
    assert args.model_fields_set == {"output_dir", "learning_rate", "eval_strategy", "run_name"}
    with pytest.raises(UserError, match="`learning_rate` is 'fast': Input should be a valid number"):
        args.learning_rate = "fast"
    with pytest.raises(UserError, match="unknown key `learning_rat`: did you mean `learning_rate`"):
        args.learning_rat = 1
    with pytest.raises(UserError, match="`neftune_noise_alpha` is 5, and is not supported"):
        args.neftune_noise_alpha = 5
    assert args.learning_rate == 1e-3
    for again in (copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args))):
        assert again == args and (again.run_name, again.dataloader_num_workers) == ("mine", 4)


def test_what_callbacks_and_integrations_read(tmp_path: Path) -> None:
    args = SFTConfig(
        str(tmp_path), per_device_train_batch_size=3, warmup_ratio=0.25, use_cpu=True, hub_token="secret-1"
    )
    assert (args.train_batch_size, args.eval_batch_size, args.world_size, args.process_index) == (3, 8, 1, 0)
    assert args.device.type == "cpu" and args.n_gpu == 0 and args.should_save and args.should_log
    assert args.get_warmup_steps(10) == 3 and args.run_name is None and args.logging_strategy == "steps"
    assert args.accelerator_config.dispatch_batches is False and not hasattr(args, "no_such_key")
    assert args.parallel_mode.value == "not_parallel" and args.evaluation_strategy == args.eval_strategy == "no"
    assert (args.do_train, args.fp16, args.remove_unused_columns, args.gradient_checkpointing_kwargs) == (
        False, False, False, None,
    )  # fmt: skip
    assert args == SFTConfig(
        str(tmp_path), per_device_train_batch_size=3, warmup_ratio=0.25, use_cpu=True, hub_token="secret-1"
    )
    args.accelerator_config.dispatch_batches = True
    assert args.accelerator_config.dispatch_batches is True and not SFTConfig().accelerator_config.dispatch_batches
    values = args.to_dict()
    assert values["learning_rate"] == args.learning_rate and "s-1" not in args.to_json_string()
    assert all(isinstance(value, bool | int | float | str) for value in args.to_sanitized_dict().values())
    with args.main_process_first():
        pass


def test_transformers_own_arguments_are_read(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO", "cohort")
    own = TrainingArguments(str(tmp_path), learning_rate=0.5, max_steps=2, report_to="none", use_cpu=True)
    rows = [{"prompt": "1+1=", "completion": "2"}]
    trainer = SFTTrainer(small_model("Llama"), own, rows, processing_class=build_tokenizer())
    assert isinstance(trainer.args, SFTConfig) and trainer.args.output_dir == str(tmp_path)
    assert (trainer.args.learning_rate, trainer.args.max_steps, trainer.args.use_cpu) == (0.5, 2, True)
    assert trainer.args.save_steps == SFTConfig().save_steps
    assert any("learning_rate, max_steps" in message for message in caplog.messages)


@dataclass
class Own:
    words: list[str] | None = None
    count: int = 1


def test_the_parser_gives_each_type_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COHORT_TEST_ENV", raising=False)
    file = tmp_path / "run.yaml"
    file.write_text(
        "env: {COHORT_TEST_ENV: 7}\nmodel_name_or_path: some/model\nlearning_rate: 1e-5\nreward_weights: [1.0]\n"
        "use_peft: true\nnum_generations: 4\n"
    )
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig, Own))
    flags = "--dataset_name a/b --num-generations 8 --bf16 --output_dir out --words x y --lora_r=4 --max_steps=3"
    script, args, model, own = parser.parse_args_and_config([*flags.split(), "--config", str(file)])
    assert (script.dataset_name, script.dataset_train_split) == ("a/b", "train")
    assert (args.num_generations, args.learning_rate, args.bf16, args.max_steps) == (8, 1e-5, True, 3)
    assert args.reward_weights == [1.0] and os.environ["COHORT_TEST_ENV"] == "7"
    assert (
        args.model_fields_set >= {"num_generations", "output_dir"} and "trust_remote_code" not in args.model_fields_set
    )
    assert (model.model_name_or_path, model.use_peft, model.lora_r, own) == ("some/model", True, 4, Own(["x", "y"]))
    monkeypatch.delenv("COHORT_TEST_ENV")


def test_transformers_own_parser_takes_configurations(capsys: Any) -> None:
    parser = HfArgumentParser((ScriptArguments, GRPOConfig, ModelConfig, Own))  # type: ignore[arg-type]
    flags = "--output_dir out --learning_rate 1e-5 --bf16 --report_to none --max-steps 3 --loss_type dapo --stop a b"
    script, args, model, own = parser.parse_args_into_dataclasses([*flags.split(), "--use_peft", "--epsilon_high", "1"])
    assert isinstance(script, ScriptArguments) and model.use_peft and own == Own()
    assert (args.learning_rate, args.bf16, args.max_steps, args.loss_type) == (1e-5, True, 3, "dapo")
    assert args.stop == ["a", "b"] and args.report_to == [] and args.epsilon_high == 1.0
    assert args.model_fields_set == {
        "output_dir", "learning_rate", "bf16", "report_to", "max_steps", "loss_type", "stop", "epsilon_high"
    }  # fmt: skip
    (parsed,) = HfArgumentParser(SFTConfig).parse_dict({"learning_rate": 0.5})  # type: ignore[arg-type]
    assert parsed == SFTConfig(learning_rate=0.5)
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--help"])
    assert "section 4.2 (default: 1e-06)" in " ".join(capsys.readouterr().out.split())
    assert TrlParser((GRPOConfig, ModelConfig)).parse_args_and_config(["--trust_remote_code"])[1].trust_remote_code


@pytest.mark.parametrize("kind", [*METHOD_CONFIGS.values(), *REWARD_CONFIGS.values()])
def test_configurations_are_used_as_dataclasses(kind: Any) -> None:
    HfArgumentParser(kind)
    args = kind(learning_rate=0.5)
    assert dataclasses.asdict(args)["learning_rate"] == 0.5
    changed = dataclasses.replace(args, seed=7)
    assert (changed.learning_rate, changed.seed, changed.lora_rank) == (0.5, 7, 8) and type(changed) is kind


def test_the_parser_names_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown arguments --learning_rat 1: did you mean '--learning_rate'"):
        TrlParser(SFTConfig).parse_args_into_dataclasses(["--learning_rat", "1"])
    config, rest = TrlParser(SFTConfig).parse_args_into_dataclasses(["--odd", "1"], return_remaining_strings=True)
    assert isinstance(config, SFTConfig) and rest == ["--odd", "1"]
    file = tmp_path / "run.yaml"
    file.write_text("learning_rat: 1")
    with pytest.raises(UserError, match="unknown keys --learning_rat: did you mean"):
        TrlParser(SFTConfig).parse_args_and_config(["--config", str(file)])
    *_, rest = TrlParser(SFTConfig).parse_args_and_config(["--config", str(file)], return_remaining_strings=True)
    assert rest == ["--learning_rat", "1"]
    _, of_file, rest = TrlParser(SFTConfig).parse_args_and_config(
        ["--config", str(file), "--odd"], return_remaining_strings=True, separate_remaining_strings=True
    )
    assert (of_file, rest) == (["--learning_rat", "1"], ["--odd"])
    for text, message in (("[1]", "no mapping"), ("env: 3", "`env` is '3'"), ("a: [", "while parsing")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            TrlParser(SFTConfig).parse_args_and_config(["--config", str(file)])


def test_model_arguments_become_adapters_and_quantisation() -> None:
    assert get_peft_config(ModelConfig()) is None and get_quantization_config(ModelConfig()) is None
    lora = get_peft_config(ModelConfig(use_peft=True, lora_target_modules=["all-linear"]))
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (16, 32, 0.05, "all-linear")
    four = get_quantization_config(ModelConfig(load_in_4bit=True))
    assert four.load_in_4bit and four.bnb_4bit_quant_type == "nf4"
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    with pytest.raises(UserError, match="load_in_8bit and load_in_4bit are both set"):
        ModelConfig(load_in_8bit=True, load_in_4bit=True)
    assert get_kbit_device_map() is None or isinstance(get_kbit_device_map(), dict)


def test_every_exported_name_is_there() -> None:
    assert all(getattr(cohort, name) is not None for name in cohort.__all__)
    assert RLOOConfig(reward_clip_range=(-1, 1)).reward_clip == (-1, 1) and DPOConfig().to_dict()["beta"] == 0.1
