"""The command line with stand-ins for training and evaluation: arguments passed on, output, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cohort import __version__
from cohort.cli.app import app
from cohort.config import GRPOConfig, RunConfig, read_run
from cohort.types import TrainerState, UserError
from helpers import ROOT, fresh

EXAMPLE = ROOT / "examples" / "gsm8k.yaml"
Calls = list[dict[str, Any]]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Callable[..., Any]) -> None:
    """Replace a module for the length of a test."""
    found = ModuleType(module)
    for name, function in functions.items():
        setattr(found, name, function)
    monkeypatch.setitem(sys.modules, module, found)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls of train_from_config, whose stand-in writes two steps' metrics."""
    calls: Calls = []

    def train_from_config(run: RunConfig, config: Any, callbacks: list[Any]) -> TrainerState:
        calls.append({"run": run, "config": config, "callbacks": callbacks})
        folder = Path(config.output_dir)
        folder.mkdir(parents=True)
        rows = [{"step": 1, "reward": 0.5, "loss": 0.0}, {"step": 2, "reward": 0.75, "loss": 0.0}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        state = TrainerState(max_steps=2)
        for callback in callbacks:
            callback.on_train_begin(config, state, None)
            for row in rows:
                state.global_step += 1
                callback.on_log(config, state, None, logs=row)
            callback.on_train_end(config, state, None)
        return state

    stand_in(monkeypatch, "cohort.train.run", train_from_config=train_from_config)
    return calls


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls of evaluate_model."""
    calls: Calls = []

    def evaluate_model(model: str, data: str, **settings: Any) -> dict[str, Any]:
        calls.append({"model": model, "data": data, **settings})
        return {
            "problems": 100,
            "samples": settings["samples"],
            "accuracy": 0.27,
            "pass@k": dict.fromkeys(settings["ks"], 0.27),
            "maj@k": dict.fromkeys(settings["ks"], 0.27),
            "metrics": {"eval/accuracy": 0.27},
            "completions": [{"prompt": "2+2=", "completions": ["4 好"], "correct": [True]}],
        }

    stand_in(monkeypatch, "cohort.evaluation.models", evaluate_model=evaluate_model)
    return calls


def test_help_and_mistakes_import_nothing_heavy_and_are_quick() -> None:
    code = (
        "import sys, cohort.config\n"
        "from cohort.cli.app import app\n"
        "import cohort.report.live, cohort.report.plots, write_configuration, cohort.report.tables\n"
        "from typer.testing import CliRunner\n"
        "wrong = ['examples/gsm8k.yaml', 'lerning_rate=1']\n"
        "for arguments in (['--version'], ['--help'], ['train', '--help'], ['train', 'none.yaml'], ['train', *wrong],\n"
        "                  ['plan', '--help'], ['plan', *wrong], ['plan', wrong[0], '--memory', 'much']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'math_verify', 'matplotlib', 'peft'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'scripts'}"}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"
    quickest = min(_seconds("--help") for _ in range(3))
    # 0.3 s on an idle core. The bound allows a busy one, but not an import of torch and transformers (4 s).
    assert quickest < 2.0


def _seconds(*arguments: str) -> float:
    started = time.perf_counter()
    assert fresh(*arguments).returncode == 0
    return time.perf_counter() - started


def test_version() -> None:
    assert fresh("--version").stdout == f"cohort {__version__}\n" == "cohort 0.1.0\n"
    module = [sys.executable, "-m", "cohort", "--version"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    shown = subprocess.run(module, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == f"cohort {__version__}\n"


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    commands = (
        "train", "eval", "generate", "export", "compare", "plan", "plot", "rerun", "report", "watch", "demo", "vllm",
        "methods", "doctor", "reward", "data",
    )  # fmt: skip
    assert all(f" {command} " in result.output for command in commands)


def test_train_without_a_configuration_is_a_usage_error() -> None:
    result = run("train")
    assert result.exit_code == 2 and "Missing argument" in result.output


def test_a_users_mistake_is_one_message_without_traceback(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndataset: d\nlerning_rate: 1\n")
    result = fresh("train", str(path))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"error: {path}: unknown key `lerning_rate`: did you mean `learning_rate`?\n"


def test_a_method_that_is_no_name_is_a_mistake_like_others(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndataset: d\nmethod: [grpo]\n")
    result = run("train", str(path))
    assert result.exit_code == 2 and "`method` is ['grpo']" in result.stderr


def test_markup_in_a_message_is_shown_as_it_is() -> None:
    result = fresh("train", "[bold]none[/bold].yaml")
    assert result.returncode == 2 and result.stderr.startswith("error: [bold]none[/bold].yaml: no such file")


@pytest.mark.parametrize("override", ["max_steps", "=3"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    result = run("train", str(EXAMPLE), override)
    assert result.exit_code == 2 and "write key=value" in result.stderr


def test_a_bug_stays_loud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("ours")

    stand_in(monkeypatch, "cohort.train.run", train_from_config=broken)
    result = run("train", str(EXAMPLE), f"output_dir={tmp_path}")
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_mistake_found_while_training_exits_with_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("unknown reward 'x'")

    stand_in(monkeypatch, "cohort.train.run", train_from_config=refuse)
    result = run("train", str(EXAMPLE), f"output_dir={tmp_path}")
    assert result.exit_code == 2 and result.stderr == "error: unknown reward 'x'\n"


def test_train_passes_the_configuration_and_says_where_things_are(trained: Calls, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = run("train", str(EXAMPLE), "max_steps=3", "model=m [x]", "learning_rate=1e-5", f"output_dir={folder}")
    assert result.exit_code == 0, result.output
    (call,) = trained
    assert (call["run"].model, call["run"].reward_funcs) == ("m [x]", ["accuracy", "format"])
    assert (call["config"].max_steps, call["config"].learning_rate) == (3, 1e-5)
    assert call["config"].resume_from_checkpoint is False
    assert "grpo: m [x]: step 1/2: reward 0.500" in result.stdout
    lines = result.stdout.splitlines()
    first = lines.index(f"Trained. In {folder}:")
    assert lines[first + 1 : first + 4] == ["  the model", "  metrics.jsonl", "  reward.png"]
    assert lines[first + 4].startswith("held-out") and lines[first + 5].startswith("reward ")
    assert (folder / "reward.png").stat().st_size > 10_000


def test_resume_is_passed_on(trained: Calls, tmp_path: Path) -> None:
    result = run("train", str(EXAMPLE), f"output_dir={tmp_path / 'out'}", "--resume")
    assert result.exit_code == 0 and trained[0]["config"].resume_from_checkpoint is True


@pytest.mark.parametrize(("checkpoint", "told"), [(True, "--resume"), (False, "save_steps saves some on the way")])
def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: bool, told: str) -> None:
    def interrupted(run: RunConfig, config: Any, callbacks: list[Any]) -> None:
        if checkpoint:
            (Path(config.output_dir) / "checkpoint-2").mkdir(parents=True)
        raise KeyboardInterrupt

    stand_in(monkeypatch, "cohort.train.run", train_from_config=interrupted)
    result = run("train", str(EXAMPLE), f"output_dir={tmp_path}", "system_prompt=a b")
    assert result.exit_code == 130 and told in result.stderr
    if checkpoint:
        assert f"cohort train {EXAMPLE} output_dir={tmp_path} 'system_prompt=a b' --resume" in result.stderr


def test_ctrl_c_elsewhere_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: Any) -> None:
        raise KeyboardInterrupt

    stand_in(monkeypatch, "cohort.demo.small", run_demo=interrupted)
    result = run("demo", "--small")
    assert result.exit_code == 130 and result.stderr == "\nstopped\n"


def test_eval_passes_its_options_and_prints_the_table(evaluated: Calls, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = "eval m --data d.jsonl --split dev --reward accuracy,format --num-generations 8 --k 8,1,4 --limit 100"
    more = "--temperature 0.7 --max-completion-length 64 --columns prompt=question,answer=solution --seed 7"
    prompt = ["--system-prompt", "Think first.", "--dataset-kwargs", "name=main", "--output", str(output)]
    result = run(*arguments.split(), *more.split(), *prompt)
    assert result.exit_code == 0, result.output
    assert evaluated == [
        {
            "model": "m",
            "data": "d.jsonl",
            "benchmark": None,
            "split": "dev",
            "rewards": ["accuracy", "format"],
            "samples": 8,
            "ks": [1, 4, 8],
            "temperature": 0.7,
            "max_completion_length": 64,
            "limit": 100,
            "columns": {"prompt": "question", "answer": "solution"},
            "dataset_kwargs": {"name": "main"},
            "system_prompt": "Think first.",
            "template": None,
            "plain": False,
            "seed": 7,
            "trust_remote_code": False,
            "allow_pickle": False,
        }
    ]
    assert "m on d.jsonl" in result.stdout and "27.0% [19.3, 36.4]" in result.stdout
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["completions"][0]["completions"] == ["4 好"]
    assert written["interval"] == pytest.approx([0.19270, 0.36432], abs=1e-5)


def test_eval_defaults(evaluated: Calls) -> None:
    assert run("eval", "m", "--data", "d").exit_code == 0
    (call,) = evaluated
    assert (call["samples"], call["ks"], call["rewards"], call["temperature"]) == (1, [1], [], None)
    assert (call["columns"], call["dataset_kwargs"], call["system_prompt"]) == ({}, {}, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "1,x"], "--k '1,x': give whole numbers"),
        (["--k", "0"], "--k '0': give whole numbers of at least 1"),
        (["--k", "1,8", "--num-generations", "4"], "add --num-generations 8"),
        (["--reward", ","], "--reward ',': give at least one name"),
        (["--columns", "question"], "--columns 'question': write name=value"),
        (["--columns", "prompt="], "--columns 'prompt=': write name=value"),
        (["--output", "nowhere/result.json"], "there is no folder nowhere"),
    ],
)
def test_eval_refuses_bad_options_before_loading_a_model(evaluated: Calls, options: list[str], message: str) -> None:
    result = run("eval", "m", "--data", "d", *options)
    assert result.exit_code == 2 and message in result.stderr
    assert not evaluated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name what to measure on: --data FILE, --benchmark gsm8k or --lm-eval TASKS"),
        (["--benchmark", "gsm9k"], "--benchmark 'gsm9k' is unknown: did you mean 'gsm8k'?"),
        (["--benchmark", "gsm8k", "--columns", "prompt=q"], "--benchmark reads its own columns"),
        (["--lm-eval", "arc_easy", "--data", "d"], "leave --data out"),
        (["--lm-eval", ","], "--lm-eval ',': give at least one name"),
    ],
)
def test_eval_refuses_what_it_cannot_measure_on(evaluated: Calls, options: list[str], message: str) -> None:
    result = run("eval", "m", *options)
    assert result.exit_code == 2 and message in result.stderr
    assert not evaluated


def test_demo_passes_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: Calls = []
    stand_in(monkeypatch, "cohort.demo.small", run_demo=lambda **settings: calls.append(settings))
    assert run("demo", "--small", "--seed", "3", "--output", str(tmp_path)).exit_code == 0
    assert (calls[0]["seed"], calls[0]["output"]) == (3, tmp_path)


def test_demo_trains_the_real_model_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real, small = [], []
    stand_in(monkeypatch, "cohort.demo.real", run_demo=lambda **settings: real.append(settings))
    stand_in(monkeypatch, "cohort.demo.small", run_demo=lambda **settings: small.append(settings))
    file = tmp_path / "model.gguf"
    stand_in(monkeypatch, "cohort.demo.packaged_model", packaged_file=lambda: file, INSTALL="pip install it")
    assert run("demo").exit_code == 0 and real[0]["file"] == file and not small
    stand_in(monkeypatch, "cohort.demo.packaged_model", packaged_file=lambda: None, INSTALL="pip install it")
    result = run("demo")
    assert len(small) == 1 and "The real model is not installed" in result.stdout and "pip install it" in result.stdout


def test_plot_prints_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    result = run("plot", str(tmp_path))
    assert result.exit_code == 0 and result.stdout == f"{tmp_path / 'loss.png'}\n"


def test_plot_of_nothing_says_so(tmp_path: Path) -> None:
    assert "no such file" in run("plot", str(tmp_path)).stderr
    (tmp_path / "metrics.jsonl").write_text("")
    result = run("plot", str(tmp_path))
    assert result.exit_code == 2 and "nothing to plot yet" in result.stderr


def test_doctor_names_the_machine() -> None:
    import torch

    result = run("doctor")
    assert result.exit_code == 0, result.output
    values = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if not line.startswith("fast"))
    assert values["torch"] == torch.__version__ and values["threads"] == str(torch.get_num_threads())
    assert "fast bfloat16" in result.stdout


def test_the_example_is_valid_and_yields_to_the_command_line() -> None:
    run_config, config = read_run(EXAMPLE)
    assert isinstance(config, GRPOConfig)
    assert (run_config.model, run_config.dataset) == ("Qwen/Qwen2.5-0.5B-Instruct", "openai/gsm8k")
    assert (config.num_generations, config.beta, config.learning_rate) == (8, 0.04, 1e-6)
    assert (config.eval_steps, run_config.eval_samples, config.max_completion_length) == (50, 100, 512)
    assert all(tag in (run_config.system_prompt or "") for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    changes = ["dataset=train.jsonl", "eval_dataset=test.jsonl", "model=m", "max_steps=3"]
    run_config, config = read_run(EXAMPLE, changes)
    assert (run_config.dataset, run_config.eval_dataset) == ("train.jsonl", "test.jsonl")
    assert (run_config.model, config.max_steps) == ("m", 3)


@pytest.mark.parametrize("command", ["eval m", "generate m", "reward eval m", "reward label m --output o.jsonl"])
def test_a_plain_prompt_has_no_system_turn(command: str) -> None:
    result = run(*command.split(), "--data", "d.jsonl", "--plain", "--system-prompt", "s")
    assert result.exit_code == 2 and "leave --system-prompt or --plain out" in result.output
