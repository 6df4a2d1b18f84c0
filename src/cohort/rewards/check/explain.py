"""Scoring given completions and showing what each reward matched, to debug a reward set.

Your own function shows its match through an attribute: `mine.explain = lambda text, row: Matched(found, reference)`,
where `text` is the completion's text and `row` maps column names to the values of its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cohort.rewards.answers.extract import REFERENCE_COLUMNS
from cohort.rewards.calls import own_copies
from cohort.rewards.check.probes import Encode, score
from cohort.rewards.component import Component
from cohort.rewards.compose import Rewards
from cohort.rewards.functions.matched import Explain, Matched
from cohort.rewards.functions.table import record_of
from cohort.rewards.functions.text import content
from cohort.types import Row, UserError


def explanation(part: Component) -> Explain | None:
    """The function's `explain` attribute, or the built-in reward's; None where it has neither."""
    own: Explain | None = getattr(part.function, "explain", None)
    record = record_of(part.function)
    return own if own is not None or record is None else record.explain


@dataclass
class Trial:
    """One completion under a reward set.

    Trial("train.jsonl row 3", "so <answer>18</answer>", 1.0, {"accuracy": 1.0}, {"accuracy": Matched("18", "18")})
    """

    source: str
    completion: str
    total: float
    scores: dict[str, float | None]
    """Reward -> the score that it returned; None where it does not apply."""
    counted: dict[str, float | None]
    """Reward -> the score as it enters the sum: clipped, and 0 where a gate is closed."""
    matched: dict[str, Matched]

    def records(self, number: int) -> list[dict[str, Any]]:
        """One flat mapping for each reward, for tables, JSON and CSV."""
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
    """The rows, with the dataset's columns that a run's completions.jsonl has under `columns` merged in.

    Raises UserError for a row without a completion.
    """
    flat = []
    for row in rows:
        if row.completion is None:
            raise UserError(
                f"{row.source}: no completion to score; a row needs the columns `prompt` and `completion`, and "
                f"those that the rewards read, such as {REFERENCE_COLUMNS[0]}"
            )
        nested = row.columns.get("columns")
        columns = {**row.columns, **nested} if isinstance(nested, dict) else row.columns
        flat.append(Row(row.prompt, row.completion, columns, row.source))
    return flat


def try_rewards(rewards: Rewards, rows: Sequence[Row], encode: Encode | None = None) -> list[Trial]:
    """Score the completions of the rows, and show what each reward matched."""
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
            {name: _matched(name, how, text, row) for name, how in explain.items() if how is not None},
        )
        for i, (row, text) in enumerate(zip(rows, texts, strict=True))
    ]


def _matched(name: str, how: Explain, text: str, row: Row) -> Matched:
    try:
        return how(text, own_copies(row.columns))
    except SystemExit as error:
        raise UserError(f"{row.source}: `explain` of reward {name!r} calls sys.exit({error.code!r})") from error
