"""The scripts in TRL's style and the YAML files in LLaMA-Factory's, run to their end on a small model."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.config import read_run
from helpers import ROOT

EXAMPLES = ROOT / "examples"
GSM8K_ROWS = [
    {"question": "Ann has 3 boxes of 4 pens. How many pens?", "answer": "3 * 4 = <<3*4=12>>12\n#### 12"},
    {"question": "A pack of 1,000 sheets loses 5. How many are left?", "answer": "1000 - 5 = 995\n#### 995"},
]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_script(
    name: str, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> list[dict[str, Any]]:
    options = [
        "--model",
        model,
        "--output_dir",
        str(folder / "out"),
        "--max_steps",
        "2",
        "--max_completion_length",
        "12",
    ]
    monkeypatch.setattr(sys, "argv", [name, *options, *more])
    runpy.run_path(str(EXAMPLES / "trl" / name), run_name="__main__")
    return metrics(folder / "out")


def test_six_rewards_added_up(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    rows = run_script("choice_reasoning.py", model, tmp_path, monkeypatch)
    names = [key[8:-5] for key in rows[-1] if key.startswith("rewards/") and key.endswith("/mean")]
    assert len(names) == 6 and "keywords" in rows[-1] and [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["reward"] == pytest.approx(sum(rows[-1][f"rewards/{name}/mean"] for name in names), abs=1e-6)
    assert any("each step: 1 prompts x 8 completions" in message for message in caplog.messages)
    assert any("paged_adamw_8bit" in message for message in caplog.messages)


def test_gsm8k_with_tags(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K_ROWS))
    rows = run_script("gsm8k_tags.py", model, tmp_path, monkeypatch, "--data", str(tmp_path / "rows.jsonl"))
    assert {"rewards/correctness_reward/mean", "rewards/tag_presence_reward/mean"} <= set(rows[-1])
    assert list((tmp_path / "out" / "runs").glob("*tfevents*"))
    assert rows[1]["learning_rate"] == pytest.approx(0.55e-6)  # the middle of a cosine that ends at a tenth


def test_think_and_answer_with_references(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    rows = run_script("think_answer.py", model, tmp_path, monkeypatch)
    assert [row["step"] for row in rows if "eval/reward" in row] == [1, 2]
    assert "step 2 of 2: reward" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "no"}
PROBLEM = {"prompt": "1+1=", "solution": "2"}


@pytest.mark.parametrize(
    ("name", "row", "key", "flags"),
    [
        ("sft", {"prompt": "1+1=", "completion": "2"}, "loss", "--use_peft"),
        ("dpo", PAIR, "rewards/margins", "--beta 0.2"),
        ("reward", PAIR, "loss", "--max_length 64"),
        ("grpo", PROBLEM, "reward", "--reward_funcs accuracy think_format --num_generations 2 --beta 0"),
        ("rloo", PROBLEM, "reward", "--reward_funcs accuracy overlong --num_generations 2 --beta 0.05"),
    ],
)
def test_a_script_of_each_trainer_with_a_parser_a_callback_and_a_tracker(
    name: str, row: Any, key: str, flags: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:  # fmt: skip
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * 4)
    (tmp_path / "run.yaml").write_text(
        f"model_name_or_path: {model}\noutput_dir: {tmp_path / 'out'}\nper_device_train_batch_size: 2\n"
        "learning_rate: 1e-3\nreport_to: tensorboard\neval_strategy: steps\neval_steps: 1\n"
        "use_cpu: true\nmax_steps: 5\n"
    )
    limit = ["--max_completion_length", "8"] if "reward_funcs" in flags else []
    arguments = ["--dataset_name", str(tmp_path), "--config", str(tmp_path / "run.yaml"), "--max_steps=2", *limit]
    monkeypatch.setattr(sys, "argv", [name, *arguments, *flags.split()])
    runpy.run_path(str(EXAMPLES / "trl" / f"{name}.py"), run_name="__main__")
    out = tmp_path / "out"
    assert [each["step"] for each in metrics(out) if key in each] == [1, 2]
    assert f"step 2 of 2: {key} " in capsys.readouterr().out
    assert list((out / "runs").glob("*tfevents*")) and (out / "eval_results.json").is_file()
    assert (out / ("adapter_model.safetensors" if name == "sft" else "model.safetensors")).is_file()


def run_yaml(name: str, model: str, output: Path, *overrides: str) -> None:
    """Run an example with another model, few steps and short answers."""
    path = EXAMPLES / "llama_factory" / f"{name}.yaml"
    changes = [f"model_name_or_path={model}", f"output_dir={output}", "bf16=false", "max_new_tokens=8", *overrides]
    done = CliRunner().invoke(app, ["train", str(path), *changes])
    assert done.exit_code == 0, done.output


LLAMA_FACTORY = [
    ("qwen2_5_lora_grpo", "reward"), ("llama3_freeze_sft", "loss"), ("qwen3_lora_sft", "loss"),
    ("qwen3_full_sft", "loss"), ("qwen3_lora_dpo", "rewards/margins"), ("qwen3_lora_reward", "loss"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key"), LLAMA_FACTORY, ids=[name for name, _ in LLAMA_FACTORY])
def test_llama_factory_yaml(
    name: str, key: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(EXAMPLES.parent)
    run_yaml(name, model, tmp_path / "out", "max_steps=2")
    assert [row["step"] for row in metrics(tmp_path / "out") if key in row] == [1, 2]


def test_llama_factory_reward_model_then_ppo(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    run_yaml("qwen3_lora_reward", model, tmp_path / "rm", "max_steps=1")
    run_yaml("qwen3_lora_ppo", model, tmp_path / "ppo", "max_steps=2", f"reward_model={tmp_path / 'rm'}")
    assert [row["step"] for row in metrics(tmp_path / "ppo") if "critic/loss" in row] == [1, 2]


def test_llama_factory_sft_then_predictions(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    run_yaml("qwen3_lora_sft", model, tmp_path / "sft", "max_steps=1")
    adapter = f"adapter_name_or_path={tmp_path / 'sft'}"
    run_yaml("qwen3_lora_predict", model, tmp_path / "out", adapter, "max_samples=2")
    lines = (tmp_path / "out" / "generated_predictions.jsonl").read_text("utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"prompt", "predict", "label"}] * 4


def test_llama_factory_four_bits_reach_the_loader() -> None:
    _, config = read_run(EXAMPLES / "llama_factory" / "qwen3_qlora_sft.yaml")
    quantization = config.model_init_kwargs["quantization_config"]
    assert quantization["load_in_4bit"] and config.finetuning_type == "lora"
