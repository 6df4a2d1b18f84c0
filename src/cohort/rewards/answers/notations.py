"""Numbers in notations that need rewriting: repeating decimals, powers of ten, and numerals with a base."""

from __future__ import annotations

import re
from fractions import Fraction

_BAR = r"\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))"
_DOTS = r"\\dot\s*\{?\s*(\d)\s*\}?\s*(\d*)\s*\\dot\s*\{?\s*(\d)\s*\}?"
_REPEATING = re.compile(rf"(?<![\d.])(\d*)\.(\d*)\s*(?:{_DOTS}|{_BAR})(?!\s*[\d.])")
_PARENTHESES = re.compile(r"(?:[a-zA-Z]\s*=\s*)?[-+]?\s*\d*\.\d*\(\d+\)(?:\s*\\?%|\s+[^\W\d_].*)?", re.DOTALL)
_PARENTHESIS = re.compile(r"(\d*)\.(\d*)\((\d+)\)")
_OVERLINED = re.compile("((?:\\d\u0305)+)")

_TIMES = r"\s*(?:\\times|\\cdot|×|·|⋅|\*|x)\s*"
_EXPONENT = r"10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\d{1,3})\s*\}|\(\s*([+-]?\d{1,3})\s*\)|([+-]?\d{1,3}))(?![\d.!^])"
_POWER = re.compile(rf"(\d[\d,]*(?:\.\d+)?|\.\d+){_TIMES}{_EXPONENT}")
_BARE_POWER = re.compile(rf"(?<![\w.,^{{(/!]){_EXPONENT}")

_SUBSCRIPT = re.compile(r"[0-9A-Za-z)}]\s*_")
_BASE_NAMES = {
    name: base
    for base, names in {
        2: "two binary",
        3: "three ternary",
        4: "four",
        5: "five",
        6: "six",
        7: "seven",
        8: "eight octal",
        9: "nine",
        10: "ten decimal",
        11: "eleven",
        12: "twelve",
        16: "sixteen hexadecimal hex",
    }.items()
    for name in names.split()
}
_BASE = rf"(\d{{1,2}}|{'|'.join(_BASE_NAMES)})"
_WITH_BASE = re.compile(
    rf"(?:[a-z]=)?(-?)\(?([0-9a-z]+(?:\.[0-9a-z]+)?)\)?"
    rf"(?:_\{{?\(?(?:base)?{_BASE}\)?\}}?|\(?(?:in)?base{_BASE}\)?)"
)


def without_repeats(text: str) -> str:
    """Repeating decimals as fractions: `0.1\\overline{6}`, `0.1\\dot6` and `0.1(6)` -> `\\frac{1}{6}`."""
    if "\u0305" in text:
        text = _OVERLINED.sub(lambda match: f"\\overline{{{match[1].replace(chr(0x305), '')}}}", text)
    if "\\" in text:
        text = _REPEATING.sub(lambda m: _fraction(m[1], m[2], m[3] + m[4] + m[5] if m[3] else m[6] or m[7]), text)
    if "(" in text and _PARENTHESES.fullmatch(text):
        text = _PARENTHESIS.sub(lambda m: _fraction(m[1], m[2], m[3]), text)
    return text


def with_exponents(text: str) -> str:
    """Powers of ten as exponents: `3 \\times 10^{-5}` -> `3e-5`, `10^{20}` -> `1e20`."""
    if "10" not in text:
        return text
    text = _POWER.sub(lambda match: f"{match[1]}e{match[2] or match[3] or match[4]}", text)
    return _BARE_POWER.sub(lambda match: f"1e{match[1] or match[2] or match[3]}", text)


def based(text: str) -> tuple[Fraction, int] | None:
    """(value, base) of a numeral with its base: (6, 2) for `110_2`, `110_{\\text{two}}` and `110 (base 2)`.

    None for other texts, and where a digit is not below the base: `x_2`, `192_2`.
    """
    match = _WITH_BASE.fullmatch("".join(text.split()).replace(",", "").casefold())
    if match is None:
        return None
    sign, numeral, base = match[1], match[2], match[3] or match[4]
    base = _BASE_NAMES.get(base) or int(base)
    whole, _, decimals = numeral.partition(".")
    digits = [int(digit, 36) for digit in whole + decimals]
    if not 2 <= base <= 36 or max(digits) >= base or not (numeral[0].isdigit() or base > 10):
        return None
    value = Fraction(0)
    for digit in digits:
        value = value * base + digit
    value /= base ** len(decimals)
    return (-value if sign else value), base


def has_subscript(text: str) -> bool:
    """Whether a number has a subscript, which math-verify leaves out: `110_2`, `(110)_2`."""
    return bool(_SUBSCRIPTED.search(text))


_SUBSCRIPTED = re.compile(r"(?<![a-zA-Z_\d])[(\d][\d,.()\s]*\s*_")


def _fraction(whole: str, decimals: str, repeated: str) -> str:
    nines = (10 ** len(repeated) - 1) * 10 ** len(decimals)
    value = Fraction(int(whole or "0")) + Fraction(int(decimals or "0"), 10 ** len(decimals))
    value += Fraction(int(repeated), nines)
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
