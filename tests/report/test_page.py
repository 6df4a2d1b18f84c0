"""The page of a run without a browser: what is read, said, packed and allowed."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.report.page.columns import completion_columns, row_columns, thinned
from cohort.report.page.payload import blocks, read_runs
from cohort.report.page.read import configuration, flat, names_of, parsed, plain, read_lines, run_folders
from cohort.report.page.summary import bands, summary
from cohort.report.page.write import page, write_report
from cohort.types import UserError
from made_runs import KINDS, WARNINGS, make_run


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_bad_lines_are_counted_and_a_half_line_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\nnot json\n[2]\n{"no": "step"}\n{"step": 2}\n{"step": 3')
    lines = read_lines(path)
    assert ([row["step"] for row in lines.rows], lines.skipped) == ([1, 2], 3)
    with open(path, "ab") as file:
        file.write(b"}\n")
    assert [row["step"] for row in read_lines(path, lines.place[1]).rows] == [3]
    assert read_lines(tmp_path / "none").rows == []


@pytest.mark.parametrize("line", [b"", b"null", b'{"step": "1"}', b"[" * 100_000, b'{"step": 1.5}'])
def test_what_is_no_row(line: bytes) -> None:
    assert parsed(line) is None


def test_values_as_json_has_them() -> None:
    assert plain({"a": float("nan"), "b": [1.234567, True, 3.0, None, "x"]}) == {
        "a": None,
        "b": [1.2346, True, 3, None, "x"],
    }
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_secrets_of_the_configuration_stay_out(tmp_path: Path) -> None:
    secrets = {"dataset_kwargs": {"token": "hf_1"}, "reward_funcs": [{"api_key": "sk", "api_key_env": "KEY"}]}
    run = make_run(tmp_path / "run", steps=1, token_budget=64, **secrets)
    assert configuration(run) | {"dataset_kwargs.token": "...", "token_budget": 64} == configuration(run)
    assert configuration(run)["reward_funcs"] == [{"api_key": "...", "api_key_env": "KEY"}]


def test_folders_of_runs_and_of_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        run_folders(tmp_path / "none")
    with pytest.raises(UserError, match=r"no metrics\.jsonl in it; give a run's output_dir"):
        run_folders(tmp_path)
    for name in ("seed-0/grpo", "seed-1/grpo"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text("")
    folders = run_folders(tmp_path)
    assert names_of(folders) == ["seed-0/grpo", "seed-1/grpo"]
    assert names_of(folders[:1]) == ["grpo"]


def test_completions_in_columns_with_each_text_once() -> None:
    prompt = [{"role": "user", "content": "?"}]
    rows = [
        {"step": 1, "prompt": prompt, "completion": "a", "tokens": 1, "accuracy": 1.0, "columns": {"answer": "a"}},
        {"step": 1, "prompt": prompt, "completion": "a", "tokens": 2, "truncated": True, "style": None},
    ]
    columns = completion_columns(rows)
    assert columns["texts"] == [prompt, "a", {"answer": "a"}]
    assert (columns["prompt"], columns["completion"], columns["columns"]) == ([0, 0], [1, 1], [2, None])
    assert columns["scores"] == {"accuracy": [1, None], "style": [None, None]}
    assert (columns["truncated"], columns["tokens"], "row" in columns) == ([0, 1], [1, 2], False)


def test_the_history_of_rows() -> None:
    rows = [
        {"step": 1, "row": 3, "n": 2, "right": 1, "mean": 0.5, "rewards": [0.0, 1.0], "prompt": "a"},
        {"step": 2, "row": 3, "n": 2, "right": 0, "mean": 0.1, "rewards": [0.1, 0.1]},
        {"step": 2, "n": 2},
    ]
    history = row_columns(rows)
    assert history["row"] == [3, 3, None] and history["flat"] == [0, 1, None] and history["prompts"] == {"3": "a"}


def test_thinning_keeps_whole_steps_and_the_ends() -> None:
    rows = [{"step": step, "i": i} for step in range(1, 101) for i in range(2)]
    kept = thinned(rows, 0.1)
    steps = sorted({row["step"] for row in kept})
    assert len(kept) == 20 and (steps[0], steps[-1]) == (1, 100)
    assert thinned(rows, 1.0) == rows


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=30)
    small = blocks(read_runs([run]), largest=5_000)
    assert len(small["completions-0"]) <= 3_000
    (note,) = [note for note in unpacked(small["head"])["runs"][0]["notes"] if note.startswith("completions")]
    assert re.fullmatch(r"completions\.jsonl: \d+ of 480 lines are in this page, to keep it small", note)


def test_what_is_said_of_a_healthy_run(tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / "run")])
    said = summary(run.rows("metrics"), [], {"step": 40, "max_steps": 40, "by": "max_steps"})
    assert said["tone"] == "good" and said["causes"] == []
    assert said["headline"].startswith("Held-out accuracy ") and said["headline"].endswith(": rose")
    assert said["lines"][1] == "All 40 steps were made" and "says nothing" in said["loss"]
    accuracy = bands(run.rows("metrics"))["eval/accuracy"]
    assert accuracy["step"] == [0, 10, 20, 30, 40] and all(
        a < b for a, b in zip(accuracy["low"], accuracy["high"], strict=True)
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "healthy"])
def test_a_sick_run_says_its_cause_first(kind: str, tmp_path: Path) -> None:
    (run,) = read_runs([make_run(tmp_path / kind, kind)])
    said = summary(run.rows("metrics"), run.rows("warnings"), {})
    assert said["causes"][0]["name"] == WARNINGS[kind][1] and said["causes"][0]["rows"] == [3, 7]
    assert said["tone"] == "bad" or kind == "collapsed"  # whose accuracy may still have risen


def test_signs_that_the_run_did_not_tell_itself() -> None:
    rows = [{"step": s, "reward": 0.0, "completions/clipped_ratio": 0.2 if s < 5 else 0.9} for s in range(1, 13)]
    rows = [{**row, "frac_reward_zero_std": 1.0, "kl": 0.01} for row in rows]
    causes = {cause["name"]: cause for cause in summary(rows, [], {})["causes"]}
    assert causes.keys() == {"truncated", "no gradient"}
    assert causes["truncated"]["step"] == 5 and causes["truncated"]["message"].startswith("90% of the completions")
    assert causes["no gradient"]["step"] == 1
    told = summary(rows, [{"step": 3, "name": "truncated", "message": "step 3: x"}], {})["causes"]
    assert [cause["name"] for cause in told] == ["truncated", "no gradient"] and told[0]["step"] == 3


def test_a_reward_that_rises_while_held_out_accuracy_falls() -> None:
    rows: list[dict[str, Any]] = [{"step": s, "reward": s / 20} for s in range(1, 21)]
    rows = [{"step": 0, "eval/accuracy": 0.6, "eval/samples": 300}, *rows]
    rows.append({"step": 20, "eval/accuracy": 0.3, "eval/samples": 300})
    (cause,) = summary(rows, [], {})["causes"]
    assert cause["name"] == "gamed reward" and "rose from 0.15 to 0.9" in cause["message"]


def test_a_run_without_rewards_and_one_without_steps() -> None:
    rows = [{"step": s, "loss": 2.0 - s / 10} for s in range(1, 11)]
    said = summary(rows, [], {"step": 10, "max_steps": 10, "by": "max_steps"})
    assert said["headline"].startswith("Loss 1.7 → 1.2") and said["loss"] is None
    rows = [{**row, "reward": 0.5} for row in rows]
    assert summary(rows, [], {}, "distill")["loss"] == "Loss 1.9 → 1: it is about the KL to the teacher."
    assert "imitating right completions" in summary(rows, [], {}, "online_rft")["loss"]
    assert summary([], [], {})["headline"] == "No step was made yet"


def test_the_page_holds_text_as_text_and_allows_its_own_script_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<script>alert(1)", steps=2)
    text = write_report([run], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text and "&lt;script&gt;alert(1)" in text
    (allowed,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src &#39;none&#39;" in allowed and "connect-src &#39;none&#39;" in allowed
    assert "unsafe" not in allowed and not re.findall(r"(?:src|href)=[\"'](?!#)", text)
    assert "connect-src &#39;self&#39;" in page(blocks(read_runs([run]), live=True), "x", live=True)


def test_lone_surrogates_and_nan_do_not_stop_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    with open(run / "completions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 2, "completion": "a\\ud800b", "reward": NaN, "odd": Infinity, "deep": [[1]]}\n')
    data = unpacked(blocks(read_runs([run]))["completions-0"])
    assert data["texts"][data["completion"][-1]] == "a?b" and data["reward"][-1] is None
    assert data["scores"]["odd"][-1] is None and "deep" not in data["scores"]


def test_files_that_are_missing_hide_their_views(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    data = blocks(read_runs([tmp_path]))
    (run,) = unpacked(data["head"])["runs"]
    assert list(data) == ["head"] and run["metrics"] == {"loss": [[1], [1]]} and run["rows"]["step"] == []


def test_the_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code == 0 and result.output.replace("\n", "") == str(run / "report.html")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "none")])
    assert result.exit_code == 2 and "no such folder" in result.output
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "none")])
    assert result.exit_code == 2 and "no such folder" in result.output
