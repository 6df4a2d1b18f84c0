"""The example configurations run on a small model, and the command line's messages for mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cohort.config import read_run
from cohort.data.chains import build_tokenizer
from cohort.train.run import train_from_config
from helpers import small_model

ROOT = Path(__file__).parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"


def cohort(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cohort", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


OTHERS = ("gsm8k.yaml", "compare_chains.yaml", "iterative_grpo.yaml", "reward_model.yaml")
METHOD_EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.yaml") if path.name not in OTHERS)


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not beside the project")
@pytest.mark.parametrize("name", METHOD_EXAMPLES)
def test_the_example_of_each_method_runs(name: str, model: str, tmp_path: Path) -> None:
    """On a random model, with a reward that it can get; everything else is the example's."""
    rewards = tmp_path / "rewards.py"
    rewards.write_text("def length(completions, **_):\n    return [len(c[0]['content']) % 3 for c in completions]\n")
    of_steps = [f"{ROOT}/{name}" for name in (["examples/steps.py:equations"] if name == "grpo_process.yaml" else [])]
    run, config = read_run(
        ROOT / "examples" / name,
        [
            f"model={model}",
            f"dataset={GSM8K / 'train.jsonl'}",
            f"eval_dataset={GSM8K / 'test.jsonl'}",
            "max_samples=8",
            "eval_samples=2",
            "max_steps=2",
            "per_device_train_batch_size=4",
            f"output_dir={tmp_path / 'out'}",
            *([f"teacher={model}"] if name == "distill.yaml" else []),
        ],
    )
    if run.reward_funcs:
        run.reward_funcs = [f"{rewards}:length", *of_steps]
        config.max_completion_length = 8
    train_from_config(run, config)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert any(any(key.startswith("eval/") for key in row) for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not beside the project")
def test_the_gsm8k_example_runs_to_its_end(model: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = [
        f"model={model}",
        f"dataset={GSM8K / 'train.jsonl'}",
        f"eval_dataset={GSM8K / 'test.jsonl'}",
        "max_steps=3",
        "eval_samples=4",
        "per_device_train_batch_size=16",
        "max_completion_length=24",
        f"output_dir={out}",
    ]
    done = cohort("train", "examples/gsm8k.yaml", *settings)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "reward" in row] == [1, 2, 3]
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 3]
    assert (out / "reward.png").stat().st_size > 10_000
    options = ["--data", str(GSM8K / "test.jsonl"), "--limit", "3", "--num-generations", "4", "--k", "1,4"]
    done = cohort("eval", str(out), *options, "--max-completion-length", "16", "--system-prompt", "")
    assert done.returncode == 0, done.stderr
    assert "pass@4" in done.stdout and "maj@1" in done.stdout


@pytest.mark.slow
def test_a_reasoning_gym_task_brings_its_own_reward(model: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {model}\ndataset: reasoning_gym:chain_sum\ndataset_kwargs: {{size: 8, seed: 1}}\nmax_steps: 1\n"
        "num_generations: 2\nper_device_train_batch_size: 4\nmax_completion_length: 8\n"
        f"output_dir: {tmp_path / 'out'}\n"
    )
    done = cohort("train", str(config))
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert "rewards/reasoning_gym/mean" in row


MISTAKES = [
    ({"num_generation": 4}, "unknown key `num_generation`: did you mean `num_generations`?"),
    ({"num_generations": 1}, "num_generations is 1: a completion is judged against its siblings"),
    ({"dataset": "./none.jsonl"}, "'./none.jsonl': no such file or directory"),
    ({"reward_funcs": "acuracy"}, "unknown reward 'acuracy'"),
    ({"model": "./none"}, "model './none': the directory does not exist"),
    ({"beta": "much"}, "`beta` is 'much'"),
    ({"loss_type": "dapoo"}, "`loss_type` is 'dapoo'"),
    ({"top_p": 1.5}, "`top_p` is 1.5"),
    ({"max_prompt_length": 2}, "prompts are longer than 2 tokens"),
    ({"reward_weights": [1, 2]}, "reward_weights has 2 values"),
]


LOADING = ("max_prompt_length", "reward_weights")
"""Mistakes that are found after imports that take seconds, beside "model"."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(*each, id=(name := next(iter(each[0]))), marks=[pytest.mark.slow] if name in LOADING else [])
        for each in MISTAKES
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    change: dict[str, object], message: str, model: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    settings = {
        "model": model,
        "dataset": "./rows.jsonl",
        "reward_funcs": "accuracy",
        "max_steps": 1,
        "output_dir": "o",
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in {**settings, **change}.items()]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    done = cohort("train", "run.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o" / "model.safetensors").exists()


def test_a_row_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    """A row of the wrong type is named by file and row."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": {"text": "1"}}\n')
    build_tokenizer().save_pretrained(tmp_path / "m")
    small_model(vocab_size=22).save_pretrained(tmp_path / "m")
    (tmp_path / "run.yaml").write_text("model: ./m\ndataset: rows.jsonl\nreward_funcs: format\n")
    done = cohort("train", "run.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "rows.jsonl row 2: `prompt` is dict" in done.stderr
