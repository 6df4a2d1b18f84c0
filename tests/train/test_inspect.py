"""What `cohort data show` finds, compared with what the trainers train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cohort import RewardTrainer
from cohort.cli.app import app
from cohort.cli.runs import read_run
from cohort.data.chains import build_tokenizer
from cohort.data.configured import configured_rows
from cohort.data.inspect import InspectedRow
from cohort.train.inspect import RunInspection, inspect_run
from cohort.train.trainer import Trainer
from cohort.types import UserError
from helpers import small_model

TALK = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2="},
    {"role": "assistant", "content": "4"},
]
LONG = "1+" * 12 + "1="
DATA: dict[str, list[dict[str, Any]]] = {
    "pairs": [
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {"prompt": "1+2=", "chosen": "3", "rejected": "3"},
        {"prompt": LONG, "chosen": "3", "rejected": "4"},
        {"prompt": "1+1+1+1+1+1+1=", "chosen": "77777777", "rejected": "77777778"},
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
    ],
    "good_pairs": [
        {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
        {"prompt": LONG + "1", "chosen": "3", "rejected": "4", "margin": 2},
    ],
    "labels": [
        {"prompt": "1+1=", "completion": "2", "label": 1},
        {"prompt": "1+2=", "completion": "4", "label": 0},
        {"prompt": LONG, "completion": "4", "label": 0},
    ],
    "steps": [
        {"prompt": "1+1+2=", "completions": ["1+1=2", "2+2=4"], "labels": [1, 0]},
        {"prompt": "1+1+2=", "completions": ["1+1=2"] * 6, "labels": [1, 1, 1, 1, 1, 0]},
    ],
    "talk": [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK * 3}],
    "prompts": [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": None}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("show")
    build_tokenizer().save_pretrained(folder / "m")
    small_model(max_position_embeddings=24).save_pretrained(folder / "m")
    for name, rows in DATA.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def configuration(folder: Path, data: str, **keys: Any) -> Path:
    settings = {"model": str(folder / "m"), "dataset": str(folder / f"{data}.jsonl"), "output_dir": str(folder / "o")}
    (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "use_cpu": True, **keys}))
    return folder / "run.yaml"


def inspected(folder: Path, data: str, **keys: Any) -> RunInspection:
    return inspect_run(*read_run(configuration(folder, data, **keys), []))


def trainer(folder: Path, data: str, **keys: Any) -> Any:
    run, config = read_run(configuration(folder, data, **keys), [])
    rows, held_out = configured_rows(run, config.seed)
    if run.method in ("reward_model", "process_reward_model"):
        return RewardTrainer(run.model, config, rows, held_out)
    return Trainer(run.model, run.reward_funcs, config, rows, held_out, method=run.method)


def fates(inspection: RunInspection) -> list[tuple[str, str]]:
    return [(row.fate, row.reason) for row in inspection.training.rows]


def tokens(row: InspectedRow, *uses: str) -> list[int]:
    return [token for part in row.parts for token in part.tokens if part.use in uses]


OVER = "over 24 tokens (the model's positions)"
ALIKE = "chosen and rejected are the same tokens"


@pytest.mark.parametrize("truncation", ["drop", "cut"])
def test_pairs_are_those_that_dpo_trains_on(truncation: str, folder: Path) -> None:
    found = inspected(folder, "pairs", method="dpo", truncation=truncation)
    cut = truncation == "cut"
    assert fates(found) == [
        ("kept", ""),
        ("dropped", ALIKE),
        ("dropped", f"{OVER}, which leaves no token to train on" if cut else OVER),
        ("dropped", f"{ALIKE} within 24 (the model's positions)" if cut else OVER),
        ("kept", ""),
    ]
    source = trainer(folder, "pairs", method="dpo", truncation=truncation).loop.source
    groups = source.make(folder, False)
    kept = [row for row in found.training.rows if row.fate != "dropped"]
    for row, group in zip(kept, groups, strict=True):
        parts = {part.name: list(part.tokens) for part in row.parts}
        assert parts["prompt"] == group.prompt_ids.tolist()
        assert [parts["chosen"], parts["rejected"]] == [each.ids.tolist() for each in group.completions]
        assert [part.use for part in row.parts] == ["no loss", "trained on", "trained on"]


def test_demonstrations_are_those_that_sft_trains_on(folder: Path) -> None:
    found = inspected(folder, "talk", method="sft", truncation="drop")
    assert fates(found) == [("kept", ""), ("kept", ""), ("dropped", OVER)]
    examples = trainer(folder, "talk", method="sft", truncation="drop").loop.source.examples
    for row, (_, each) in zip(found.training.rows[:2], examples, strict=True):
        assert tokens(row, "no loss", "trained on") == [*each.prompt, *each.completion]
        marked = zip(each.completion, each.trained or [True] * len(each.completion), strict=True)
        assert tokens(row, "trained on") == [token for token, learnt in marked if learnt]
    last = inspected(folder, "talk", method="sft", mask_history=True).training.rows[0]
    assert build_tokenizer().decode(tokens(last, "trained on")) == "4<|im_end|>"


REWARD_RUNS: list[tuple[str, dict[str, Any]]] = [
    ("labels", {"method": "reward_model"}),
    ("labels", {"method": "reward_model", "loss_type": "mse", "truncation": "cut"}),
    ("labels", {"method": "reward_model", "every_token": True, "truncation": "cut"}),
    ("labels", {"method": "reward_model", "head": "mlp"}),
    ("good_pairs", {"method": "reward_model"}),
    ("good_pairs", {"method": "reward_model", "truncation": "cut"}),
    ("steps", {"method": "process_reward_model"}),
    ("steps", {"method": "process_reward_model", "truncation": "cut"}),
    ("steps", {"method": "process_reward_model", "truncation": "cut", "max_length": 12, "head": "mlp"}),
]


@pytest.mark.parametrize(("data", "keys"), REWARD_RUNS)
def test_reward_rows_are_those_that_the_reward_model_trains_on(data: str, keys: dict[str, Any], folder: Path) -> None:
    found = inspected(folder, data, **keys)
    examples = trainer(folder, data, **keys).examples
    kept = [row for row in found.training.rows if row.fate != "dropped"]
    assert len(kept) == found.training.trained == len(examples)
    assert [row.fate for row in kept] == ["cut" if example.truncated else "kept" for example in examples]
    for row, example in zip(kept, examples, strict=True):
        ids = [token for part in row.parts for token in part.tokens]
        assert ids == [token for text in example.texts for token in text.inputs["input_ids"]]
        if data == "steps":
            (part,) = row.parts
            assert dict(part.labels) == dict(zip(example.texts[0].ends, example.targets, strict=True))
    limit = keys.get("max_length", 24)
    assert all(max(row.lengths.values()) > limit for row in found.training.rows if row.fate != "kept")


def test_labels_behind_a_cut_are_told(folder: Path) -> None:
    found = inspected(folder, "steps", method="process_reward_model", truncation="cut")
    first, second = found.training.rows
    shown = "".join(
        build_tokenizer().decode([token]) + (f"[{first.parts[0].labels[i]:g}]" if i in first.parts[0].labels else "")
        for i, token in enumerate(first.parts[0].tokens)
    )
    assert shown == "<|user|>1+1+2=<|im_end|><|assistant|>1+1=2\n[1]2+2=4<|im_end|>[0]"
    assert second.fate == "cut" and second.place == "steps.jsonl row 2 (45)"
    # 24 of 45 tokens are left, and the first steps end at tokens 14 and 20 of the whole.
    assert found.training.notes == [
        "labels: 2 of 0, 4 of 1",
        "labels of steps that are cut off, which are left out: 2: steps.jsonl row 2",
    ]


def test_labels_that_are_all_equal_are_told_after_the_rows(folder: Path) -> None:
    (folder / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA["labels"][1:]))
    assert "every label is 0" in str(inspected(folder, "same", method="reward_model").problem)


def test_rows_without_what_a_reward_compares_with_are_told(folder: Path) -> None:
    found = inspected(folder, "prompts", reward_funcs="accuracy")
    assert found.training.trained == 2
    assert "no reward applies to 1 of 2 rows: prompts.jsonl row 2" in str(found.problem)
    # A reward model scores every row; it is not loaded, so it need not exist.
    model = {"model": "nobody/has-this", "weight": 0.5, "batch_size": 3}
    assert inspected(folder, "prompts", reward_funcs=["accuracy", model]).problem is None
    assert inspected(folder, "prompts", reward_funcs=["accuracy", "nobody/has-this"]).problem is None
    done = CliRunner().invoke(app, ["data", "show", str(configuration(folder, "prompts", reward_funcs="accuracy"))])
    assert done.exit_code == 2 and "trained on   2  prompts" in done.output and "no reward applies" in done.output


@pytest.mark.parametrize(
    ("method", "keys", "says"),
    [
        ("rft", {}, "sampled from the starting model"),
        ("ppo", {}, "sampled, up to 9"),
        ("grpo_process", {"reward_funcs": "chain_steps"}, "sampled, up to 9"),
        ("distill", {"teacher": "t"}, "sampled, up to 9"),
        ("dpo", {"dpo_pairs": "random"}, "a pair of them is trained on"),
    ],
)
def test_methods_that_sample_show_prompts(method: str, keys: dict[str, Any], says: str, folder: Path) -> None:
    settings = {"reward_funcs": "format", "max_completion_length": 9, **keys}
    if method == "distill":
        del settings["reward_funcs"]
    found = inspected(folder, "prompts", method=method, **settings)
    assert found.problem is None and found.training.what == "prompts"
    assert says in found.training.rows[0].parts[-1].name


def test_held_out_rows_that_repeat_training_rows_are_told(folder: Path) -> None:
    keys = {"method": "dpo", "eval_dataset": str(folder / "good_pairs.jsonl")}
    found = inspected(folder, "pairs", **keys)
    assert [(row.source, other.source, same) for row, other, same in found.repeats] == [
        ("good_pairs.jsonl row 1", "pairs.jsonl row 1", True)
    ]
    done = CliRunner().invoke(app, ["data", "show", str(configuration(folder, "pairs", **keys)), "--limit", "0"])
    assert "held-out data\n  rows read    2\n  evaluated on 1  pairs\n" in done.output
    assert "the prompt of a training row: 1, all columns too: 1: good_pairs.jsonl row 1 (as pairs.jsonl row 1)" in (
        done.output
    )


def test_data_of_another_kind_is_refused_as_by_the_trainer(folder: Path) -> None:
    with pytest.raises(UserError, match=r"prompts.jsonl row 1: dpo needs `chosen` and `rejected`"):
        inspected(folder, "prompts", method="dpo")
    with pytest.raises(UserError, match="a reward model learns from `prompt`, `completion` and `label`"):
        inspected(folder, "prompts", method="reward_model")
    with pytest.raises(UserError, match=r"pairs.jsonl row 2: chosen and rejected are identical"):
        inspected(folder, "pairs", method="reward_model")
    with pytest.raises(UserError, match="reward_funcs has no effect for method reward_model"):
        inspected(folder, "labels", method="reward_model", reward_funcs="format")
    none = inspected(folder, "good_pairs", method="dpo", max_length=5)
    assert "none of the 2 pairs is left to train on" in str(none.problem)


def test_a_pair_without_a_prompt_is_told(folder: Path) -> None:
    (folder / "empty.jsonl").write_text(json.dumps({"prompt": "", "chosen": "1", "rejected": "2"}) + "\n")
    with pytest.raises(UserError, match=r"empty.jsonl row 1: the prompt of this pair has no tokens"):
        inspected(folder, "empty", method="dpo", apply_chat_template=False)
