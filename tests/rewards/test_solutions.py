"""Where the answer stands: after thoughts, in a box, in a solution in prose."""

from __future__ import annotations

import pytest

from cohort.config import TrainingConfig
from cohort.policy.load import make_policy
from cohort.rewards import accuracy, choice, choice_accuracy, correctness, facts, reasoning_gym, reward
from cohort.rewards.answers.boxes import last_boxed
from cohort.rewards.answers.extract import equal, extract_answer, final_answer
from cohort.rewards.answers.solutions import last_formula
from cohort.rewards.answers.thoughts import answer_part
from cohort.rollouts.encoding import encode_prompts
from cohort.texts import MARKS, opened_thoughts
from cohort.types import Row
from helpers import TEMPLATE, byte_tokenizer, small_model

STATED = [
    ("Let $x^2=2$.\nThe answer is $\\sqrt{2}$.", "\\sqrt{2}"),
    ("Let $x^2=2$.\nHence $x=\\sqrt{2}$.", "\\sqrt{2}"),
    ("Work $1$.\nTherefore the solution set is $(1, 2]$.", "(1,2]"),
    ("We factor.\nThus $f(x) = x^2 + 2x + 1$.", "(x+1)^2"),
    ("Because 3 > 2.\nAnswer: C", "C"),
    ("Because 3 > 2.\nAnswer: (C)", "C"),
    ("Because 3 > 2.\n**Answer:** C", "C"),
    ("Because 3 > 2.\nThe answer is C.", "C"),
    ("Because 3 > 2.\nThe correct answer is option C.", "C"),
    ("Because 3 > 2.\nSo the correct answer is (C) 42.", "C"),
    ("Work.\nThe answer is [1, 2).", "[1,2)"),
    ("Work.\nAnswer: x^2+1", "1+x^2"),
    ("Work on 5.\nANSWER: \\frac{1}{2}", "1/2"),
    ("Work on 5.\nAns: 7", "7"),
    ("Work 3.\nThe final answer is $5\\sqrt{2}$ cm.", "5\\sqrt{2}"),
    ("Work 3.\nThe area is $5\\sqrt{2}$ cm.", "5\\sqrt{2} \\text{ cm}"),
    ("Work 3.\n$$x = \\frac{1}{2}$$", "0.5"),
    ("Work 3.\n\\[\nx = \\frac{1}{2}.\n\\]", "0.5"),
    ("Work 3.\nSo $3+4=7$.", "7"),
    ("Final Answer: The final answer is $7$. I hope it is correct.", "7"),
    ("So the answer is $\\sqrt 2$.", "\\sqrt{2}"),
    ("Hence $x = 5$.", "5"),
    ("Work.\n### Final Answer\n$\\frac{1}{2}$", "0.5"),
    ("Work.\n**Final Answer**\n\n5", "5"),
    ("The answer is $1$ and $2$.", "1, 2"),
    ("Steps 1.\nThe answer is 4 because 3+1=4.", "4"),
    ("Steps 1.\nThe answer is Paris.", "Paris"),
    ("Steps 1.\nThe answer is Dr. Smith.", "Dr. Smith"),
    ("Steps 1.\nThe answer is 3.5. This is it.", "3.5"),
    ("Steps 1.\nThe answer is \\(\\frac{\\pi}{3}\\).", "\\frac{\\pi}{3}"),
    ("Work.\nThe answer is therefore $-\\frac{3}{2}$.", "-1.5"),
    ("Work.\nThe answer is $x \\in [1, 2)$.", "[1,2)"),
    ("Work.\nThe answer is 12,500.", "12500"),
    ("Work.\nTherefore, the answer is no.", "no"),
    ("解：\n答案是 $\\sqrt{2}$。", "\\sqrt{2}"),
    ("2 + 2 = 4\nA: 4", "4"),
    ("He has 5.\nA: $5 per day", "5"),
    ("He has 5.\nSo he pays $5 and gets $3 back, 8 in total.", "8"),
    ("So \\fbox{7}", "7"),
    ("So $\\boxed 7$.", "7"),
    ("<think>\\boxed{3}</think>\nThe answer is 4.", "4"),
]
"""Solutions, as reference and as completion, and their answers."""

