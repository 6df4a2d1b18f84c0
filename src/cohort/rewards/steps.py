"""Steps of reasoning: cutting a completion's text into steps, and checking and summing the scores of steps.

A step reward is a reward function that also takes `steps`, one list of texts for each completion, and returns one list
of scores for each completion:

    def step_rewards(prompts, completions, steps, **columns) -> list[list[float | None]]

None: the function does not apply to the step. A process reward model is such a function.
"""

from __future__ import annotations

import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cohort.rewards.resolve import resolve
from cohort.types import UserError

Split = Callable[[str], list[str]]
"""Text -> its steps, whose concatenation is the text: each separator stays at the end of its step."""


@dataclass(frozen=True)
class Cut:
    """The steps of a completion, stripped of white space, and the end of each in the text (exclusive).

    Cut(["7+5=2", "2-8=4"], [6, 11]) of "7+5=2\\n2-8=4"
    """

    texts: list[str]
    ends: list[int]


def takes_steps(function: Callable[..., Any]) -> bool:
    """Whether a reward function names `steps` among its parameters."""
    return "steps" in inspect.signature(function).parameters


def by_separator(separator: str) -> Split:
    """A step ends after each separator: "a\\nb" -> ["a\\n", "b"]."""
    if not separator:
        raise UserError("step_separator is empty: give the text that ends a step, such as '\\n'")

    def split(text: str) -> list[str]:
        *ended, last = text.split(separator)
        return [part + separator for part in ended] + [last]

    return split


def by_pattern(pattern: str) -> Split:
    """A step ends after each match: "one. Two" -> ["one. ", "Two"] for "\\\\. ".

    RE2 matches the expression in time linear in the text, because completions are untrusted. Raises UserError where
    RE2 is not installed or refuses the expression.
    """
    try:
        import re2
    except ImportError:
        raise UserError("step_pattern needs the package google-re2: pip install 'cohort-rl[re2]'") from None
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise UserError(
            f"step_pattern {pattern!r} is not a regular expression of RE2 (which has no look-around and no "
            f"back-references): {reason}"
        ) from None

    def split(text: str) -> list[str]:
        ends = [match.end() for match in compiled.finditer(text) if match.end() > match.start()]
        bounds = [0, *ends, len(text)]
        return [text[a:b] for a, b in itertools.pairwise(bounds)]

    return split


def make_split(separator: str, pattern: str | None, function: str | Split | None) -> Split:
    """The splitter of a configuration: the function (or its name) if given, else the pattern, else the separator."""
    if function is not None:
        _, named = resolve(function)
        return named
    return by_separator(separator) if pattern is None else by_pattern(pattern)


def cut(text: str, split: Split) -> Cut:
    """The steps of a text, at least one; a piece that is only white space joins the step before it.

    Raises UserError where the split's pieces do not join to the text.
    """
    try:
        pieces = split(text)
    except SystemExit as error:
        raise UserError(f"the step splitter calls sys.exit({error.code!r}) for the text {text[:100]!r}") from error
    if not isinstance(pieces, list) or "".join(pieces) != text:
        raise UserError(
            f"the step splitter must cut the text {text[:100]!r} into pieces that join to it; it gave "
            f"{str(pieces)[:200]}"
        )
    joined: list[str] = []
    for piece in pieces:
        if joined and not (piece.strip() and joined[-1].strip()):
            joined[-1] += piece
        else:
            joined.append(piece)
    ends, at = [], 0
    for piece in joined:
        at += len(piece)
        ends.append(at)
    return Cut([piece.strip() for piece in joined] or [""], ends or [0])


def cut_all(texts: Sequence[str], split: Split, columns: dict[str, list[Any]]) -> list[Cut]:
    """The steps of every completion. Raises UserError where the dataset has a column `steps`."""
    if "steps" in columns:
        raise UserError(
            "the dataset has a column `steps`, which is the name of the argument with a completion's steps: rename it"
        )
    return [cut(text, split) for text in texts]


StepScores = list[list[float | None]]
"""[completion][step]; None where the function does not apply to the step."""


def summed(scores: Sequence[StepScores], weights: Sequence[float]) -> StepScores:
    """The functions' scores -> their weighted sum; None for a step to which no function applies."""
    return [
        [_sum(of_step, weights) for of_step in zip(*of_completion, strict=True)]
        for of_completion in zip(*scores, strict=True)
    ]


def _sum(of_step: Sequence[float | None], weights: Sequence[float]) -> float | None:
    products = [weight * score for weight, score in zip(weights, of_step, strict=True) if score is not None]
    return math.fsum(products) if products else None


def mean(scores: Sequence[float | None]) -> float | None:
    """The mean over the steps that have a score; None if none has."""
    given = [score for score in scores if score is not None]
    return math.fsum(given) / len(given) if given else None


def checked(name: str, result: Any, steps: Sequence[Sequence[str]]) -> StepScores:
    """The scores as floats. Raises UserError unless there is a finite number, or None, for each step."""
    if not isinstance(result, Sequence | tuple) or isinstance(result, str) or len(result) != len(steps):
        count = f"{len(result)} lists" if isinstance(result, Sequence) else repr(result)[:80]
        raise UserError(
            f"step reward {name!r} returned {count} for {len(steps)} completions: return one list of scores for each"
        )
    return [_row(name, i, row, texts) for i, (row, texts) in enumerate(zip(result, steps, strict=True))]


def _row(name: str, i: int, row: Any, texts: Sequence[str]) -> list[float | None]:
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != len(texts):
        raise UserError(
            f"step reward {name!r} returned {str(row)[:80]} for completion {i}, which has {len(texts)} steps: "
            "return one score for each step"
        )
    bad = [x for x in row if x is not None and (not isinstance(x, numbers.Real) or not math.isfinite(x))]
    if bad:
        raise UserError(
            f"step reward {name!r} returned {bad[0]!r} for a step of completion {i}: a score is a finite number, or "
            "None where the function does not apply"
        )
    return [None if score is None else float(score) for score in row]
