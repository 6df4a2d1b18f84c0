"""Records as other tools and data sets write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cohort import SFTConfig, SFTTrainer
from cohort.data.labels import step_labels
from cohort.data.preferences import pair, token_ids
from cohort.data.rows import load_rows
from cohort.data.templates import encode_demonstrations
from cohort.evaluation.judging import steps_of
from cohort.rewards.steps import by_separator
from cohort.types import Row, UserError
from helpers import build_tokenizer, small_model


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def one(record: dict[str, Any], **columns: str) -> Row:
    (row,) = load_rows([record], columns=columns)
    return row


def test_sharegpts_speakers() -> None:
    talk = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = one({"conversations": talk})
    assert (row.prompt, row.completion) == ([turn("system", "s"), turn("user", "q")], [turn("assistant", "a")])
    with pytest.raises(
        UserError, match="row 1: message 1 of `conversations` is from 'bot'; the speakers are human, gpt"
    ):
        one({"conversations": [{"from": "bot", "value": "q"}]})


@pytest.mark.parametrize(
    ("names", "winner", "chosen"),
    [
        (("response_A", "response_B"), {"preference": "A"}, "good"),
        (("response_A", "response_B"), {"preference": "B"}, "bad"),
        (("response_a", "response_b"), {"winner": "response_b"}, "bad"),
        (("response_A", "response_B"), {"preferred": "Response A"}, "good"),
        (("response_0", "response_1"), {"better_response_id": 1}, "bad"),
    ],
)
def test_of_two_responses_the_preferred_is_chosen(names: tuple[str, str], winner: dict[str, Any], chosen: str) -> None:
    row = one({"prompt": "p", names[0]: "good", names[1]: "bad", **winner})
    good, bad = pair(row)
    assert good.completion == chosen and {good.completion, bad.completion} == {"good", "bad"}


def test_two_responses_mapped_against_their_preference_are_told() -> None:
    record = {"prompt": "p", "response_A": "a", "response_B": "b", "preference": "B"}
    with pytest.raises(UserError, match="row 1: `chosen` is mapped to response_A, and `preference` says response_B"):
        one(record, chosen="response_A", rejected="response_B")
    with pytest.raises(UserError, match="row 1: `preference` is 'tie', and neither response_A nor response_B"):
        one({**record, "preference": "tie"})
    assert one({**record, "preference": "A"}, chosen="response_A", rejected="response_B").columns["chosen"] == "a"


def test_hh_rlhf() -> None:
    shared = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 1+1?\n\nAssistant: "
    good, bad = pair(one({"chosen": f"{shared}2", "rejected": f"{shared}3, I think.\nOr 4."}))
    assert good.prompt == [turn("user", "Hi"), turn("assistant", "Hello."), turn("user", "1+1?")]
    assert (good.completion, bad.completion) == ([turn("assistant", "2")], [turn("assistant", "3, I think.\nOr 4.")])


def test_ultrafeedback() -> None:
    sides = {
        name: [turn("user", "1+1?"), turn("assistant", text)] for name, text in (("chosen", "2"), ("rejected", "3"))
    }
    good, bad = pair(one({"prompt": "1+1?", **sides, "score_chosen": 8.0}))
    assert (good.prompt, good.completion, bad.completion) == (
        [turn("user", "1+1?")],
        [turn("assistant", "2")],
        [turn("assistant", "3")],
    )


def steps(row: Row) -> tuple[list[str], list[float]]:
    _, texts, labels = steps_of(row, by_separator("\n"), "\n")
    return texts, labels


@pytest.mark.parametrize(("first", "kept"), [(-1, [1.0, 1.0, 1.0]), (0, [0.0]), (1, [1.0, 0.0]), (2, [1.0, 1.0, 0.0])])
def test_processbench(first: int, kept: list[float]) -> None:
    row = one({"problem": "p", "steps": ["a", "b", "c"], "label": first, "final_answer_correct": first < 0})
    assert row.prompt == "p" and steps(row) == (["a", "b", "c"][: len(kept)], kept)


def test_math_shepherd() -> None:
    text = "What is 1+1+1? Step 1: 1+1=2 ки\nStep 2: 2+1=4 ки\nStep 3: The answer is: 4 ки"
    label = "What is 1+1+1? Step 1: 1+1=2 +\nStep 2: 2+1=4 -\nStep 3: The answer is: 4 -"
    row = one({"input": text, "label": label, "task": "MATH"})
    assert row.prompt == "What is 1+1+1?"
    assert steps(row) == (["Step 1: 1+1=2", "Step 2: 2+1=4", "Step 3: The answer is: 4"], [1.0, 0.0, 0.0])
    with pytest.raises(UserError, match=r"row 1: `label` is not `input` with . or - in place of each 'ки'"):
        one({"input": text, "label": label.replace("1+1=2", "1+1=3")})


def test_prm800k() -> None:
    def step(*rated: tuple[str, int | None], chosen: int | None = 0) -> dict[str, Any]:
        return {
            "completions": [{"text": text, "rating": rating} for text, rating in rated],
            "human_completion": None,
            "chosen_completion": chosen,
        }

    record = {
        "question": {"problem": "p", "ground_truth_answer": "3"},
        "label": {
            "steps": [step(("a", 1)), step(("x", -1), ("b", 0), chosen=1), step(("c", -1), chosen=None), step(("d", 1))]
        },
    }
    row = one(record)
    assert (
        row.prompt == "p" and steps(row) == (["a", "b", "c"], [1.0, 1.0, 0.0]) and step_labels(row) == [1.0, 1.0, 0.0]
    )
    with pytest.raises(UserError, match="row 1: looks like PRM800K's form, and has no problem or no rated step"):
        one({"question": {"problem": "p"}, "label": {"steps": []}})


@pytest.mark.parametrize("wanted", [True, False])
def test_a_text_alone_is_trained_on_whole(wanted: bool, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    row = one({"text": "1+1=2", "source": "web"})
    assert (row.prompt, row.completion, row.columns["source"]) == ("", "1+1=2", "web")
    (each,) = encode_demonstrations(tokenizer, row)
    assert [*each.prompt, *each.completion] == [*tokenizer("1+1=2")["input_ids"], tokenizer.eos_token_id]
    assert len(each.prompt) == 1
    config = SFTConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=1, apply_chat_template=wanted)
    SFTTrainer(small_model(), config, [{"text": "1+1=2"}], processing_class=tokenizer).train()


def test_a_text_beside_a_prompt_is_a_column() -> None:
    assert one({"prompt": "p", "text": "t"}).columns == {"text": "t"}
    assert one({"text": "p", "code": "c"}, prompt="text").prompt == "p"


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("It is better", "It is best", ("It is", " better", " best")),
        ("yes", "no", ("", "yes", "no")),
        ("1+1=2", "1+1=2 or so", ("1+1=2", "", " or so")),
        ("天空是蓝色", "天空是绿色", ("天空是", "蓝色", "绿色")),
    ],
)
def test_the_words_that_two_texts_begin_with_are_the_prompt(
    chosen: str, rejected: str, expected: tuple[str, str, str]
) -> None:
    row = one({"chosen": chosen, "rejected": rejected})
    assert (row.prompt, row.columns["chosen"], row.columns["rejected"]) == expected


def test_pairs_of_token_ids() -> None:
    row = one({"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4], "margin": 0.5})
    assert token_ids(row) == ([1, 2], [3], [4]) and row.prompt == ""
    assert token_ids(one({"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [2]})) == ([1], [2, 3], [2])
    assert token_ids(one({"prompt": "p", "chosen": "a", "rejected": "b"})) is None
    with pytest.raises(UserError, match="row 1: `chosen_ids` holds 'abc': it must be a list of token ids"):
        one({"chosen_ids": "abc", "rejected_ids": [1]})
