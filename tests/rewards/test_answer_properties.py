"""Properties of answers of each kind: an answer equals itself in other spacing, and no other value."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort.rewards import BUILTIN, soft_format
from cohort.rewards.answers import verify
from cohort.rewards.answers.extract import equal, extract_answer, final_answer
from cohort.rewards.answers.notations import based
from cohort.texts import MARKS
from cohort.types import UserError

Draw = Callable[..., Any]
"""Draws a value from a strategy."""

SPACES = ("", " ", "  ", "\\,", "\\ ", "~", "\\;")
SMALL = st.integers(0, 99)
LETTERS = st.sampled_from("abcnxyz")
UNITS = ("cm", "m", "cm^2", "units", "square units", "hours", "degrees", "apples")
PIECES = r"""
    <think> </think> <answer> </answer> \boxed{ \boxed \fbox{ { } \begin{pmatrix} \end{pmatrix} \\ & \frac \sqrt ^ _
    0.\overline{3} \dot3 0.( ) [ ] | , . ... \ldots \forall √ ½ ₂ ² = < > + - / $ $$ \( \) \[ \] 1 7 10 2004 x n e 3e-05
    1e999 base units cm \text{ \left \right % ~ \, Answer: A C #### 答案是 三 分之 mod is
"""
WORDS = st.sampled_from([*PIECES.split(), "\n", " ", "the answer is ", "\u0305", "\ud800"])


def spaced(draw: Draw, parts: list[str]) -> str:
    """The parts of a formula, with random spacing between them."""
    text = parts[0]
    for part in parts[1:]:
        space = draw(st.sampled_from(SPACES))
        text += (space or " " if text[-1].isalpha() and part[0].isalpha() else space) + part
    return text


def fraction(draw: Draw, top: int, bottom: int) -> list[str]:
    return [draw(st.sampled_from(["\\frac", "\\dfrac", "\\tfrac"])), "{", f"{top}", "}", "{", f"{bottom}", "}"]


def matrices(draw: Draw) -> tuple[list[str], list[str]]:
    rows = draw(st.lists(st.lists(SMALL, min_size=2, max_size=2), min_size=1, max_size=3))
    name = draw(st.sampled_from(["pmatrix", "bmatrix", "vmatrix", "cases", "matrix"]))
    other = [list(row) for row in rows]
    other[-1][-1] += 1

    def parts(cells: list[list[int]]) -> list[str]:
        lines = [[*(["\\\\"] if i else []), f"{a}", "&", f"{b}"] for i, (a, b) in enumerate(cells)]
        return [f"\\begin{{{name}}}", *[part for line in lines for part in line], f"\\end{{{name}}}"]

    return parts(rows), parts(other)


def units(draw: Draw) -> tuple[list[str], list[str]]:
    a, root = draw(st.integers(2, 99)), draw(st.sampled_from([2, 3, 5, 7]))
    unit = f"\\text{{ {draw(st.sampled_from(UNITS))}}}"
    return ([f"{a}", "\\sqrt", "{", f"{root}", "}", unit], [f"{a + 1}", "\\sqrt", "{", f"{root}", "}", unit])


def sequences(draw: Draw) -> tuple[list[str], list[str]]:
    values = draw(st.lists(SMALL, min_size=2, max_size=4))
    dots = draw(st.sampled_from(["\\ldots", "\\dots", "…"]))
    first = [part for value in values for part in (f"{value}", ",")]
    return [*first, dots], [*first[:-2], f"{values[-1] + 1}", ",", dots]


def quantifiers(draw: Draw) -> tuple[list[str], list[str]]:
    x, n = draw(LETTERS), draw(SMALL)
    return ["\\forall", x, ">", f"{n}"], ["\\exists", x, ">", f"{n}"]


def fractions(draw: Draw) -> tuple[list[str], list[str]]:
    top, bottom = draw(st.integers(1, 10**7)), draw(st.integers(10**6, 10**7))
    return fraction(draw, top, bottom), fraction(draw, top, bottom + 1)


def congruences(draw: Draw) -> tuple[list[str], list[str]]:
    a, n = draw(SMALL), draw(st.integers(2, 99))
    return ["x", "\\equiv", f"{a}", "\\pmod", "{", f"{n}", "}"], [
        "x",
        "\\equiv",
        f"{a + 1}",
        "\\pmod",
        "{",
        f"{n}",
        "}",
    ]


def powers(draw: Draw) -> tuple[list[str], list[str]]:
    a, n = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    return [f"{a}", "\\times", "10", "^", "{", f"{n}", "}"], [f"{a}", "\\times", "10", "^", "{", f"{n + 1}", "}"]


def roots(draw: Draw) -> tuple[list[str], list[str]]:
    x, n = draw(LETTERS), draw(st.integers(2, 9))
    return ["√", "(", x, "+", f"{n}", ")"], ["√", "(", x, ")", "+", f"{n}"]


KINDS = {f.__name__: f for f in (matrices, units, sequences, quantifiers, fractions, congruences, powers, roots)}


def check_spacing(draw: Draw, kind: str) -> None:
    """An answer equals itself in other spacing, without math-verify; and not the other answer."""
    parts, other = KINDS[kind](draw)
    a, b = spaced(draw, parts), spaced(draw, parts)
    assert equal(a, b) and equal(b, a), (a, b)
    if kind not in ("units", "roots"):
        c = spaced(draw, other)
        assert not equal(a, c) and not equal(c, a), (a, c)


def repeating(value: Fraction) -> list[str]:
    """Notations of a positive fraction whose decimals repeat or end."""
    whole, rest = divmod(value.numerator, value.denominator)
    digits, seen = "", {}
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, value.denominator)
        digits += str(digit)
    if not rest:
        return [f"{whole}.{digits or '0'}"]
    start, end = digits[: seen[rest]], digits[seen[rest] :]
    dotted = f"\\dot{{{end}}}" if len(end) == 1 else f"\\dot{{{end[0]}}}{end[1:-1]}\\dot{{{end[-1]}}}"
    over = "".join(digit + "\u0305" for digit in end)
    return [f"{whole}.{start}{form}" for form in (f"\\overline{{{end}}}", f"({end})", dotted, over)]


def check_values(draw: Draw) -> None:
    """Two numbers in any notations are equal if and only if their values are."""
    values = [Fraction(draw(st.integers(1, 60)), draw(st.integers(1, 60))) for _ in range(2)]
    notations = []
    for value in values:
        forms = [f"{value}", f"\\frac{{{value.numerator}}}{{{value.denominator}}}", *repeating(value)]
        if value.denominator == 1:
            forms += [f"{value}e0", f"{value.numerator}.0", f"\\boxed{{{value}}}", f"\\boxed {value}", f"${value}$"]
        notations.append(draw(st.sampled_from(forms)))
    assert equal(*notations) == (values[0] == values[1]), notations
    assert equal(notations[0], f"{values[0]}"), notations


def digits_of(value: int, base: int) -> str:
    return (digits_of(value // base, base) if value >= base else "") + "0123456789ABCDEF"[value % base]


def check_bases(draw: Draw) -> None:
    """Numerals with bases are equal if and only if their values are."""
    written = []
    values = [draw(st.integers(1, 300)) for _ in range(2)]
    for value in values:
        base = draw(st.sampled_from([2, 3, 5, 8, 10, 16]))
        numeral = digits_of(value, base)
        form = draw(
            st.sampled_from(["{}_{}", "{}_{{{}}}", "({})_{{{}}}", "{}_{{\\text{{{}}}}}", "{} \\text{{ base }} {}"])
        )
        written.append(form.format(numeral, base))
    if all(based(text.replace("\\text", "").replace("{", "").replace("}", "")) for text in written):
        assert equal(*written) == (values[0] == values[1]), written
    assert equal(written[0], written[0].replace("_", " _ ")), written


def check_floats(draw: Draw) -> None:
    """A float as Python and JSON write it equals itself in other notations, and not its double."""
    value = draw(st.floats(1e-30, 1e30))
    mantissa, _, exponent = f"{value:.16e}".partition("e")
    forms = [
        repr(value),
        f"{value!r}".upper(),
        f"{mantissa} \\times 10^{{{int(exponent)}}}",
        f"{Fraction(repr(value))}",
    ]
    a, b = draw(st.sampled_from(forms)), draw(st.sampled_from(forms))
    if Fraction(mantissa) * Fraction(10) ** int(exponent) == Fraction(repr(value)):
        assert equal(a, b), (a, b)
    assert not equal(a, repr(2 * value))


SOLUTIONS = (
    "Work with $n = 3$.\nThe answer is ${}$.",
    "Work with 3.\nHence ${}$.",
    "We get 3.\nAnswer: {}",
    "We get 3.\n**Final Answer**: $\\boxed{{{}}}$",
    "First, 3.\n\\[\n{}\n\\]",
    "<think>Is it \\boxed{{0}}? The answer is 0.</think>\nThe answer is ${}$.",
    "No: 0.</think><answer>{}</answer>",
)


def check_solutions(draw: Draw) -> None:
    """A solution's answer is the stated one, for a reference and for a completion."""
    parts, _ = draw(st.sampled_from([fractions, powers]))(draw)
    answer = draw(st.sampled_from([spaced(draw, parts), "(1, 2]", "x^2+1", "\\sqrt{2}", "-\\frac{1}{2}"]))
    solution = draw(st.sampled_from(SOLUTIONS)).format(answer)
    assert equal(answer, final_answer(solution)) and equal(extract_answer(solution) or "", answer), solution


def check_thoughts(draw: Draw) -> None:
    """No reward that reads an answer pays for one among unfinished thoughts; what follows finished ones counts."""
    opening, closing = draw(st.sampled_from(MARKS))
    thoughts = "".join(
        draw(st.lists(st.sampled_from(["so ", "\n", "\\boxed{A}", "<answer>A</answer>", "A"]), max_size=6))
    )
    for name in ("accuracy", "correctness", "choice", "choice_accuracy", "facts"):
        assert BUILTIN[name](completions=[opening + thoughts], answer=["A"]) == [0]
        right = f"{draw(st.sampled_from([opening, '']))}{thoughts}{closing}<answer>\\boxed{{A}}</answer>"
        assert BUILTIN[name](completions=[right], answer=["A"])[0] > 0 or name == "correctness"


def check_sections(draw: Draw) -> None:
    """`soft_format` pays for text between the two sections."""
    between = "".join(draw(st.lists(st.sampled_from(["so", "\n", " ", "**", "A", "</think>", "<b>"]), max_size=6)))
    letter = draw(st.sampled_from("ABCDE"))
    text = f"<reasoning>r</reasoning>{between}<answer>{letter}</answer>"
    assert soft_format([text]) == [0.5 * (letter != "E")]


def check_any_text(draw: Draw) -> None:
    """Whatever the texts, a reward returns a score or raises UserError."""
    texts = ["".join(draw(st.lists(WORDS, max_size=12))) for _ in range(2)]
    for name in ("accuracy", "correctness", "choice", "choice_accuracy", "facts", "format", "soft_format"):
        try:
            (score,) = BUILTIN[name](completions=[texts[0]], answer=[texts[1]])
        except UserError:
            continue
        assert score is None or 0 <= score <= 2


CHECKS: dict[str, Callable[[Draw], None]] = {
    **{kind: lambda draw, kind=kind: check_spacing(draw, kind) for kind in KINDS},  # type: ignore[misc]
    "values": check_values,
    "bases": check_bases,
    "floats": check_floats,
    "solutions": check_solutions,
    "thoughts": check_thoughts,
    "sections": check_sections,
    "any text": check_any_text,
}


def run(name: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        CHECKS[name](data.draw)

    check()


@pytest.fixture(autouse=True)
def _without_math_verify(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """math-verify takes seconds for some texts: these tests are of what decides before it."""
    monkeypatch.setattr(verify, "equal", lambda candidate, reference: False)


@pytest.mark.parametrize("name", CHECKS)
def test_properties(name: str) -> None:
    run(name, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_properties_at_length(name: str) -> None:
    run(name, 5000)
