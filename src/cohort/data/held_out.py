"""The datasets that a trainer is given: training rows, and held-out rows of one dataset or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cohort.config import SFTConfig, TrainingConfig
from cohort.data.rows import as_rows, load_rows, numbered, read_records
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
    return numbered(as_rows(dataset, config.max_steps * config.batch_size, columns_of(config)))


def columns_of(config: TrainingConfig) -> dict[str, str]:
    """The columns that the configuration itself maps: of rows with a text alone, TRL's `dataset_text_field`."""
    field = config.dataset_text_field if isinstance(config, SFTConfig) else "text"
    return {} if field == "text" else {"text": field}


def held_out_rows(dataset: Any, config: TrainingConfig, prefix: str = "eval") -> dict[str, list[Row]]:
    """How names of metrics begin -> rows: {"eval": rows}, and of a dictionary of datasets {"eval_easy": rows, ...}.
    Empty for None. Raises UserError for a dataset without a length of more than MOST rows."""
    if isinstance(dataset, Mapping):
        return {f"{prefix}_{name}": _rows(each, columns_of(config)) for name, each in dataset.items()}
    return {} if dataset is None else {prefix: _rows(dataset, columns_of(config))}


def _rows(dataset: Any, columns: dict[str, str]) -> list[Row]:
    if not isinstance(dataset, Iterable) or isinstance(dataset, str) or hasattr(dataset, "__len__"):
        return as_rows(dataset, columns=columns)
    rows = load_rows(dataset, max_samples=MOST + 1, columns=columns)
    if len(rows) > MOST:
        raise UserError(f"the held-out dataset has no length and more than {MOST:,} rows: give a part of it")
    return rows


def divided(rows: list[Row], like: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """Rows that are in one list, by the names and in the lengths of `like`."""
    rest = iter(rows)
    return {name: [next(rest) for _ in own] for name, own in like.items()}


def formatted(dataset: Any, function: Callable[[dict[str, Any]], str]) -> Any:
    """The dataset's records as texts alone, or each dataset's of a dictionary. Raises UserError where the function
    returns no text."""
    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        return {name: formatted(each, function) for name, each in dataset.items()}
    texts = []
    for where, record in read_records(dataset):
        text = function(record)
        if not isinstance(text, str):
            raise UserError(f"{where}: formatting_func returned a {type(text).__name__}: it must return the row's text")
        texts.append({"text": text})
    return texts
