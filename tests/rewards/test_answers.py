from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest

from cohort.rewards.answers import verify
from cohort.rewards.answers.extract import (
    accepted,
    equal,
    extract_answer,
    final_answer,
    last_boxed,
    last_number,
    last_tagged,
    reference_from,
)
from cohort.rewards.answers.quantities import Quantity, quantity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>1</answer> no, <answer> 2 </answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>a <answer>b</answer> c</answer>", "b"),
        ("</answer><answer>5</answer></answer>", "5"),
        ("<answer></answer> 7", ""),
        ("<answer>\r\n18\r\n</answer>", "18"),
        ("<answer>3</answer> \\boxed{4} 5", "3"),
        ("\\boxed{4} then \\boxed{\\frac{1}{2}} 5", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1} and \\boxed{2", "1"),
        ("\\boxed{2 and 3", "3"),
        ("A: 1,234.50.", "1,234.50"),
        ("It is (1, 2)", "2"),
        ("", None),
        ("no number", None),
    ],
)
def test_extraction(text: str, expected: str | None) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a 1,000", "1,000"),
        ("1,2,18", "18"),
        ("is 3/4", "3/4"),
        ("on 5/6/2024", "2024"),
        ("is \\frac{1}{2}.", "\\frac{1}{2}"),
        ("3-5", "5"),
        ("= -5", "-5"),
        ("-$5.", "-$5"),
        ("about 50%", "50%"),
        ("1e-5 m", "1e-5"),
        ("v1.2.3", "3"),
        ("18,", "18"),
        ("１，０１８。", "1,018"),
        ("5 m²", "5"),
        ("共1\u202f000元", "1000"),
        (".5", ".5"),
    ],
)
def test_last_number(text: str, expected: str) -> None:
    assert last_number(text) == expected


