from __future__ import annotations

import json

import pytest

from cohort.rewards import (
    accuracy,
    choice_accuracy,
    correctness,
    format_reward,
    keyword_reward,
    overlong,
    overlong_penalty,
    reasoning_gym,
    reasoning_keywords,
    reasoning_length,
    repetition,
    repetition_penalty,
    soft_format,
    strict_format,
    tag_presence,
    too_short,
    too_short_penalty,
    xml_count,
)
from cohort.rewards.functions.text import content, of_answer, of_text, words
from cohort.types import UserError
from helpers import ROOT

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="the GSM8K files are not beside the project")


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (GSM8K / name).read_text(encoding="utf-8").splitlines() if line]


def test_content_of_strings_messages_and_parts() -> None:
    assert content("a") == "a"
    assert content([{"role": "assistant", "content": "a"}]) == "a"
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert content([{"role": "assistant", "content": parts}]) == "ab"
    assert content([{"role": "assistant", "content": None}]) == "" and content([]) == ""


def test_accuracy_by_row() -> None:
    completions = [
        "<think>6*12</think><answer>72</answer>",
        [{"role": "assistant", "content": "so \\boxed{\\frac{144}{2}}"}],
        "It is 71 + 1 = 72.",
        "<answer>71</answer> 72",
        "<answer>72",
        "",
        "seventy-two",
        "<answer></answer>72",
    ]
    assert accuracy(completions, answer=["6*12\n#### 72"] * 8) == [1, 1, 1, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("column", ["answer", "answers", "solution", "reference", "references"])
@pytest.mark.parametrize("value", ["1,000", 1000, 1000.0, ["x", "1000"], "Work.\n\\boxed{1000}", "a\n#### 1,000"])
def test_accuracy_finds_the_reference(column: str, value: object) -> None:
    assert accuracy(["<answer>\\frac{2000}{2}</answer>", "<answer>1001</answer>"], **{column: [value] * 2}) == [1, 0]


def test_accuracy_finds_the_reference_in_every_other_column() -> None:
    for column in ("output", "response", "ground_truth", "target"):
        assert accuracy(["16", "17"], prompts=["", ""], **{column: ["16", "16"]}) == [1, 0]


def test_accuracy_without_reference() -> None:
    assert accuracy(["5", "5", "5"], answer=[None, "", "5"]) == [None, None, 1]
    with pytest.raises(UserError, match=r"accuracy .* may be named answer, .* the columns are: question$"):
        accuracy(["5"], prompts=["p"], question=["q"])


@needs_gsm8k
def test_every_gsm8k_reference_is_right() -> None:
    answers = [row["answer"] for name in ("train.jsonl", "test.jsonl") for row in rows(name)]
    assert len(answers) == 7473 + 1319
    assert sum(accuracy(answers, answer=answers)) == len(answers)
    tagged = [f"<think></think><answer>{answer.rpartition('####')[2]}</answer>" for answer in answers]
    assert sum(accuracy(tagged, answer=answers)) == len(answers)


@needs_gsm8k
def test_accuracy_agrees_with_the_labels_of_real_solutions() -> None:
    pairs = [
        (row[model]["solution"], row["ground_truth"], row[model]["is_correct"])
        for row in rows("model_solutions.jsonl")
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    ]
    solutions, references, labels = zip(*pairs, strict=True)
    scores = accuracy(solutions, ground_truth=references)
    assert len(scores) == 2640 and sum(labels) == 1008
    agreement = sum(score == label for score, label in zip(scores, labels, strict=True)) / len(labels)
    assert agreement >= 0.995, agreement


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("<think>\r\na\r\n</think>\r\n<answer>\r\nb\r\n</answer>", 1),
        ("<answer>b</answer><think>a</think>", 1),
        ("<think></think><answer></answer>", 1),
        ("<think>a<think>b</think><answer>c</answer> d", 1),
        ("<think>" + "x" * 100_000 + "</think><answer>b</answer>", 1),
        ("<think>a</think><answer>b", 0),
        ("</think>a<think><answer>b</answer>", 0),
        ("<answer>b</answer>", 0),
        ("<Think>a</Think><answer>b</answer>", 0),
        ("", 0),
    ],
)
def test_format(text: str, score: float) -> None:
    assert format_reward([text, [{"role": "assistant", "content": text}]]) == [score, score]


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("<answer> 72 </answer>", "72", 2.0),
        ("<answer>72</answer>", "a\n#### 72", 2.0),
        ("<answer>1,000</answer>", "1000", 1.5),
        ("<answer>72 clips</answer>", "72.0", 1.5),
        ("<answer>-5</answer>", "5", 0),
        ("<answer>72 or 73</answer>", "72", 0),
        ("<answer>1</answer><answer>2</answer>", "1", 0),
        ("<answer>...</answer>", "...", 0),
        ("72", "72", 0),
        ("<answer></answer>", "", None),
    ],
)
def test_correctness(text: str, reference: str, score: float | None) -> None:
    assert correctness([text], answer=[reference]) == [score]


