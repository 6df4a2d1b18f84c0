"""A reward model's scores of labelled completions, pairs, or steps: the input of report/judgement.py."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from cohort.compat.libraries import quiet
from cohort.data.labels import label, sides, step_labels
from cohort.data.preferences import has_pair
from cohort.data.templates import for_template
from cohort.policy.load import find_device
from cohort.progress import Task
from cohort.rewards.compose import Rewards
from cohort.rewards.compose import Scores as RuleScores
from cohort.rewards.functions.text import content
from cohort.rewards.models.classifier import load_classifier, load_tokenizer, require_one_label
from cohort.rewards.models.scorer import Encoded, Scorer
from cohort.rewards.steps import Split, cut
from cohort.types import Row, Text, UserError

log = logging.getLogger("cohort")


@dataclass(frozen=True)
class ScoredText:
    """The score of one text, or of one step of a text.

    ScoredText(prompt=0, score=1.3, reordered=1.3, length=45, label=1.0, step=0)
    """

    prompt: int
    """Number of the text's prompt; of a step, number of its completion."""
    score: float
    """The model's logit."""
    reordered: float
    """The score when the texts are batched in the opposite order; it differs by rounding only."""
    length: int
    """Characters of the completion, or of the step."""
    label: float
    """1 right, 0 wrong, or between; in a pair, 1 chosen and 0 rejected."""
    step: int = 0
    """Index of the step in its completion."""


@dataclass(frozen=True)
class ModelScores:
    """Everything that a reward model scored."""

    texts: list[ScoredText]
    kind: str
    """rows, pairs or steps."""
    log_odds: bool
    """Whether a score is the logit of a probability. A model trained on squared errors gives the value itself."""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """Indices in `texts` of the chosen and the rejected text of each pair; empty unless the kind is pairs."""
    truncated: float = 0.0
    """Share of the texts that were longer than the limit."""
    incomplete: frozenset[int] = frozenset()
    """Numbers of the completions of which the limit cut off steps."""


class LabelledSteps(NamedTuple):
    """A completion, its steps, and a label for each step."""

    text: str
    steps: list[str]
    labels: list[float]


def score_rows(
    model: str,
    rows: list[Row],
    rewards: Sequence[str],
    split: Split,
    separator: str,
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    plain: bool = False,
    trust_remote_code: bool = False,
) -> ModelScores:
    """Score rows by a reward model: pairs, labelled completions, or labelled steps if it is a process reward model.

    `rewards`: rules that make the labels in place of the rows' own. Raises UserError for rows without labels.
    """
    quiet()
    classifier = load_classifier(model, torch.float32, trust_remote_code=trust_remote_code)
    require_one_label(model, classifier.config)
    scorer = Scorer(classifier.to(find_device()).eval(), load_tokenizer(model, trust_remote_code), max_length)
    rows = for_template(rows, scorer.tokenizer, not plain)
    log_odds = classifier.config.problem_type != "regression"
    if scorer.of_steps:
        labelled = (
            _steps_by_rule(rows, rewards, split) if rewards else [steps_of(row, split, separator) for row in rows]
        )
        return _score_steps(rows, labelled, scorer, batch_size)
    if has_pair(rows[0]):
        if rewards:
            raise UserError(f"{rows[0].source}: pairs are judged by which side is chosen: leave out --reward")
        return _score_pairs(rows, scorer, batch_size, log_odds)
    labels = _labels_by_rule(rows, rewards) if rewards else [label(row) for row in rows]
    encoded = [scorer.encode(row.prompt, _completion(row)) for row in rows]
    prompts = _numbered([str(row.prompt) for row in rows])
    lengths = [len(content(_completion(row))) for row in rows]
    scores = _scored_twice(scorer, encoded, batch_size)
    texts = [
        ScoredText(prompt, first[0], reordered[0], length, right)
        for prompt, (first, reordered), length, right in zip(prompts, scores, lengths, labels, strict=True)
    ]
    return ModelScores(texts, "rows", log_odds, truncated=_share_truncated(encoded))


def _score_pairs(rows: list[Row], scorer: Scorer, batch_size: int, log_odds: bool) -> ModelScores:
    pairs = [sides(row) for row in rows]
    completions = [(i, text, right) for i, pair in enumerate(pairs) for text, right in ((pair[0], 1.0), (pair[1], 0.0))]
    encoded = [scorer.encode(rows[i].prompt, text) for i, text, _ in completions]
    scores = _scored_twice(scorer, encoded, batch_size)
    prompts = _numbered([str(row.prompt) for row in rows])
    texts = [
        ScoredText(prompts[i], first[0], reordered[0], len(content(text)), right)
        for (i, text, right), (first, reordered) in zip(completions, scores, strict=True)
    ]
    indices = [(2 * i, 2 * i + 1) for i in range(len(rows))]
    return ModelScores(texts, "pairs", log_odds, indices, _share_truncated(encoded))


