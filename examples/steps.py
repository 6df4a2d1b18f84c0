"""A step reward for word problems: the equations of a line of working have to be true."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = r"\$?(-?[0-9][0-9,]{0,20}(?:\.[0-9]{1,20})?)"
EQUATION = re.compile(rf"{NUMBER} {{0,3}}([-+*/x×÷]) {{0,3}}{NUMBER} {{0,3}}= {{0,3}}{NUMBER}")


def equations(steps, **_):
    """1 where a line's equations, such as `12 / 3 = 4`, are true, 0 where one is false, 0.5 where there are none."""
    return [[_score(text) for text in texts] for texts in steps]


def _score(text):
    found = EQUATION.findall(text)
    return float(all(_holds(*parts) for parts in found)) if found else 0.5


def _holds(left, operator, right, result):
    a, b, c = (Fraction(number.replace(",", "")) for number in (left, right, result))
    if operator in "/÷":
        return b != 0 and abs(a / b - c) < Fraction(1, 100)  # quotients are often rounded
    return {"+": a + b, "-": a - b}.get(operator, a * b) == c
