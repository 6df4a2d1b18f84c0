"""The command line as people type it: keys as options, TRL's habits, earlier names, --quiet and --verbose."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.cli.arguments import _configuration
from cohort.config import read_run
from cohort.report.live import LiveDisplay
from cohort.types import UserError
from helpers import ROOT

EXAMPLE = str(ROOT / "examples" / "gsm8k.yaml")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(run, settings, level of the log, callbacks) of each training, which a stand-in ends at once."""
    calls: list[Any] = []

    def train_from_config(run: Any, settings: Any, callbacks: list[Any]) -> None:
        calls.append((run, settings, logging.getLogger("cohort").level, callbacks))
        raise UserError("enough")

    module = ModuleType("cohort.train.run")
    module.train_from_config = train_from_config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cohort.train.run", module)
    return calls


def cohort(*arguments: str) -> str:
    return CliRunner().invoke(app, arguments).output


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["a.yaml", "--max_steps=3"], ["a.yaml", "max_steps=3"]),
        (["a.yaml", "--max_steps", "3", "beta=0"], ["a.yaml", "max_steps=3", "beta=0"]),
        (["--learning-rate", "1e-5", "a.yaml"], ["a.yaml", "learning_rate=1e-5"]),
        (["--bf16", "a.yaml"], ["a.yaml", "bf16=true"]),
        (["a.yaml", "--bf16", "--max_steps", "-1"], ["a.yaml", "bf16=true", "max_steps=-1"]),
        (["a.yaml", "--no_shuffle_dataset"], ["a.yaml", "shuffle_dataset=false"]),
        (["a.yaml", "beta=1", "--beta", "2"], ["a.yaml", "beta=1", "beta=2"]),
        (["--config", "a.yaml", "--beta", "2"], ["a.yaml", "beta=2"]),
        (["sft", "--config=a.yaml"], ["a.yaml", "method=sft"]),
        (["sft", "a.yaml"], ["a.yaml", "method=sft"]),
        (["grpo", "--model", "m"], ["-", "model=m", "method=grpo"]),
        (["a.yaml", "--reward_funcs", "accuracy", "f.py:g"], ["a.yaml", "reward_funcs=[accuracy, f.py:g]"]),
        (["a.yaml", "--system_prompt", "Answer: # yes"], ["a.yaml", 'system_prompt="Answer: # yes"']),
        (["a.yaml", "--model_init_kwargs", '{"dtype": "bfloat16"}'],
         ["a.yaml", 'model_init_kwargs={"dtype": "bfloat16"}']),
        (["a.yaml", "stray"], ["a.yaml", "stray"]),
        (["a.yaml", "--run_name", "lr=1e-5", "beta=1"], ["a.yaml", 'run_name="lr=1e-5"', "beta=1"]),
        (["a.yaml", "--bf16", "beta=1"], ["a.yaml", "bf16=true", "beta=1"]),
        (["sft", "--bf16", "a.yaml"], ["a.yaml", "bf16=true", "method=sft"]),
    ],
)  # fmt: skip
def test_keys_are_options_too(typed: list[str], read: list[str]) -> None:
    assert _configuration(typed, {"--resume": None}) == ["--", *read]


def test_options_reach_the_run(trained: list[Any]) -> None:
    output = cohort(
        "train", EXAMPLE, "--max_steps=3", "--learning_rate", "1e-5", "--bf16", "--model_name_or_path", "here",
        "--system_prompt", "Answer: yes", "seed=7",
    )  # fmt: skip
    assert "enough" in output
    run, settings, level, callbacks = trained[0]
    assert (run.model, run.system_prompt) == ("here", "Answer: yes")
    assert (settings.max_steps, settings.learning_rate, settings.bf16, settings.seed) == (3, 1e-5, True, 7)
    assert level == logging.INFO
    assert callbacks[0].console.quiet is False


def test_quiet_and_verbose_hold_before_and_after_the_command(
    trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")  # --verbose sets it for its process, which is this one
    for arguments in (["--quiet", "train", EXAMPLE], ["train", EXAMPLE, "--quiet"], ["train", "--quiet", EXAMPLE]):
        cohort(*arguments)
        _, settings, level, callbacks = trained.pop()
        assert (level, settings.log_level, callbacks[0].console.quiet) == (logging.WARNING, "warning", True)
        assert isinstance(callbacks[0], LiveDisplay)
    cohort("train", EXAMPLE, "--verbose")
    assert trained.pop()[2] == logging.DEBUG
    cohort("train", EXAMPLE)
    assert trained.pop()[2] == logging.INFO, "the next command starts anew"
    assert "exclude each other" in cohort("train", EXAMPLE, "--verbose", "--quiet")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", EXAMPLE, "--resum"], "--resum: no such option: did you mean --resume?"),
        (["train", "--config", EXAMPLE, "--config=b.yaml"], "--config is given twice"),
        (["train", EXAMPLE, "--run_name", "a", "max_setps=3"], "unknown key `max_setps`"),
        (["train", EXAMPLE, "--quite"], "did you mean --quiet?"),
        (["train", EXAMPLE, "--max_setps", "3"], "unknown key `max_setps`: did you mean `max_steps`?"),
        (["train", "sft", "--modle", "m", "--dataset", "d"], "unknown key `modle`: did you mean `model`?"),
        (["train", "gpro", "--config", EXAMPLE], "unknown method 'gpro'"),
        (["train", "kto", "--model_name_or_path", "m"], "`trl kto` has no counterpart"),
        (["plan", EXAMPLE, "--memry", "80GiB"], "did you mean --memory?"),
        (["tran", EXAMPLE], "Did you mean 'train'?"),
        (["eval", "m", "--benchmrak", "gsm8k"], "--benchmark"),
        (["eval", "m", "--data", "d", "--samples", "2", "--k", "3"], "--samples is called --num-generations"),
        (["data", "show", "none.yaml", "--rows", "1"], "--rows is called --limit"),
        (["eval", "m", "--data", "d", "--num_generations", "2", "--k", "3"], "add --num-generations 3"),
    ],
)
def test_misspelt_and_earlier_names_are_told(arguments: list[str], told: str) -> None:
    assert told in cohort(*arguments)


