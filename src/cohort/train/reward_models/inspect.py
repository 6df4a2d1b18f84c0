"""Rows of reward models as the trainer sees them: texts as token ids, and the tokens on which labels sit."""

from __future__ import annotations

from typing import Any

from cohort.config import RewardConfig, RewardModelConfig
from cohort.data.inspect import InspectedRow, Inspection, Part, counted
from cohort.rewards.models.scorer import Encoded, Scorer, scores_last
from cohort.train.reward_models.examples import Example, examples_of, is_dropped, lessons
from cohort.types import Row


def inspect_examples(
    rows: list[Row], scorer: Scorer, config: RewardModelConfig, kind: str, held_out: bool = False
) -> tuple[Inspection, list[Example]]:
    """(the rows as examples of the loss `kind`, the examples that are trained on). Raises UserError for a row that the
    loss cannot use."""
    examples = (examples_of if held_out else lessons)(rows, scorer, config, kind)
    inspected = [_inspected(row, each, scorer, config) for row, each in zip(rows, examples, strict=True)]
    kept = [each for each, row in zip(examples, inspected, strict=True) if row.fate != "dropped"]
    result = Inspection("pairs" if kind == "preference" else "texts", len(rows), inspected)
    if kind != "preference":
        every_token = isinstance(config, RewardConfig) and config.every_token and not held_out
        labels = [label for each in kept for label in (each.targets[:1] if every_token else each.targets)]
        result.notes += [f"labels: {counted(labels)}"] if labels else []
    both = zip(examples, inspected, strict=True)
    lost = [row.row.source for each, row in both if each.lost and row.fate != "dropped"]
    if lost:
        count = sum(each.lost for each in kept)
        result.notes.append(
            f"labels of steps that are cut off, which are left out: {count}: "
            f"{', '.join(lost[:5])}{', ...' * (len(lost) > 5)}"
        )
    return result, kept


def _inspected(row: Row, example: Example, scorer: Scorer, config: RewardModelConfig) -> InspectedRow:
    names = ("chosen", "rejected") if len(example.texts) == 2 else ("text",)
    lengths = {name: text.whole or text.length for name, text in zip(names, example.texts, strict=True)}
    key = "max_length" if config.max_length else "the model's positions"
    over = f"over {scorer.max_length} tokens ({key})"
    beginning = ", beginning cut off" if example.truncated and not scorer.pairs else ""
    if is_dropped(example, config):
        parts = [
            Part(name, text.inputs["input_ids"], "no loss") for name, text in zip(names, example.texts, strict=True)
        ]
        return InspectedRow(row, parts, lengths, "dropped", over)
    if example.alike:
        parts = [Part("chosen and rejected", example.texts[0].inputs["input_ids"], "no loss")]
        return InspectedRow(row, parts, lengths, "dropped", "chosen and rejected are the same tokens" + beginning)
    if len(example.texts) == 2:
        parts = [
            Part(name, text.inputs["input_ids"], f"{use}{', its beginning cut off' if text.truncated else ''}")
            for name, text, use in zip(names, example.texts, ("to score higher", "to score lower"), strict=True)
        ]
        margin = example.targets[0]
        notes = (f"margin {margin:g}",) if margin else ()
    else:
        parts, notes = _labelled(example.texts[0], example.targets, scorer), ()
    return InspectedRow(row, parts, lengths, *(("cut", over) if example.truncated else ("kept", "")), notes)


def _labelled(text: Encoded, targets: tuple[float, ...], scorer: Scorer) -> list[Part]:
    """A text with its label, with the labels of its steps where they sit, or with the label of all of its tokens."""
    ids: Any = text.inputs["input_ids"]
    cut = ", its beginning cut off" if text.truncated and not scorer.pairs else ", cut" if text.truncated else ""
    if not text.ends:
        reads = getattr(scorer.model.config, "reads", None) or ("last" if scores_last(scorer.model) else "first")
        where = "mean of all tokens" if reads == "mean" else f"{reads} token"
        return [Part("text", ids, f"label {targets[0]:g}, read at the {where}{cut}")]
    if scorer.of_steps:
        labels = dict(zip(text.ends, targets, strict=True))
        return [Part("text", ids, f"{len(targets)} steps, each label behind the token it sits on{cut}", labels)]
    start = text.ends[0]
    return [
        Part("prompt", ids[:start], f"no loss{cut}"),
        Part("completion", ids[start:], f"every token has the label {targets[0]:g}"),
    ]
