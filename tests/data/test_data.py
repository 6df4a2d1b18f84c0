"""Rows, templates and the demo's task: valid and invalid data, and its encoding."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from cohort.data.chains import Teacher, answer, build_model, make_chains, question, step, worked
from cohort.data.rows import load_rows
from cohort.data.templates import as_completion, encode_demonstration, encode_prompt, prompt_text
from cohort.types import Row, UserError
from helpers import ROOT

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
RECORDS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+3=", "answer": "5"}]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_folders_files_of_another_split_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As `datasets` does: a run on a folder with both would train on the rows that it is tested with."""
    for name, value in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1), ("test", 2), ("latest", 3)):
        write(tmp_path / f"{name}.jsonl", json.dumps({"prompt": "p", "answer": value}) + "\n")
    caplog.set_level(logging.INFO, logger="cohort")
    assert [row.columns["answer"] for row in load_rows(str(tmp_path))] == [0, 1]
    assert "not read: latest.jsonl, test.jsonl" in caplog.text
    assert [row.columns["answer"] for row in load_rows(str(tmp_path), split="test")] == [2]
    with pytest.raises(UserError, match="no file of split 'validation', but of test, train: set the split"):
        load_rows(str(tmp_path), split="validation")
    for path in tmp_path.glob("t*"):
        path.unlink()
    write(tmp_path / "contest.jsonl", json.dumps({"prompt": "p", "answer": 4}) + "\n")
    assert [row.columns["answer"] for row in load_rows(str(tmp_path), split="test")] == [4, 3]


def test_files_of_every_kind_give_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    Dataset.from_list(RECORDS).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    specs = [
        write(tmp_path / "a.jsonl", lines + "\n"),
        write(tmp_path / "a.json", json.dumps(RECORDS)),
        write(tmp_path / "a.csv", "prompt,answer\n1+1=,2\n2+3=,5\n"),
        str(tmp_path / "a.parquet"),
        str(tmp_path / "saved"),
        Dataset.from_list(RECORDS),
        RECORDS,
    ]
    write(tmp_path / "folder" / "part.jsonl", lines)
    specs.append(str(tmp_path / "folder"))
    for spec in specs:
        rows = load_rows(spec)
        assert [row.prompt for row in rows] == ["1+1=", "2+3="]
        assert [str(row.columns["answer"]) for row in rows] == ["2", "5"]
    assert load_rows(specs[0])[1].source == "a.jsonl row 2"
    assert len(load_rows(specs[0], max_samples=1)) == 1


def test_prompt_columns_are_found_or_mapped() -> None:
    assert load_rows([{"question": "q", "answer": "a"}])[0].prompt == "q"
    assert load_rows([{"instruction": "Add.", "input": "1 2", "output": "3"}])[0].prompt == "Add.\n1 2"
    assert load_rows([{"instruction": "Add.", "input": "", "output": "3"}])[0].prompt == "Add."
    row = load_rows([{"text": "t", "gold": "g"}], columns={"prompt": "text", "completion": "gold"})[0]
    assert (row.prompt, row.completion, row.columns) == ("t", "g", {"text": "t", "gold": "g"})
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    row = load_rows([{"messages": turns}])[0]
    assert (row.prompt, row.completion) == (turns[:1], turns[1:])


def test_system_prompt_makes_rows_conversational() -> None:
    row = load_rows([{"prompt": "hi", "completion": "yo"}], system_prompt="Be brief.")[0]
    assert row.prompt == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert row.completion == [{"role": "assistant", "content": "yo"}]
    assert load_rows([{"prompt": "hi"}], system_prompt="")[0].prompt == [{"role": "user", "content": "hi"}]


