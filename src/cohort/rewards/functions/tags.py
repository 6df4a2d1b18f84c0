"""Rewards for the format of a completion: which tags it has, and where. The searches take linear time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cohort.rewards.answers.extract import last_tagged, plain
from cohort.rewards.functions.text import RewardFunction, of_text, of_whole_text

LETTERS = "ABCD"
WORD_LETTER = "[a-zA-Z0-9\u00c0-\u024f]"
"""Characters next to which a letter is part of a word. Chinese characters are not among them."""

_ONE_LETTER = re.compile(f"(?<!{WORD_LETTER})[{LETTERS}](?!{WORD_LETTER})")
_BOXED = re.compile(r"\\boxed\s?\{(.*)\}\.?", re.DOTALL)
_STRICT_ENDS = tuple(f"\n</reasoning>\n<answer>\n\\boxed{{{letter}}}\n</answer>" for letter in LETTERS)
_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
_LINES = ("<reasoning>\n", "\n</reasoning>\n", "\n</answer>")


def make_format(strict: bool = False) -> RewardFunction:
    """1 if `<think>…</think>` and `<answer>…</answer>` are both complete; strict: if they are the whole text. The
    prompt may have opened the thoughts."""
    return of_whole_text("format_reward", _whole_format if strict else _format)


def make_tag_presence(strict: bool = False) -> RewardFunction:
    """0.2 for each of the four tags that is present; strict: that occurs once, and in order."""
    return of_text("tag_presence", _tags_in_place if strict else _tags_present)


def make_strict_format(strict: bool = False) -> RewardFunction:
    """1.0 for one exact format; strict: the reasoning must not be blank or contain a tag."""
    return of_text("strict_format", _strictest_format if strict else _strict_format)


def make_soft_format(strict: bool = False) -> RewardFunction:
    """0.5 for reasoning followed by an answer with a letter; strict: they are the whole text, the letter the answer."""
    return of_text("soft_format", _whole_choice if strict else _soft_format)


def make_xml_count(strict: bool = False) -> RewardFunction:
    """0.125 for each of three tags on its own line; strict: in order; white space after them costs nothing."""
    return of_text("xml_count", _xml_count_in_place if strict else _xml_count)


def sections(text: str, tags: Sequence[str]) -> list[str] | None:
    """The contents of the tags if the whole text is `<a>…</a> <b>…</b>` with each tag once; else None."""
    rest, contents = text.strip(), []
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1 or not rest.startswith(opening):
            return None
        inside, closed, rest = rest[len(opening) :].partition(closing)
        if not closed:
            return None
        contents.append(inside)
        rest = rest.lstrip()
    return None if rest else contents


def letter_alone(text: str) -> str:
    """The text without `\\boxed{}`, brackets and period: `B` for `\\boxed{B}`, `(B)`, `B.`."""
    boxed = _BOXED.fullmatch(text.strip())
    inside = boxed[1] if boxed else text
    return "" if "\\boxed" in inside else plain(inside).strip("()[]. ")


def _format(text: str) -> float:
    """1 if both `<think>…</think>` and `<answer>…</answer>` are complete, else 0."""
    return float(all(_complete(text, tag) for tag in ("think", "answer")))


def _complete(text: str, tag: str) -> bool:
    start = text.find(f"<{tag}>")
    return start >= 0 and text.rfind(f"</{tag}>") > start


def _whole_format(text: str) -> float:
    """1 if the text is `<think>…</think><answer>…</answer>`, each tag once, neither blank, else 0."""
    contents = sections(text, ("think", "answer"))
    return float(contents is not None and all(map(str.strip, contents)))


def _tags_present(text: str) -> float:
    """0.2 for each of `<reasoning>`, `</reasoning>`, `<answer>`, `</answer>` that is present."""
    return sum(tag in text for tag in _TAGS) / 5


def _tags_in_place(text: str) -> float:
    return _in_place(text, _TAGS) / 5


def _in_place(text: str, tags: Sequence[str]) -> int:
    """The number of tags that occur exactly once and after the tags before them."""
    last, count = -1, 0
    for tag in tags:
        at = text.find(tag)
        if at > last and text.find(tag, at + 1) < 0:
            last, count = at, count + 1
    return count


def _strict_format(text: str) -> float:
    """1.0 for exactly `<reasoning>\\n…\\n</reasoning>\\n<answer>\\n\\boxed{X}\\n</answer>`, X one of A-D."""
    text, start = text.strip(), "<reasoning>\n"
    shortest = len(start) + len(_STRICT_ENDS[0])
    return float(text.startswith(start) and text.endswith(_STRICT_ENDS) and len(text) >= shortest)


def _strictest_format(text: str) -> float:
    text = text.replace("\r\n", "\n")
    contents = sections(text, ("reasoning", "answer"))
    return float(contents is not None and bool(contents[0].strip()) and _strict_format(text) == 1)


def _soft_format(text: str) -> float:
    """0.5 if `<reasoning>…</reasoning>` is followed by an `<answer>` with a letter A-D that is not part of a word."""
    answer = last_tagged(text, "answer")
    if answer is None or not _ONE_LETTER.search(answer):
        return 0.0
    before = text[: text.rfind("<answer>", 0, text.rfind("</answer>"))]
    reasoning, closed, between = before.rpartition("</reasoning>")
    return 0.5 if closed and "<reasoning>" in reasoning and "<answer>" not in between else 0.0


def _whole_choice(text: str) -> float:
    contents = sections(text, ("reasoning", "answer"))
    if contents is None or not contents[0].strip():
        return 0.0
    return 0.5 if letter_alone(contents[1]) in tuple(LETTERS) else 0.0


def _xml_count(text: str) -> float:
    """0.125 for each tag that occurs once on its own line, minus 0.001 for each character after the answer."""
    return _less_tail(0.125 * sum(text.count(tag) == 1 for tag in _LINES), text)


def _xml_count_in_place(text: str) -> float:
    text = text.replace("\r\n", "\n").rstrip()
    return _less_tail(0.125 * _in_place(text, _LINES), text)


def _less_tail(score: float, text: str) -> float:
    _, closed, after = text.rpartition("</answer>")
    beyond = max(0, len(after) - 1) if closed else 0
    return max(0.0, round(score - 0.001 * beyond, 3))


format_reward = make_format()
tag_presence = make_tag_presence()
strict_format = make_strict_format()
soft_format = make_soft_format()
xml_count = make_xml_count()
