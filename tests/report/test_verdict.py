"""What is said of a run when it ends, by worked numbers; the printed commands are typed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.data.chains import build_model, build_tokenizer, make_chains
from cohort.report.verdict import verdict


def write(
    folder: Path,
    rows: list[dict[str, Any]],
    ended: dict[str, Any] | None = None,
    warnings: list[tuple[str, int]] | None = None,
    config: dict[str, Any] | None = None,
    prompts: list[Any] | None = None,
) -> list[str]:
    def lines(name: str, values: list[Any]) -> None:
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))

    lines("metrics.jsonl", rows)
    if ended is not None:
        lines("ended.json", [ended])
    if warnings is not None:
        lines("warnings.jsonl", [{"step": step, "name": name, "message": "?"} for name, step in warnings])
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if prompts is not None:
        lines("completions.jsonl", [{"prompt": prompt} for prompt in prompts])
    return verdict(folder)


def evaluation(step: int, accuracy: float, n: int = 100) -> dict[str, Any]:
    std = (accuracy * (1 - accuracy) * n / (n - 1)) ** 0.5
    return {"step": step, "eval/accuracy": accuracy, "eval/accuracy/std": std, "eval/reward": 0.0, "eval/samples": n}


STEPS = [{"step": i, "reward": 0.2 + 0.02 * i + (0.01 if i % 2 else -0.01), "loss": 0.0} for i in range(1, 31)]
DONE = {"step": 30, "max_steps": 30, "by": "max_steps"}


def test_a_run_that_learned(tmp_path: Path) -> None:
    """27 of 100 has Wilson's interval 19.3 to 36.4, 60 of 100 has 50.2 to 69.1. The means of the first and last five
    rewards: .26 + .002 and .76 - .002."""
    rows = [evaluation(0, 0.27), *STEPS, evaluation(30, 0.60)]
    config = {
        "method": "grpo",
        "eval_dataset": "held out.jsonl",
        "reward_funcs": ["accuracy", "format"],
        "max_completion_length": 64,
        "apply_chat_template": True,
        "columns": {"prompt": "question"},
    }
    assert write(tmp_path, rows, DONE, config=config) == [
        "held-out accuracy 27.0% → 60.0% (95%: 19.3% to 36.4% and 50.2% to 69.1%, 100 held-out examples): rose",
        "reward 0.262 → 0.758 (means of the first and last 5 steps): rose; all 30 steps were made",
        f"next: cohort eval {tmp_path} --data 'held out.jsonl' --columns prompt=question --reward accuracy "
        "--max-completion-length 64",
    ]


@pytest.mark.parametrize(
    ("rewards", "method", "command"),
    [
        (["steps.py:equations", "accuracy", "format"], "grpo_process", "eval"),
        (["chain_steps"], "grpo_process", "generate"),
        (["format"], "grpo", "eval"),
        ([{"name": "format"}], "grpo", "generate"),
        ([], "sft", "generate"),
    ],
)
def test_the_next_command_names_a_reward_of_whole_completions(
    rewards: list[Any], method: str, command: str, tmp_path: Path
) -> None:
    """`cohort eval` has no steps to score."""
    (tmp_path / "completions.jsonl").write_text('{"step": 1, "prompt": "2+2="}\n')
    config = {"method": method, "eval_dataset": "d.jsonl", "reward_funcs": rewards}
    last = write(tmp_path, [*STEPS, evaluation(30, 0.6)], DONE, config=config)[-1]
    assert last.startswith(f"next: cohort {command} ")
    assert ("--reward accuracy" in last or "--reward format" in last) == (command == "eval")


@pytest.mark.parametrize(("last", "word"), [(0.35, "unchanged within the interval"), (0.10, "fell"), (0.45, "rose")])
def test_a_change_counts_beyond_the_interval_of_the_difference(tmp_path: Path, last: float, word: str) -> None:
    """Newcombe's bound of 45 against 27 of 100: sqrt((.45 - .356)^2 + (.364 - .27)^2) = .133 < .18."""
    first, *_ = write(tmp_path, [evaluation(0, 0.27), evaluation(30, last)], DONE)
    assert first.endswith(f"held-out examples): {word}")


