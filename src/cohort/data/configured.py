"""The rows a configuration names, and what of a row fits the limits."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from typing import Any

from cohort.config import RunConfig, TrainingConfig
from cohort.data.chat_templates import named_template
from cohort.data.dataset_info import entry_rows, find_entries
from cohort.data.rows import check_source, load_rows
from cohort.types import Row, UserError

log = logging.getLogger("cohort")


def check_names(run: RunConfig, config: TrainingConfig) -> None:
    """Raise UserError for data sets and templates that are not there, before anything heavy is imported."""
    for names in (run.dataset, run.eval_dataset):
        if names is not None and run.dataset_dir is not None:
            find_entries(names, run.dataset_dir)
        elif names is not None:
            check_source(names)
    if config.template is not None:
        named_template(config.template)


def configured_rows(run: RunConfig, seed: int, by_prompt: bool = False) -> tuple[list[Row], list[Row] | None]:
    """(training rows, held-out rows or None); `by_prompt`: val_size holds out prompts with all of their rows. Raises
    UserError for what cannot be used."""
    rows = _rows(run, run.dataset, run.dataset_split, run.max_samples, seed)
    if run.eval_dataset is not None:
        return rows, _rows(run, run.eval_dataset, run.eval_split, run.eval_samples, seed)
    return _split(rows, run.val_size, seed, by_prompt) if run.val_size else (rows, None)


def _rows(run: RunConfig, names: str, split: str, limit: int | None, seed: int) -> list[Row]:
    if run.dataset_dir is None:
        return load_rows(
            names,
            split=split,
            columns=run.columns,
            system_prompt=run.system_prompt,
            max_samples=limit,
            dataset_kwargs=run.dataset_kwargs,
        )
    entries = find_entries(names, run.dataset_dir)
    options = {"max_samples": limit, "system_prompt": run.system_prompt, "seed": seed}
    return [row for entry in entries for row in entry_rows(entry, **options)]


def _split(rows: list[Row], size: float, seed: int, by_prompt: bool) -> tuple[list[Row], list[Row]]:
    units = list(dict.fromkeys(_unit(i, row, by_prompt) for i, row in enumerate(rows)))
    held_out = round(len(units) * size) if size < 1 else int(size)
    if not 0 < held_out < len(units):
        what = "prompts" if by_prompt else "rows"
        raise UserError(f"val_size {size:g} of {len(units)} {what} leaves {held_out} held out: both parts need some")
    places = set(random.Random(seed).sample(range(len(units)), held_out))
    chosen = {unit for i, unit in enumerate(units) if i in places}
    held = [_unit(i, row, by_prompt) in chosen for i, row in enumerate(rows)]
    return (
        [row for row, out in zip(rows, held, strict=True) if not out],
        [row for row, out in zip(rows, held, strict=True) if out],
    )


def _unit(i: int, row: Row, by_prompt: bool) -> str | int:
    """What is held out as one: the row, or all rows of its prompt."""
    return json.dumps(row.prompt, sort_keys=True, default=str) if by_prompt else i


def prompt_limit(context_length: int, config: TrainingConfig) -> int:
    """Tokens a prompt may have: one position is left for an answer."""
    return min(context_length - 1, config.max_prompt_length or context_length)


def demonstration_limit(context_length: int, config: TrainingConfig) -> tuple[int, str]:
    """Tokens of prompt and completion, and what sets the limit."""
    length = config.max_sequence_length
    return (length, "max_length") if length and length < context_length else (context_length, "the model's positions")


def fit_prompt(ids: list[int], limit: int, truncation: str) -> list[int] | None:
    """A prompt within `limit` tokens: as it is, cut to its last tokens, or None where it is dropped."""
    if len(ids) <= limit:
        return ids
    return ids[-limit:] if truncation == "cut" else None


def fit_demonstration(
    prompt: list[int], completion: list[int], limit: int, truncation: str
) -> tuple[list[int], list[int]] | None:
    """Prompt and completion within `limit` tokens: as they are, the completion's end cut off, or None where the pair
    is dropped: by truncation, or because nothing of the completion would be left."""
    if len(prompt) + len(completion) <= limit:
        return prompt, completion
    if truncation != "cut" or len(prompt) >= limit:
        return None
    return prompt, completion[: limit - len(prompt)]


def tell_fitted(lengths: list[int], fitted: Sequence[Any], limit: int, key: str, what: str) -> None:
    """Count what is longer than `limit` and was cut, or dropped: None in `fitted`. Raises UserError where nothing is
    left."""
    dropped, longer = sum(kept is None for kept in fitted), sum(n > limit for n in lengths)
    if dropped == len(lengths):
        raise UserError(
            f"all {dropped} {what} are longer than {limit} tokens (the shortest has {min(lengths)}): raise {key}, "
            "or use a model with more positions"
        )
    for count, fate in ((longer - dropped, "cut"), (dropped, "dropped")):
        if count:
            log.warning(
                "%d of %d %s are longer than %d tokens (%s) and are %s", count, len(lengths), what, limit, key, fate
            )
