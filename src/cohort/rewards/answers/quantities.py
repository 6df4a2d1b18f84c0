"""Reading numbers with units as exact fractions: `$1,000.00`, `18 eggs`, `1 1/2`, `50%`, `-\\frac{3}{4}`."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from cohort.rewards.answers.notations import with_exponents
from cohort.rewards.answers.numerals import in_digits

LONGEST = 200
"""Maximum characters of a text that is read as a number; longer texts are compared as strings."""

_SYNONYMS = """
    mm millimeter millimeters millimetre millimetres 毫米
    cm centimeter centimeters centimetre centimetres 厘米
    m meter meters metre metres 米
    km kilometer kilometers kilometre kilometres 公里 千米
    in inch inches
    ft foot feet
    yd yard yards
    mi mile miles
    mg milligram milligrams
    g gram grams 克
    kg kilogram kilograms 千克 公斤
    lb lbs pound pounds
    oz ounce ounces
    ml milliliter milliliters 毫升
    l liter liters litre litres 升
    ms millisecond milliseconds
    s sec secs second seconds 秒
    min mins minute minutes 分钟
    h hr hrs hour hours 小时
    day days 天
    week weeks
    month months 个月
    year years 年
    mph miles/hour
    km/h kph kmh
    ° deg degree degrees 度
    $ dollar dollars usd 美元
    € euro euros eur 欧元
    £ gbp
    ¥ yuan rmb cny 元
    ¢ cent cents
    % percent 百分点
"""
_UNITS = {word: line.split()[0] for line in _SYNONYMS.split("\n") for word in line.split()}
_SCALES = {
    "m": {"mm": "0.001", "cm": "0.01", "m": "1", "km": "1000"},
    "in": {"in": "1", "ft": "12", "yd": "36", "mi": "63360"},
    "g": {"mg": "0.001", "g": "1", "kg": "1000"},
    "oz": {"oz": "1", "lb": "16"},
    "l": {"ml": "0.001", "l": "1"},
    "s": {"ms": "0.001", "s": "1", "min": "60", "h": "3600", "day": "86400", "week": "604800"},
    "$": {"¢": "0.01", "$": "1"},
}
_IN_BASE = {unit: (base, Fraction(scale)) for base, units in _SCALES.items() for unit, scale in units.items()}
_COUNTED = frozenset(word for word in _UNITS if not word.isascii()) | frozenset("个只人岁次本张条件块页天")
_MULTIPLIERS = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "百": 100,
    "千": 1000,
    "万": 10**4,
    "亿": 10**8,
}
_NOT_UNITS = {"and", "not", "mod", "plus", "minus", "times", "over", "divided", "sqrt", "sin", "cos", "tan"}
_NOT_UNITS |= {"log", "exp", "inf", "infinity", "none", "than", "but"}

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_QUANTITY = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<currency>[$€£¥]?)\s*(?P<inner>[+-]?)"
    rf"(?:(?P<whole>\d+)\s+)?(?P<top>{_NUMBER})(?:[eE](?P<exponent>[+-]?\d{{1,3}}))?"
    rf"(?:\s*/\s*(?P<bottom>{_NUMBER}))?(?P<rest>(?:\s*[^\d\s.,].*)?)"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_UNIT_WORD = re.compile(r"([^\W\d_²³]+)(?:/([^\W\d_²³]+))?(?:\^?(?:[23²³]|\{[23]\}))?")
_POWERED = re.compile(r"(?:(sq|square|cu|cubic)\.? )?([^\W\d_²³]+|°)\s?(?:\^?(?:([23²³])|\{([23])\}))?")
_POWER = {"sq": 2, "square": 2, "cu": 3, "cubic": 3, "2": 2, "²": 2, "3": 3, "³": 3}
_BEFORE_A_UNIT = re.compile(r"(?:[\w)}\]!]|\\pi)$")
_NAME = re.compile(r"^[a-zA-Z]\s*=|\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|exp|pi|i|e)\b")
_LETTER = re.compile(r"[^\W\d_]")
_DIGIT = re.compile(r"\d")


class Quantity(NamedTuple):
    value: Fraction
    unit: str | None
    """`%`, a currency or a unit of measure in its short form; None if there is no unit, or only a noun."""


def quantity(text: str) -> Quantity | None:
    """The number and unit that the text consists of; None for any other text."""
    if len(text) > LONGEST:
        return None
    text = with_exponents(in_digits(text.strip(), _COUNTED))
    match = _QUANTITY.fullmatch(_FRACTION.sub(r" \1/\2", text).strip().replace("- ", "-"))
    if match is None or (match["whole"] and not match["bottom"]):
        return None
    value = _fraction(match["top"]) * Fraction(10) ** int(match["exponent"] or 0)
    if match["bottom"]:
        bottom = _fraction(match["bottom"])
        if not bottom:
            return None
        value = int(match["whole"] or 0) + value / bottom
    if (match["sign"] == "-") != (match["inner"] == "-"):
        value = -value
    scaled = _scale(match["rest"])
    if scaled is None:
        return None
    factor, unit = scaled
    return Quantity(value * factor, match["currency"] or unit)


def same(a: Quantity, b: Quantity, rounded: bool = False) -> bool:
    """Whether two quantities are equal: 5 km equals 5000 m. A number without a unit equals the same number with any
    unit, and `50%` equals both 50 and 0.5. `rounded`: one of them is a decimal, which may round the other's (1/3)."""
    if a.unit and b.unit and a.unit != b.unit:
        (a_base, a_scale), (b_base, b_scale) = _in_base(a.unit), _in_base(b.unit)
        return a_base == b_base and _close(a.value * a_scale, b.value * b_scale, rounded)
    if _close(a.value, b.value, rounded):
        return True
    if a.unit == b.unit or "%" not in (a.unit, b.unit):
        return False
    percent, bare = (a, b) if a.unit == "%" else (b, a)
    return _close(percent.value / 100, bare.value, rounded)