CONCLUDED = [
    ("Because 3 > 2.\nC", "C"),
    ("Steps.\n(1, 2]", "(1,2]"),
    ("Steps.\nx^2 + 1", "x^2+1"),
    ("\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("$$\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}$$", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("Work on 5.\nTherefore the polynomial is x^2 - 3x + 2.", "x^2-3x+2"),
    ("Work on 5.\nThe interval is (2, 5).", "(2,5)"),
    ("Work on 5.\nThe range is [2, \\infty).", "[2,\\infty)"),
    ("Work on 5.\nSo x = 2\\sqrt{3}.", "2\\sqrt{3}"),
    ("Work on 5.\nThe correct choice is B.", "B"),
    ("Work on 5.\nSo B is correct.", "B"),
    ("Then $x=1$.\nThe maximum is $\\frac{3}{4}$ for 2 values.", "0.75"),
    ("6 * 12 = <<6*12=72>>72\nShe has 72 eggs (6 boxes).", "6"),
]
"""References that a completion in the same words does not equal: of a completion, the last number counts."""


@pytest.mark.parametrize(("solution", "answer"), STATED)
def test_the_answer_that_a_solution_states(solution: str, answer: str) -> None:
    assert equal(answer, final_answer(solution))
    assert accuracy([solution, f"\\boxed{{{answer}}}"], answer=[answer, solution]) == [1, 1]


@pytest.mark.parametrize(("solution", "answer"), CONCLUDED)
def test_the_answer_in_the_last_line_of_a_reference(solution: str, answer: str) -> None:
    assert equal(answer, final_answer(solution))


def test_texts_that_are_answers_stay_whole() -> None:
    for text in ("New York", "x^2 + 1", "The Rolling Stones", "(1, 2)", "$\\sqrt{2}$", "5 cm", "C", "a = b"):
        assert final_answer(text) == text
    assert last_formula("from $5 to $10-$20") is None and last_formula("$x$\nso 5") is None


THOUGHTS = [
    ("<think>Maybe \\boxed{3}.</think>The answer is 4.", "The answer is 4."),
    ("<think>\n<answer>3</answer>\n</think>\n<answer>4</answer>", "\n<answer>4</answer>"),
    ("Maybe \\boxed{3}.</think>The answer is 4.", "The answer is 4."),
    ("<thinking>3</thinking>4", "4"),
    ("[THINK]3[/THINK]4", "4"),
    ("◁think▷3◁/think▷4", "4"),
    ("<think>3</think>5<think>4</think>6", "6"),
    ("<think>The answer is 4", ""),
    ("<think>3</think>4<think>5", ""),
    ("<answer>4</answer><think>", ""),
    ("4", "4"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "part"), THOUGHTS)
def test_the_part_after_thoughts(text: str, part: str) -> None:
    assert answer_part(text) == part == answer_part(part)


def test_thoughts_that_the_prompt_opened() -> None:
    assert answer_part("so 4", opened=True) == "" and answer_part("3</think>4", opened=True) == "4"
    assert opened_thoughts("user: 2 + 2?\nassistant: <think>\n") == "<think>"
    assert opened_thoughts("use <think> and </think>") is None
    prompts = ["2 + 2?\n<think>\n", "2 + 2?", [{"role": "user", "content": "2 + 2?"}]]
    assert accuracy(["it is 4"] * 3, prompts=prompts, answer=["4"] * 3) == [0, 1, 1]


DRAFT = "<think>It may be <answer>\\boxed{A}</answer>"


@pytest.mark.parametrize("name", ["accuracy", "correctness", "choice", "choice_accuracy", "facts"])
@pytest.mark.parametrize(
    "text", [f"{DRAFT}", f"{DRAFT}</think> no", f"{DRAFT}</think> So <answer>\\boxed{{B}}</answer>"]
)
def test_no_reward_pays_for_an_answer_among_thoughts(name: str, text: str) -> None:
    assert reward(name)([text], answer=["A"]) == [0]
    assert reward(name)([text.replace("{A}", "{C}").replace("{B}", "{A}")], answer=["A"])[0] == (
        0 if "So" not in text else {"correctness": 0, "choice_accuracy": 2}.get(name, 1)
    )


def test_other_rewards_read_what_follows_thoughts() -> None:
    done = "<think>A</think>\nB"
    assert choice([done], answer=["B"]) == [1] and facts([done], answer=["b"]) == [1]
    assert choice_accuracy([f"{DRAFT}</think>"], answer=["A"]) == [0]
    assert correctness(["<think><answer>4</answer></think><answer>5</answer>"], answer=["5"]) == [2]


