"""Whether two answers are the same text, number or formula."""

from __future__ import annotations

import re

from cohort.rewards.answers import verify
from cohort.rewards.answers.boxes import balanced, last_boxed
from cohort.rewards.answers.environments import cells
from cohort.rewards.answers.latex import as_latex, spelled, tokens
from cohort.rewards.answers.notations import based, has_subscript, without_repeats
from cohort.rewards.answers.quantities import measured, quantity, same

LONGEST = 2000
"""Maximum characters of an answer that is normalised or passed to math-verify."""

TO_ASCII = {0xFF01 + i: 0x21 + i for i in range(94)} | {0x2212: "-", 0x3000: " ", 0xA0: " ", 0x2009: " ", 0x202F: " "}
THIN_GROUPS = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f]|\\,)(?=\d{3}(?!\d))")
"""A thin space between the thousands of a number."""

_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is\b\s*:?|\s*[:=])\s*"
    r"|(?:最终)?答案(?:是|为)?\s*:?\s*",
    re.IGNORECASE,
)
_STYLED = re.compile(r"\\(?:text(?:rm|bf|it|sf|tt|normal|md|up)?|math(?:rm|bf|it|sf|tt)|[mh]box|emph)\s?\{([^{}]*)\}")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;:> ]|(?:q?quad|enspace|thinspace|medspace|thickspace)(?![a-zA-Z]))|~")
_SIZES = re.compile(r"\\(?:left|right)(?![a-zA-Z])|(?<!\\)\\!")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])")
_DOTS = re.compile(r"(?<=[\d,;:+])(\s*)\.{3,}")
_COMMANDS = re.compile(r"\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|exp|pmod|and)\b")
_LETTER = re.compile(r"\(([A-Za-z])\)")
_WORD = re.compile(r"[^\W\d_]{3}")
_MATHS = re.compile(r"[\d\\^*/+=<>|∞π√-]")
_MODULUS = re.compile(r"\\pmod(?![a-zA-Z])|\(?\s*(?:\\b?mod(?![a-zA-Z])|\bmod\b)\s*(\w+)\s*\)?")
_AS_TEXT = ("\\ldots", "\\forall", "\\exists")
"""Signs that math-verify leaves out, so that it takes different formulas for equal."""
_BETWEEN = ("=", "\\equiv", "\\pmod")
"""Signs whose sides are compared one by one."""


def equal(candidate: str, reference: str) -> bool:
    """Whether two answers are the same text, number or formula; False if comparing formulas takes over 2 s."""
    a, b = plain(candidate), plain(reference)
    if not a or not b:
        return False
    if a == b or max(len(a), len(b)) > LONGEST:
        return a.casefold() == b.casefold()
    pairs = _undecided(a, b)
    if not pairs:
        return pairs is not None
    return verify.equal(*zip(*pairs, strict=True))


Pairs = list[tuple[str, str]]


def plain(text: str) -> str:
    """The answer without box, dollar signs, styling commands, lead-in ("the answer is") and final period."""
    text = text.strip()
    if len(text) > LONGEST:
        return text
    boxed = last_boxed(text)
    while boxed is not None:
        text, boxed = boxed, last_boxed(boxed)
    text = THIN_GROUPS.sub("", text).translate(TO_ASCII).strip().strip("*")
    lead = _LEAD.match(text)
    text = text[lead.end() if lead else 0 :].strip("*").strip()
    text = _DOTS.sub(r"\1\\ldots ", text).rstrip("。.").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            text = text[len(opening) : -len(closing)].strip()
    text = _SPACING.sub(" ", _SIZES.sub("", text.replace("{,}", ",")))
    text = _DEGREES.sub("°", _STYLED.sub(r" \1", text)).replace("\\$", "$").replace("\\%", "%")
    text = " ".join(text.rstrip(".").split())
    letter = _LETTER.fullmatch(text)
    return letter[1] if letter else text


def _undecided(a: str, b: str) -> Pairs | None:
    """None: the answers differ; []: they are equal; else the pairs of formulas that must all be equal."""
    a, b = (as_latex(without_repeats(_MODULUS.sub(_pmod, text))) for text in (a, b))
    x, y = quantity(a), quantity(b)
    if x and y:
        return [] if same(x, y, rounded=("." in a) != ("." in b)) else None
    s, t = tokens(a), tokens(b)
    if _folded(s) == _folded(t):
        return []
    if _folded(s, True) == _folded(t, True) or any(sign in s or sign in t for sign in _AS_TEXT):
        return None
    value, other = based(a), based(b)
    if value or other or has_subscript(a) or has_subscript(b):
        return [] if value and other and value[0] == other[0] else None
    if any(part.startswith("\\begin{") for part in s + t):
        return _pieces(*(cells(parts) for parts in _unnamed(s, t)))
    if any(sign in s or sign in t for sign in ("\\equiv", "\\pmod")):
        return _pieces(_sides(s), _sides(t))
    if "=" in s and "=" in t:
        left, right = _sides(s), _sides(t)
        # Other equations may be equivalent although their sides differ.
        if left[0] == right[0] and left[1][0] == right[1][0]:
            return _pieces(left, right)
    return _as_formulas(a, b)


def _as_formulas(a: str, b: str) -> Pairs | None:
    (formula, unit), (other, other_unit) = measured(a), measured(b)
    if unit and other_unit and unit != other_unit:
        return None
    if formula != a or other != b:
        return _undecided(formula, other)
    return [(a, b)] if is_formula(a) and is_formula(b) else None


def _pieces(left: tuple[list[str], list[list[str]]], right: tuple[list[str], list[list[str]]]) -> Pairs | None:
    """The same of texts that were split into (separators, pieces): all pieces must be equal."""
    if left[0] != right[0]:
        return None
    pairs: Pairs = []
    for s, t in zip(left[1], right[1], strict=True):
        if s != t:
            undecided = _undecided(spelled(s), spelled(t)) if s and t else None
            if undecided is None:
                return None
            pairs += undecided
    return pairs


def _sides(parts: list[str]) -> tuple[list[str], list[list[str]]]:
    """The signs of an equation or congruence, and what stands between them."""
    signs: list[str] = []
    sides: list[list[str]] = [[]]
    depth = 0
    for part in parts:
        depth += {"{": 1, "}": -1}.get(part, 0)
        if part in _BETWEEN and depth == 0:
            signs.append(part)
            sides.append([])
        else:
            sides[-1].append(part)
    return signs, sides


def _unnamed(s: list[str], t: list[str]) -> tuple[list[str], list[str]]:
    """Without the `A =` before one of two matrices, if the other has none."""
    named = ["=" in parts[: parts.index(begin)] for parts in (s, t) for begin in parts if begin.startswith("\\begin{")]
    if len(named) == 2 and named[0] != named[1]:
        return (s[s.index("=") + 1 :], t) if named[0] else (s, t[t.index("=") + 1 :])
    return s, t


def _folded(parts: list[str], commands: bool = False) -> list[str]:
    """The tokens in lower case; the names of commands (`\\Delta`, `\\delta`) only if `commands`."""
    return [part.casefold() if commands or part[0] != "\\" else part for part in parts]


def _pmod(match: re.Match[str]) -> str:
    return f" \\pmod {match[1] or ''}"


def is_formula(text: str) -> bool:
    """Whether math-verify may judge the text. It reads words as products of letters, so `cat` would equal `act`."""
    if not balanced(text):
        return False
    bare = _COMMANDS.sub(" ", text)
    return not _WORD.search(bare) and (bool(_MATHS.search(text)) or len(text) == 1)
