"""A run on several ranks is the run of one process: the same completions, gradients and metrics up to rounding."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ranks_program
from cohort import UserError
from helpers import rows_of
from launching import Ranks, launch

QUICK = ["grpo", "grpo lora", "dynamic sampling", "ppo", "dpo", "reward model", "gradients"]
EVERY = [*ranks_program.RUNS, *ranks_program.OTHERS]
TIMES = ("seconds", "tokens_per_second")


def recorded(folder: Path, name: str) -> list[Any]:
    """The lines of a record that are texts and whole numbers, and of groups the texts."""
    path = folder / name
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = [json.loads(line) for line in lines if line]
    return [
        {
            "texts": [each["text"] for each in row.get("completions", [])],
            "measured": [sorted(each) for each in row.get("completions", [])],
            **{key: row.get(key) for key in ("step", "row", "group", "index", "completion", "n", "right", "prompt")},
        }
        for row in rows
    ]


def assert_alike(alone: Path, together: Path, name: str) -> None:
    """Metrics up to rounding, which Adam's first steps enlarge where a gradient is nearly zero."""
    ours, theirs = rows_of(together), rows_of(alone)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert {k for k in row if not k.startswith(TIMES)} == {k for k in expected if not k.startswith(TIMES)}, name
        for key, value in expected.items():
            # At the start, chosen and rejected are equally likely as under the reference, up to rounding.
            if key.startswith(TIMES) or not isinstance(value, float) or (name[:3], key[-10:]) == ("dpo", "accuracies"):
                continue
            close = math.isclose(row[key], value, rel_tol=5e-3, abs_tol=2e-5)
            assert close, f"{name}, step {row['step']}, {key}: {row[key]} instead of {value}"
    for file in ("completions.jsonl", "groups.jsonl", "rows.jsonl"):
        assert recorded(together, file) == recorded(alone, file), (name, file)


def compare(folder: Path, names: list[str], counts: tuple[int, ...]) -> None:
    ranks_program.main(str(folder / "1"), *names)
    every = launch("ranks_program.py", *(Ranks(n, [str(folder / str(n)), *names], seconds=400) for n in counts))
    for count, ended in zip(counts, every, strict=True):
        assert [each.code for each in ended] == [0] * count, ended[0].output + ended[-1].output
        assert [each.output for each in ended[1:]] == [""] * (count - 1), "other ranks than 0 are quiet"
        for name in names:
            of_run = name.replace(" ", "_")
            if name != "gradients":
                assert_alike(folder / "1" / of_run, folder / str(count) / of_run, name)
                continue
            for path in sorted((folder / "1" / of_run).iterdir()):
                ours, theirs = load_file(folder / str(count) / of_run / path.name), load_file(path)
                largest = max(float(gradient.abs().max()) for gradient in theirs.values())
                for parameter, gradient in theirs.items():
                    assert float((ours[parameter] - gradient).abs().max()) < 1e-5 * largest, (path.name, parameter)


def test_two_ranks_train_as_one_process(tmp_path: Path) -> None:
    compare(tmp_path, QUICK, (2,))


@pytest.mark.slow
def test_one_to_four_ranks_train_alike(tmp_path: Path) -> None:
    """12 completions of 3 prompts on 4 ranks: one samples nothing."""
    compare(tmp_path, EVERY, (2, 3, 4))


RESUMED = ["grpo", "ppo", "grpo lora", "dpo best-worst"]


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_is_resumed_by_any_number(tmp_path: Path) -> None:
    """The batch of `grpo` and `ppo` is in use at the checkpoint: each sampled batch is for several updates."""
    ranks_program.main(str(tmp_path / "whole"), *RESUMED)
    (ended,) = launch("ranks_program.py", Ranks(2, [str(tmp_path / "two"), "stop", *RESUMED]))
    assert [each.code for each in ended] == [0, 0], ended
    for count in (1, 2, 3):
        folder = tmp_path / f"resumed by {count}"
        shutil.copytree(tmp_path / "two", folder)
        (ended,) = launch("ranks_program.py", Ranks(count, [str(folder), "resume", *RESUMED]))
        assert [each.code for each in ended] == [0] * count, ended
        for name in RESUMED:
            assert_alike(tmp_path / "whole" / name.replace(" ", "_"), folder / name.replace(" ", "_"), name)


def test_steps_of_another_size_are_refused(tmp_path: Path) -> None:
    ranks_program.stop(str(tmp_path), "sft")
    path = tmp_path / "sft" / "checkpoint-2" / "state.json"
    state = json.loads(path.read_text())
    assert state["batch_size"] == 12
    path.write_text(json.dumps({**state, "batch_size": 24}))
    with pytest.raises(UserError, match=r"steps had 24 sequences in all, and these would have 12: .*_steps: 2$"):
        ranks_program.resume(str(tmp_path), "sft")
