"""Converting Chinese numerals and Unicode fractions to digits: `三十六` -> 36, `½` -> 1/2."""

from __future__ import annotations

import re
import unicodedata

_DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_PLACES = {"十": 10, "百": 100, "千": 1000}
_SECTIONS = {"万": 10**4, "亿": 10**8}
_CHARACTERS = "".join([*_DIGITS, *_PLACES, *_SECTIONS])
_NUMERAL = re.compile(f"[{_CHARACTERS}]+(?:点[{''.join(_DIGITS)}]+)?")
_PART = rf"(?:{_NUMERAL.pattern}|\d+(?:\.\d+)?)"
_FRACTION = re.compile(f"(?P<bottom>{_PART})分之(?P<top>{_PART})")
_WHOLE = re.compile(f"(?P<sign>负?)(?P<number>{_NUMERAL.pattern})(?P<rest>.*)")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")


def in_digits(text: str, units: frozenset[str]) -> str:
    """A text that is a number, followed by one of `units` or nothing, in digits; any other text unchanged.

    `百分之五十` -> `50%`, `五分之三` -> `3/5`, `负三点五元` -> `-3.5元`; `三角形` (triangle) stays.
    """
    text = _VULGAR.sub(lambda match: " " + unicodedata.normalize("NFKC", match.group()).replace("\u2044", "/"), text)
    sign = "-" if text.startswith("负") else ""
    fraction = _FRACTION.fullmatch(text[len(sign) :])
    if fraction:
        top, bottom = (_read(fraction[part]) for part in ("top", "bottom"))
        if top is None or bottom is None:
            return text
        return f"{sign}{top}%" if bottom == "100" else f"{sign}{top}/{bottom}"
    whole = _WHOLE.fullmatch(text)
    if whole is None or (whole["rest"] and whole["rest"] not in units):
        return text
    number = _read(whole["number"])
    return text if number is None else f"{sign}{number}{whole['rest']}"


def _read(numeral: str) -> str | None:
    """The digits of a numeral: `三十六` and `三六` -> 36, `三点五` -> 3.5; None for a malformed numeral."""
    if numeral[:1].isdigit() and numeral.isascii():
        return numeral
    whole, point, decimals = numeral.partition("点")
    value = _whole(whole)
    if value is None:
        return None
    return f"{value}.{''.join(str(_DIGITS[digit]) for digit in decimals)}" if point else str(value)


def _whole(numeral: str) -> int | None:
    if all(character in _DIGITS for character in numeral):
        return int("".join(str(_DIGITS[character]) for character in numeral))
    total, section, digit, last = 0, 0, None, 10**12
    for character in numeral:
        if character in _DIGITS:
            if digit:
                return None
            digit = _DIGITS[character]
        elif character in _PLACES:
            place = _PLACES[character]
            # `十六` omits the digit one.
            section += (1 if digit is None else digit) * place
            digit = None
        else:
            scale = _SECTIONS[character]
            if scale >= last:
                return None
            total, section, digit, last = total + (section + (digit or 0)) * scale, 0, None, scale
    return total + section + (digit or 0)
