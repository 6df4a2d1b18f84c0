"""CONTRIBUTING.md's table of what to touch, checked by adding one of each with exactly the files that it names."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.config import GRPOConfig, OnlineConfig, read_run
from cohort.formulas.loss_types import LOSS_TYPES
from cohort.train.run import train_from_config
from cohort.train.trainer import Trainer
from helpers import ROOT, rows_of

LIMITS = {
    "a loss variant": 2,
    "a method": 1,
    "a reward": 1,
    "a metric": 1,
    "an engine": 1,
    "a command": 2,
    "a configuration key": 1,
}
OWN_FILE = "your own file"


def files_to_touch() -> dict[str, list[str]]:
    """What to add -> the files of the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (an? [a-z ]+?)(?: \([^|]*\))? \| ([^|]+) \| (\d) \|$", text, re.MULTILINE)
    files = {what: listed.split(", ") for what, listed, _ in rows}
    assert {what: int(number) for what, _, number in rows} == {what: len(named) for what, named in files.items()}
    return files


def test_nothing_needs_more_files_than_it_should() -> None:
    files = files_to_touch()
    assert files.keys() == LIMITS.keys()
    assert all(len(files[what]) <= limit for what, limit in LIMITS.items())


def test_the_configuration_names_every_loss_type() -> None:
    assert set(get_args(GRPOConfig.model_fields["loss_type"].annotation)) == LOSS_TYPES.keys()


LOSS_VARIANT = '''

def unclipped(tokens, settings):
    """ratio * A: no clip."""
    ratio_N = (tokens.logprobs - tokens.old_logprobs).exp()
    never_N = ratio_N < 0
    return Surrogate(ratio_N * tokens.advantages, ratio_N * tokens.advantages, ratio_N, never_N, never_N)


LOSS_TYPES["unclipped"] = LossType(unclipped, bnpo)
'''
COMMAND = '''"""`cohort hello`."""


def hello() -> None:
    """Say hello."""
    print("hello")
'''
CONFIGURATION = "config/training.py"
"""The class of all methods: the key below is theirs."""


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, (path, before)
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with a loss variant, a command and a configuration key."""
    copy = tmp_path / "src" / "cohort"
    shutil.copytree(ROOT / "src" / "cohort", copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "formulas" / "loss_types.py").open("a", encoding="utf-8") as file:
        file.write(LOSS_VARIANT)
    change(copy / "config" / "grpo.py", "loss_type: Literal[", 'loss_type: Literal["unclipped", ')
    (copy / "cli" / "hello.py").write_text(COMMAND, encoding="utf-8")
    added = "from cohort.cli.hello import hello\n\napp.command()(hello)\n\n\ndef main("
    change(copy / "cli" / "app.py", "def main(", added)
    output_dir = "    output_dir: str = Field("
    change(copy / CONFIGURATION, output_dir, f'    purpose: str = Field("", description="A note.")\n{output_dir}')
    return copy


def changed_files(copy: Path) -> set[str]:
    original = ROOT / "src" / "cohort"
    files = {path.relative_to(copy) for path in copy.rglob("*.py")}
    return {
        str(path)
        for path in files
        if not (original / path).is_file() or (original / path).read_bytes() != (copy / path).read_bytes()
    }


def run_configuration(folder: Path, model: str, **settings: Any) -> Path:
    """A configuration of two quick GRPO steps."""
    (folder / "rows.jsonl").write_text('{"prompt": "1+1="}\n{"prompt": "2+5="}\n', encoding="utf-8")
    quick = {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 8}
    files = {"model": model, "dataset": str(folder / "rows.jsonl"), "output_dir": str(folder / "out")}
    path = folder / "run.yaml"
    path.write_text(
        json.dumps({**files, **quick, "use_cpu": True, "apply_chat_template": False, **settings}), encoding="utf-8"
    )
    return path


def cohort(package: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "cohort", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=package.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_loss_variant_a_command_and_a_key_are_added_in_the_files_named(
    package: Path, model: str, tmp_path: Path
) -> None:
    files = files_to_touch()
    assert files["a configuration key"] == ["the class in `config/` that has the key"]
    named = [
        file.strip("`").replace("NAME", "hello") for what in ("a loss variant", "a command") for file in files[what]
    ]
    assert changed_files(package) == {*named, CONFIGURATION}

    assert cohort(package, "hello") == "hello\n"

    reward = tmp_path / "reward.py"
    reward.write_text("def length(completions, **_):\n    return [float(len(text) % 3) for text in completions]\n")
    settings = {"loss_type": "unclipped", "purpose": "a try", "reward_funcs": [f"{reward}:length"]}
    cohort(package, "train", str(run_configuration(tmp_path, model, num_iterations=2, **settings)))
    rows = rows_of(tmp_path / "out")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["clip_ratio/region_mean"] == 0 for row in rows) and rows[1]["ratio/max"] > 1
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert (written["loss_type"], written["purpose"]) == ("unclipped", "a try")


REWARD = '''
def ascii_share(completions, **_):
    """The share of ASCII characters."""
    return [sum(c.isascii() for c in text) / max(1, len(text)) for text in completions]
'''
METRIC = '''
def characters(completions, log_metric, **_):
    """Logs the mean length in characters; has no score of its own."""
    log_metric("characters/mean", sum(map(len, completions)) / len(completions))
    return [None] * len(completions)
'''


@pytest.mark.parametrize("by", ["file", "module"])
def test_a_reward_and_a_metric_are_a_file_each(
    by: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_to_touch()
    assert files["a reward"] == files["a metric"] == [OWN_FILE]
    folder = tmp_path / f"additions_{by}"
    folder.mkdir()
    (folder / "reward.py").write_text(REWARD)
    (folder / "metric.py").write_text(METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    places = {
        "file": (f"{folder}/reward.py", f"{folder}/metric.py"),
        "module": (f"{folder.name}.reward", f"{folder.name}.metric"),
    }
    reward, metric = places[by]
    path = run_configuration(tmp_path, model, reward_funcs=[f"{reward}:ascii_share", f"{metric}:characters"])
    train_from_config(*read_run(path))
    rows = rows_of(tmp_path / "out")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["reward"] == row["rewards/ascii_share/mean"] > 0 and row["characters/mean"] > 0 for row in rows)


METHOD = '''
from cohort.config import OnlineConfig
from cohort.methods import Method, imitate, sequence_mean, to_tokens
import torch


def above_mean(groups, config):
    """A = 1 for completions whose reward is above the group's mean."""
    rewards_PG = torch.tensor([group.rewards for group in groups])
    return to_tokens((rewards_PG > rewards_PG.mean(1, keepdim=True)).float(), groups)


