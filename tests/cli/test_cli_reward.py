"""`cohort reward try` and `audit`: output in each format, and exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from helpers import ROOT

ROWS = [
    {"prompt": "two and two", "completion": "<think>a</think><answer>4</answer>", "answer": "#### 4"},
    {"prompt": "three and three", "completion": "[bold]=7[/bold]\x1b[J", "answer": "6"},
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def configuration(tmp_path: Path, rewards: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\ndataset: {tmp_path / 'completions.jsonl'}\nreward_funcs: {rewards}\n")
    return str(path)


def test_try_shows_what_each_reward_matched(data: str) -> None:
    result = run("reward", "try", "accuracy,format", "--data", data)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["1", "accuracy", "1", "4", "4", "2"] in lines and ["2", "accuracy", "0", "7", "6", "0"] in lines
    assert "accuracy: mean 0.500 of 2 rows" in result.stdout and "\x1b" not in result.stdout


def test_try_writes_json_and_csv(data: str) -> None:
    records = json.loads(run("reward", "try", "accuracy", "--data", data, "--output-format", "json").stdout)
    assert [(r["row"], r["score"], r["found"], r["reference"]) for r in records] == [(1, 1, "4", "4"), (2, 0, "7", "6")]
    text = run("reward", "try", "accuracy", "--data", data, "--output-format", "csv", "--limit", "1").stdout
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["reward"], row["score"], row["source"]) == ("accuracy", "1.0", "completions.jsonl row 1")


def test_try_takes_the_rewards_of_a_configuration(data: str, tmp_path: Path) -> None:
    path = configuration(tmp_path, "[accuracy, {name: format, weight: 0.5, gate: accuracy}]")
    records = json.loads(run("reward", "try", path, "--data", data, "--output-format", "json").stdout)
    assert [record["total"] for record in records] == [1.5, 1.5, 0, 0]


def test_audit_exits_with_1_where_there_is_a_hole(data: str, tmp_path: Path) -> None:
    clean = run("reward", "audit", configuration(tmp_path, "accuracy,format"))
    assert clean.exit_code == 0, clean.output
    assert "0 of 15 attacks get more than an honest wrong answer" in clean.stdout
    assert "honest answers (think and answer tags): right 2, wrong 1" in clean.stdout
    path = configuration(tmp_path, "accuracy,reasoning_length")
    holes = run("reward", "audit", path, "reward_weights=[1,2]")
    assert holes.exit_code == 1 and "2 of 15 attacks" in holes.stdout and " +1 " in holes.stdout
    assert "warning: shaping adds up to 1.5 (reasoning_length 1.5), correctness to 1" in holes.stdout
    found = json.loads(run("reward", "audit", path, "--output-format", "json").stdout)
    assert {f["attack"] for f in found["findings"] if f["hole"]} == {"very long", "form only"}
    rows = list(csv.DictReader(io.StringIO(run("reward", "audit", path, "--output-format", "csv").stdout)))
    assert len(rows) == 15 and json.loads(rows[0]["paid"]) == {"reasoning_length": 0.5}


def test_mistakes_are_told(data: str, tmp_path: Path) -> None:
    result = run("reward", "try", "acuracy", "--data", data)
    assert result.exit_code == 2 and "did you mean 'accuracy'" in result.stderr
    result = run("reward", "try", "accuracy", "--data", "none.jsonl")
    assert result.exit_code == 2 and "no such file" in result.stderr
    (tmp_path / "bare.jsonl").write_text('{"prompt": "p"}\n')
    result = run("reward", "try", "accuracy", "--data", str(tmp_path / "bare.jsonl"))
    assert result.exit_code == 2 and "bare.jsonl row 1: no completion to score" in result.stderr
    result = run("reward", "audit", configuration(tmp_path, "[]"))
    assert result.exit_code == 2 and "it has no reward_funcs" in result.stderr
    result = run("reward", "audit", configuration(tmp_path, "[{name: format, wieght: 2}]"))
    assert result.exit_code == 2 and "unknown key 'wieght': did you mean 'weight'" in result.stderr


def test_neither_torch_nor_transformers_is_imported(data: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom cohort.cli.app import app\n"
        f"for arguments in (['reward', 'try', 'format', '--data', {data!r}],"
        f" ['reward', 'audit', {configuration(tmp_path, 'format')!r}]):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
