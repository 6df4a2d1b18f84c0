"""The commands that the pages print: each parses, with its options, and its KEY=VALUE are keys."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.compare.config import CompareConfig
from cohort.config import METHOD_CONFIGS, REWARD_CONFIGS, RunConfig
from cohort.data.benchmarks import BENCHMARKS
from cohort.demo import packaged_model, real
from cohort.train.output import hub
from helpers import ROOT

COMMAND: Any = typer.main.get_command(app)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
PAGES_OF_COMMANDS = [page for page in PAGES if "cohort " in page.read_text(encoding="utf-8")]
CONFIGS = (*METHOD_CONFIGS.values(), *REWARD_CONFIGS.values(), RunConfig, CompareConfig)
KEYS = {name for kind in CONFIGS for name in kind.model_fields}


def commands(page: Path) -> list[str]:
    """Lines of blocks that begin with the command, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4}cohort .*", text, re.MULTILINE)
    lines = [line.strip() for block in [*fenced, *indented] for line in block.splitlines()]
    return [line for line in lines if line.startswith("cohort ")]


def parse(arguments: list[str]) -> Any:
    """The context of the innermost command. Raises an error of the command line for what is none."""
    command = COMMAND
    while hasattr(command, "get_command"):
        name, *arguments = arguments
        command = command.get_command(None, name)
        if command is None:
            raise ValueError(f"no command {name!r}")
    return command.make_context(command.name, arguments)


@pytest.mark.parametrize("page", PAGES_OF_COMMANDS, ids=lambda page: page.name)
def test_every_printed_command_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for line in commands(page):
        context = parse(shlex.split(re.sub(r"\[[A-Z].*?\]", "", line), comments=True)[1:])  # [KEY=VALUE ...]
        for override in context.params.get("overrides") or []:
            key = override.partition("=")[0]
            assert "=" in override and key.rpartition(".")[2] in KEYS, (line, override)


def test_a_command_that_is_none_is_seen() -> None:
    assert len(commands(ROOT / "docs" / "troubleshooting.md")) > 15
    with pytest.raises(Exception, match="no such option"):
        parse(["train", "run.yaml", "--resumes"])
    with pytest.raises(ValueError, match="no command 'check'"):
        parse(["reward", "check", "run.yaml"])


RUN = """
method: grpo
model: MODEL
dataset: train.jsonl
eval_dataset: held_out.jsonl
reward_funcs: accuracy,format
num_generations: 4
per_device_train_batch_size: 8
max_completion_length: 8
max_steps: 2
save_steps: 1
output_dir: output/run
use_cpu: true
bf16: false
"""
SHORTER = {"eval": "--max-completion-length 8", "generate": "--max-completion-length 8"}