row = Method("above_mean", "policy", above_mean, imitate, sequence_mean, config=OnlineConfig)
'''


def test_a_method_is_a_file_in_python_and_in_yaml(model: str, tmp_path: Path) -> None:
    assert files_to_touch()["a method"] == [OWN_FILE]
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "method.py").write_text(METHOD)
    rewards = {"reward_funcs": [f"{tmp_path}/reward.py:ascii_share"]}
    path = run_configuration(tmp_path, model, method=f"{tmp_path}/method.py:row", **rewards)
    done = CliRunner().invoke(app, ["train", str(path)])
    assert done.exit_code == 0, done.output
    by_yaml = [row["loss"] for row in rows_of(tmp_path / "out")]
    assert len(by_yaml) == 2

    row = runpy.run_path(str(tmp_path / "method.py"))["row"]
    settings = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 8, "max_steps": 2}
    config = OnlineConfig(output_dir=str(tmp_path / "python"), use_cpu=True, **settings)
    Trainer(model, f"{tmp_path}/reward.py:ascii_share", config, str(tmp_path / "rows.jsonl"), method=row).train()
    assert [row["loss"] for row in rows_of(tmp_path / "python")] == by_yaml


ENGINE = '''
from cohort.rollouts.sampling import Generation
from cohort.types import Completion
import torch


class Constant:
    """Writes the same tokens for every prompt, with log-probabilities of zero."""

    def generate(self, prompts, n, sampling, seeds, on_tokens=None, on_group=None, keep_tokens=0):
        ids = [torch.tensor([5 + i % 3, 6]) for i in range(n)]
        group = [Completion(i, torch.zeros(len(i)), text="ab"[: 1 + k % 2]) for k, i in enumerate(ids)]
        return Generation([group for _ in prompts])
'''


def test_an_engine_is_a_file(model: str, tmp_path: Path) -> None:
    assert files_to_touch()["an engine"] == [OWN_FILE]
    (tmp_path / "engine.py").write_text(ENGINE)
    engine = runpy.run_path(str(tmp_path / "engine.py"))["Constant"]()
    config = GRPOConfig(output_dir=str(tmp_path / "out"), num_generations=4, per_device_train_batch_size=8,
                        max_completion_length=8, max_steps=2, use_cpu=True)  # fmt: skip
    lengths = lambda completions, **_: [float(len(c)) for c in completions]  # noqa: E731
    Trainer(model, lengths, config, [{"prompt": "1+1="}], engine=engine).train()
    rows = rows_of(tmp_path / "out")
    assert [row["reward"] for row in rows] == [1.5, 1.5] and all(row["completions/mean_length"] == 2 for row in rows)
