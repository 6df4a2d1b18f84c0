"""What a reward matched in a completion, for people who debug a reward set.

A function of one's own explains itself by an attribute: `mine.explain = lambda text, row: Matched(found, reference)`,
where `text` is the completion's text and `row` the columns of its row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cohort.rewards.answers.extract import (
    REFERENCE_COLUMNS,
    accepted,
    extract_answer,
    last_boxed,
    last_tagged,
    reference_from,
)
from cohort.rewards.check.probes import Encode, score
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rewards.functions.text import content, words
from cohort.types import Row, UserError


class Matched(NamedTuple):
    """Matched("18", "18"): the text that was found in the completion, and what it was compared with."""

    found: str | None
    reference: str | None = None


Explain = Callable[[str, Mapping[str, Any]], Matched]

TAGS = ("<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>", "</answer>")


def _reference(row: Mapping[str, Any]) -> str | None:
    answers = accepted(reference_from({name: [value] for name, value in row.items()}, 0))
    return " or ".join(answers) or None


def _answer(text: str, row: Mapping[str, Any]) -> Matched:
    return Matched(extract_answer(text), _reference(row))


def _tagged(text: str, row: Mapping[str, Any]) -> Matched:
    found = last_tagged(text, "answer")
    return Matched(None if found is None else found.strip(), _reference(row))


def _boxed(text: str, row: Mapping[str, Any]) -> Matched:
    return Matched(last_boxed(last_tagged(text, "answer") or ""), _reference(row))


def _tags(text: str, row: Mapping[str, Any]) -> Matched:
    counts = {tag: text.count(tag) for tag in TAGS}
    return Matched(" ".join(f"{tag}{f' x{n}' if n > 1 else ''}" for tag, n in counts.items() if n) or None)


def _reasoning(text: str, row: Mapping[str, Any]) -> Matched:
    return Matched(last_tagged(text, "reasoning"))


def _length(text: str, row: Mapping[str, Any]) -> Matched:
    return Matched(f"{len(words(text))} words")


def _gym(text: str, row: Mapping[str, Any]) -> Matched:
    found = last_tagged(text, "answer")
    found = last_boxed(text) if found is None else found
    entry = json.loads(row.get("reasoning_gym_entry") or "{}")
    return Matched((text if found is None else found).strip(), str(entry.get("answer")))


BUILT_IN: dict[str, Explain] = {
    "accuracy": _answer,
    "format": _tags,
    "format_reward": _tags,
    "correctness": _tagged,
    "tag_presence": _tags,
    "choice_accuracy": _boxed,
    "strict_format": _tags,
    "soft_format": _tagged,
    "xml_count": _tags,
    "reasoning_length": _reasoning,
    "reasoning_keywords": _reasoning,
    "too_short": _length,
    "repetition": _length,
    "choice": _tagged,
    "facts": _answer,
    "reasoning_gym": _gym,
}
"""Name of a built-in function -> what it looks at. One that is not here explains nothing."""


def explanation(part: Component) -> Explain | None:
    """How the component explains itself: by its own attribute, or as the built-in it is."""
    function = part.function
    own: Explain | None = getattr(function, "explain", None)
    if own is not None:
        return own
    ours = (getattr(function, "__module__", None) or "").startswith("cohort.rewards")
    return BUILT_IN.get(getattr(function, "__name__", "")) if ours else None


@dataclass
class Trial:
    """One completion under a reward set.

    Trial("train.jsonl row 3", "so <answer>18</answer>", 1.0, {"accuracy": 1.0}, {"accuracy": Matched("18", "18")})
    """

    source: str
    completion: str
    total: float
    scores: dict[str, float | None]
    """As the functions gave them; None where one does not apply."""
    counted: dict[str, float | None]
    """As they enter the sum: clipped, and 0 where a gate is closed."""
    matched: dict[str, Matched]

    def records(self, number: int) -> list[dict[str, Any]]:
        """One flat mapping for each function, for tables, JSON and CSV."""
        nothing = Matched(None)
        return [
            {
                "row": number,
                "source": self.source,
                "reward": name,
                "score": value,
                "counted": self.counted[name],
                "found": self.matched.get(name, nothing).found,
                "reference": self.matched.get(name, nothing).reference,
                "total": self.total,
            }
            for name, value in self.scores.items()
        ]


def completions_of(rows: Sequence[Row]) -> list[Row]:
    """Rows with their completions. A run's completions.jsonl keeps the columns of the data under `columns`."""
    found = []
    for row in rows:
        if row.completion is None:
            raise UserError(
                f"{row.source}: no completion to score; a row needs the columns `prompt` and `completion`, and "
                f"those that the rewards read, such as {REFERENCE_COLUMNS[0]}"
            )
        kept = row.columns.get("columns")
        columns = {**row.columns, **kept} if isinstance(kept, dict) else row.columns
        found.append(Row(row.prompt, row.completion, columns, row.source))
    return found


def try_rewards(rewards: Rewards, rows: Sequence[Row], encode: Encode | None = None) -> list[Trial]:
    """Score the rows' own completions, with what each function matched."""
    rows = completions_of(rows)
    texts = [row.completion if isinstance(row.completion, str) else content(row.completion or "") for row in rows]
    scores = score(rewards, list(zip(rows, texts, strict=True)), encode)
    explain = {part.name: explanation(part) for part in rewards.parts}
    return [
        Trial(
            row.source,
            text,
            scores.totals[i],
            {name: values[i] for name, values in scores.components.items()},
            {name: values[i] for name, values in scores.counted.items()},
            {name: how(text, row.columns) for name, how in explain.items() if how is not None},
        )
        for i, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]
