"""A run on several ranks is the run of one process: the same completions, gradients and metrics up to rounding."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ranks_program
from cohort import UserError
from cohort.config import METHOD_CONFIGS
from cohort.methods.table import METHODS
from cohort.train.output import manifest
from cohort.train.sharded import require_possible
from helpers import rows_of
from launching import Ranks, launch

QUICK = ["grpo", "grpo lora", "dynamic sampling", "ppo", "dpo", "reward model", "gradients", "fsdp2 grpo"]
EVERY = [*ranks_program.RUNS, *ranks_program.OTHERS, "gradients"]
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
            if key.startswith(TIMES) or not isinstance(value, float) or ("dpo" in name and key.endswith("accuracies")):
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


RESUMED = ["grpo", "ppo", "grpo lora", "dpo best-worst", "fsdp2 grpo", "fsdp2 grpo lora", "fsdp2 sft"]


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
    facts = manifest.facts_of(path.parent)
    path.write_text(json.dumps({**state, "batch_size": 24}))
    manifest.write(path.parent, facts)
    with pytest.raises(UserError, match=r"steps had 24 sequences in all, and these would have 12: .*_steps: 2$"):
        ranks_program.resume(str(tmp_path), "sft")


SHARDED = [
    "grpo",
    "grpo lora",
    "grpo small budget",
    "grpo chosen tokens",
    "dynamic sampling",
    "remax",
    "dpo",
    "sft",
    "rft",
]


@pytest.mark.slow
def test_a_run_on_a_divided_model_is_the_run_of_one_process(tmp_path: Path) -> None:
    compare(tmp_path, [ranks_program.SHARDED + name for name in SHARDED], (2, 3))


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows_of(folder)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saved often", "fsdp2 saved often"])
def test_a_run_whose_ranks_are_killed_goes_on_identically(tmp_path: Path, name: str) -> None:
    """10 kills of one rank or of all, at random instants of a run; the rank that is left ends too."""
    chance, of_run = random.Random(7), name.replace(" ", "_")
    whom = [chance.choice(["0", "1", "all"]) for _ in range(10)]
    scenarios = [Ranks(2, [str(tmp_path / "whole"), name])]
    for i, rank in enumerate(whom):
        folder = str(tmp_path / str(i))
        scenarios += [Ranks(2, [folder, "killed", rank, f"{chance.uniform(0.1, 4):.2f}", name], seconds=60)]
        scenarios += [Ranks(2, [folder, "resume", name])]
    whole, *every = launch("ranks_program.py", *scenarios)
    assert [each.code for each in whole] == [0, 0], whole
    cut = 0
    for i, (killed, resumed) in enumerate(zip(every[::2], every[1::2], strict=True)):
        codes = [each.code for each in killed]
        cut += -9 in codes
        assert codes == [0, 0] or (-9 in codes and 0 not in codes), (whom[i], killed)
        assert [each.code for each in resumed] == [0, 0], (whom[i], killed, resumed)
        assert metrics_of(tmp_path / str(i) / of_run) == metrics_of(tmp_path / "whole" / of_run), whom[i]
        ours, theirs = (load_file(tmp_path / each / of_run / "model.safetensors") for each in (str(i), "whole"))
        assert all(bool((ours[key] == value).all()) for key, value in theirs.items())
    assert cut >= 5, "most runs were over before the kill"


def test_what_a_divided_model_cannot_do_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for method, values, message in (
        ("ppo", {}, "method ppo has a critic: use distributed: replicated"),
        ("grpo", {"optim": "adamw_8bit"}, "optim is adamw_8bit, whose state cannot be divided"),
        ("grpo", {"iterations": 2, "steps_per_iteration": 1}, "the reference moves"),
        ("grpo", {"router_aux_loss_coef": 0.1}, "router_aux_loss_coef takes further passes"),
    ):
        with pytest.raises(UserError, match=message):
            require_possible(METHODS[method], METHOD_CONFIGS[method](distributed="fsdp2", **values))


def test_a_checkpoint_of_whole_weights_is_refused_by_a_divided_run(tmp_path: Path) -> None:
    ranks_program.stop(str(tmp_path), "sft")
    with pytest.raises(UserError, match="holds whole weights, and distributed: fsdp2 resumes from parts"):
        ranks_program.run(tmp_path / "sft", "fsdp2 sft").train(resume_from_checkpoint=True)
