"""`cohort data show` and `cohort data check`: tokens that are trained on, lengths, invalid rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cohort.cli.app import app
from cohort.config import GRPOConfig, SFTConfig
from cohort.data.chains import build_tokenizer
from cohort.data.check import check_file
from cohort.data.inspect import histogram, inspect_demonstrations, inspect_prompts, quantiles
from cohort.data.rows import load_rows
from helpers import small_model


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    build_tokenizer().save_pretrained(folder / "m")
    small_model(max_position_embeddings=12).save_pretrained(folder / "m")
    rows = [{"prompt": "1+" * n + "1=", "completion": "7", "level": n} for n in range(4)] + [
        {"prompt": "1+1+1+1+1+1+1=", "completion": "7"}
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def configured(folder: Path, **values: object) -> str:
    settings = {"model": str(folder / "m"), "dataset": str(folder / "rows.jsonl"), "reward_funcs": "format", **values}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return str(folder / "run.yaml")


def test_show_prints_what_is_trained_on(folder: Path) -> None:
    done = run("show", configured(folder, method="sft", system_prompt="", truncation="drop"), "--limit", "1")
    assert done.exit_code == 0, done.output
    assert "row 1: rows.jsonl row 1" in done.output
    assert "prompt, 5 tokens, no loss\n<|user|>|1|=|<|im_end|>|<|assistant|>|\n" in done.output
    assert "completion, 2 tokens, trained on\n7|<|im_end|>|\n" in done.output
    assert "column level: '0'" in done.output
    places = "rows.jsonl row 4 (13), rows.jsonl row 5 (19)"
    assert (
        "method sft\ntraining data\n  rows read    5\n  trained on   3  demonstrations\n  cut          0\n"
        f"  dropped      2  over 12 tokens (the model's positions): {places}\nno held-out data\n"
    ) in done.output


def test_show_for_grpo_cuts_and_counts(folder: Path) -> None:
    overrides = ["max_prompt_length=3", "truncation=cut", "val_size=1", "max_completion_length=9"]
    done = run("show", configured(folder, apply_chat_template=False), *overrides, "--limit", "1", "--ids")
    assert done.exit_code == 0, done.output
    assert "completion, sampled, up to 9 tokens, trained on" in done.output
    assert "(8)|" in done.output or "(9)|" in done.output  # ids of the digits beside their text
    assert "held-out data\n  rows read    1\n  evaluated on 1  prompts\n  cut          0\n" in done.output
    assert "no held-out row repeats the prompt of a training row" in done.output
    places = ", ".join(f"rows.jsonl row {i} ({n})" for i, n in ((2, 4), (3, 6), (4, 8), (5, 14)))
    assert f"trained on   4  prompts\n  cut          4  over 3 tokens (max_prompt_length): {places}\n" in done.output
    assert "Lengths in tokens" in done.output and "#" * 40 in done.output


def test_plain_prompts_are_shown_as_the_user_turns_that_they_become(folder: Path) -> None:
    done = run("show", configured(folder, method="sft"), "--limit", "1")
    assert done.exit_code == 0, done.output
    assert "5 of 5 prompts are plain text: each becomes a user turn" in done.output.replace("\n", " ")
    assert "prompt, 5 tokens, no loss\n<|user|>|1|=|<|im_end|>|<|assistant|>|\n" in done.output


def test_rows_are_fitted_as_the_trainer_does(folder: Path) -> None:
    tokenizer, rows = build_tokenizer(), load_rows(str(folder / "rows.jsonl"))
    found = inspect_demonstrations(rows, tokenizer, SFTConfig(max_length=6, truncation="cut"), 12)
    assert [row.fate for row in found.rows] == ["kept", "kept", "dropped", "dropped", "dropped"]
    assert [list(part.tokens) for part in found.rows[1].parts] == [
        tokenizer("1+1=")["input_ids"], [*tokenizer("7")["input_ids"], 1]
    ]  # fmt: skip
    assert found.rows[2].reason == "over 6 tokens (max_length), which leaves no token to train on"
    shorter = inspect_demonstrations(rows, tokenizer, SFTConfig(max_length=5, truncation="cut"), 12)
    assert [(part.use, list(part.tokens)) for part in shorter.rows[1].parts[1:]] == [
        ("trained on", tokenizer("7")["input_ids"]), ("cut off", [1])
    ]  # fmt: skip
    prompts = inspect_prompts(rows, tokenizer, GRPOConfig(), 12)
    assert [row.fate for row in prompts.rows] == ["kept"] * 4 + ["dropped"]
    assert prompts.rows[4].reason == "over 11 tokens (the model's positions)"


def test_lengths_by_hand() -> None:
    lengths = [1, 2, 3, 4, 100]
    assert quantiles(lengths) == {"rows": 5, "min": 1, "median": 3, "mean": 22.0, "95%": 100, "max": 100}
    assert quantiles(list(range(1, 101)))["95%"] == 95
    assert histogram(lengths) == [
        (1, 10, 4), *((first, first + 9, 0) for first in range(11, 91, 10)), (91, 100, 1),
    ]  # fmt: skip
    assert histogram([5, 5]) == [(5, 5, 2)]
    assert sum(count for _, _, count in histogram([3, 9, 27, 81, 11])) == 5


def test_check_names_every_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        '{"prompt": "1+1=", "answer": "2"}',
        '{"prompt": "1+1=", "answer": "2"}',
        '{"prompt": "1+2=", "answer": null}',
        '{"prompt": "1+2="',
        '{"question": [{"role": "user"}], "answer": "1"}',
        '{"prompt": " ", "answer": "1"}',
        '{"prompt": [{"role": "user", "content": "hi"}], "answer": "1"}',
        "[1]",
    ]
    path.write_text("\n".join(lines) + "\n")
    found = check_file(path, {}, ("answer",))
    assert (found.rows, found.repeated) == (8, 1)
    assert found.problems == [
        "rows.jsonl line 3: no answer; it has answer",
        "rows.jsonl line 4: not valid JSON (Expecting ',' delimiter): '{\"prompt\": \"1+2=\"\\n'",
        "rows.jsonl line 5: message 1 of `question` is {'role': 'user'}; each needs `role` and `content`",
        "rows.jsonl line 6: the prompt is empty",
        "rows.jsonl line 8: expected an object with columns, found list: [1]",
    ]
    assert dict(found.kinds) == {"plain": 2, "conversational": 1}
    assert dict(found.columns) == {"answer": 3}
    done = run("check", str(path), "--needs", "answer")
    assert done.exit_code == 2
    assert f"{path}: 8 rows, 3 good, 5 wrong" in done.output and "5 of 8 rows cannot be used" in done.output
    assert "prompts: 2 plain, 1 conversational" in done.output and "column answer: in 3 of 3 rows" in done.output


def test_check_passes_good_files_and_entries(folder: Path, tmp_path: Path) -> None:
    done = run("check", str(folder / "rows.jsonl"), "--needs", "completion")
    assert done.exit_code == 0 and "5 rows, 5 good, 0 wrong" in done.output
    assert "column completion: in 5 of 5 rows" in done.output and "column level: in 4 of 5 rows" in done.output
    (tmp_path / "dataset_info.json").write_text('{"it": {"file_name": "it.json", "formatting": "sharegpt"}}')
    talk = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    (tmp_path / "it.json").write_text(json.dumps([talk, {"conversations": []}]))
    done = run("check", "it", "--dataset-dir", str(tmp_path))
    assert done.exit_code == 2 and "2 rows, 1 good, 1 wrong" in done.output
    assert "it.json row 2: 'conversations' is no list of turns" in done.output


def test_check_reports_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in run("check", str(tmp_path / "none.jsonl")).output
    (tmp_path / "a.json").write_text("{}")
    done = run("check", str(tmp_path / "a.json"))
    assert done.exit_code == 2 and "expected a list of objects, found dict" in done.output
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}\n{"prompt": "q"}\n')
    done = run("check", str(tmp_path / "b.jsonl"))
    assert done.exit_code == 2 and "b.jsonl line 1: not UTF-8 text" in done.output and "1 good" in done.output
    done = run("check", str(tmp_path / "b.jsonl"), "--columns", "prompt")
    assert "write name=value, such as prompt=question" in done.output


MISTAKES = {
    "not_yaml": ("model: [", "not readable as YAML"),
    "no_mapping": ("- a", "expected `key: value` lines, found list"),
    "unknown_key": ("model: m\ndataset: d\nbta: 1\n", "unknown key `bta`: did you mean `beta`?"),
    "no_such_stage": ("stage: grop\nmodel_name_or_path: m\n", "unknown stage 'grop': did you mean 'grpo'?"),
    "no_such_template": ("model: m\ndataset: d\ntemplate: lama3\n", "unknown template 'lama3': did you mean 'llama3'?"),
    "no_such_entry": ("stage: sft\nmodel_name_or_path: m\ndataset: x\n", "there is no data/dataset_info.json"),
    "no_such_file": ("model: m\ndataset: ./d.jsonl\n", "dataset './d.jsonl': no such file or directory"),
    "refused": ("model: m\ndataset: d\nneftune_noise_alpha: 5\n", "`neftune_noise_alpha` is 5, and is not supported"),
}


@pytest.mark.parametrize("command", [["train"], ["data", "show"]], ids=" ".join)
@pytest.mark.parametrize("name", MISTAKES)
def test_configuration_mistakes_need_no_torch(name: str, command: list[str], tmp_path: Path) -> None:
    """Exit code 2 and one message before anything slow is imported, which keeps the time within 0.3 s."""
    text, message = MISTAKES[name]
    (tmp_path / "run.yaml").write_text(text)
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom cohort.cli.app import app\n"
        f"done = CliRunner().invoke(app, {[*command, 'run.yaml']!r})\n"
        "print(done.output)\n"
        "heavy = [name for name in ('torch', 'transformers', 'datasets', 'matplotlib') if name in sys.modules]\n"
        "print('exit', done.exit_code, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert message in done.stdout and "exit 2 []" in done.stdout, done.stdout + done.stderr