BAD: list[tuple[str, str, str]] = [
    ("a.jsonl", "", "is empty"),
    ("a.jsonl", '{"prompt": "a"}\n{oops\n', "a.jsonl line 2: not valid JSON"),
    ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": 5}\n', "a.jsonl row 2: `prompt` is int '5'"),
    ("a.jsonl", '["prompt"]\n', "a.jsonl row 1: expected an object with columns, found list"),
    ("a.jsonl", '{"body": "a"}\n', "a.jsonl row 1: no prompt column; it has body."),
    ("a.jsonl", '{"prompt": [{"role": "user"}]}\n', "message 1 of `prompt`"),
    ("a.jsonl", '{"prompt": []}\n', "a.jsonl row 1: `prompt` is list"),
    ("a.json", '{"prompt": "a"}\n{"prompt": "b"}', "must be named .jsonl"),
    ("a.json", '{"prompt": "a"}', "expected a list of objects, found dict"),
    ("a.txt", "hello", ".txt extension is not supported"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_rows(write(tmp_path / name, text))
    assert message in str(caught.value)


def test_bad_specs_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(UserError, match=r"did you mean .*train\.jsonl"):
        load_rows(str(tmp_path / "trian.jsonl"))
    with pytest.raises(UserError, match="no such file or directory"):
        load_rows("./nowhere")
    with pytest.raises(UserError, match="no data files in this directory"):
        (tmp_path / "empty").mkdir()
        load_rows(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="did you mean 'chain_sum'"):
        load_rows("reasoning_gym:chain_sums")
    with pytest.raises(UserError, match=r"no column 'question'"):
        load_rows([{"text": "a"}], columns={"prompt": "question"})
    with pytest.raises(UserError, match="a dict: give a path"):
        load_rows({"prompt": ["a"]})
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 text"):
        load_rows(str(tmp_path / "latin.jsonl"))


def test_a_hub_name_that_cannot_be_had_says_so() -> None:
    with pytest.raises(UserError, match="is no file here, and could not be loaded from the hub"):
        load_rows("nobody/nothing-at-all")


def test_reasoning_gym_rows_carry_their_entry() -> None:
    row = load_rows("reasoning_gym:chain_sum", dataset_kwargs={"size": 2, "seed": 1})[1]
    entry = json.loads(row.columns["reasoning_gym_entry"])
    assert entry["question"] == row.prompt and entry["answer"] == row.columns["answer"]
    with pytest.raises(UserError, match="refuses dataset_kwargs"):
        load_rows("reasoning_gym:chain_sum", dataset_kwargs={"sizes": 2})


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not beside the project")
def test_gsm8k_loads_whole() -> None:
    train, test = load_rows(str(GSM8K / "train.jsonl")), load_rows(str(GSM8K / "test.jsonl"))
    assert (len(train), len(test)) == (7473, 1319)
    assert isinstance(train[0].prompt, str) and train[0].prompt.startswith("Natalia sold clips")
    assert train[0].columns["answer"].endswith("#### 72")


def test_prompts_and_demonstrations_as_tokens(tokenizer: Any) -> None:
    row = load_rows([{"prompt": "7+5=", "completion": "<answer>2</answer>"}], system_prompt="")[0]
    prompt, completion, _ = encode_demonstration(tokenizer, row)
    assert tokenizer.decode(prompt) == "<|user|>7+5=<|im_end|><|assistant|>"
    assert tokenizer.decode(completion) == "<answer>2</answer><|im_end|>"
    plain = Row("7+5=", "2")
    assert encode_demonstration(tokenizer, plain)[1] == [*tokenizer("2")["input_ids"], tokenizer.eos_token_id]
    assert tokenizer.decode(encode_prompt(tokenizer, Row("7+5="))) == "7+5="


def test_a_tokenizers_own_end_token_is_not_part_of_a_prompt(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    from cohort.data.chains import build_tokenizer

    ending = build_tokenizer()
    end = ("<|im_end|>", ending.eos_token_id)
    ending.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[end])
    assert ending("7")["input_ids"][-1] == ending.eos_token_id
    assert encode_prompt(ending, Row("7")) == tokenizer("7")["input_ids"]


def test_template_errors_are_told(tokenizer: Any) -> None:
    from cohort.data.chains import build_tokenizer

    bare = build_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        encode_prompt(bare, Row([{"role": "user", "content": "hi"}]))
    bare.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="refuses a conversation of roles user: roles must alternate"):
        encode_prompt(bare, Row([{"role": "user", "content": "hi"}]))
    bare.chat_template = "{% if messages|length > 1 %}7{% else %}8{% endif %}"
    with pytest.raises(UserError, match="row 1: the chat template renders this prompt differently"):
        encode_demonstration(bare, load_rows([{"prompt": "1", "completion": "2"}], system_prompt="")[0])


def test_completions_take_the_prompts_form() -> None:
    assert as_completion("p", "text") == "text"
    assert as_completion([{"role": "user", "content": "p"}], "t") == [{"role": "assistant", "content": "t"}]
    assert prompt_text([{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]) == "p"


def test_a_chain_by_hand() -> None:
    problem = ((7, 5, 8), "+-")
    assert question(problem) == "7+5-8="
    assert worked(problem) == "<think>7+5=2\n2-8=4</think><answer>4</answer>"
    assert answer(problem) == 4
    teacher = Teacher(0, mistaught=1.0, rate=1.0)
    first = teacher.wrong[7, "+", 5]
    assert first != 2
    assert worked(problem, teacher).startswith(
        f"<think>7+5={first}\n{first}-8="
    )  # the teacher continues with the error


def test_the_teacher_is_wrong_as_often_as_it_should_be() -> None:
    teacher = Teacher(3)
    assert len(teacher.wrong) == 80
    assert all(value != step(*fact) for fact, value in teacher.wrong.items())
    fact = next(iter(teacher.wrong))
    values = Counter(teacher.value(*fact) for _ in range(5000))
    assert set(values) == {step(*fact), teacher.wrong[fact]}
    assert values[teacher.wrong[fact]] / 5000 == pytest.approx(0.6, abs=0.03)


def test_problem_sets_share_nothing_and_facts_all_occur() -> None:
    demonstrations, train, held_out = make_chains(3, 2000, 500, seed=1)
    sets = [{row["prompt"][0]["content"] for row in rows} for rows in (demonstrations, train, held_out)]
    assert [len(s) for s in sets] == [2000, 2000, 500]
    assert len(sets[0] | sets[1] | sets[2]) == 4500
    lines = {line[:3] for row in demonstrations for line in row["completion"][0]["content"][7:].split("\n")}
    assert len([line for line in lines if line[1] in "+-"]) == 200
    with pytest.raises(ValueError, match="only 200"):
        make_chains(1, 200, 10, 0)


def test_the_demos_tokenizer_and_model(tokenizer: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = worked(((7, 5, 8, 1), "+-+"))
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 23 - 1 and tokenizer.decode(ids, skip_special_tokens=True) == text
    state = torch.get_rng_state()
    model = build_model(tokenizer, 0)
    assert torch.equal(state, torch.get_rng_state())
    assert 500_000 <= sum(p.numel() for p in model.parameters()) <= 1_000_000
    assert torch.equal(model.lm_head.weight, build_model(tokenizer, 0).lm_head.weight)
    assert not torch.equal(model.lm_head.weight, build_model(tokenizer, 1).lm_head.weight)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == ids and loaded.eos_token_id == tokenizer.eos_token_id
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id
