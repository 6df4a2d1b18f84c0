"""Separating a completion's answer from the thoughts before it."""

from __future__ import annotations

from cohort.texts import MARKS


def answer_part(text: str, opened: bool = False) -> str:
    """What follows the last closing mark; "" if thoughts are unfinished, the whole text if there are none.

    `opened`: the prompt ends with an opening mark, so a text without a closing mark is all thoughts.
    """
    end = max(text.rfind(closing) + len(closing) if closing in text else 0 for _, closing in MARKS)
    rest = text[end:]
    unfinished = (opened and not end) or any(opening in rest for opening, _ in MARKS)
    return "" if unfinished else rest
