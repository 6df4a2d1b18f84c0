"""The example rewards, run as their docstrings say."""

from __future__ import annotations

import ast
import runpy

import pytest
import yaml

from cohort.rewards import Rewards
from helpers import ROOT

FIRST_WORDS = {
    "maths": ["2.0", "2.0", "1.0", "1.0"],
    "multiple_choice": ["1.0 1.0", "1.0 0.0", "1.0 0.0", "0.0 0.0", "0.0 0.0", "[1.0, 0.0]"],
    "facts_with_aliases": ["1.0", "1.0", "1.0", "0.0", "0.0"],
    "several_objectives": ["2.5", "2.0", "1.25", "0.5"],
    "own": ["cites/invented 0.25", "[1.0, 0.5, 0.0, None]"],
}


@pytest.mark.parametrize("name", FIRST_WORDS)
def test_an_example_runs_and_shows_its_scores(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "rewards" / f"{name}.py"), run_name="__main__")
    for line, start in zip(capsys.readouterr().out.splitlines(), FIRST_WORDS[name], strict=True):
        assert line.startswith(start), line


@pytest.mark.parametrize("name", FIRST_WORDS)
def test_the_configuration_that_an_example_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    docstring = ast.get_docstring(ast.parse((ROOT / "examples" / "rewards" / f"{name}.py").read_text())) or ""
    lines = docstring.partition("    reward_funcs")[2].partition("    python ")[0]
    settings = yaml.safe_load("    reward_funcs" + lines)
    functions = settings["reward_funcs"]
    rewards = Rewards([functions] if isinstance(functions, str) else functions, settings.get("reward_weights"))
    assert len(rewards.names) == len(rewards.weights) >= 1