def test_a_mean_that_is_no_share_has_the_interval_of_its_deviation(tmp_path: Path) -> None:
    """0.5 +- 1.96 * 2 / sqrt(64) = 0.49; a loss is told as it is."""
    rows = [{"step": s, "eval/reward": r, "eval/reward/std": 2.0, "eval/samples": 64} for s, r in ((0, -1.5), (9, 0.5))]
    first, *_ = write(tmp_path, rows, DONE)
    assert first == "held-out reward -1.5 → 0.5 (95%: -1.99 to -1.01 and 0.01 to 0.99, 64 held-out examples): rose"
    first, *_ = write(tmp_path, [{"step": s, "eval/loss": x} for s, x in ((0, 2.0), (9, 1.5))], DONE)
    assert first == "held-out loss 2 → 1.5: fell"
    first, *_ = write(tmp_path, [evaluation(9, 0.5)], DONE)
    assert first.startswith(
        "held-out accuracy 50.0% (95%: 40.4% to 59.6%, 100 held-out examples) at step 9; eval_on_start"
    )
    first, *_ = write(tmp_path, STEPS, DONE)
    assert first.startswith("held-out: nothing was measured")


@pytest.mark.parametrize(
    ("by", "text"),
    [
        ("stop_on_overoptimization", "stopped at step 12 of 30 by stop_on_overoptimization"),
        ("KeyboardInterrupt", "stopped by Ctrl-C at step 12 of 30"),
        (None, "it has no end: killed after step 30, or still running"),
    ],
)
def test_how_it_ended_and_what_was_warned(tmp_path: Path, by: str | None, text: str) -> None:
    ended = None if by is None else {"step": 12, "max_steps": 30, "by": by}
    told = write(
        tmp_path, STEPS, ended, [("no gradient", 3), ("truncated", 5)], {"method": "grpo"}, ["\x1b[2J", "2+2="]
    )
    assert told[1].endswith(f"; {text}")
    assert told[2] == f"2 warnings, in {tmp_path / 'warnings.jsonl'}: no gradient (step 3), truncated (step 5)"
    # After Ctrl-C there is no model; the command line says how to go on.
    expected = [] if by == "KeyboardInterrupt" else [f"next: cohort generate {tmp_path} --prompt 2+2="]
    assert told[3:] == expected


def test_an_early_stop_is_measured_at_the_model_that_is_kept(tmp_path: Path) -> None:
    rows = [{"step": s, "eval/loss": loss, "eval/accuracy": a, "eval/samples": 50.0, "loss": loss}
            for s, loss, a in ((0, 0.7, 0.5), (2, 0.4, 0.9), (4, 0.6, 0.7))]  # fmt: skip
    ended = {"step": 4, "max_steps": 30, "by": "early_stopping_patience"}
    first, second = write(tmp_path, rows, ended, config={"method": "reward_model", "reward_funcs": []})
    assert first.startswith("held-out accuracy 50.0% → 90.0% (95%: 36.6% to 63.4% and 78.6% to 95.7%, 50")
    assert second.endswith("stopped at step 4 of 30 by early_stopping_patience")


@pytest.mark.parametrize("held_out", [True, False])
def test_the_printed_command_runs(tmp_path: Path, held_out: bool) -> None:
    _, train, evaluated = make_chains(2, 20, 6, seed=0)
    tokenizer = build_tokenizer()
    build_model(tokenizer, 0).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    for name, rows in (("train", train), ("held out", evaluated)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "method": "grpo",
        "model": str(tmp_path / "start"),
        "dataset": str(tmp_path / "train.jsonl"),
        "reward_funcs": ["accuracy"],
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-6,
        "use_cpu": True,
        "bf16": False,
        "output_dir": str(tmp_path / "out"),
    }
    if held_out:
        config |= {"eval_dataset": str(tmp_path / "held out.jsonl"), "eval_strategy": "steps", "eval_on_start": True}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")])
    assert result.exit_code == 0, result.output
    (command,) = [line for line in result.stdout.splitlines() if line.startswith("next: ")]
    _, program, *arguments = shlex.split(command)
    assert (program, arguments[0]) == ("cohort", "eval" if held_out else "generate")
    assert ("held-out accuracy 0.0% → 0.0% (95%: 0.0% to 39.0%" in result.stdout) is held_out
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
