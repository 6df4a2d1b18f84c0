"""A reward for short facts: the answer is one of several accepted names, in any spelling."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cohort.rewards.answers.extract import LONGEST, final_answer, marked_answer, plain
from cohort.rewards.functions.text import RewardFunction, with_references
from cohort.types import Text

ALIAS_COLUMNS = ("aliases", "possible_answers")
"""Columns with further accepted names, in addition to the reference."""

NESTED = ("value", "aliases", "normalized_value", "normalized_aliases", "text")
"""Keys of a reference that is a mapping, as in TriviaQA and SQuAD."""

_ACCENTS = re.compile("([a-z])[\u0300-\u036f]+")
_JOINED = re.compile(r"(?<=\d),(?=\d{3})|['’]|\.(?!\d)|(?<=[^\W\d])\.")
# Characters that change a number or a name are not removed: -5, .5, 5%, C++, C#.
_APART = re.compile(r"[^\w\s.%+#-]|_|(?<=\S)-|-(?![\d.])")
_ARTICLES = re.compile(r"\b(?:a|an|the)\s+(?=\S)")


def make_facts(strict: bool = False) -> RewardFunction:
    """1 if the answer is one of the accepted names, else 0; None for rows without accepted names.

    The answer is the last `<answer>…</answer>`, else the last `\\boxed{…}`, else the last line; strict: it must be
    tagged or boxed. Names are compared without case, accents, articles, punctuation and spaces. They come from the
    reference (a text, a list, TriviaQA's or SQuAD's mapping) and from `aliases` and `possible_answers`.
    """

    def facts(completions: Sequence[Text], **columns: Any) -> list[float | None]:
        scores: list[float | None] = []
        for i, (text, reference) in enumerate(with_references("facts", completions, columns)):
            extra = [columns[name][i] for name in ALIAS_COLUMNS if name in columns]
            names = {normalised(name) for name in _names([reference, *extra])} - {""}
            scores.append(float(normalised(_answer(text, strict)) in names) if names else None)
        return scores

    return facts


def normalised(text: str) -> str:
    """The canonical spelling of a name: `The U.S.A.` -> `usa`, `Beyoncé` -> `beyonce`."""
    if len(text) > LONGEST:
        return text
    folded = _ACCENTS.sub(r"\1", unicodedata.normalize("NFKD", text.casefold()))
    folded = unicodedata.normalize("NFKC", folded).replace("\u2212", "-").replace("&", " and ")
    bare = _ARTICLES.sub(" ", _APART.sub(" ", _JOINED.sub("", folded)))
    # A name such as `!!!` consists of punctuation only, so it is kept.
    return "".join(bare.split()) or "".join(folded.split())


def _answer(text: str, strict: bool) -> str:
    answer = marked_answer(text)
    if answer is None and not strict:
        answer = text.rstrip()[-LONGEST:].rpartition("\n")[2]
    return plain(answer or "")


def _names(value: Any) -> Iterator[str]:
    """All names in a reference: items of lists and mappings, also of a list written in JSON."""
    if isinstance(value, Mapping):
        yield from _names([value[key] for key in NESTED if key in value])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item)
    elif isinstance(value, str) and value.lstrip().startswith("["):
        try:
            yield from _names(json.loads(value))
        except (ValueError, RecursionError):
            yield value
    elif value is not None:
        yield final_answer(str(value))


facts = make_facts()
