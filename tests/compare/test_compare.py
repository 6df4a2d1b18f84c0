"""`cohort compare`: a small comparison from end to end, its resumption, its numbers, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from scipy.stats import t as student

from cohort import UserError
from cohort.compare.config import Comparison, completions_after, read_comparison
from cohort.compare.runs import _data, run_comparison
from cohort.config import GRPOConfig, OnlineConfig, PPOConfig
from cohort.formulas.chance import wilson
from cohort.report.comparison import curve_of, differences, markdown, table_row
from cohort.report.comparison_plots import accuracy, maj_pass
from cohort.report.intervals import of_mean
from cohort.train.trainer import Trainer
from helpers import ROOT, StopAfter, fresh, numbers, rows_of

SMALL: dict[str, Any] = {
    "task": "chains",
    "task_kwargs": {"operations": 1, "mistaught": 0.4, "problems": 60},
    "sft": {"learning_rate": 5e-3, "max_steps": 8, "per_device_train_batch_size": 20},
    "reward_funcs": "format",
    "correct": "format",
    "num_generations": 2,
    "per_device_train_batch_size": 8,
    "max_steps": 4,
    "learning_rate": 1e-4,
    "beta": 0.0,
    "max_completion_length": 20,
    "methods": {"rft": {"reward_threshold": 0.0}},
    "eval_samples": 10,
    "eval_steps": 2,
    "save_steps": 2,
    "final_generations": 3,
    "use_cpu": True,
    "bf16": False,
    "seed": 3,
}
METHODS = ["rft", "grpo"]


def comparison_of(folder: Path, names: list[str] = METHODS, seeds: int = 2, **changes: Any) -> Comparison:
    path = folder / "compare.yaml"
    values = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump({"output_dir": str(folder / "out"), **values}))
    return read_comparison(path, [], names, seeds)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    said: list[str] = []
    printed = io.StringIO()
    log = logging.getLogger("cohort")
    handlers, log.handlers = log.handlers, [logging.NullHandler()]  # warnings may be printed
    with redirect_stdout(printed), redirect_stderr(printed):
        written = run_comparison(comparison_of(folder), 1, said.append)
    log.handlers = handlers
    assert printed.getvalue() == ""  # no run has a display or a verdict of its own
    assert [path.name for path in written] == [
        "comparison.md",
        "comparison.csv",
        "comparison.json",
        "comparison_accuracy.png",
        "comparison_maj_pass.png",
        "report.html",
    ]
    assert all(path.stat().st_size > 100 for path in written)
    assert len(said) == 2 + 4 and said[-1].startswith("seed 4, grpo: ")
    return folder / "out"


def test_the_table_says_what_the_runs_metrics_say(compared: Path) -> None:
    table = {row["method"]: row for row in csv.DictReader((compared / "comparison.csv").read_text().splitlines())}
    assert list(table) == ["start", "rft", "grpo"]
    for method in METHODS:
        rows = [rows_of(compared / f"seed-{seed}" / method) for seed in (3, 4)]
        last = [[row["eval/format"] for row in found if "eval/format" in row][-1] for found in rows]
        mean, low, high = of_mean(last)
        shown = table[method]
        assert float(shown["accuracy"]) == pytest.approx(mean)
        assert float(shown["accuracy_low"]) == pytest.approx(max(0, low))
        assert float(shown["accuracy_high"]) == pytest.approx(min(1, high))
        assert f"| {method} | {mean:.1%} [" in (compared / "comparison.md").read_text()
        steps = [sum(row.get("seconds/step", 0) for row in found) for found in rows]
        prepared = [json.loads((compared / f"seed-{s}" / method / "prepared.json").read_text()) for s in (3, 4)]
        assert float(shown["seconds"]) == pytest.approx(fmean(a + sum(b) for a, b in zip(steps, prepared, strict=True)))
        assert int(shown["completions"]) == 4 * 8
        assert int(shown["peak_bytes"]) > int(shown["training_bytes"]) > 0


def test_each_method_sampled_as_many_completions_on_the_same_problems(compared: Path) -> None:
    lines = (compared / "seed-3" / "rft" / "samples.jsonl").read_text().split("\n")[1:-1]
    groups = [json.loads(line) for line in lines]
    assert sum(len(group["completions"]) for group in groups) == 32
    seen = [json.loads(line) for line in (compared / "seed-3" / "grpo" / "completions.jsonl").read_text().splitlines()]
    assert len(seen) == 32
    asked = {group["prompt"][0]["content"] for group in groups}
    assert {row["prompt"][0]["content"] for row in seen} == asked and len(asked) == 16
    curve = json.loads((compared / "seed-3" / "grpo" / "result.json").read_text())["curve"]
    assert [(point["step"], point["completions"]) for point in curve] == [(0, 0), (2, 16), (4, 32)]


def test_a_finished_comparison_runs_nothing_again(compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "seed-4" / "grpo")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("seed-*/*/model.safetensors")}
    assert len(stamps) == 3
    run_comparison(comparison_of(tmp_path), 1, lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    again, first = (rows_of(folder / "seed-4" / "grpo") for folder in (tmp_path / "out", compared))
    assert numbers(again) == numbers(first)
    with pytest.raises(UserError, match=r"grpo was made with other settings \(learning_rate: 0.0001 there, 0.002 now"):
        run_comparison(comparison_of(tmp_path, ["grpo"], learning_rate=2e-3), 1, lambda line: None)
    with pytest.raises(UserError, match=r"start was made with other settings \(chains: mistaught: 0.4 there, 0.3 now"):
        run_comparison(
            comparison_of(tmp_path, task_kwargs={**SMALL["task_kwargs"], "mistaught": 0.3}), 1, lambda line: None
        )


@pytest.mark.parametrize("method", ["grpo"])
def test_an_interrupted_run_resumes_from_its_checkpoint(
    compared: Path, tmp_path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(compared, tmp_path / "out")
    folder = tmp_path / "out" / "seed-3" / method
    for path in folder.iterdir():
        if path.name != "compared.json":
            path.unlink()
    comparison = comparison_of(tmp_path)
    config = comparison.configs[method].model_copy(update={"seed": 3, "output_dir": str(folder)})
    _, rows, held_out = _data(comparison, 3)
    start = str(tmp_path / "out" / "seed-3" / "start" / "model")
    Trainer(start, ["format"], config, rows, held_out, callbacks=[StopAfter(3)], method=method).train()
    (folder / "model.safetensors").unlink()
    assert (folder / "checkpoint-2").is_dir()
    caplog.set_level(logging.INFO, "cohort")
    run_comparison(comparison, 1, lambda line: None)
    assert "checkpoint-2 at step 2" in caplog.text
    assert numbers(rows_of(folder)) == numbers(rows_of(compared / "seed-3" / method))
    assert not list(folder.glob("checkpoint-*"))
    again, first = (json.loads((place / "result.json").read_text()) for place in (folder, compared / "seed-3" / method))
    for key in ("accuracy", "curve", "pass@k", "maj@k", "completions"):
        assert again[key] == first[key]


MISTAKES: list[tuple[dict[str, Any], list[str], str]] = [
    ({}, ["grop"], "as path/to/file.py:row): did you mean 'grpo'?"),
    ({}, ["sft"], "SFT makes the start that the methods share"),
    ({}, ["grpo", "grpo"], "name each method once"),
    ({"lerning_rate": 1}, ["grpo"], "unknown key `lerning_rate`: did you mean `learning_rate`?"),
    ({"method": "grpo"}, ["grpo"], "leave `method` out: --methods says which methods run"),
    ({"methods": {"grop": {}}}, ["grpo"], "methods: grop: no such method: did you mean 'grpo'?"),
    ({"methods": {"grpo": {"bta": 1}}}, ["grpo"], "methods: grpo: unknown key `bta`: did you mean `beta`?"),
    ({"methods": {"grpo": {"seed": 1}}}, ["grpo"], "seeds and folders are the comparison's"),
    ({"methods": {"grpo": {"max_steps": 8}}}, ["grpo"], "grpo would sample 64 completions and the shared settings 32"),
    ({"methods": {"rft": {"num_generations": 5}}}, ["rft"], "32 completions are no whole number of prompts"),
    ({"methods": {"grpo": {"dynamic_sampling": True}}}, ["grpo"], "dynamic_sampling samples more or less"),
    ({"beta": 0.1}, ["dpo"], "dpo would not sample: add `methods: {dpo: {dpo_pairs: best-worst}}`"),
    ({"sft": {"max_step": 3}}, ["grpo"], "sft: unknown key `max_step`: did you mean `max_steps`?"),
    ({"sft": None}, ["grpo"], "task: chains starts from random weights: set under `sft:` how SFT trains it"),
    ({"model": "x"}, ["grpo"], "task: chains brings its own model and data: leave `model` out"),
    ({"task": "chain"}, ["grpo"], "`task` is 'chain'"),
    ({"task_kwargs": {"mistaugt": 1}}, ["grpo"], "task_kwargs: unknown key `mistaugt`: did you mean `mistaught`?"),
    ({"task_kwargs": {"operations": 1, "problems": 100}}, ["grpo"], "210 different chains are needed"),
    ({"task": None}, ["grpo"], "`task_kwargs` is for a built-in task"),
    ({"max_steps": None}, ["grpo"], "`max_steps` is -1: give the steps that the methods share"),
    ({"eval_strategy": "no"}, ["grpo"], "methods are compared along their curves"),
    ({"reward_funcs": None}, ["grpo"], "`reward_funcs` is missing: name at least format"),
]


@pytest.mark.parametrize(("changes", "methods", "message"), MISTAKES, ids=[message[:40] for *_, message in MISTAKES])
def test_mistakes_are_told_with_their_remedy(
    changes: dict[str, Any], methods: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as told:
        comparison_of(tmp_path, methods, **changes)
    assert message in str(told.value)


def test_a_method_without_the_reward_that_says_what_is_correct_is_told(compared: Path, tmp_path: Path) -> None:
    shutil.copytree(compared, tmp_path / "out")
    comparison = comparison_of(tmp_path, ["online_rft"], methods={"online_rft": {"reward_funcs": ["accuracy"]}})
    with pytest.raises(UserError, match="online_rft: its reward_funcs lack 'format', which `correct` names"):
        run_comparison(comparison, 1, lambda line: None)


def test_a_mistake_on_the_command_line_is_one_message(tmp_path: Path) -> None:
    done = fresh("compare", "examples/compare_chains.yaml", "sft.max_step=4", "--seeds", "1")
    assert done.returncode == 2
    assert "sft: unknown key `max_step`: did you mean `max_steps`?" in done.stderr and "Traceback" not in done.stderr


def test_the_example_is_a_comparison_of_equal_budgets() -> None:
    comparison = read_comparison(
        ROOT / "examples" / "compare_chains.yaml",
        ["sft.max_steps=7", "methods.grpo.learning_rate=1e-3"],
        ["rft", "online_rft", "grpo", "grpo_process", "dpo", "ppo", "rloo"],
        5,
    )
    assert comparison.budget == 30 * 16 * 8 and comparison.seeds == [0, 1, 2, 3, 4]
    assert comparison.sft is not None and comparison.sft[1].max_steps == 7
    assert comparison.configs["grpo"].learning_rate == 1e-3 and comparison.configs["rft"].learning_rate == 3e-4
    assert comparison.chains is not None and (comparison.chains.operations, comparison.chains.mistaught) == (6, 0.5)
    assert comparison.rewards["grpo_process"][0] == "chain_steps" and comparison.rewards["grpo"][-1] == "overlong"


@pytest.mark.parametrize(
    ("config", "step", "completions"),
    [
        (OnlineConfig(num_generations=8, per_device_train_batch_size=128), 10, 1280),
        (GRPOConfig(num_generations=4, per_device_train_batch_size=10, num_iterations=2), 5, 3 * 3 * 4),
        (PPOConfig(per_device_train_batch_size=8, num_mini_batches=2, num_ppo_epochs=3), 12, 2 * 16),
    ],
)
def test_completions_are_counted_by_sampled_batches(config: OnlineConfig, step: int, completions: int) -> None:
    """A batch of 10 takes three groups of 4; two updates share a batch; so do two mini-batches in three passes."""
    assert completions_after(config, step) == completions


def test_the_interval_of_a_mean_is_students() -> None:
    for values in ([0.2, 0.5], [0.61, 0.66, 0.74, 0.70, 0.63], [i / 40 for i in range(31)]):
        mean, low, high = of_mean(values)
        n = len(values)
        sd = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5
        assert mean == pytest.approx(sum(values) / n)
        assert (low, high) == pytest.approx(student.interval(0.95, n - 1, mean, sd / n**0.5), abs=1e-4)


def result(method: str, seed: int, *curve: float) -> dict[str, Any]:
    points = [{"step": 10 * i, "completions": 80 * i, "accuracy": value} for i, value in enumerate(curve)]
    shares = {"1": curve[-1], "16": 1.0}
    of_run = {"accuracy": curve[-1], "curve": points, "sampled_accuracy": curve[-1], "pass@k": shares, "maj@k": shares}
    return {"method": method, "seed": seed, "problems": 100, "completions": 160, "seconds": 2.0, **of_run}


def test_differences_are_paired_by_seed() -> None:
    results = {
        "start": [result("start", 0, 0.1), result("start", 1, 0.3)],
        "rft": [result("rft", 0, 0.1, 0.2, 0.3), result("rft", 1, 0.3, 0.4, 0.5)],
        "grpo": [result("grpo", 0, 0.1, 0.5, 0.5), result("grpo", 1, 0.3, 0.5, 0.8)],
    }
    (found,) = differences(results)
    assert (found["method"], found["before"]) == ("grpo", "rft")
    assert found["end"] == pytest.approx(of_mean([0.2, 0.3]))
    assert found["curve"] == pytest.approx(of_mean([0.25, 0.2]))
    assert differences({name: runs[:1] for name, runs in results.items()}) == []
    line = accuracy(results).axes[0].lines[2]
    assert list(line.get_xdata()) == [0, 80, 160]
    assert list(line.get_ydata()) == pytest.approx([0.2, 0.5, 0.65])
    assert [value[0] for value in curve_of(results["grpo"]).values()] == pytest.approx([0.2, 0.5, 0.65])


def test_pass_at_n_has_its_differences_where_evaluations_sample_several() -> None:
    results = {
        "rft": [result("rft", 0, 0.1, 0.2), result("rft", 1, 0.3, 0.4)],
        "grpo": [result("grpo", 0, 0.1, 0.5), result("grpo", 1, 0.3, 0.6)],
    }
    for share, runs in zip((0.5, 0.75), results.values(), strict=True):
        for run in runs:
            for point in run["curve"]:
                point["pass@n"] = share
    (found,) = differences(results)
    assert found["curve of pass@n"] == pytest.approx([0.25, 0.25, 0.25])
    assert found["pass@K"] == [0.0, 0.0, 0.0]


def test_one_seed_has_the_interval_of_its_problems() -> None:
    row = table_row("grpo", [result("grpo", 0, 0.1, 0.7)])
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(wilson(70, 100))
    assert row["maj@K"] == 1.0 and row["maj@K_low"] is None and row["peak_bytes"] is None


def test_results_without_answers_to_vote_on_have_no_majorities() -> None:
    results = {"start": [result("start", 0, 0.1)], "grpo": [result("grpo", 0, 0.1, 0.7)]}
    assert "maj@16" in markdown(results, [table_row(name, runs) for name, runs in results.items()])
    for runs in results.values():
        runs[0]["maj@k"] = {}
    rows = [table_row(name, runs) for name, runs in results.items()]
    text = markdown(results, rows)
    assert all("maj@K" not in row for row in rows) and "maj@" not in text and "`sampled` and pass@16 are of 16" in text
    assert [axis.get_title() for axis in maj_pass(results).axes] == ["Pass@K"]
