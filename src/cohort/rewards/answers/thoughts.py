"""Separating a completion's answer from the thoughts before it."""

from __future__ import annotations

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""The marks that models put before and after their thoughts."""


def answer_part(text: str, opened: bool = False) -> str:
    """What follows the last closing mark; "" if thoughts are unfinished, the whole text if there are none.

    `opened`: the prompt ends with an opening mark, so a text without a closing mark is all thoughts.
    """
    end = max(text.rfind(closing) + len(closing) if closing in text else 0 for _, closing in MARKS)
    rest = text[end:]
    unfinished = (opened and not end) or any(opening in rest for opening, _ in MARKS)
    return "" if unfinished else rest


def opens_thoughts(prompt: str) -> bool:
    """Whether a prompt ends with an opening mark, as `<|im_start|>assistant\\n<think>\\n` does."""
    return prompt[-100:].rstrip().endswith(tuple(opening for opening, _ in MARKS))