def _score_steps(rows: list[Row], labelled: list[LabelledSteps], scorer: Scorer, batch_size: int) -> ModelScores:
    encoded = [scorer.encode_steps(row.prompt, each.text, each.steps) for row, each in zip(rows, labelled, strict=True)]
    lost = {i: each.lost for i, each in enumerate(encoded) if each.lost}
    if lost:
        if not any(each.steps for each in encoded):
            raise UserError(
                f"no step of the {len(rows)} completions is within the limit of {scorer.max_length} tokens: raise "
                "--max-length, or use a model with more positions"
            )
        log.warning(
            "%d steps of %d of %d completions (%s the first) are beyond the limit of %d tokens: they are not judged",
            sum(lost.values()),
            len(lost),
            len(rows),
            rows[min(lost)].source,
            scorer.max_length,
        )
    scores = _scored_twice(scorer, encoded, batch_size)
    texts = [
        ScoredText(i, first, reordered, len(labelled[i].steps[step]), labelled[i].labels[step], step)
        for i, (each, of_text) in enumerate(zip(encoded, scores, strict=True))
        for step, first, reordered in zip(each.steps, *of_text, strict=True)
    ]
    return ModelScores(texts, "steps", True, truncated=_share_truncated(encoded), incomplete=frozenset(lost))


def _labels_by_rule(rows: list[Row], rewards: Sequence[str]) -> list[float]:
    """1 where the first reward is above 0."""
    functions = Rewards(list(rewards))
    scores = _rule_scores(functions, rows)
    return [float(value is not None and value > 0) for value in scores.components[functions.names[0]]]


def _steps_by_rule(rows: list[Row], rewards: Sequence[str], split: Split) -> list[LabelledSteps]:
    """Labels of 1 where the sum of the step rewards is above 0."""
    scores = _rule_scores(Rewards(list(rewards), split=split), rows)
    texts = [content(_completion(row)) for row in rows]
    labels = [[float(reward > 0) for reward in of_row] for of_row in scores.step_rewards]
    for row, ends, text in zip(rows, scores.step_ends, texts, strict=True):
        if ends != cut(text, split).ends:
            raise UserError(
                f"{row.source}: {', '.join(rewards)} gives no reward to some of its steps, so that they have no label"
            )
    return [LabelledSteps(text, cut(text, split).texts, of_text) for text, of_text in zip(texts, labels, strict=True)]


def _rule_scores(functions: Rewards, rows: list[Row]) -> RuleScores:
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    columns = {name: [row.columns.get(name) for row in rows] for name in names}
    return functions([row.prompt for row in rows], [_completion(row) for row in rows], [[]] * len(rows), columns)


def _completion(row: Row) -> Text:
    if row.completion is None:
        raise UserError(f"{row.source}: no `completion`, and no `chosen` and `rejected`, to score")
    return row.completion


def _scored_twice(scorer: Scorer, encoded: list[Encoded], batch_size: int) -> list[tuple[list[float], list[float]]]:
    """The scores, and the scores with the texts in the opposite order and in batches of another size."""
    with Task(f"scoring {len(encoded):,} texts, twice"):
        first = scorer.score(encoded, batch_size)
        reordered = scorer.score(encoded[::-1], max(1, batch_size // 2))[::-1]
    return list(zip(first, reordered, strict=True))


def _share_truncated(encoded: list[Encoded]) -> float:
    return sum(each.truncated for each in encoded) / len(encoded)


def _numbered(keys: list[str]) -> list[int]:
    """Equal keys get equal numbers: ["a", "b", "a"] -> [0, 1, 0]."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


def steps_of(row: Row, split: Split, separator: str) -> LabelledSteps:
    """A row's completion, steps and labels. `completions` may hold the steps themselves, as in TRL's data. Raises
    UserError unless there is one label for each step."""
    labels, listed = step_labels(row), row.columns.get("completions")
    if row.completion is None and isinstance(listed, list):
        text = separator.join(str(step).strip() for step in listed)
        steps = [str(step).strip() for step in listed]
    elif row.completion is None:
        raise UserError(f"{row.source}: no `completion`, and no `completions` with its steps")
    else:
        text = content(row.completion)
        steps = cut(text, split).texts
    if len(labels) != len(steps):
        raise UserError(
            f"{row.source}: {len(labels)} labels for {len(steps)} steps; the steps are {str(steps)[:120]}: set "
            "step_separator to the one that the labels were made with"
        )
    return LabelledSteps(text, steps, labels)