@pytest.mark.slow
def test_the_commands_of_troubleshooting_run(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that need no hub, in their order, on a small model. The run that is resumed is the one of run.yaml."""
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"What is {a} + 1?", "answer": str(a + 1)}) for a in range(8)]
    Path("train.jsonl").write_text("\n".join(rows[:6]))
    Path("held_out.jsonl").write_text("\n".join(rows[6:]))
    Path("run.yaml").write_text(RUN.replace("MODEL", model))
    Path("output").mkdir()
    lines = ["cohort train run.yaml"]
    for line in commands(ROOT / "docs" / "troubleshooting.md"):
        if "examples/" not in line and "output/sft" not in line:
            lines += ["cohort train run.yaml", line] if line.endswith("--resume") else [line]
    for line in lines:
        line = re.sub(r"max_steps=\d+", "max_steps=1", line.replace("MODEL", model)).replace(
            "checkpoint-100", "checkpoint-1"
        )
        words = [*shlex.split(line)[1:], *shlex.split(SHORTER.get(line.split()[1], ""))]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (line, done.output[-2000:], done.exception)


def python_of(page: Path) -> list[str]:
    """The blocks of Python in a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run_each(lines: list[str], more: dict[str, str]) -> None:
    """Run the lines in their order, each in this process. `more`: options behind those of a command."""
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        done = CliRunner().invoke(app, [*words, *shlex.split(more.get(words[0], ""))], input="What is 12 * 7?")
        assert done.exit_code == 0, (line, done.output[-2000:], done.exception)


def run_the_tutorial(more: dict[str, str]) -> None:
    """Its scripts and commands in their order, in the working directory."""
    page = ROOT / "docs" / "tutorial.md"
    problems, reward = python_of(page)
    exec(compile(problems, "tutorial.md", "exec"), {})
    Path("rewards.py").write_text(reward)
    lines = commands(page)
    assert [line.split()[1] for line in lines] == [
        *("demo", "data", "data", "eval", "train", "reward", "train", "eval", "eval", "generate")
    ]
    run_each(lines, more)


def test_the_tutorial_runs_as_printed(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small model in place of the packaged one, and few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packaged_model, "packaged_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(real, "converted", lambda file, folder: Path(model))
    for name, value in {"STEPS": 2, "HELD_OUT": 6, "PROMPTS": 2, "GROUP": 2}.items():
        monkeypatch.setattr(real, name, value)
    run_the_tutorial({"eval": "--limit 20 --max-completion-length 8", "generate": "--max-completion-length 8"})


@pytest.mark.slow
@pytest.mark.skipif(packaged_model.packaged_file() is None, reason="the model's package is not installed")
def test_the_tutorial_runs_with_the_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, with few steps and problems."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"STEPS": 1, "HELD_OUT": 8, "PROMPTS": 2}.items():
        monkeypatch.setattr(real, name, value)
    run_the_tutorial({"eval": "--limit 8"})


GSM8K_ROWS = [
    {"question": f"A box has {a} pens. How many do two have?", "answer": f"2 * {a} = {2 * a}\n#### {2 * a}"}
    for a in range(2, 10)
]
SMALL = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 8, "eval_samples": 2}
FEWER: dict[str, dict[str, Any]] = {
    "gsm8k.yaml": {**SMALL, "max_steps": 2, "save_steps": 1, "eval_steps": 2},
    "reward_model.yaml": {"per_device_train_batch_size": 4, "num_train_epochs": 1},
    # A start of one step answers nothing right: every sample is imitated.
    "compare_chains.yaml": {
        **SMALL,
        "max_steps": 1,
        "eval_steps": 1,
        "final_generations": 2,
        "task_kwargs": "{operations: 2, problems: 20}",
        "rft": "{reward_threshold: -9}",
    },
}
"""Numbers in place of those in the examples, so that a test is short."""


@pytest.fixture
def small_examples(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory with examples/ of few steps, in which local files have the place of what is on the hub."""
    monkeypatch.chdir(tmp_path)
    Path("gsm8k.jsonl").write_text("\n".join(map(json.dumps, GSM8K_ROWS)))
    labels = [{"prompt": f"{a}>", "completion": str(a), "label": a > 5} for a in range(20)]
    Path("labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    local = {"Qwen/Qwen2.5-0.5B-Instruct": model, "openai/gsm8k": "gsm8k.jsonl", "dataset_kwargs: {name: main}\n": ""}
    Path("examples").mkdir()
    for name, numbers in FEWER.items():
        text = (ROOT / "examples" / name).read_text(encoding="utf-8")
        for of_hub, path in local.items():
            text = text.replace(of_hub, path)
        for key, number in numbers.items():
            assert re.search(rf"^ *{key}: ", text, re.MULTILINE), (name, key)
            text = re.sub(rf"^( *{key}): .*", rf"\1: {number}", text, flags=re.MULTILINE)
        Path("examples", name).write_text(text)
    on_disk = replace(BENCHMARKS["gsm8k"], source="gsm8k.jsonl", kwargs={})
    monkeypatch.setitem(BENCHMARKS, "gsm8k", on_disk)


@pytest.mark.usefixtures("small_examples")
def test_the_commands_of_the_readme_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = []
    monkeypatch.setattr(hub, "require_token", lambda: None)
    monkeypatch.setattr(hub, "push", lambda folder, repo, private: pushed.append((folder.name, repo)) or "its address")
    lines = [line for line in commands(ROOT / "README.md") if line != "cohort demo"]
    assert [line.split()[1] for line in lines] == [
        *(
            "train",
            "train",
            "train",
            "plan",
            "eval",
            "generate",
            "export",
            "reward",
            "train",
            "compare",
            "plot",
            "report",
        )
    ]
    short = "--max-completion-length 8"
    run_each(
        [line.replace("max_steps=100", "max_steps=1") for line in lines],
        {"eval": f"--limit 2 {short}", "generate": short, "compare": "--methods rft,grpo --seeds 1"},
    )
    steps = [json.loads(line)["step"] for line in Path("output/gsm8k/metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 2 and Path("output/gsm8k/reward.png").is_file()
    assert Path("output/gsm8k/report.html").is_file()
    assert pushed == [("gsm8k-export", "me/gsm8k")]
    assert Path("output/rm/adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("small_examples")
def test_the_script_of_the_readme_runs(model: str) -> None:
    (script,) = python_of(ROOT / "README.md")
    for printed, small in {
        "Qwen/Qwen2.5-0.5B-Instruct": model,
        "per_device_train_batch_size=64": "per_device_train_batch_size=8, max_completion_length=8, max_steps=1",
    }.items():
        assert printed in script
        script = script.replace(printed, small)
    exec(compile(script, "README.md", "exec"), {})
    (step,) = (json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines())
    assert {"rewards/accuracy/mean", "rewards/short_and_right/mean"} <= step.keys()
