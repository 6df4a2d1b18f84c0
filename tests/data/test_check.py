"""`cohort data check`: the form that a file is read as, what is odd about its rows, and what they can be used for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cohort.cli.checking import check_lines, uses_with_rewards
from cohort.data.check import FileCheck, check_file
from cohort.data.dataset_info import find_entries

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
OTHER = [TURNS[0], {"role": "assistant", "content": "no"}]
STEP = {"completions": [{"text": "s", "rating": 1}, {"text": "t", "rating": -1}]}
PROMPT = "grpo with a reward that needs no answer"
FORMS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("prompts", {"prompt": "q", "answer": "3"}, [PROMPT, "grpo with accuracy"]),
    ("prompts", {"question": "q", "answer": ""}, [PROMPT]),
    ("demonstrations", {"prompt": "q", "completion": "a"}, ["sft", PROMPT]),
    ("conversations", {"messages": TURNS}, ["sft", PROMPT]),
    ("ShareGPT", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["sft", PROMPT]),
    ("text alone", {"text": "once"}, ["sft"]),
    ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b"}, ["dpo", "reward_model", PROMPT]),
    ("preferences, two conversations", {"chosen": TURNS, "rejected": OTHER}, ["dpo", "reward_model", PROMPT]),
    ("preferences, two texts", {"chosen": "1+1=2", "rejected": "1+1=3"}, ["dpo", "reward_model", PROMPT]),
    ("preferences, token ids", {"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, ["dpo", "reward_model"]),
    (
        "two responses",
        {"prompt": "q", "response_A": "a", "response_B": "b", "preference": "B"},
        ["dpo", "reward_model", PROMPT],
    ),
    (
        "HH-RLHF",
        {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        ["dpo", "reward_model", PROMPT],
    ),
    ("labelled", {"prompt": "q", "completion": "a", "label": True}, ["sft", "reward_model", PROMPT]),
    ("labelled steps", {"prompt": "q", "completions": ["a"], "labels": [1]}, ["process_reward_model", PROMPT]),
    (
        "PRM800K",
        {"question": {"problem": "p"}, "label": {"steps": [{**STEP, "chosen_completion": 0}]}},
        ["process_reward_model", PROMPT],
    ),
    ("Math-Shepherd", {"input": "Q? Step 1: x ки", "label": "Q? Step 1: x +"}, ["process_reward_model", PROMPT]),
    ("ProcessBench", {"problem": "p", "steps": ["a", "b"], "label": 1}, ["process_reward_model", PROMPT]),
    ("verl", {"prompt": [TURNS[0]], "reward_model": {"ground_truth": "3"}}, [PROMPT]),
    ("prompts", {"prompt": "q", "test_list": ["assert f() == 1"]}, [PROMPT, "grpo with unit_tests"]),
]


def checked(folder: Path, *records: dict[str, Any], **options: Any) -> FileCheck:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return check_file(path, options.pop("columns", {}), uses=uses_with_rewards(), **options)


@pytest.mark.parametrize(("form", "record", "uses"), FORMS, ids=[form for form, *_ in FORMS])
def test_each_form_is_named_with_what_it_can_be_used_for(
    form: str, record: dict[str, Any], uses: list[str], tmp_path: Path
) -> None:
    found = checked(tmp_path, record)
    assert found.problems == [] and dict(found.forms) == {form: 1}
    assert [name for name, use in found.uses.items() if use.rows] == uses
    assert f"can be used for: {', '.join(uses)}" in list(check_lines("a.jsonl", found))


def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path) -> None:
    lines = list(check_lines("a", checked(tmp_path, {"question": "q", "answer": "3"})))
    assert "not for sft: no completion (columns: {completion: answer} makes one)" in lines
    assert "not for dpo: no chosen and rejected" in lines
    verl = {"prompt": [TURNS[0]], "reward_model": {"ground_truth": "3"}}
    lines = list(check_lines("a", checked(tmp_path, verl)))
    assert "not for grpo with accuracy: no answer (columns: {answer: reward_model.ground_truth} makes one)" in lines
    mapped = checked(tmp_path, verl, columns={"answer": "reward_model.ground_truth"})
    assert mapped.uses["grpo with accuracy"].rows == 1 and dict(mapped.forms) == {"verl": 1}


def test_odd_rows_are_counted_with_their_places(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    records = [pair, {**pair, "rejected": "a"}, {**pair, "chosen": " "}, pair, {**pair, "chosen": 3}]
    found = checked(tmp_path, *records)
    assert found.places == {
        "rows whose chosen and rejected are the same": ["a.jsonl line 2"],
        "rows with an empty chosen": ["a.jsonl line 3"],
        "rows that repeat an earlier row": ["a.jsonl line 4"],
    }
    assert found.repeated == 4 and found.problems == []
    (line,) = [line for line in check_lines("a", found) if line.startswith("in part for dpo")]
    assert line == (
        "in part for dpo: 3 of 5 rows; chosen and rejected are the same: a.jsonl line 2; "
        "`chosen` is int '3'; it must be text or a list of messages: a.jsonl line 5"
    )
    (what,) = checked(tmp_path, {"messages": [TURNS[0], {"role": "assistant", "content": ""}]}).places
    assert what == "rows with an empty completion"
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert checked(tmp_path, {"messages": [TURNS[0], call]}).places == {}


def test_labels_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": str(i), "label": label} for i, label in enumerate([1, 0, True, "x", None])]
    found = checked(tmp_path, *rows)
    assert found.labels == {"label": [1.0, 0.0, 1.0]} and found.uses["reward_model"].rows == 3
    assert "values of label: 1 of 0, 2 of 1" in list(check_lines("a", found))
    many = [{"prompt": "q", "completions": ["a"], "labels": [i / 10]} for i in range(10)]
    assert "values of labels: 10 from 0 to 0.9, mean 0.45" in list(check_lines("a", checked(tmp_path, *many)))


def test_a_pair_of_messages_behind_a_plain_prompt_can_be_used(tmp_path: Path) -> None:
    """The prompt becomes a user turn before the pair is read."""
    found = checked(tmp_path, {"prompt": "q", "chosen": [TURNS[1]], "rejected": [OTHER[1]]})
    assert found.uses["dpo"].rows == found.uses["reward_model"].rows == 1


def test_entries_of_llama_factory_are_named(tmp_path: Path) -> None:
    info = {"it": {"file_name": "a.json", "ranking": True}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "q", "chosen": "a", "rejected": "b"}]))
    (entry,) = find_entries("it", str(tmp_path))
    found = check_file(Path(entry.source), {}, (), entry)
    assert dict(found.forms) == {"alpaca of LLaMA-Factory, ranked": 1} and found.uses["dpo"].rows == 1