def test_seed_is_a_key_beside_the_option_seeds() -> None:
    assert _configuration(["a.yaml", "--seed", "3"], {"--seeds": None}) == ["--", "a.yaml", "seed=3"]


TRL = """
model_name_or_path: m
dataset_name: d
dataset_config: main
learning_rate: 1.0e-4
use_peft: true
lora_r: 8
lora_target_modules: [q_proj]
dtype: bfloat16
report_to: none
"""


def test_a_trl_file_is_trls(tmp_path: Path) -> None:
    path = tmp_path / "trl.yaml"
    path.write_text(TRL)
    run, settings = read_run(path, ["method=sft"])
    assert (run.method, run.model, run.dataset, run.dataset_kwargs) == ("sft", "m", "d", {"name": "main"})
    assert (settings.learning_rate, settings.finetuning_type, settings.lora_rank) == (1e-4, "lora", 8)
    assert (settings.lora_alpha, settings.lora_dropout, settings.lora_target) == (32, 0.05, ["q_proj"])
    assert settings.model_init_kwargs == {"dtype": "bfloat16"}
    assert run.dataset_dir is None, "LLaMA-Factory's default"
    with pytest.raises(UserError, match="does not say which trainer reads it: name the method, `cohort train sft"):
        read_run(path)
    assert read_run(path, ["method=reward"])[0].method == "reward_model"
    assert read_run(path, ["method=sft", "model=other"])[0].model == "other", "an override under our name"


def test_lora_keys_without_use_peft_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trl.yaml"
    path.write_text("model_name_or_path: m\ndataset_name: d\nlora_r: 4\n")
    assert read_run(path, ["method=sft"])[1].finetuning_type == "full"
    assert "lora_r=4 has no effect here: it is read with use_peft: true" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("use_peft: true\nfinetuning_type: full", "use_peft is true and finetuning_type is 'full': give one of them"),
        ("use_peft: 'false'", "`use_peft` is 'false': it must be true or false"),
        ("dtype: bfloat16\ntorch_dtype: float32", "`model_init_kwargs` has dtype: 'bfloat16', and another key"),
        ("dataset_config: main\ndataset_kwargs: 3", "`dataset_kwargs` is '3': it must be a mapping"),
        ("reward_model_name_or_path: r\nreward_funcs: 3", "`reward_funcs` is '3': it must be a list"),
        ("model_revision: v2\nmodel_init_kwargs: [a]", "`model_init_kwargs` is \"['a']\": it must be a mapping"),
    ],
)
def test_values_of_trls_keys_that_cannot_be_are_told(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trl.yaml"
    path.write_text(f"model_name_or_path: m\ndataset_name: d\nmethod: sft\n{line}\n")
    with pytest.raises(UserError) as error:
        read_run(path)
    assert message in str(error.value)


def test_null_in_trls_file_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "trl.yaml"
    path.write_text("model_name_or_path: m\ndataset_name: d\nmethod: sft\ntest_split_size: null\nlora_r: null\n")
    assert read_run(path)[0].val_size == 0


def test_llama_factorys_file_stays_its_own(tmp_path: Path) -> None:
    path = tmp_path / "lf.yaml"
    path.write_text("model_name_or_path: m\ndataset: d\nstage: sft\ncutoff_len: 64\n")
    assert read_run(path)[0].dataset_dir == "data"


def test_a_key_under_two_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("model: m\nmodel_name_or_path: n\ndataset: d\n")
    with pytest.raises(UserError, match="`model_name_or_path` and `model` are one key under two names"):
        read_run(path)


def test_completion_and_the_module() -> None:
    environment = {
        **os.environ, "_COHORT_COMPLETE": "complete_bash", "COMP_WORDS": "cohort tr", "COMP_CWORD": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "cohort"], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["train"]
    help_text = cohort("--help")
    assert "--install-completion" in help_text and "--show-completion" in help_text
    commands = help_text[help_text.index("Commands:") :].split()
    assert commands[1] == "train" and "docs/configuration.md" in help_text