def measured(text: str) -> tuple[str, str | None]:
    """A formula and the unit after it: `9\\pi square cm` -> ("9\\pi", "cm^2"), `9\\pi units` -> ("9\\pi", None).

    After a formula with variables, only words of two letters and more that are units count as such.
    """
    words = text.split(" ")
    for count in (3, 2, 1):
        formula, phrase = " ".join(words[:-count]), " ".join(words[-count:]).rstrip(".").casefold()
        if not _BEFORE_A_UNIT.search(formula):
            continue
        variables = _LETTER.search(_NAME.sub(" ", formula)) is not None
        unit = _known(phrase)
        if unit and not (variables and len(phrase) == 1 and phrase.isalpha()):
            return formula, unit
        if phrase.removeprefix("square ").removeprefix("cubic ") in ("unit", "units"):
            return formula, None
        # Without a digit, the words may be names: `\angle ABC`.
        if not variables and _DIGIT.search(formula) and all(_names_a_thing(word, False) for word in phrase.split()):
            return formula, None
    return text, None


def number_word(text: str) -> Fraction | None:
    """The value of one numeral such as `1,000`, `2.5` or `3/4`."""
    read = quantity(text)
    return read.value if read and not read.unit else None


def _fraction(numeral: str) -> Fraction:
    return Fraction(numeral.replace(",", ""))


def _scale(rest: str) -> tuple[int, str | None] | None:
    """(factor, unit) of the text after a number: (10**6, "$") for `million dollars`; None if it is not a unit."""
    attached = not rest[:1].isspace()
    words = rest.strip().rstrip(".").casefold()
    factor = 1
    for name, multiplier in _MULTIPLIERS.items():
        if words.startswith(name) and words not in _UNITS:
            factor, words, attached = multiplier, words[len(name) :].strip(), False
            break
    if not words or _known(words):
        algebra = attached and len(words) == 1 and words.isascii() and words.isalpha()
        return None if algebra else (factor, _known(words))
    return (factor, None) if all(_names_a_thing(word, attached) for word in words.split()) else None


def _names_a_thing(word: str, attached: bool) -> bool:
    """Whether a word is a noun or unit: `eggs`, `km/h`, `cm^2`, 个; not `x`, the `xy` of `2xy`, `and`, `pi`."""
    match = _UNIT_WORD.fullmatch(word)
    if match is None:
        return False
    for part in filter(None, match.groups()):
        noun = not part.isascii() or (len(part) >= 3 and not attached)
        if part in _NOT_UNITS or not (part in _UNITS or (noun and not _greek(part))):
            return False
    return True


def _greek(word: str) -> bool:
    return any("\u0370" <= letter <= "\u03ff" for letter in word)


def _known(words: str) -> str | None:
    """The short form of a unit: `cm` for `centimeters`, `cm^2` for `square centimeters`, `cm²` and `cm^2`."""
    if words in _UNITS:
        return _UNITS[words]
    match = _POWERED.fullmatch(words)
    if match is None or match[2] not in _UNITS:
        return None
    power = match[1] or match[3] or match[4]
    return f"{_UNITS[match[2]]}^{_POWER[power]}" if power else _UNITS[match[2]]


def _in_base(unit: str) -> tuple[str, Fraction]:
    """(unit, factor) in the base unit: ("m^2", 1/10000) for `cm^2`."""
    name, _, power = unit.partition("^")
    base, scale = _IN_BASE.get(name, (name, Fraction(1)))
    return f"{base}^{power}", scale ** int(power or 1)


def _close(a: Fraction, b: Fraction, rounded: bool) -> bool:
    """Whether two values are equal; `rounded`: to six significant digits if the decimals of one never end (1/3)."""
    if a == b:
        return True
    return rounded and (_repeats(a) or _repeats(b)) and abs(a - b) <= max(abs(a), abs(b)) / 10**6


def _repeats(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest != 1
