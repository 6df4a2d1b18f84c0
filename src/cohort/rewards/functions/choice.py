"""Rewards for multiple-choice questions, whose answer is a letter or another label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import Any

from cohort.rewards.answers.extract import LONGEST, is_missing, last_boxed, last_tagged, marked_answer, plain
from cohort.rewards.functions.facts import normalised
from cohort.rewards.functions.tags import LETTERS, WORD_LETTER, letter_alone
from cohort.rewards.functions.text import RewardFunction, of_answer, with_references
from cohort.texts import as_integer, numbered_choice
from cohort.types import Text, UserError

CHOICE_COLUMNS = ("choices", "options")
"""Columns with a question's choices: a list of texts, `{A: text, …}` or `{"text": […], "label": […]}`."""

Choices = dict[str, str]
"""Label -> the choice's text (empty if the row has no texts): `{"A": "Paris", "B": "Rome"}`."""


def make_choice_accuracy(strict: bool = False) -> RewardFunction:
    """2.0 for the right boxed letter; strict: only if the box is the whole answer."""
    return of_answer("choice_accuracy", _only_boxed if strict else _boxed)


def make_choice(labels: Sequence[str | int] | str | int | None = None, strict: bool = False) -> RewardFunction:
    """1 if the completion chooses the row's label, else 0; None for rows without a reference.

    The labels are `labels` if given, else those of the row's `choices` or `options`, else A-D. The reference is a
    label, the text of a choice, or an integer: of numeric labels the label, of others the index of a choice from 0.
    The completion's answer is the last `<answer>…</answer>`, else the last `\\boxed{…}`, else the last line. It
    chooses a label if it is the label, is the text of the label's choice, or contains that label and no other.
    strict: it must be tagged or boxed, and be the label.
    """
    allowed = None if labels is None else tuple(map(str, str(labels) if isinstance(labels, int) else labels))
    if allowed is not None and (
        len(allowed) < 2 or len(set(allowed)) < len(allowed) or not all(map(str.strip, allowed))
    ):
        raise UserError(f"choice: labels are {labels!r}; give at least two, each once, such as ABCDE or [yes, no]")

    def choice(completions: Sequence[Text], **columns: Any) -> list[float | None]:
        scores: list[float | None] = []
        for i, (text, reference) in enumerate(with_references("choice", completions, columns)):
            choices = _choices(columns, i, allowed)
            targets = [_target(value, choices, i, allowed is not None) for value in _several(reference)]
            label = _stated(text, choices) if strict else _chosen(text, choices)
            scores.append(float(label in targets) if targets else None)
        return scores

    return choice


def _boxed(text: str, answer: str) -> float:
    """2.0 if the last `<answer>` contains `\\boxed{X}` with the row's letter, A to D; else 0."""
    letter = (last_boxed(last_tagged(text, "answer") or "") or "").strip()
    return 2.0 if letter in tuple(LETTERS) and letter == answer.strip(" ().").upper() else 0.0


def _only_boxed(text: str, answer: str) -> float:
    alone = (last_tagged(text, "answer") or "").strip().count("\\boxed") == 1
    whole = "".join((last_tagged(text, "answer") or "").split())
    return _boxed(text, answer) if alone and whole in {f"\\boxed{{{letter}}}" for letter in LETTERS} else 0.0


def _choices(columns: Mapping[str, Sequence[Any]], i: int, labels: tuple[str, ...] | None) -> Choices:
    column = next((name for name in CHOICE_COLUMNS if name in columns and columns[name][i] is not None), None)
    value = [] if column is None else columns[column][i]
    if isinstance(value, Mapping) and {"text", "label"} <= value.keys():
        value = dict(zip(value["label"], value["text"], strict=True))
    if isinstance(value, Mapping):
        return {str(label): str(text) for label, text in value.items() if text is not None}
    if not isinstance(value, list | tuple) or len(value) > len(labels or ascii_uppercase):
        raise UserError(
            f"choice: row {i}'s {column} is {str(value)[:200]!r}: it should be a list of at most "
            f"{len(labels or ascii_uppercase)} texts, one for each label, or a mapping from label to text"
        )
    if value:
        return dict(zip(labels or ascii_uppercase, map(str, value), strict=False))
    return dict.fromkeys(labels or LETTERS, "")


def _several(reference: Any) -> list[Any]:
    values = reference if isinstance(reference, list | tuple) else [reference]
    return [value for value in values if not is_missing(value) and value != ""]


def _target(reference: Any, choices: Choices, i: int, by_index: bool) -> str:
    """The label of row i's reference; `by_index`: integers are indices. Raises UserError where it is not one of the
    choices."""
    text, number = str(reference).strip(), as_integer(reference)
    if text in choices:
        return text
    # A text with digits may be a choice, so it is compared with those before it is a number.
    of_text = isinstance(reference, str | bool) or number is None
    target = _named(text, choices) if of_text else None
    if target is None and number is not None:
        try:
            target = numbered_choice(number, choices, by_index or isinstance(reference, str))
        except UserError as error:
            raise UserError(f"choice: row {i}: {error}") from None
    elif target is None and isinstance(reference, str):
        target = _chosen(text, choices)
    if target is None:
        integers = " An integer is a numeric label, or else the index of a choice from 0." * (number is not None)
        raise UserError(
            f"choice: row {i}: the reference {text[:200]!r} is none of the labels {', '.join(choices)}: "
            f"give the labels of this data, such as {{name: choice, labels: ABCDE}}.{integers}"
        )
    return target


def _stated(text: str, choices: Choices) -> str | None:
    """The label that the tagged or boxed answer consists of; None for any other answer."""
    answer = marked_answer(text) or ""
    return _label(letter_alone(answer), choices) if len(answer) <= LONGEST else None


def _chosen(text: str, choices: Choices) -> str | None:
    """The one label that the answer is, whose text it is, or that it contains; None where that is not one label."""
    answer = marked_answer(text)
    if answer is None:
        answer = text.rstrip()[-LONGEST:].rpartition("\n")[2]
    if len(answer) > LONGEST:
        return None
    if answer.count("\\boxed") > 1:
        return _only_label(answer, choices)
    return _named(answer, choices) or _only_label(plain(answer), choices)


def _named(answer: str, choices: Choices) -> str | None:
    """The label of an answer that is the label, the choice's text, or both: `B`, `Rome`, `B. Rome`."""
    label = _label(letter_alone(answer), choices)
    if label is not None:
        return label
    body = normalised(plain(answer))
    named = [label for label, text in choices.items() if text and body in (normalised(text), normalised(label + text))]
    return named[0] if len(named) == 1 else None


def _label(text: str, choices: Choices) -> str | None:
    if text in choices:
        return text
    folded = [label for label in choices if label.casefold() == text.casefold()]
    return folded[0] if len(folded) == 1 else None


def _only_label(answer: str, choices: Choices) -> str | None:
    labels = set(_pattern(tuple(choices)).findall(answer))
    return labels.pop() if len(labels) == 1 else None


@lru_cache(maxsize=64)
def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    """Matches labels that are not part of a word: not the A of `Apple`, but the A of `选A`."""
    either = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    return re.compile(f"(?<!{WORD_LETTER})(?:{either})(?!{WORD_LETTER})")


choice_accuracy = make_choice_accuracy()
choice = make_choice()
