"""Letter answers and facts, by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cohort.rewards import choice, facts, reward
from cohort.rewards.functions.facts import normalised
from cohort.types import UserError

CAPITALS = ["Paris", "Rome", "Oslo"]


def tagged(text: str) -> str:
    return f"<answer>{text}</answer>"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (tagged("B"), 1),
        (tagged("(b)."), 1),
        (tagged("\\boxed{B}"), 1),
        (tagged("\\text{B}"), 1),
        (tagged("**B**"), 1),
        (tagged("Ｂ"), 1),
        (tagged("B. Rome"), 1),
        (tagged("B) rome"), 1),
        (tagged("Rome"), 1),
        (tagged("\r\nB\r\n"), 1),
        (tagged("the answer is B"), 1),
        (tagged("选B"), 1),
        (tagged("A") + tagged("B"), 1),
        ("A? No.\n\\boxed{B}", 1),
        ("Let A be Paris.\nThe answer is (B).", 1),
        ([{"role": "assistant", "content": tagged("B")}], 1),
        (tagged("A"), 0),
        (tagged("A or B"), 0),
        (tagged("A, B, C"), 0),
        (tagged("Boat"), 0),
        (tagged("B") + tagged("C"), 0),
        (tagged("Paris, Rome"), 0),
        (tagged(""), 0),
        ("B\nbecause", 0),
        (tagged("B" + " " * 3000 + "."), 0),
        ("", 0),
    ],
)
def test_choice(text: Any, score: float) -> None:
    assert choice([text], answer=["B"], choices=[CAPITALS]) == [score]


def test_strict_choice_is_a_marked_label_alone() -> None:
    texts = [tagged("(b)."), "\\boxed{B}", tagged("B. Rome"), tagged("Rome"), tagged("A dog"), "B", tagged("A or B")]
    strict = reward("choice", strict=True)
    assert strict(texts, answer=["B"] * 7) == [1, 1, 0, 0, 0, 0, 0]
    assert reward("choice")([tagged("A dog")], answer=["A"]) == [1] and strict([tagged("A dog")], answer=["A"]) == [0]


@pytest.mark.parametrize(
    "choices", [CAPITALS, {"A": "Paris", "B": "Rome"}, {"label": ["A", "B"], "text": ["x", "Rome"]}]
)
@pytest.mark.parametrize("reference", ["B", " B ", "(B)", 1, "1", "Rome", "rome.", "\\boxed{B}", ["B", None]])
def test_references_of_a_choice(choices: Any, reference: Any) -> None:
    assert choice([tagged("B"), tagged("A")], target=[reference] * 2, options=[choices] * 2) == [1, 0]


def test_choices_that_are_numbers() -> None:
    numbers = ["10", "1", "0"]
    assert choice([tagged("B")] * 3, answer=[1, "1", "10"], choices=[numbers] * 3) == [1, 1, 0]
    assert choice([tagged("A"), tagged("10")], answer=["10", "10"], choices=[numbers] * 2) == [1, 1]


NUMERALS = ["1", "2", "3", "4"]
RATINGS = dict.fromkeys(NUMERALS, "")
ARC = {"label": NUMERALS, "text": ["ice", "fog", "rain", "dew"]}


@pytest.mark.parametrize(
    ("choices", "reference", "right"),
    [
        (RATINGS, 2, "2"),
        (RATINGS, 2.0, "2"),
        (RATINGS, "2", "2"),
        (RATINGS, "2.0", "2"),
        (ARC, 2, "2"),
        (ARC, np.int64(4), "4"),
        ({"(1)": "a", "(2)": "b", "(3)": "c"}, 2, "(2)"),
        ({"0": "a", "1": "b"}, 1, "1"),
        (CAPITALS, 2, "C"),
        (CAPITALS, 2.0, "C"),
        (CAPITALS, "2.0", "C"),
        (["3", "5", "7", "9"], 1, "B"),  # an index: no choice is 1
        (["10", "20", "30"], 20, "B"),  # no index
        (["10", "20", "30"], 20.0, "B"),
        (["0", "1", "2"], 2, "C"),  # index and text are the same choice
        (NUMERALS, "2", "B"),
        (["True", "False"], False, "B"),
        (["1.5", "2.5"], 2.5, "B"),
    ],
)
def test_integers_as_references(choices: Any, reference: Any, right: str) -> None:
    texts = [tagged(right), tagged("none")]
    assert choice(texts, answer=[reference] * 2, choices=[choices] * 2) == [1, 0]


@pytest.mark.parametrize(
    ("choices", "reference", "message"),
    [
        (
            NUMERALS,
            2,
            r"row 1: the answer 2 is the index of C \('3'\) and the text of B: .*labels: ABCD",
        ),
        (RATINGS, 0, "row 1: the reference '0' is none of the labels 1, 2, 3, 4: .*An integer is a numeric label, or"),
        (RATINGS, "0", "row 1: the reference '0' is none"),
        (RATINGS, -1, "row 1: the reference '-1' is none"),
        (ARC, 5, "row 1: the reference '5' is none"),
        (CAPITALS, -1, "row 1: the reference '-1' is none of the labels A, B, C"),
        (CAPITALS, 3, "row 1: the reference '3' is none"),
        (CAPITALS, True, "row 1: the reference 'True' is none"),
        (RATINGS, True, "row 1: the reference 'True' is none"),
        (RATINGS, 1.5, "row 1: the reference '1.5' is none"),
    ],
)
def test_integers_that_name_no_choice(choices: Any, reference: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choice([tagged("A")] * 2, answer=["A", reference], choices=[CAPITALS, choices])


def test_named_labels_say_that_integers_are_indices() -> None:
    assert reward("choice", labels="ABCD")([tagged("C")], answer=[2], choices=[NUMERALS]) == [1]
    for labels in ([1, 2, 3], 123, "123"):
        assert reward("choice", labels=labels)([tagged("2"), tagged("3")], answer=[2, 2]) == [1, 0]
    assert choice([tagged("A")], answer=[float("nan")]) == [None]


def test_other_labels() -> None:
    assert reward("choice", labels="ABCDEFGHIJ")([tagged("J"), tagged("J")], answer=["J", 9]) == [1, 1]
    verdict = reward("choice", labels=["yes", "no", "not given"])
    texts = [tagged("Yes."), tagged("no"), tagged("Not given"), tagged("it is not given"), tagged("know")]
    assert verdict(texts, answer=["yes", "no", "not given", "not given", "no"]) == [1, 1, 1, 1, 0]
    assert reward("choice", labels="甲乙丙丁")([tagged("选乙"), tagged("甲或乙")], answer=["乙", "乙"]) == [1, 0]
    assert reward("choice", labels="12")([tagged("2"), tagged("12")], answer=[2, "2"]) == [1, 0]


def test_rows_without_an_answer_to_choose() -> None:
    assert choice([tagged("A")] * 3, answer=[None, "", []]) == [None] * 3


def test_mistakes_in_choices() -> None:
    with pytest.raises(UserError, match=r"the reference 'E' is none of the labels A, B, C, D: .*labels: ABCDE"):
        choice([tagged("A")], answer=["E"])
    with pytest.raises(UserError, match="none of the labels A, B, C, D"):
        choice([tagged("A")], answer=[4])
    with pytest.raises(UserError, match="row 1's choices is 'Paris'"):
        choice([tagged("A")] * 2, answer=["A"] * 2, choices=[CAPITALS, "Paris"])
    with pytest.raises(UserError, match="at most 2 texts"):
        reward("choice", labels="AB")([tagged("A")], answer=["A"], choices=[CAPITALS])
    for labels in ("A", "AA", ["A", " "]):
        with pytest.raises(UserError, match="give at least two, each once"):
            reward("choice", labels=labels)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("The U.S.A.", "usa"),
        ("Beyoncé", "beyonce"),
        ("ＡＴ＆Ｔ", "atandt"),
        ("Simon and Garfunkel", "simonandgarfunkel"),
        ("Simon & Garfunkel", "simonandgarfunkel"),
        ("1,000", "1000"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("$5", "5"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5%", "5%"),
        ("No. 5", "no5"),
        ("Vitamin A", "vitamina"),
        ("a dog", "dog"),
        ("C++", "c++"),
        ("C#", "c#"),
        ("The The", "the"),
        ("!!!", "!!!"),
        ("O’Neil", "oneil"),
        ("well-known", "wellknown"),
        ("北 京。", "北京"),
        ("が", "が"),
        ("straße", "strasse"),
        ("", ""),
    ],
)
def test_normalised(name: str, key: str) -> None:
    assert normalised(name) == key


def test_names_that_stay_apart() -> None:
    for a, b in (("35", "3.5"), ("-5", "5"), ("C", "C++"), ("Vitamin", "Vitamin A"), ("が", "か"), ("5%", "5")):
        assert normalised(a) != normalised(b)


REFERENCES = [
    "New York City",
    ["NYC", "New York City"],
    '["NYC", "new york city"]',
    {"value": "New York City", "aliases": ["NYC"]},
    {"text": ["New York City"], "answer_start": [3]},
    "He was born there.\n#### New York City",
]


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(
    ("text", "score"),
    [
        (tagged("new york city."), 1),
        (tagged("The New-York City"), 1),
        (tagged("Paris") + tagged("New York City"), 1),
        ("\\boxed{\\text{New York City}}", 1),
        ("He was born in 1990.\nThe answer is New York City.", 1),
        ([{"role": "assistant", "content": "New York City"}], 1),
        (tagged("New York"), 0),
        (tagged("New York City or Paris"), 0),
        ("New York City\nPerhaps.", 0),
        (tagged(""), 0),
        ("", 0),
    ],
)
def test_facts(reference: Any, text: Any, score: float) -> None:
    assert facts([text], answer=[reference]) == [score]


def test_aliases_beside_the_reference() -> None:
    columns = {
        "answer": ["NYC", None],
        "possible_answers": ['["Big Apple", "Gotham"]', None],
        "aliases": [["N.Y.C."], None],
    }
    assert facts([tagged("the big apple")] * 2, **columns) == [1, None]
    assert facts([tagged("nyc")] * 2, **columns) == [1, None]
    assert facts([tagged("[1, 2)")], answer=["[1, 2)"]) == [1]
    assert reward("facts", strict=True)(["NYC", tagged("NYC"), "\\boxed{nyc}"], answer=["NYC"] * 3) == [0, 1, 1]


def test_facts_need_a_reference_column() -> None:
    with pytest.raises(UserError, match="facts compares with a reference answer"):
        facts(["x"], question=["q"])