def test_tag_presence() -> None:
    texts = [
        "",
        "<answer>",
        "<answer></answer>",
        "</reasoning><answer></answer>",
        "<reasoning></reasoning><answer></answer>",
    ]
    assert tag_presence(texts) == [0, 0.2, 0.4, 0.6, 0.8]


def test_choice_accuracy() -> None:
    texts = ["\\boxed{B}", "<answer>B</answer>", "<answer>\\boxed{E}</answer>", "<answer>\\boxed{A}</answer>"]
    right = "<answer>x</answer><answer>\\boxed{A} no, \\boxed{B}</answer>"
    assert choice_accuracy([*texts, right], answer=["B", "B", "E", "B", "B"]) == [0, 0, 0, 0, 2.0]


STRICT = "<reasoning>\nwhy\n</reasoning>\n<answer>\n\\boxed{C}\n</answer>"


def test_strict_format() -> None:
    assert strict_format([STRICT, f"\n {STRICT} \n", STRICT.replace("why", "a\nb")]) == [1, 1, 1]
    wrong = [
        STRICT.replace("C", "E"),
        STRICT + " so",
        STRICT.replace("\n", "\r\n"),
        STRICT.replace("\nwhy\n", "\n"),
        STRICT[1:],
        "",
    ]
    assert strict_format(wrong) == [0] * 6


def test_soft_format() -> None:
    right = [
        "<reasoning>r</reasoning> \n<answer>it is B.</answer>",
        STRICT,
        "<reasoning></reasoning><answer>D</answer>",
        "<reasoning>r</reasoning> so <answer>B</answer>",
        "<reasoning>r</reasoning>\nTherefore:\n\n<answer>\nB\n</answer>\n",
    ]
    assert soft_format(right) == [0.5] * 5
    wrong = [
        "<reasoning>r</reasoning><answer>Apple</answer>",
        "<reasoning>r</reasoning><answer>E</answer>",
        "<answer>B</answer><reasoning>r</reasoning>",
        "<reasoning>r <answer>B</answer>",
        "</reasoning><answer>B</answer>",
        "<reasoning>r</reasoning><answer>B",
    ]
    assert soft_format(wrong) == [0] * 6


def test_xml_count() -> None:
    assert xml_count([STRICT, STRICT + "\n", STRICT + "\n" + "x" * 100]) == [0.375, 0.375, 0.275]
    assert xml_count([STRICT + "x" * 1000, "", STRICT + STRICT, "\n</answer>"]) == [0, 0, 0, 0.125]


def test_words_count_characters_where_there_are_no_spaces() -> None:
    assert words("don't stop-now") == ["don't", "stop-now"]
    assert words("先算3加4，再乘2。") == list("先算3加4再乘2")
    assert len(words("計算する")) == 4


def test_reasoning_length() -> None:
    texts = [f"<reasoning>{'word ' * n}</reasoning>" for n in (0, 19, 20, 49, 50, 99, 100)]
    assert reasoning_length([*texts, "word " * 100, f"<reasoning>{'算' * 50}</reasoning>"]) == [
        *(0, 0, 0.25, 0.25, 0.5, 0.5, 0.75),
        *(0, 0.5),
    ]


