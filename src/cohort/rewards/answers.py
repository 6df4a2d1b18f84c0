"""Finding an answer in a completion, finding the reference in a row, and telling whether they are equal."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Any

from cohort.rewards.verify import mathematically_equal
from cohort.types import Text

REFERENCE_COLUMNS = (
    "answer", "answers", "solution", "reference", "references", "output", "response", "ground_truth", "target",
)  # fmt: skip
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?%?")
MATHS_LIMIT = 2000
"""Characters; a longer answer is compared as text and number only."""


def text_of(completion: Text) -> str:
    """The text of a completion, plain or conversational (its last message)."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def between(text: str, opening: str, closing: str) -> str | None:
    """What stands in the last complete `opening...closing`, innermost; None where there is none. Linear time."""
    end = text.rfind(closing)
    start = text.rfind(opening, 0, end) if end >= 0 else -1
    return text[start + len(opening) : end] if start >= 0 else None


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` with balanced braces."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for i in range(start + len("\\boxed"), len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : i]
    return None


def extract_answer(text: str) -> str | None:
    r"""The last `<answer>...</answer>`, else the last `\boxed{...}`, else the last number; None where none is."""
    found = between(text, "<answer>", "</answer>")
    if found is None:
        found = boxed(text)
    elif (inner := boxed(found)) is not None:
        found = inner
    if found is not None:
        return found.strip()
    numbers = NUMBER.findall(text)
    return numbers[-1] if numbers else None


def references_of(columns: dict[str, list[Any]], i: int) -> list[str]:
    """Accepted answers of row i, from the first of REFERENCE_COLUMNS that it has; [] where it has none."""
    for name in REFERENCE_COLUMNS:
        value = columns[name][i] if name in columns else None
        if value is not None:
            return [_reference(str(item)) for item in (value if isinstance(value, list | tuple) else [value])]
    return []


def _reference(text: str) -> str:
    """GSM8K's `#### 72`, else a tagged or boxed answer, else the whole."""
    if "####" in text:
        return text.rpartition("####")[2].strip()
    found = between(text, "<answer>", "</answer>")
    if found is None:
        found = boxed(text)
    return (text if found is None else found).strip()


def equal(candidate: str, reference: str) -> bool:
    """Whether two answers are the same: as text, as numbers (1,000 = 1000.0 = \\frac{2000}{2} = 1000 dollars), or
    as mathematics. Never raises on hostile text."""
    a, b = normalised(candidate), normalised(reference)
    if a == b:
        return a != ""
    number_a, number_b = number(a), number(b)
    if number_a is not None and number_b is not None:
        percent = a.endswith("%") != b.endswith("%")
        return number_a == number_b or (percent and number_a in (number_b * 100, number_b / 100))
    if number_b is not None and (only := _only_number(a)) is not None:
        return equal(only, b)
    if not (_mathematical(a) and _mathematical(b)) or max(len(a), len(b)) > MATHS_LIMIT:
        return False
    if a.replace(" ", "") == b.replace(" ", ""):
        return True
    return mathematically_equal(candidate, reference)


def normalised(text: str) -> str:
    """Full-width to half-width, no dollar signs, outer spaces or closing full stop; case folded."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("。", "")
    text = text.strip().replace("\\$", "").replace("$", "").replace("\\%", "%").replace("\\!", "").replace("\\,", "")
    return " ".join(text.rstrip(".").casefold().split())


FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}")


def number(text: str) -> Fraction | None:
    r"""The value of `1,000`, `-3.50`, `3/4`, `\frac{3}{4}` or `50%` (as 50); None for anything else."""
    if len(text) > 200:
        return None
    found = FRACTION.fullmatch(text)
    if found:
        sign, top, bottom = found.groups()
        return None if int(bottom) == 0 else Fraction(int(top), int(bottom)) * (-1 if sign == "-" else 1)
    if not NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.rstrip("%").replace(",", "").partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top) / (int(bottom) if bottom else 1)


def _only_number(text: str) -> str | None:
    """The number of `72 clips` or `= 72`: one number among words; None for formulas and for several numbers."""
    if len(text) > 200 or any(c in text for c in "\\^*{}()[]_"):
        return None
    numbers = NUMBER.findall(text)
    return numbers[0] if len(numbers) == 1 else None


def _mathematical(text: str) -> bool:
    """Whether math-verify could make something of it: a digit, a LaTeX command or a formula's signs."""
    return any(c.isdigit() or c in "\\^=+*/()[]{}" for c in text) or len(text) == 1
