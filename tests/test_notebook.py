"""A run in a notebook: what its cells show, in a real kernel without ipywidgets."""

from __future__ import annotations

import os
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from helpers import ROOT

IMPORT = """
import sys
sys.modules["ipywidgets"] = None  # it may be installed here
from cohort import GRPOConfig, GRPOTrainer
"""
TRAIN = """
def digits(completions, **_):
    print("scored")
    return [sum(c.isdigit() for c in completion[0]["content"]) / 10 for completion in completions]

args = GRPOConfig(
    output_dir="out", num_generations=2, per_device_train_batch_size=4, max_completion_length=4, max_steps=3,
    use_cpu=True, reward_preflight=False, eval_strategy="steps", eval_steps=3,
)
rows = [{"prompt": [{"role": "user", "content": "1?"}]}] * 4
trainer = GRPOTrainer("MODEL", digits, args, rows, rows)
trainer.train()
"""


@pytest.fixture(scope="module")
def cells(model: str, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """The outputs of the cells: the import, a run, and the run once more."""
    train = TRAIN.replace("MODEL", model)
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, [IMPORT, train, train])))
    folder = tmp_path_factory.mktemp("notebook")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    return [cell.outputs for cell in notebook.cells]


def text(output: Any) -> str:
    return str(output["text"] if output.output_type == "stream" else output["data"]["text/plain"])


def test_the_import_prints_nothing(cells: list[list[Any]]) -> None:
    assert cells[0] == []


@pytest.mark.parametrize("run", [1, 2])
def test_a_run_shows_its_progress_once(cells: list[list[Any]], run: int) -> None:
    lines = [line for output in cells[run] for line in text(output).splitlines()]
    shown = [line for line in lines if line != "scored"]
    assert len([line for line in shown if ": step " in line]) == 3 and len(set(shown)) == len(shown)
    assert any("step 3/3: reward" in line and "held-out digits" in line for line in shown)
    assert any(line.startswith("held-out reward") for line in shown) and "scored" in lines
    assert not [output for output in cells[run] if output.get("name") == "stderr"]


@pytest.mark.parametrize("run", [1, 2])
def test_no_output_holds_what_drives_a_terminal(cells: list[list[Any]], run: int) -> None:
    for output in cells[run]:
        page = str(output.get("data", {}).get("text/html", ""))
        assert not [c for c in text(output) + page if c != "\n" and not c.isprintable()]
    assert text(cells[run][-1]).startswith("TrainOutput(global_step=3, training_loss=")


def test_the_folder_is_a_run_as_anywhere(cells: list[list[Any]]) -> None:
    assert any("holds an earlier run" in text(output) for output in cells[2])