def test_reasoning_gym_reads_what_follows_thoughts() -> None:
    gym = pytest.importorskip("reasoning_gym")
    import json

    row = gym.create_dataset("basic_arithmetic", size=1, seed=1)[0]
    texts = [f"<think>0</think>{row['answer']}", f"<think>{row['answer']}"]
    entries = [json.dumps(row, default=str)] * 2
    assert reasoning_gym(texts, ["basic_arithmetic"] * 2, entries)[0] == 1
    assert reasoning_gym(texts, ["basic_arithmetic"] * 2, entries)[1] < 1


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\fbox{7}", "7"),
        ("\\framebox{7}", "7"),
        ("\\framebox[3cm][c]{7}", "7"),
        ("\\boxed 7", "7"),
        ("$\\boxed 72$.", "72"),
        ("\\boxed7", "7"),
        ("so \\boxed C.", "C"),
        ("$\\boxed\\frac{1}{2}$", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{1} or \\boxed 2", "2"),
        ("\\boxed 1 or \\boxed{2}", "2"),
        ("\\boxed {7}", "7"),
        ("\\boxedness 7", None),
        ("\\boxed 5}", None),
        ("\\boxed", None),
        ("a box of 7", None),
    ],
)
def test_boxes(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        (".75", "75", 0),
        (".75", "0.75", 1.5),
        ("-.5", "-0.5", 1.5),
        ("-.5", "5", 0),
        ("$.50", "0.5", 1.5),
        ("$.50", "50", 0),
        ("−.5", "-0.5", 1.5),
        ("-$5", "-5", 1.5),
        ("-\\$5", "5", 0),
        ("3e-05", "0.00003", 1.5),
        ("0.00003", "3e-05", 1.5),
        ("100000000000000000000", "1e+20", 1.5),
        ("0.\\overline{3}", "1/3", 1.5),
        ("0.\\overline{3}", "3", 0),
        ("\\frac{1}{2}", "0.5", 1.5),
        ("x.5", "0.5", 0),
        ("1.", "1", 1.5),
        ("110_2", "110_3", 0),
    ],
)
def test_numbers_of_correctness(answer: str, reference: str, score: float) -> None:
    assert correctness([f"<answer>{answer}</answer>"], answer=[reference]) == [score]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is √2", "√2"),
        ("It is 2√3", "2√3"),
        ("It is 0.\\overline{3}", "0.\\overline{3}"),
        ("so .75", ".75"),
        ("so -.5", "-.5"),
        ("costs $x$ for $5$ apples and 6 pears", "6"),
        ("so $x = 5$", "5"),
        ("so 4.\nHence $x^2 = 4$", "x^2 = 4"),
    ],
)
def test_the_last_line_of_a_completion(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize("columns", [{"prompts": ["2+2? <think>\n"]}, {"opened_thoughts": ["<think>"]}])
def test_format_is_earned_where_the_prompt_has_opened_the_thoughts(columns: dict[str, list[str]]) -> None:
    text, strict = "so\n</think>\n<answer>4</answer>", reward("format", strict=True)
    for function in (reward("format"), strict):
        assert function([text], **columns) == [1.0] and function(["<think>" + text], **columns) == [1.0]
        assert function([text]) == [0.0] and function(["<answer>4</answer>"], **columns) == [0.0]
    assert reward("accuracy")(["so <answer>4</answer>"], answer=["4"], **columns) == [0.0]
    assert reward("accuracy")([text], answer=["4"], **columns) == [1.0]


@pytest.mark.parametrize("mark", [opening for opening, _ in MARKS])
def test_a_template_that_opens_the_thoughts_reaches_the_rewards(mark: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE + "{% if add_generation_prompt %}<assistant>" + mark + "\n{% endif %}"
    policy = make_policy(small_model(vocab_size=260), tokenizer, TrainingConfig(bf16=False, use_cpu=True))
    (prompt,) = encode_prompts([Row([{"role": "user", "content": "?"}])], policy, TrainingConfig())
    assert prompt.row.columns == {"opened_thoughts": mark}
    tokenizer.chat_template = TEMPLATE
    (prompt,) = encode_prompts([Row([{"role": "user", "content": mark + "?"}])], policy, TrainingConfig())
    assert prompt.row.columns == {}
