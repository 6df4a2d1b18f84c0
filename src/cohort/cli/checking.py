"""The lines that `cohort data check` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cohort.types import printable

if TYPE_CHECKING:
    from cohort.data.check import FileCheck, Needed, Use
    from cohort.types import Row

MAX_PROBLEMS = 20
"""Problems that are printed; the others are counted."""
PLACES = 3
"""Rows that a line names."""


def uses_with_rewards() -> dict[str, Needed]:
    """Uses that need what a built-in reward compares with."""
    from cohort.rewards.answers.extract import accepted, reference_from
    from cohort.rewards.functions.code import COMMAND_COLUMNS, PYTHON_COLUMNS

    def answer(row: Row) -> str | None:
        try:
            answers = accepted(reference_from({name: [value] for name, value in row.columns.items()}, 0))
        except (AttributeError, TypeError, ValueError):
            return "an answer that accuracy cannot read"
        if answers:
            return None if row.prompt else "no prompt"
        truth = row.columns.get("reward_model")
        verl = isinstance(truth, dict) and "ground_truth" in truth
        return "no answer" + " (columns: {answer: reward_model.ground_truth} makes one)" * verl

    def tests(row: Row) -> str | None:
        return None if any(row.columns.get(name) for name in (*PYTHON_COLUMNS, *COMMAND_COLUMNS)) else "no tests"

    return {"grpo with accuracy": answer, "grpo with unit_tests": tests}


def check_lines(name: str, result: FileCheck) -> Iterator[str]:
    """The wrong rows, the forms, what is odd, and what the file can be used for."""
    from cohort.data.inspect import counted

    for problem in result.problems[:MAX_PROBLEMS]:
        yield f"wrong: {problem}"
    if len(result.problems) > MAX_PROBLEMS:
        yield f"and {len(result.problems) - MAX_PROBLEMS} more"
    good = result.rows - len(result.problems)
    yield f"{name}: {result.rows} rows, {good} good, {len(result.problems)} wrong"
    yield "read as: " + (", ".join(f"{form} ({count})" for form, count in result.forms.most_common()) or "nothing")
    yield "prompts: " + (", ".join(f"{count} {kind}" for kind, count in result.kinds.items()) or "none")
    for column, count in result.columns.items():
        yield f"column {printable(column, lines=False)}: in {count} of {good} rows"
    for column, values in result.labels.items():
        yield f"values of {column}: {counted(values)}"
    if result.repeated:
        yield f"rows that repeat an earlier prompt: {result.repeated}"
    for what, places in result.places.items():
        yield f"{what}: {len(places)}: {_places(places)}"
    yield from _use_lines(result.uses, good)


def _use_lines(uses: dict[str, Use], good: int) -> Iterator[str]:
    """What all rows, some and none can be used for."""
    whole = [name for name, use in uses.items() if good and use.rows == good]
    part = {name: use for name, use in uses.items() if 0 < use.rows < good}
    none = {name: use for name, use in uses.items() if not use.rows and name != "grpo with unit_tests"}
    yield f"can be used for: {', '.join(whole) or 'nothing as a whole'}"
    for name, use in part.items():
        reasons = [f"{reason}: {_places(places)}" for reason, places in use.reasons.items()]
        yield f"in part for {name}: {use.rows} of {good} rows; {_first(reasons, '; ')}"
    for name, use in none.items() if good else ():
        yield f"not for {name}: {_first(list(use.reasons), '; ')}"


def _places(places: list[str]) -> str:
    return _first(places, ", ")


def _first(texts: list[str], between: str) -> str:
    return between.join([*texts[:PLACES], *["..."] * (len(texts) > PLACES)])
