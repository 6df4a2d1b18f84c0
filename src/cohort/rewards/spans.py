"""Which characters of a completion a reward read: for the record of whole groups.

A built-in reward that looks for an answer is asked by its `explain` (functions/matched.py). A reward function of the
user's says it with log_extra("span", [[start, end], None, ...]).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cohort.rewards.component import Component
from cohort.rewards.functions.matched import Explain
from cohort.rewards.functions.table import record_of
from cohort.rewards.logs import SPAN

Span = tuple[int, int]
"""[start, end) in characters of the completion's text."""

TRIES = 8
"""Places of the found text that are tried, from the last on."""

_NEXT = {ord(a): b for signs in ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
         for a, b in zip(signs, signs[1:] + signs[:1], strict=True)}  # fmt: skip
_NEXT_DIGIT = {ord(a): b for a, b in zip("0123456789", "1234567890", strict=True)}


def span_of(explain: Explain, text: str) -> Span | None:
    """Where the text stands that `explain` finds: the last of its places where another text of the same form changes
    what is found. None where nothing is found, or it is not there letter by letter."""
    found = explain(text, {}).found
    # In LaTeX the digits change, so that its commands stay commands.
    other = "" if not found else found.translate(_NEXT_DIGIT if any(map(str.isdigit, found)) else _NEXT)
    if not found or other == found:
        return None
    end = len(text)
    for _ in range(TRIES):
        start = text.rfind(found, 0, end)
        if start < 0:
            return None
        if explain(text[:start] + other + text[start + len(found) :], {}).found != found:
            return start, start + len(found)
        end = start + len(found) - 1
    return None


def spans(parts: Sequence[Component], text: str, logged: Mapping[str, Any]) -> dict[str, Span]:
    """Component -> the characters that it read. `logged`: what the functions passed to log_extra for this
    completion."""
    result: dict[str, Span] = {}
    for part in parts:
        given, record = logged.get(f"{part.name}/{SPAN}"), record_of(part.function)
        if given is not None:
            result[part.name] = tuple(given)
        elif record is not None and record.explain is not None and (span := span_of(record.explain, text)):
            result[part.name] = span
    return result
