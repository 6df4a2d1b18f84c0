"""Training examples of reward models: token ids and targets of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cohort.config import ProcessRewardConfig, RewardConfig, RewardModelConfig
from cohort.data.labels import label, probability, sides
from cohort.data.preferences import has_pair, token_ids
from cohort.data.rendering import template_kwargs
from cohort.evaluation.judging import steps_of
from cohort.rewards.models.scorer import Encoded, Scorer
from cohort.rewards.steps import make_split
from cohort.types import Row, UserError


@dataclass(frozen=True)
class Example:
    """One unit of learning; the loop takes it in a group's place.

    Example((encoded,), (1.0,)): a text and its label; Example((chosen, rejected), (0.0,)): a pair and its margin;
    Example((encoded,), (1.0, 0.0)): a text and the labels of its steps, or of its tokens, which are `encoded.ends`. A
    step that a limit cut off has no label, so that a text may have none.
    """

    texts: tuple[Encoded, ...]
    targets: tuple[float, ...]
    completions: ClassVar[tuple[Any, ...]] = ()
    """Empty: nothing is sampled."""

    @property
    def tokens(self) -> int:
        return sum(text.length for text in self.texts)

    @property
    def truncated(self) -> bool:
        return any(text.truncated for text in self.texts)

    @property
    def lost(self) -> int:
        """Steps that a limit cut off, with their labels."""
        return sum(text.lost for text in self.texts)

    @property
    def alike(self) -> bool:
        """Whether it is a pair of the same tokens, as the model gets them: there is nothing to learn."""
        return len(self.texts) == 2 and self.texts[0].inputs == self.texts[1].inputs


def record_of_example(pair: Example) -> dict[str, Any]:
    """A pair as TRL's trainer shows it: token ids of prompt and completion together."""
    chosen, rejected = (text.inputs["input_ids"] for text in pair.texts)
    return {"chosen_ids": chosen, "rejected_ids": rejected, "margin": pair.targets[0]}


def loss_type(rows: Sequence[Row], config: RewardModelConfig) -> str:
    """`process`, `preference`, `bce` or `mse`: from the configuration, or else from the kind of the first row."""
    if not isinstance(config, RewardConfig):
        return "process"
    kind = config.loss_type or ("preference" if has_pair(rows[0]) else "bce")
    if kind != "preference" and config.center_rewards_coefficient is not None:
        raise UserError("center_rewards_coefficient is for pairs (loss_type: preference); these rows have labels")
    return kind


def lessons(rows: Sequence[Row], scorer: Scorer, config: RewardModelConfig, kind: str) -> list[Example]:
    """Training examples of the rows. Raises UserError, naming the row, for rows that the loss cannot use."""
    if isinstance(config, RewardConfig) and config.every_token:
        return at_every_token(rows, scorer, kind)
    return examples_of(rows, scorer, config, kind)


def is_dropped(example: Example, config: RewardModelConfig) -> bool:
    """Whether an example over the length limit is left out: all are, unless `truncation` is cut and a label is left."""
    return example.truncated and not (config.truncation == "cut" and example.targets)


def require_two_labels(examples: Sequence[Example], kind: str) -> None:
    """Raise UserError where all labels are equal."""
    targets = {target for example in examples for target in example.targets}
    if kind != "preference" and len(targets) == 1:
        raise UserError(
            f"every label is {targets.pop():g}: there is nothing to tell apart; add completions of other labels"
        )


def examples_of(rows: Sequence[Row], scorer: Scorer, config: RewardModelConfig, kind: str) -> list[Example]:
    """An example of each row for the loss `kind`. Raises UserError, naming the row, for rows that it cannot use."""
    if isinstance(config, ProcessRewardConfig):
        return _process(rows, scorer, config)
    return [EXAMPLES[kind](row, scorer) for row in rows]


def at_every_token(rows: Sequence[Row], scorer: Scorer, kind: str) -> list[Example]:
    """Examples in which every token of the completion has the row's label (`every_token`). Raises UserError for pairs
    and for models that are not decoders."""
    if kind == "preference":
        raise UserError("every_token is for rows with labels (loss_type: bce or mse); these are pairs")
    examples = []
    for row in rows:
        (target,) = EXAMPLES[kind](row, scorer).targets
        assert row.completion is not None
        text = scorer.encode_tokens(row.prompt, row.completion)
        examples.append(Example((text,), (target,) * len(text.ends)))
    return examples


def _pair(row: Row, scorer: Scorer) -> Example:
    chosen, rejected, margin = sides(row)
    ids = token_ids(row)
    if ids is not None:
        return Example((scorer.encode_ids(ids[0] + ids[1]), scorer.encode_ids(ids[0] + ids[2])), (margin,))
    options = template_kwargs(row, scorer.template)
    return Example(
        (scorer.encode(row.prompt, chosen, options), scorer.encode(row.prompt, rejected, options)), (margin,)
    )


def _scored(row: Row, scorer: Scorer) -> Example:
    value = label(row)
    assert row.completion is not None
    return Example((scorer.encode(row.prompt, row.completion, template_kwargs(row, scorer.template)),), (value,))


def _judged(row: Row, scorer: Scorer) -> Example:
    probability(label(row), row, "label")
    return _scored(row, scorer)


EXAMPLES: dict[str, Callable[[Row, Scorer], Example]] = {"preference": _pair, "bce": _judged, "mse": _scored}


def _process(rows: Sequence[Row], scorer: Scorer, config: ProcessRewardConfig) -> list[Example]:
    split = make_split(config.step_separator, config.step_pattern, config.step_splitter)
    labelled = [steps_of(row, split, config.step_separator) for row in rows]
    if all(len(steps) == 1 for _, steps, _ in labelled):
        what = config.step_splitter or config.step_pattern or config.step_separator
        raise UserError(
            f"{rows[0].source}: no completion of the {len(rows)} rows has more than one step: {what!r} ends none. "
            "Set step_separator (or step_pattern) to what ends a step in these completions"
        )
    examples = []
    for row, (text, steps, labels) in zip(rows, labelled, strict=True):
        encoded = scorer.encode_steps(row.prompt, text, steps)
        examples.append(Example((encoded,), tuple(labels[step] for step in encoded.steps)))
    return examples