def test_reasoning_keywords() -> None:
    texts = [
        "grow summer digital",
        "Each row",
        "rows and columns, no repeats",
        "row column sum unique digit clue",
        "",
    ]
    assert reasoning_keywords([f"<reasoning>{text}</reasoning>" for text in texts]) == [0, 0.1, 0.3, 0.5, 0]
    assert reasoning_keywords(["row"]) == [0]
    assert keyword_reward(["行"])(["<reasoning>第一行有x</reasoning>"]) == [0.1]


def test_penalties_of_length_and_repetition() -> None:
    assert too_short(["one two", "w " * 10, ""]) == [-0.3, 0, -0.3]
    assert too_short_penalty(least=2, penalty=-1)(["one two", "one"]) == [0, -1]
    repeated = "the cat sat on the mat the cat sat on the mat"
    assert repetition([repeated, "one two three four five six", "", "same " * 50]) == [-0.5, 0, 0, -0.5]
    # 12 words have 9 four-grams, 3 of which came before.
    assert repetition_penalty(share=0.33, penalty=-1)([repeated]) == [-1]
    assert repetition_penalty(share=0.34)([repeated]) == [0]


def test_overlong() -> None:
    ids = [[0] * n for n in (0, 80, 85, 90, 100, 101, 500)]
    penalty = overlong_penalty(max_length=100, cache=20)
    assert penalty([""] * 7, completion_ids=ids) == pytest.approx([0, 0, -0.25, -0.5, -1, -1, -1])
    assert overlong([""] * 2, completion_ids=[[0] * 820, [0] * 922]) == pytest.approx([0, -0.5])
    with pytest.raises(UserError, match=r"cache is 200; .* between 1 and max_length, 100"):
        overlong_penalty(max_length=100, cache=200)


def entry(task: str, seed: int = 1) -> dict:
    gym = pytest.importorskip("reasoning_gym")
    return gym.create_dataset(task, size=1, seed=seed)[0]


def test_reasoning_gym_scores_with_the_tasks_own_verifier() -> None:
    row = entry("basic_arithmetic")
    right = row["answer"]
    completions = [
        f"<answer>{right}</answer>",
        f"so \\boxed{{{right}}}",
        [{"role": "assistant", "content": f" {right}\n"}],
        f"it is {right}",
        "<answer>no</answer>",
        "other data",
    ]
    tasks = ["basic_arithmetic"] * 5 + [None]
    scores = reasoning_gym(completions, tasks, [json.dumps(row, default=str)] * 6, answer=["x"] * 6)
    assert scores[:3] == [1, 1, 1] and scores[3] < 1 and scores[4:] == [0, None]


def test_reasoning_gym_reads_grids_back_from_json() -> None:
    row = entry("rearc")
    completion = f"<answer>{row['answer']}</answer>"
    assert reasoning_gym([completion], ["rearc"], [json.dumps(row, default=str)]) == [1]


def test_reasoning_gym_errors() -> None:
    with pytest.raises(UserError, match="needs the columns reasoning_gym_task and reasoning_gym_entry"):
        reasoning_gym(["5"], answer=["5"])
    row = entry("basic_arithmetic")
    with pytest.raises(UserError, match=r"cannot score task 'nonsense': .*nonsense.* not registered"):
        reasoning_gym(["5"], ["nonsense"], [json.dumps(row)])
    with pytest.raises(UserError, match="own answer too: KeyError"):
        reasoning_gym(["5"], ["n_queens"], [json.dumps({"answer": "5"})])


def test_the_same_text_and_answer_are_scored_once() -> None:
    called: list[tuple[str, ...]] = []

    def by_text(text: str) -> float:
        called.append((text,))
        return len(text)

    def by_answer(text: str, answer: str) -> float:
        called.append((text, answer))
        return float(text == answer)

    completions = ["4", "5", "4", "4"]
    assert of_text("length", by_text)(completions=completions) == [1, 1, 1, 1]
    found = of_answer("equal", by_answer)(completions=completions, answer=["4", "4", "4", "5"])
    assert found == [1, 0, 1, 0]
    assert called == [("4",), ("5",), ("4", "4"), ("5", "4"), ("4", "5")]
