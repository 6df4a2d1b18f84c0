"""The datasets that a trainer is given: training rows, and held-out rows of one dataset or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cohort.config import TrainingConfig
from cohort.data.rows import as_rows, load_rows, numbered
from cohort.types import Row, UserError

MOST = 100_000
"""Held-out rows that are read of a dataset without a length."""


def training_rows(dataset: Any, config: TrainingConfig) -> list[Row]:
    """The rows of `train_dataset`, numbered. Raises UserError where there is none, or several."""
    if dataset is None:
        raise UserError("`train_dataset` is required: a datasets.Dataset, a list of dicts, a path or a hub name")
    if isinstance(dataset, Mapping):
        parts = ", ".join(map(repr, dataset))
        raise UserError(f"train_dataset is a {type(dataset).__name__} of {parts}: give one of them")
    return numbered(as_rows(dataset, config.max_steps * config.batch_size))


def held_out_rows(dataset: Any, prefix: str = "eval") -> dict[str, list[Row]]:
    """How names of metrics begin -> rows: {"eval": rows}, and of a dictionary of datasets {"eval_easy": rows, ...}.
    Empty for None. Raises UserError for a dataset without a length of more than MOST rows."""
    if isinstance(dataset, Mapping):
        return {f"{prefix}_{name}": _rows(each) for name, each in dataset.items()}
    return {} if dataset is None else {prefix: _rows(dataset)}


def _rows(dataset: Any) -> list[Row]:
    if not isinstance(dataset, Iterable) or isinstance(dataset, str) or hasattr(dataset, "__len__"):
        return as_rows(dataset)
    rows = load_rows(dataset, max_samples=MOST + 1)
    if len(rows) > MOST:
        raise UserError(f"the held-out dataset has no length and more than {MOST:,} rows: give a part of it")
    return rows


def divided(rows: list[Row], like: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """Rows that are in one list, by the names and in the lengths of `like`."""
    rest = iter(rows)
    return {name: [next(rest) for _ in own] for name, own in like.items()}
