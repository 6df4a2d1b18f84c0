"""The rows of a run's datasets as token ids, under the names that TRL's trainers give them: `trainer.train_dataset` and
`trainer.eval_dataset`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cohort.config import TrainingConfig
from cohort.data.preferences import encode_pair
from cohort.data.templates import Demonstration
from cohort.train.sources.demonstrations import Demonstrations, encoded_as
from cohort.train.sources.preferences import known_pairs
from cohort.train.sources.source import Source
from cohort.types import Group, Row

Record = dict[str, Any]


class Tokenised(Sequence[Record]):
    """A sequence whose records are made when they are read. Tokenised(groups, record_of_pair)[0]["prompt_ids"]"""

    def __init__(self, items: Sequence[Any], record: Callable[[Any], Record]):
        self.items, self.record = items, record

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        """A record, the records of a slice, or the values of a column."""
        if isinstance(index, str):
            return [record[index] for record in self]
        if isinstance(index, slice):
            return Tokenised(self.items[index], self.record)
        return self.record(self.items[index])

    @property
    def column_names(self) -> list[str]:
        return list(self[0]) if self.items else []


def record_of_pair(group: Group) -> Record:
    """A pair of preferences that is trained on."""
    chosen, rejected = (completion.ids.tolist() for completion in group.completions)
    ids = {"prompt_ids": group.prompt_ids.tolist(), "chosen_ids": chosen, "rejected_ids": rejected}
    return {"prompt": group.row.prompt, **group.row.columns, **ids}


def encoded_rows(held_out: Mapping[str, Sequence[Row]], tokenizer: Any, config: TrainingConfig) -> dict[str, Tokenised]:
    """Pairs of preferences that are held out, before a length limit."""

    def record(row: Row) -> Record:
        chosen, rejected = encode_pair(tokenizer, row, config)
        ids = {"prompt_ids": chosen.prompt, "chosen_ids": chosen.completion, "rejected_ids": rejected.completion}
        return {"prompt": row.prompt, **row.columns, **ids}

    return {name: Tokenised(rows, record) for name, rows in held_out.items()}


def record_of_demonstration(example: tuple[Row, Demonstration]) -> Record:
    """A demonstration that is trained on: token ids, and the same as labels with -100 where nothing is learned."""
    row, (prompt, completion, trained) = example
    kept = [True] * len(completion) if trained is None else trained
    labels = [i if learned else -100 for i, learned in zip(completion, kept, strict=True)]
    before = [-100] * len(prompt)
    if not row.prompt:  # a text alone, or token ids: nothing predicts the first, whatever its label
        masks = [row.columns[name] for name in ("completion_mask", "assistant_masks") if row.columns.get(name)]
        before = [*(row.columns.get("labels") or [prompt[0] if all(mask[0] for mask in masks) else -100])[:1]]
    return {"input_ids": [*prompt, *completion], "labels": [*before, *labels]}


def encoded_demonstrations(
    held_out: Mapping[str, Sequence[Row]], tokenizer: Any, config: TrainingConfig
) -> dict[str, Tokenised]:
    """Demonstrations that are held out, before a length limit."""

    def record(row: Row) -> Record:
        return record_of_demonstration((row, encoded_as(row, tokenizer, config)[0]))

    return {name: Tokenised(rows, record) for name, rows in held_out.items()}


def like(given: Any, parts: Mapping[str, Any]) -> Any:
    """The parts of held-out data in the form of the dataset that was given: one, a dictionary by its names, or None."""
    if isinstance(given, Mapping):
        return dict(zip(given, parts.values(), strict=True))
    return next(iter(parts.values()), None)


def shown(
    source: Source,
    held_out: Mapping[str, Sequence[Row]],
    given: Any,
    tokenizer: Any,
    config: TrainingConfig,
) -> tuple[Tokenised, Any] | None:
    """(training demonstrations or pairs, held-out ones in the form of the dataset that was `given`); None of a source
    that samples."""
    if isinstance(source, Demonstrations):
        held_out_records = encoded_demonstrations(held_out, tokenizer, config)
        return Tokenised(source.examples, record_of_demonstration), like(given, held_out_records)
    pairs = known_pairs(source)
    if pairs is None:
        return None
    return Tokenised(pairs, record_of_pair), like(given, encoded_rows(held_out, tokenizer, config))
