"""A scan of all rows before a run: empty prompts, and rows without what the rewards compare with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cohort.rewards.answers.extract import REFERENCE_COLUMNS, accepted, reference_from
from cohort.rewards.component import Component, components, weights_of, without_model
from cohort.rewards.functions.choice import CHOICE_COLUMNS
from cohort.rewards.functions.code import COMMAND_COLUMNS, PYTHON_COLUMNS, UnitTests
from cohort.rewards.functions.facts import ALIAS_COLUMNS
from cohort.rewards.functions.table import record_of
from cohort.rewards.steps import takes_steps
from cohort.types import Row, Text, UserError

log = logging.getLogger("cohort")

SHOWN = 5
"""Rows that a message names."""
GYM_COLUMNS = ("reasoning_gym_task", "reasoning_gym_entry")
MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a built-in reward raises for a reference of an unexpected form; UserError is a ValueError."""


class RewardParts(Protocol):
    """What the scan reads of a reward set."""

    parts: list[Component]
    weights: list[float]
    of_steps: list[bool]


@dataclass
class UnloadedRewards:
    """The parts of a configuration's rewards, without the sandbox that runs programs."""

    parts: list[Component]
    weights: list[float]
    of_steps: list[bool]


def unloaded_rewards(specs: Sequence[Any], weights: Sequence[float] | None, by_step: bool) -> UnloadedRewards:
    """The rewards of a configuration, for the scan: no reward model is loaded, since it compares with nothing. Raises
    UserError for unknown names."""
    parts = components([without_model(spec) for spec in specs])
    return UnloadedRewards(
        parts, weights_of(parts, weights), [by_step and takes_steps(part.function) for part in parts]
    )


def require_references(rewards: RewardParts, rows: Sequence[Row]) -> None:
    """Raise UserError for empty prompts, for references that a reward cannot read, and for rows to which no reward
    applies, with their number and the first of them. Rows to which another reward applies are told in one line."""
    if not rows:
        return
    empty = [i for i, row in enumerate(rows) if not _has_text(row.prompt)]
    if empty:
        raise UserError(
            f"the prompt of {_count(empty, rows)} is empty: {_places(empty, rows)}. Give each some text (a "
            "column of another name: `columns: {prompt: ...}`), or leave these rows out"
        )
    weighed = zip(rewards.weights, rewards.of_steps, strict=True)
    counting = [weight != 0 and not of_steps for weight, of_steps in weighed]
    counting = counting if any(counting) else [True] * len(rewards.parts)
    scored = [False] * len(rows)
    without: list[tuple[str, list[int]]] = []
    for part, counts in zip(rewards.parts, counting, strict=True):
        applies = _applies(part, rows)
        missing = [i for i, applied in enumerate(applies) if not applied]
        if missing:
            without.append((part.name, missing))
        if counts:
            scored = [a or b for a, b in zip(scored, applies, strict=True)]
    unscored = [i for i, any_applies in enumerate(scored) if not any_applies]
    if unscored:
        raise UserError(
            f"no reward applies to {_count(unscored, rows)}: {_places(unscored, rows)}. What "
            f"{' and '.join(name for name, _ in without)} would compare with is missing there (null, empty or NaN). "
            "Fill it in, leave these rows out, or add a reward that scores every row"
        )
    for name, missing in without:
        places = _places(missing, rows)
        log.info("%s does not apply to %s, without a reference or tests: %s", name, _count(missing, rows), places)


def _applies(part: Component, rows: Sequence[Row]) -> list[bool]:
    """Whether the reward has what it compares with, for each row; True for rewards that compare with nothing. Raises
    UserError for references that it cannot read."""
    record = record_of(part.function)
    if isinstance(part.function, UnitTests):
        return [_has_tests(part.function, row) for row in rows]
    if record is not None and record.name == "reasoning_gym":
        return [all(row.columns.get(name) is not None for name in GYM_COLUMNS) for row in rows]
    if record is None or record.judges != "answer":
        return [True] * len(rows)
    used = (*REFERENCE_COLUMNS, *CHOICE_COLUMNS, *ALIAS_COLUMNS)
    present = [name for name in used if any(name in row.columns for row in rows)]
    if not set(present) & set(REFERENCE_COLUMNS):
        # The reward's own message names the columns that it reads.
        part.function(completions=[""], **{name: [value] for name, value in rows[0].columns.items()})
    applies, unreadable, reason = [], list[int](), ""
    for i, row in enumerate(rows):
        try:
            applies.append(_compares(part, record.name, {name: [row.columns.get(name)] for name in present}))
        except MALFORMED as error:
            applies.append(False)
            unreadable.append(i)
            reason = reason or (str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    if unreadable:
        raise UserError(
            f"{part.name} cannot read the reference of {_count(unreadable, rows)}: {_places(unreadable, rows)}. Of "
            f"the first: {reason}"
        )
    return applies


def _compares(part: Component, name: str, columns: Mapping[str, list[Any]]) -> bool:
    if name not in ("choice", "facts"):
        return bool(accepted(reference_from(columns, 0)))
    (score,) = part.function(completions=[""], **columns)
    return score is not None


def _has_tests(tests: UnitTests, row: Row) -> bool:
    return any(row.columns.get(name) for name in (COMMAND_COLUMNS if tests.command else PYTHON_COLUMNS))


def _has_text(prompt: Text) -> bool:
    if isinstance(prompt, str):
        return bool(prompt.strip())
    contents = [message.get("content") for message in prompt]
    return any(content.strip() if isinstance(content, str) else content for content in contents)


def _count(some: Sequence[int], rows: Sequence[Row]) -> str:
    return f"{len(some)} of {len(rows)} rows"


def _places(some: Sequence[int], rows: Sequence[Row]) -> str:
    """The first rows: "train.jsonl row 3, train.jsonl row 7, ..."."""
    first = ", ".join(rows[i].source or f"row {i + 1}" for i in some[:SHOWN])
    return first + ", ..." * (len(some) > SHOWN)