SAME = [
    ("1,000", "1000"),
    ("1000.0", "1000"),
    ("\\frac{2000}{2}", "1000"),
    ("\\dfrac{2000}{2}", "1,000.00"),
    ("1{,}000", "1000"),
    ("1e3", "1000"),
    ("１８", "18"),
    ("１，０００", "1000"),
    ("−5", "-5"),
    ("+5", "5"),
    ("$18", "18"),
    ("\\$18", "18 dollars"),
    ("-$5", "-5"),
    ("18 duck eggs", "18 eggs"),
    ("18元", "18"),
    ("3万", "30000"),
    ("2.5 million dollars", "$2,500,000"),
    ("50%", "0.5"),
    ("50\\%", "50"),
    ("5 hrs", "5 hours"),
    ("90^\\circ", "90 degrees"),
    ("1 1/2", "1.5"),
    ("-\\frac{1}{2}", "-0.5"),
    ("1/3", "0.333333"),
    ("The answer is 18.", "18"),
    ("答案是18。", "18"),
    ("**18**", "18"),
    ("$18$", "\\boxed{18}"),
    ("Paris.", "paris"),
    ("\\text{A}", "A"),
    ("x = 18", "18"),
    ("1\\frac{1}{2}", "3/2"),
    ("(1,2)", "(1, 2)"),
    ("x^2+2x+1", "(x+1)^2"),
    ("2\\sqrt{3}", "sqrt(12)"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("{1, 2}", "\\{2,1\\}"),
    ("1, 2", "2 and 1"),
    ("（1，2]", "(1, 2]"),
    ("\\left[1, 2\\right)", "[1,2)"),
    ("(-\\infty, 3)", "(-∞,3)"),
    ("(-\\infty,1)\\cup(2,\\infty)", "(-∞,1)∪(2,∞)"),
    ("x \\in [1,2]", "[1,2]"),
    ("x > 1", "1 < x"),
    ("x≥1", "x\\ge 1"),
    ("x²+1", "x^2+1"),
    ("5²", "25"),
    ("10⁻²", "0.01"),
    ("3.0×10^5", "300000"),
    ("2π", "2\\pi"),
    ("½", "0.5"),
    ("2½ cups", "2.5"),
    ("\\frac12", "1/2"),
    ("5 km", "5000 m"),
    ("90 minutes", "1.5 hours"),
    ("$1.50", "150 cents"),
    ("5 cm²", "5 cm^2"),
    ("1\u202f000", "1000"),
    ("1\u2009234\u2009567.5", "1234567.5"),
    ("(B)", "\\text{B}"),
    ("百分之五十", "50%"),
    ("百分之3.5", "3.5%"),
    ("五分之三", "3/5"),
    ("三十六个", "36"),
    ("一百零五", "105"),
    ("十八", "18"),
    ("两万", "20000"),
    ("三亿五千万元", "350000000"),
    ("负三点五", "-3.5"),
    ("二〇二四", "2024"),
    ("五公里", "5 km"),
]
DIFFERENT = [
    ("18", "19"),
    ("1,00", "100"),
    ("5 km", "5 m"),
    ("50%", "$50"),
    ("$50", "50 cents"),
    ("1/3", "0.33"),
    ("1/0", "1"),
    ("2xy", "2"),
    ("5x", "5"),
    ("2 pi", "2"),
    ("18 or 19", "18"),
    ("18 19", "18"),
    ("(1,2)", "2"),
    ("cat", "act"),
    ("x", "y"),
    ("5} \\boxed{18", "18"),
    ("1e999999999", "2"),
    ("三角形", "3"),
    ("一样", "1"),
    ("三三三十", "30"),
    ("万万", "1"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("[1,2]", "\\{1,2\\}"),
    ("5 km", "5 kg"),
    ("1 day", "1 week"),
    ("5 cm", "5 cents"),
    ("", ""),
    ("5", ""),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_same(a: str, b: str) -> None:
    assert equal(a, b) and equal(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a: str, b: str) -> None:
    assert not equal(a, b) and not equal(b, a)


def test_quantities_are_exact() -> None:
    assert quantity("0.1") == Quantity(Fraction(1, 10), None)
    assert quantity("$1,000.50") == Quantity(Fraction(2001, 2), "$")
    assert quantity("-1 1/2 hours") == Quantity(Fraction(-3, 2), "h")
    assert quantity("9" * 201) is None
    assert quantity("12 345") is None


def test_numbers_and_words_never_start_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise AssertionError("math-verify was asked")

    monkeypatch.setattr(verify, "equal", refuse)
    assert equal("1,000", "\\frac{2000}{2}") and not equal("18 eggs", "19")
    assert not equal("a cat", "18") and not equal("cat", "act")
    assert not equal("1+" * 1500 + "1", "1501")


def test_references() -> None:
    assert reference_from({"target": ["t"], "output": ["o"]}, 0) == "o"
    assert reference_from({"answer": [None], "solution": ["s"]}, 0) == "s"
    assert reference_from({"other": ["x"]}, 0) is None
    assert final_answer("6 * 12 = <<6*12=72>>72\n#### 72") == "72"
    assert final_answer("Add them.\nSo \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert final_answer("2 + 2 = 4\nA: 4") == "4"
    assert final_answer("New York") == "New York"
    assert accepted(["Paris", None, "", 16]) == ["Paris", "16"]
    assert accepted(None) == [] and accepted(16.0) == ["16.0"]


HOSTILE = {
    "open tags": "<answer>" * 130_000,
    "closing tags": "</answer>" * 110_000,
    "open braces": "{" * 1_000_000,
    "open boxes": "\\boxed{" * 140_000,
    "spaced boxes": "\\boxed" + " " * 1_000_000,
    "digits": "1" * 1_000_000,
    "thousands": "000," * 250_000,
    "signs": "- " * 500_000,
    "fractions": "1/" * 500_000,
    "long answer": "<answer>" + "1" * 1_000_000 + "</answer>",
    "boxes in the answer": "<answer>" + "\\boxed{" * 140_000 + "</answer>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_takes_linear_time(name: str) -> None:
    start = time.process_time()
    found = extract_answer(HOSTILE[name])
    assert not equal(found or "", "18")
    final_answer(HOSTILE[name])
    assert time.process_time() - start < 3


def test_last_tag_and_box_that_are_missing() -> None:
    assert last_tagged("</a><a>", "a") is None
    assert last_tagged("", "a") is None
    assert last_boxed("\\boxed 5}") is None


TOWER = "9^{9^{9^9}}"


def test_a_comparison_that_does_not_end_is_cut_off_in_any_thread() -> None:
    worker = verify.Worker("math", seconds=0.5)
    assert worker.ask(["x+1", "1+x"]) is True
    process = worker._process
    replies: list[object] = []

    def ask() -> None:
        start = time.monotonic()
        replies.extend([worker.ask([TOWER, "3+x"]), time.monotonic() - start])

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert replies[0] is None
    assert 0.4 < float(replies[1]) < 3
    # The process lives on: the next comparison does not wait for libraries.
    assert worker._process is process and worker.ask(["x+1", "1+x"]) is True
    worker.close()


def test_many_threads_share_one_worker() -> None:
    worker = verify.Worker("math")
    replies: dict[int, object] = {}

    def ask(i: int) -> None:
        replies[i] = worker.ask([f"x+{i}", f"{i}+x" if i % 2 else f"{i + 1}+x"])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.close()
    assert replies == {i: bool(i % 2) for i in range(12)}


def test_the_worker_survives_hostile_text_and_its_own_death() -> None:
    worker = verify.Worker("math", seconds=1)
    for text in ('"}\n{"', "\x00\ud800", "\\input{/etc/passwd}", "}" * 50, "\n\n", "((" * 50):
        assert worker.ask([text, "18"]) in (False, None)
    assert worker.ask(["\\frac{36}{2}", "18"]) is True
    process = worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert worker.ask(["\\frac{36}{2}", "18"]) is True
    worker.close()
    worker.close()
