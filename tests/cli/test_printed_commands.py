"""The commands that the pages print: each parses, with its options, and its KEY=VALUE are keys."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.compare.config import CompareConfig
from cohort.config import METHOD_CONFIGS, REWARD_CONFIGS, RunConfig
from cohort.demo import packaged_model, real
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
    with pytest.raises(Exception, match="No such option"):
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


@pytest.mark.slow
def test_the_tutorial_runs_as_printed(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scripts and commands in their order, with a small model in place of the packaged one and few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packaged_model, "packaged_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(real, "converted", lambda file, folder: Path(model))
    for name, value in {"STEPS": 2, "HELD_OUT": 6, "PROMPTS": 2, "GROUP": 2}.items():
        monkeypatch.setattr(real, name, value)
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    problems, reward = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(problems, "tutorial.md", "exec"), {})
    Path("rewards.py").write_text(reward)
    lines = commands(ROOT / "docs" / "tutorial.md")
    assert [line.split()[1] for line in lines] == [
        *("demo", "data", "data", "eval", "train", "reward", "train", "eval", "eval", "generate")
    ]
    for line in lines:
        more = "--max-completion-length 8" if line.startswith("cohort generate") else ""
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], *shlex.split(more)])
        assert done.exit_code == 0, (line, done.output[-2000:], done.exception)
