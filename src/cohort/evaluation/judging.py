"""A reward model's scores of labelled completions, pairs, or completions with labelled steps: what it is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cohort.data.labels import label, sides, step_labels
from cohort.data.preferences import has_pair
from cohort.policy.load import find_device, quiet
from cohort.rewards.compose import Rewards
from cohort.rewards.compose import Scores as Rule
from cohort.rewards.functions.text import content
from cohort.rewards.models.classifier import load_classifier, load_tokenizer, require_one_label
from cohort.rewards.models.scorer import Encoded, Scorer
from cohort.rewards.steps import Split, cut
from cohort.types import Row, Text, UserError


@dataclass(frozen=True)
class Scored:
    """One text, or one step of a text.

    Scored(prompt=0, score=1.3, again=1.3, length=45, label=1.0, step=0)
    """

    prompt: int
    """Texts of the same prompt have the same number; of steps, the number of their completion."""
    score: float
    """The model's logit."""
    again: float
    """The same where the texts come in the opposite order: any difference is a matter of batching."""
    length: int
    """Characters of the completion."""
    label: float
    """1 right, 0 wrong, or between; of pairs, 1 chosen and 0 rejected."""
    step: int = 0
    """Of a process model: the step's place in its completion."""


@dataclass(frozen=True)
class Scores:
    """Everything that was scored; `pairs` are (right, wrong) places in `texts` of given pairs, none for rows."""

    texts: list[Scored]
    kind: str
    """rows, pairs or steps."""
    log_odds: bool
    """Whether the score is the logit of a probability; of a model trained on squared errors it is the value itself."""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    truncated: float = 0.0


def score_rows(
    model: str,
    rows: list[Row],
    rewards: Sequence[str],
    split: Split,
    separator: str,
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> Scores:
    """Score rows by a reward model: pairs, labelled completions, or labelled steps where the model is a process one;
    `rewards`, where given, make the labels. Raises UserError for what cannot be judged by."""
    quiet()
    classifier = load_classifier(model, torch.float32, trust_remote_code=trust_remote_code)
    require_one_label(model, classifier.config)
    scorer = Scorer(classifier.to(find_device()).eval(), load_tokenizer(model, trust_remote_code), max_length)
    log_odds = classifier.config.problem_type != "regression"
    if scorer.of_steps:
        judged = _steps_by_rule(rows, rewards, split) if rewards else [steps_of(row, split, separator) for row in rows]
        return _steps(rows, judged, scorer, batch_size)
    if has_pair(rows[0]):
        if rewards:
            raise UserError(f"{rows[0].source}: pairs are judged by which side is chosen: leave out --reward")
        return _pairs(rows, scorer, batch_size, log_odds)
    labels = _by_rule(rows, rewards) if rewards else [label(row) for row in rows]
    encoded = [scorer.encode(row.prompt, _completion(row)) for row in rows]
    numbers = _numbers([str(row.prompt) for row in rows])
    lengths = [len(content(_completion(row))) for row in rows]
    scores = _twice(scorer, encoded, batch_size)
    texts = [
        Scored(number, first[0], again[0], length, right)
        for number, (first, again), length, right in zip(numbers, scores, lengths, labels, strict=True)
    ]
    return Scores(texts, "rows", log_odds, truncated=_truncated(encoded))


def _pairs(rows: list[Row], scorer: Scorer, batch_size: int, log_odds: bool) -> Scores:
    found = [sides(row) for row in rows]
    completions = [(i, text, right) for i, pair in enumerate(found) for text, right in ((pair[0], 1.0), (pair[1], 0.0))]
    encoded = [scorer.encode(rows[i].prompt, text) for i, text, _ in completions]
    texts = [
        Scored(i, first[0], again[0], len(content(text)), right)
        for (i, text, right), (first, again) in zip(completions, _twice(scorer, encoded, batch_size), strict=True)
    ]
    places = [(2 * i, 2 * i + 1) for i in range(len(rows))]
    return Scores(texts, "pairs", log_odds, places, _truncated(encoded))


Judged = list[tuple[str, list[str], list[float]]]
"""Of each row: the completion, its steps, their labels."""


def _steps(rows: list[Row], found: Judged, scorer: Scorer, batch_size: int) -> Scores:
    encoded = [scorer.encode_steps(row.prompt, text, steps) for row, (text, steps, _) in zip(rows, found, strict=True)]
    texts = [
        Scored(i, a, b, len(step), right, place)
        for i, ((_, steps, labels), (first, again)) in enumerate(
            zip(found, _twice(scorer, encoded, batch_size), strict=True)
        )
        for place, (step, right, a, b) in enumerate(zip(steps, labels, first, again, strict=True))
    ]
    return Scores(texts, "steps", True, truncated=_truncated(encoded))


def _by_rule(rows: list[Row], rewards: Sequence[str]) -> list[float]:
    """1 where the first reward is above 0."""
    functions = Rewards(list(rewards))
    scores = _scores(functions, rows)
    return [float(value is not None and value > 0) for value in scores.components[functions.names[0]]]


def _steps_by_rule(rows: list[Row], rewards: Sequence[str], split: Split) -> Judged:
    """1 where the step rewards' sum is above 0."""
    scores = _scores(Rewards(list(rewards), split=split), rows)
    texts = [content(_completion(row)) for row in rows]
    labels = [[float(reward > 0) for reward in of_row] for of_row in scores.step_rewards]
    return [(text, cut(text, split).texts, found) for text, found in zip(texts, labels, strict=True)]


def _scores(functions: Rewards, rows: list[Row]) -> Rule:
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    columns = {name: [row.columns.get(name) for row in rows] for name in names}
    return functions([row.prompt for row in rows], [_completion(row) for row in rows], [[]] * len(rows), columns)


def _completion(row: Row) -> Text:
    if row.completion is None:
        raise UserError(f"{row.source}: no `completion`, and no `chosen` and `rejected`, to score")
    return row.completion


def _twice(scorer: Scorer, encoded: list[Encoded], batch_size: int) -> list[tuple[list[float], list[float]]]:
    """The scores, and the scores with the texts in the opposite order and in batches of another size."""
    first = scorer.score(encoded, batch_size)
    again = scorer.score(encoded[::-1], max(1, batch_size // 2))[::-1]
    return list(zip(first, again, strict=True))


def _truncated(encoded: list[Encoded]) -> float:
    return sum(each.truncated for each in encoded) / len(encoded)


def _numbers(keys: list[str]) -> list[int]:
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [places[key] for key in keys]


def steps_of(row: Row, split: Split, separator: str) -> tuple[str, list[str], list[float]]:
    """(the completion, its steps, their labels). `completions` may hold the steps themselves, as in TRL's data.
    Raises UserError unless there is one label for each step."""
    labels, given = step_labels(row), row.columns.get("completions")
    if row.completion is None and isinstance(given, list):
        text = separator.join(str(step).strip() for step in given)
        steps = [str(step).strip() for step in given]
    elif row.completion is None:
        raise UserError(f"{row.source}: no `completion`, and no `completions` with its steps")
    else:
        text = content(row.completion)
        steps = cut(text, split).texts
    if len(labels) != len(steps):
        raise UserError(
            f"{row.source}: {len(labels)} labels for {len(steps)} steps; the steps are {str(steps)[:120]}: set "
            "step_separator as the labels were made"
        )
    return text, steps, labels
