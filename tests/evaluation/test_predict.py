"""Predictions and evaluations of a run, with training and without, in LLaMA-Factory's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from cohort.data.chains import build_tokenizer
from helpers import small_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    build_tokenizer().save_pretrained(folder / "m")
    small_model().save_pretrained(folder / "m")
    (folder / "data").mkdir()
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.json"}}))
    rows = [{"instruction": f"{a}+1=", "input": "", "output": str(a + 1)} for a in range(6)]
    (folder / "data" / "sums.json").write_text(json.dumps(rows))
    return folder


BASE = {
    "model_name_or_path": "./m", "stage": "sft", "eval_dataset": "sums", "template": "qwen3", "cutoff_len": 64,
    "max_new_tokens": 4, "bf16": False, "use_cpu": True,
}  # fmt: skip


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, output: str, **values: Any) -> tuple[Result, Path]:
    monkeypatch.chdir(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump({**BASE, "output_dir": output, **values}))
    return CliRunner().invoke(app, ["train", "run.yaml"]), folder / output


def predictions(output: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (output / "generated_predictions.jsonl").read_text("utf-8").splitlines()]


def test_do_predict_alone_trains_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, output = run(folder, monkeypatch, "alone", do_predict=True, predict_with_generate=True, max_samples=3)
    assert done.exit_code == 0, done.output
    rows = predictions(output)
    assert [row["label"] for row in rows] == ["1", "2", "3"]
    assert all(set(row) == {"prompt", "predict", "label"} and f"{i}+1=" in row["prompt"] for i, row in enumerate(rows))
    assert json.loads((output / "predict_results.json").read_text())["predict_samples"] == 3
    assert not (output / "metrics.jsonl").exists() and not list(output.glob("*.safetensors"))
    assert "generated_predictions.jsonl" in done.output


def test_training_then_evaluation_and_prediction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = {"do_train": True, "do_eval": True, "do_predict": True, "do_sample": False}
    done, output = run(folder, monkeypatch, "all", dataset="sums", max_steps=1, **greedy)
    assert done.exit_code == 0, done.output
    assert "eval_loss" in json.loads((output / "eval_results.json").read_text())
    first = predictions(output)
    assert len(first) == 6 and (output / "adapter_model.safetensors").exists()
    done, again = run(
        folder,
        monkeypatch,
        "again",
        adapter_name_or_path="all",
        do_predict=True,
        do_sample=False,
        finetuning_type="lora",
    )
    assert done.exit_code == 0, done.output
    assert predictions(again) == first


def test_stop_strings_end_predictions_as_they_end_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = {"do_predict": True, "do_sample": False, "stage": "grpo", "max_samples": 2, "num_generations": 2}
    done, output = run(folder, monkeypatch, "whole", **greedy)
    assert done.exit_code == 0, done.output
    whole = [row["predict"] for row in predictions(output)]
    stop = whole[0].replace(" ", "")[0]
    done, output = run(folder, monkeypatch, "stopped", stop=[stop], **greedy)
    assert done.exit_code == 0, done.output
    assert [row["predict"] for row in predictions(output)] == [
        text[: text.index(stop) + 1] if stop in text else text for text in whole
    ]


def test_do_eval_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, output = run(folder, monkeypatch, "eval", do_eval=True)
    assert done.exit_code == 0, done.output
    assert "eval_loss" in json.loads((output / "eval_results.json").read_text())
    assert not list(output.glob("*.safetensors"))


MISTAKES = [
    ({"do_predict": True, "eval_dataset": None, "dataset": "sums", "do_train": True}, "do_predict needs held-out rows"),
    ({"do_predict": True, "stage": "rm"}, "do_predict writes completions, and a reward model has none"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_what_cannot_be_predicted_is_told_before_training(
    values: dict[str, Any], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, output = run(folder, monkeypatch, "mistake", **values)
    assert done.exit_code == 2 and message in " ".join(done.output.split())
    assert not (output / "metrics.jsonl").exists()
