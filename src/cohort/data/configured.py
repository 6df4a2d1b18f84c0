"""The rows that a configuration names, and fitting of prompts and demonstrations to length limits."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from typing import Any

from cohort.config import RunConfig, TrainingConfig
from cohort.data.chat_templates import require_known
from cohort.data.dataset_info import entry_rows, find_entries
from cohort.data.rows import check_source, load_rows
from cohort.data.templates import Demonstration
from cohort.types import Row, UserError

log = logging.getLogger("cohort")


def check_names(run: RunConfig, config: TrainingConfig) -> None:
    """Raise UserError for missing data sets and unknown templates that are needed, before anything slow is imported."""
    for names in (run.dataset, run.eval_dataset):
        if names is not None and run.dataset_dir is not None:
            find_entries(names, run.dataset_dir)
        elif names is not None:
            check_source(names)
    if config.replace_chat_template and config.template is None:
        raise UserError("replace_chat_template needs the name of a template: set template")
    if config.template is not None:
        require_known(config.template, config.replace_chat_template)


def configured_rows(run: RunConfig, seed: int, by_prompt: bool = False) -> tuple[list[Row], list[Row] | None]:
    """(training rows, held-out rows or None). `by_prompt`: val_size holds out whole prompts with all their rows. Raises
    UserError for invalid data."""
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
    return [
        row
        for entry in entries
        for row in entry_rows(entry, max_samples=limit, system_prompt=run.system_prompt, seed=seed)
    ]


def _split(rows: list[Row], size: float, seed: int, by_prompt: bool) -> tuple[list[Row], list[Row]]:
    units = list(dict.fromkeys(_unit(i, row, by_prompt) for i, row in enumerate(rows)))
    held_out = round(len(units) * size) if size < 1 else int(size)
    if not 0 < held_out < len(units):
        what = "prompts" if by_prompt else "rows"
        raise UserError(f"val_size {size:g} of {len(units)} {what} holds out {held_out}: both parts need at least one")
    indices = set(random.Random(seed).sample(range(len(units)), held_out))
    chosen = {unit for i, unit in enumerate(units) if i in indices}
    is_held_out = [_unit(i, row, by_prompt) in chosen for i, row in enumerate(rows)]
    return (
        [row for row, out in zip(rows, is_held_out, strict=True) if not out],
        [row for row, out in zip(rows, is_held_out, strict=True) if out],
    )


def _unit(i: int, row: Row, by_prompt: bool) -> str | int:
    """The key of rows that are held out together: the row's index, or its prompt."""
    return json.dumps(row.prompt, sort_keys=True, default=str) if by_prompt else i


def require_held_out(rows: Sequence[Row], config: TrainingConfig) -> None:
    """Raise UserError where evaluations are asked for, other than by default, and there are no held-out rows."""
    by_default = type(config).model_fields["eval_strategy"].default
    by_steps = config.eval_strategy not in ("no", by_default)
    asked = f"eval_strategy: {config.eval_strategy}" if by_steps else "eval_on_start"
    if not rows and (by_steps or config.eval_on_start):
        raise UserError(
            f"{asked}, and there is no held-out data: give eval_dataset (or val_size: 0.1 in a "
            "configuration file), or leave the evaluation out"
        )


def prompt_limit(context_length: int, config: TrainingConfig) -> int:
    """Most tokens of a prompt: at least one position remains for the completion."""
    return min(context_length - 1, config.max_prompt_length or context_length)


def demonstration_limit(context_length: int, config: TrainingConfig) -> tuple[int, str]:
    """Most tokens of prompt and completion together, and what sets the limit."""
    length = config.max_sequence_length
    return (length, "max_length") if length and length < context_length else (context_length, "the model's positions")


def fit_prompt(ids: list[int], limit: int, truncation: str) -> list[int] | None:
    """A prompt within `limit` tokens: unchanged, cut to its last tokens, or None if it is dropped."""
    if len(ids) <= limit:
        return ids
    return ids[-limit:] if truncation == "cut" else None


def fit_demonstration(demonstration: Demonstration, limit: int, truncation: str) -> Demonstration | None:
    """The demonstration within `limit` tokens: unchanged, the completion's end cut off, or None if it is dropped, by
    `truncation` or because no token to train on would remain."""
    prompt, completion, trained = demonstration
    if trained is not None and not any(trained):
        return None
    if len(prompt) + len(completion) <= limit:
        return demonstration
    kept = max(0, limit - len(prompt))
    if truncation != "cut" or not kept or (trained is not None and not any(trained[:kept])):
        return None
    return Demonstration(prompt, completion[:kept], None if trained is None else trained[:kept])


def log_fitted(
    lengths: list[int], fitted: Sequence[Any], limit: int, key: str, what: str, rows: Sequence[Row] = ()
) -> None:
    """Log how many of the sequences were longer than `limit` and were cut, or dropped (None in `fitted`). `rows`: those
    that the sequences are of. Raises UserError if none is left."""
    dropped, longer = sum(ids is None for ids in fitted), sum(n > limit for n in lengths)
    if dropped == len(lengths):
        raise UserError(
            f"all {dropped} {what} are longer than {limit} tokens (the shortest has {min(lengths)}): raise {key}, "
            "or use a model with more positions"
        )
    at_fault = [row.number for row, n, ids in zip(rows, lengths, fitted, strict=bool(rows)) if n > limit or ids is None]
    extra = {"warning": "too long", "rows": sorted({number for number in at_fault if number is not None})}
    for count, fate in ((longer - dropped, "cut"), (dropped, "dropped")):
        if count:
            message = "%d of %d %s are longer than %d tokens (%s) and are %s"
            log.warning(message, count, len(lengths), what, limit, key, fate, extra=extra)


def log_equal(sides: Sequence[tuple[Any, Any]], sources: Sequence[str]) -> list[bool]:
    """For each pair whether its sides are the same tokens, as the model gets them: such a pair teaches nothing. Logs
    how many there are. Raises UserError if all are."""
    alike = [chosen == rejected for chosen, rejected in sides]
    if not any(alike):
        return alike
    first = ", ".join([source for source, same in zip(sources, alike, strict=True) if same][:3])
    why = "alike, after the length limit or because the template leaves out what differs"
    if all(alike):
        raise UserError(
            f"chosen and rejected of all {len(alike)} pairs ({first}, ...) are {why}: nothing can be learnt"
        )
    log.warning(
        "chosen and rejected of %d of %d pairs (%s) are %s: nothing is learnt from these, they are left out",
        sum(alike),
        len(alike),
        first,
        why,
    )
    return alike
