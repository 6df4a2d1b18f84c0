"""Measures of a model against chance: intervals by hand, and what is said of them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from cohort.formulas.chance import like_chance, of_correlation


def test_the_interval_of_a_correlation() -> None:
    half = 1.96 / math.sqrt(100)
    assert of_correlation(0.0, 103) == pytest.approx((-math.tanh(half), math.tanh(half)))
    assert of_correlation(math.tanh(0.5), 103) == pytest.approx((math.tanh(0.5 - half), math.tanh(0.5 + half)))
    assert of_correlation(0.9, 3) == (-1.0, 1.0) and of_correlation(1.0, 50)[0] > 0.99


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ({"samples": 100.0, "accuracy": 0.58}, r"it orders 58.0% \[48.2%, 67.2%\] of the pairs, and 50% is chance"),
        ({"samples": 100.0, "accuracy": 0.3}, "it orders 30.0%"),
        ({"samples": 100.0, "accuracy": 0.62}, None),
        ({"samples": 8, "accuracy": 0.75}, "it orders 75.0%"),  # too few to say
        (
            {"samples": 9, "accuracy": 0.8, "majority": 0.8},
            "80.0% of its verdicts agree .* frequent label alone with 80",
        ),
        ({"samples": 9, "accuracy": 0.81, "majority": 0.8}, None),
        ({"samples": 9, "accuracy": 0.9, "majority": 1.0}, None),  # one label: nothing to compare with
        ({"samples": 103, "correlation": 0.15}, r"correlate by \+0.15 \[-0.04, \+0.33\], and 0 is chance"),
        ({"samples": 103, "correlation": -0.9}, "correlate by -0.90"),
        ({"samples": 103, "correlation": 0.25}, None),
        ({"mean": 0.0, "std": 1.0}, None),
        ({"accuracy": 0.5}, None),  # of a model that was saved without the number
    ],
)
def test_what_is_like_chance(held_out: dict[str, Any], message: str | None) -> None:
    found = like_chance(held_out)
    assert found is None if message is None else re.search(message, found or "")
