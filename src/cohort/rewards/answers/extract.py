"""Finding the final answer in a text and the reference in a row, and comparing the two."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from cohort.rewards.answers import verify
from cohort.rewards.answers.quantities import quantity, same
from cohort.types import UserError

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

LONGEST = 2000
"""Maximum characters of an answer that is normalised or passed to math-verify."""

TO_ASCII = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x2212: "-", 0x3000: " ", 0xA0: " ", 0x2009: " ", 0x202F: " "}
_BRACES = re.compile(r"\\boxed\s{0,8}\{|\\.|[{}]", re.DOTALL)
_DIGIT = re.compile(r"\d")
_NUMERAL = r"(?:\d[\d,]*(?:\.\d+)?|(?<!\d)\.\d+)"
_LAST_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-\\?\$?)?"
    rf"(?:\\[dt]?frac\{{-?{_NUMERAL}\}}\{{-?{_NUMERAL}\}}"
    rf"|{_NUMERAL}(?:[eE][+-]?\d{{1,3}}\b)?(?:/{_NUMERAL})*(?:\s?\\?%)?)"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is\b\s*:?|\s*[:=])\s*"
    r"|(?:最终)?答案(?:是|为)?\s*:?\s*",
    re.IGNORECASE,
)
_STYLED = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s?\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[!,;: ]")
_COMMANDS = re.compile(r"\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|exp|pmod|and)\b")
_POWERS = re.compile("[⁻⁺]?[⁰¹²³⁴-⁹]+")
_GROUPS = re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_LETTER = re.compile(r"\(([A-Za-z])\)")
_WORD = re.compile(r"[^\W\d_]{3}")
_MATHS = re.compile(r"[\d\\^*/+=<>|∞π√-]")


def extract_answer(text: str) -> str | None:
    """The last complete `<answer>…</answer>`, else the last `\\boxed{…}`, else the last number, else None."""
    marked = marked_answer(text)
    return last_number(text) if marked is None else marked


def marked_answer(text: str) -> str | None:
    """The last complete `<answer>…</answer>`, else the last `\\boxed{…}`, else None."""
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


def last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{…}` whose braces balance."""
    if "\\boxed" not in text:
        return None
    stack: list[int] = []
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "{" or token.startswith("\\boxed"):
            stack.append(-1 if token == "{" else match.end())
        elif token == "}" and stack:
            start = stack.pop()
            if start >= 0 and (best is None or start > best[0]):
                best = (start, match.start())
    return None if best is None else text[best[0] : best[1]]


def last_number(text: str) -> str | None:
    """The last number with its sign. `1,000`, `3/4` and `\\frac{3}{4}` are one number each, `1, 2` are two."""
    digit = _DIGIT.search(text[::-1])
    if digit is None:
        return None
    # Only 300 characters before the last digit are parsed, so the time does not grow with the text.
    end = len(text) - digit.start()
    tail = _GROUPS.sub("", text[max(0, end - 300) : end + 8])
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
    """The answer in a reference: after GSM8K's `####`, tagged, boxed, a solution's last number, or the whole text."""
    text = reference.strip()
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    if "</answer>" in text or "\\boxed" in text or "\n" in text:
        answer = extract_answer(text)
        return text if answer is None else answer
    return text


def equal(candidate: str, reference: str) -> bool:
    """Whether two answers are the same text, number or formula; False if comparing formulas takes over 2 s."""
    a, b = plain(candidate), plain(reference)
    if not a or not b:
        return False
    if a.casefold() == b.casefold():
        return True
    x, y = quantity(a), quantity(b)
    if x and y:
        return same(x, y)
    return _is_formula(a) and _is_formula(b) and verify.equal(_latex(a), _latex(b))


def plain(text: str) -> str:
    """The answer without box, dollar signs, styling commands, lead-in ("the answer is") and final period."""
    text = text.strip()
    if len(text) > LONGEST:
        return text
    boxed = last_boxed(text)
    while boxed is not None:
        text, boxed = boxed, last_boxed(boxed)
    text = _GROUPS.sub("", text).translate(TO_ASCII).strip().strip("*")
    lead = _LEAD.match(text)
    text = text[lead.end() if lead else 0 :].strip("*").rstrip("。.").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            text = text[len(opening) : -len(closing)].strip()
    text = _STYLED.sub(r" \1", _SPACING.sub("", text.replace("{,}", ",")))
    text = text.replace("\\$", "$").replace("\\%", "%").replace("^{\\circ}", "°").replace("^\\circ", "°")
    text = " ".join(text.rstrip(".").split())
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else text


def _latex(text: str) -> str:
    """Rewrites Unicode signs as the LaTeX that math-verify needs: `x²` -> `x^{2}`, and `∞`, `∪`, `∩`."""
    powers = _POWERS.sub(lambda match: f"^{{{unicodedata.normalize('NFKC', match.group())}}}", text)
    return powers.replace("∞", "\\infty ").replace("∪", "\\cup ").replace("∩", "\\cap ").replace("\u2212", "-")


def _is_formula(text: str) -> bool:
    """Whether math-verify may judge the text. It reads words as products of letters, so `cat` would equal `act`."""
    if len(text) > LONGEST or not _balanced(text):
        return False
    bare = _COMMANDS.sub(" ", text)
    return not _WORD.search(bare) and (bool(_MATHS.search(text)) or len(text) == 1)


def _balanced(text: str) -> bool:
    depth = 0
    for match in _BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(match.group()[-1] if match.group()[0] != "\\" else "", 0)
        if depth < 0:
            return False
    return depth == 0
