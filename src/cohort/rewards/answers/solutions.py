"""Finding the answer that a solution in prose states: after "the answer is", or as its last formula."""

from __future__ import annotations

import re

from cohort.rewards.answers.boxes import balanced
from cohort.rewards.answers.compare import LONGEST, is_formula, plain
from cohort.rewards.answers.quantities import measured, quantity

_FORMULA = re.compile(
    r"\$\$((?:[^$\\]|\\.)+)\$\$"
    r"|\\\[((?:[^\\]|\\(?!\]).)+)\\\]"
    r"|\\\(((?:[^\\]|\\(?!\)).)+)\\\)"
    # A dollar sign before a space or a digit after the second one is money.
    r"|(?<![\\$\w])\$(?![\s$])((?:[^$\\\n]|\\.)*(?<!\s))\$(?![\d$])",
    re.DOTALL,
)
_LEAD = re.compile(
    r"\banswers?\b[^.\n:=$\\]{0,60}?(?:\b(?:is|are)\b|[:=])[\s*_:]*"
    r"|(?:^|\n)[#*\s]*(?:final\s+)?answer[#*]*[ \t]*\n\s*"
    r"|(?:^|\n)\**(?:A|Ans)\**:[\s*]*"
    r"|答案(?:是|为)?\s*[:：]?\s*",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"(?:so|thus|hence|therefore|then|we (?:get|have|find|obtain|conclude))\b", re.IGNORECASE)
_JOINED = re.compile(r"\s*(?:,\s*(?:and|or)?|and|or)\s*(?=\$|\\[(\[])")
# A period after fewer than three letters may be an abbreviation's.
_CLAUSE_END = re.compile(r"(?:(?<=[^\W\d_]{3})|(?<=[\d)$}\]%*]))\.(?=\s|$)|(?<!\\)[;。]|\b(?:because|since)\b")
_LABEL = re.compile(r"(?:option\s+)?\(?([A-Z])(?:[).:](?:\s.*)?)?", re.DOTALL)
_DIGIT = re.compile(r"\d")
_CHOSEN = re.compile(
    r"^\(?([A-Z])\)?$|\b(?:option|choice|statement)\s+(?:is\s+)?\(?([A-Z])\)?$"
    r"|(?<![^\s(])\(?([A-J])\)? is (?:the )?(?:correct|right)\b"
)
_TWO_LETTERS = re.compile(r"[^\W\d_]{2,}")
_MARKS = re.compile(r"[\\^()\[\]{}=:]")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LETTER = re.compile(r"[^\W\d_]")


def stated_answer(text: str) -> str | None:
    """What follows the last "the answer is" or "Answer:"; None if nothing that can be an answer does."""
    *_, lead = [None, *_LEAD.finditer(text)]
    if lead is None:
        return None
    rest = text[lead.end() : lead.end() + LONGEST].strip().partition("\n")[0].strip(" *")
    return _formulas_at(rest) or _clause(rest)


def last_formula(text: str) -> tuple[str, int] | None:
    """The last formula between dollar signs, `\\(…\\)` or `\\[…\\]` that ends in the last line, and where it ends."""
    text = text.rstrip()
    start = max(0, len(text) - 2 * LONGEST)
    line = text.rfind("\n", start) + 1
    *_, match = [None, *_FORMULA.finditer(text, start)]
    if match is None or match.end() <= line:
        return None
    value = _value(_content(match))
    return (_with_unit(value, text[match.end() :].partition("\n")[0]), match.end()) if value else None


def concluded(text: str) -> str | None:
    """The answer in the last line of a solution: its last formula, else its label, else the formula at its end."""
    line = text.rstrip().rpartition("\n")[2].strip(" *.")
    formula = last_formula(text) if "\n" in text.strip() or _CONCLUSION.match(text) else None
    if formula is not None:
        return formula[0]
    if "\n" not in text or len(line) > LONGEST:
        return None
    label = _CHOSEN.search(line)
    if label:
        return label[1] or label[2] or label[3]
    bare, unit = measured(plain(line))
    *_, word = [None, *_TWO_LETTERS.finditer(_COMMAND.sub(lambda match: " " * len(match.group()), bare))]
    end = bare[word.end() if word else 0 :].strip(" :,")
    if not (is_formula(end) and _MARKS.search(end)) or "<<" in end or _brackets(end):
        return None
    value = _value(end)
    return f"{value} {unit}" if value and unit else value


def _brackets(text: str) -> int:
    """The number of brackets that open, less those that close; an interval such as (1, 2] has one of each."""
    return sum(map(text.count, "([")) - sum(map(text.count, ")]"))


def _formulas_at(rest: str) -> str | None:
    """The formula at the start, with its unit; several joined by commas and "and" as a list."""
    values: list[str] = []
    at = 0
    while match := _FORMULA.match(rest, at):
        values.append(_value(_content(match)) or "")
        joined = _JOINED.match(rest, match.end())
        at = joined.end() if joined else match.end()
        if not joined:
            break
    if not all(values) or not values:
        return None
    return _with_unit(values[0], rest[at:]) if len(values) == 1 else ", ".join(values)


def _clause(rest: str) -> str | None:
    end = _CLAUSE_END.search(rest)
    clause = rest[: end.start() if end else len(rest)].strip(" *.,")
    bare = plain(clause)
    if not bare:
        return None
    label = _LABEL.fullmatch(clause)
    if label:
        return label[1]
    if quantity(bare) or (is_formula(bare) and not _TWO_LETTERS.search(_COMMAND.sub(" ", bare))):
        return _value(bare)
    formula = last_formula(clause)
    if formula is not None:
        return formula[0]
    return None if _DIGIT.search(clause) or len(clause.split()) > 5 else clause


def _content(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _value(formula: str) -> str | None:
    """The result of a calculation (`3 + 4 = 7` -> `7`) and of a variable (`x = 7` -> `7`); else the formula."""
    formula = formula.strip().rstrip(".,;").strip()
    left, equals, right = formula.rpartition("=")
    if equals and "\\begin" not in formula and balanced(left) and right.strip():
        letters = _LETTER.findall(_COMMAND.sub(" ", left))
        named = len(letters) == 1 and left.strip() == letters[0] and quantity(plain(right)) is not None
        if not left.endswith(("<", ">", "!", "\\", ":")) and (not letters or named):
            formula = right.strip()
    return formula if re.search(r"\w", formula) and formula[0] not in "^_" else None


def _with_unit(value: str, after: str) -> str:
    phrase = after.strip(" .*")
    return f"{value} {phrase}" if 0 < len(phrase) < 40 and measured(f"{value} {phrase}")[0] == value else value
