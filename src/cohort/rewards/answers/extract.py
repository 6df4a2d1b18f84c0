"""Finding the final answer in a text and the reference in a row, and comparing the two."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cohort.rewards.answers.boxes import last_boxed
from cohort.rewards.answers.compare import LONGEST, THIN_GROUPS, TO_ASCII, equal, plain
from cohort.rewards.answers.solutions import concluded, last_formula, stated_answer
from cohort.rewards.answers.thoughts import answer_part
from cohort.types import UserError

__all__ = ["LONGEST", "TO_ASCII", "answer_part", "equal", "last_boxed", "plain"]

REFERENCE_COLUMNS = (
    "answer",
    "answers",
    "solution",
    "reference",
    "references",
    "output",
    "response",
    "ground_truth",
    "target",
)
"""Columns that may have the reference answer, in order of preference."""

_ONE_FORMULA = re.compile(r"\$\$[^$]+\$\$|\\\[(?:(?!\\\]).)+\\\]|\\begin\{(\w+\*?)\}.+\\end\{\1\}", re.DOTALL)
_DIGIT = re.compile(r"\d")
_NUMERAL = r"(?:\d[\d,]*(?:\.\d+)?|(?<!\d)\.\d+)"
_LAST_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-\\?\$?)?"
    rf"(?:\\[dt]?frac\{{-?{_NUMERAL}\}}\{{-?{_NUMERAL}\}}"
    rf"|(?:{_NUMERAL})?[√∛∜]\s?{_NUMERAL}"
    r"|\d*\.\d*\\(?:overline|dot|bar)\s?\{?\d+\}?"
    rf"|{_NUMERAL}(?:[eE][+-]?\d{{1,3}}\b)?(?:/{_NUMERAL})*(?:\s?\\?%)?)"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def extract_answer(text: str) -> str | None:
    """The last complete `<answer>…</answer>`, else the last `\\boxed{…}`, else the answer of the last line, else None.

    That is what it states ("the answer is …"), else its last formula in dollar signs, unless a number follows, else
    the last number of the text. What stands before the end of a model's thoughts does not count.
    """
    text = answer_part(text)
    marked = marked_answer(text)
    if marked is not None:
        return marked
    end = text[-2 * LONGEST :].rstrip()
    stated = stated_answer("\n" + end[end.rfind("\n") + 1 :])
    if stated is not None:
        return stated
    formula = last_formula(end)
    return last_number(text) if formula is None or _DIGIT.search(end, formula[1]) else formula[0]


def marked_answer(text: str) -> str | None:
    """The last complete `<answer>…</answer>`, else the last `\\boxed{…}`, else None."""
    text = answer_part(text)
    tagged = last_tagged(text, "answer")
    marked = last_boxed(text) if tagged is None else tagged
    return None if marked is None else marked.strip()


def last_tagged(text: str, tag: str) -> str | None:
    """Content of the last complete `<tag>…</tag>`: from the last closed opening tag to the next closing tag."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.rfind(opening, 0, max(text.rfind(closing), 0))
    if start < 0:
        return None
    start += len(opening)
    return text[start : text.find(closing, start)]


def last_number(text: str) -> str | None:
    """The last number with its sign. `1,000`, `3/4` and `\\frac{3}{4}` are one number each, `1, 2` are two."""
    digit = _DIGIT.search(text[::-1])
    if digit is None:
        return None
    # Only 300 characters before the last digit are parsed, so the time does not grow with the text.
    end = len(text) - digit.start()
    tail = THIN_GROUPS.sub("", text[max(0, end - 300) : end + 8])
    *_, match = _LAST_NUMBER.finditer(tail.translate(TO_ASCII))
    number = match.group()
    if number.count("/") > 1:
        number = number.rpartition("/")[2]
    whole = number.strip("-\\$% ")
    if "," in whole and "/" not in whole and "frac" not in whole and not _THOUSANDS.fullmatch(whole):
        number = number.rstrip(",").rpartition(",")[2]
    return number


def reference_from(columns: Mapping[str, Sequence[Any]], i: int) -> Any | None:
    """The reference of row i, from the first of `REFERENCE_COLUMNS` that has a value; None if none has."""
    for name in REFERENCE_COLUMNS:
        if name in columns and not is_missing(columns[name][i]):
            return columns[name][i]
    return None


def accepted(reference: Any) -> list[str]:
    """The final answers that a reference value accepts: one for a text or number, several for a list."""
    reference = reference.tolist() if hasattr(reference, "tolist") else reference
    values = reference if isinstance(reference, list | tuple) else [reference]
    answers = [final_answer(_as_text(value)) for value in values if not is_missing(value)]
    return [answer for answer in answers if answer]


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, and pandas' NaN, NaT and NA."""
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def _as_text(value: Any) -> str:
    """Raises UserError for a value whose text would be Python's notation of it."""
    if isinstance(value, Mapping | list | tuple | set | bytes):
        form = f"a mapping with {', '.join(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
        raise UserError(
            f"a reference is {form}: {str(value)[:100]}. It must be a text, a number or a list of these; only `facts` "
            "reads mappings"
        )
    return str(value)


def final_answer(reference: str) -> str:
    """The answer in a reference, which may be a whole solution; a text without a sign of one is the answer itself.

    A solution's answer stands after GSM8K's `####`, is tagged or boxed, is stated ("the answer is …"), is the last
    formula of the last line, or is the last number.
    """
    text = answer_part(reference).strip() or reference.strip()
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    answer = marked_answer(text)
    if answer is None and not _ONE_FORMULA.fullmatch(text):
        answer = stated_answer(text) or concluded(text) or (last_number(text) if "\n" in text else None)
    return text if answer is None else answer
