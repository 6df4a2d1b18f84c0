"""Inspection of data before training: each row as the token ids that a method trains on, and what becomes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cohort.config import DPOConfig, SFTConfig, TrainingConfig
from cohort.data.configured import demonstration_limit, fit_demonstration, fit_prompt, prompt_limit
from cohort.data.preferences import encode_pair, fit_pair
from cohort.data.templates import Demonstration, encode_demonstrations, encode_prompt
from cohort.types import Row, UserError

Fate = Literal["kept", "cut", "dropped"]
NOTHING_LEFT = ", which leaves no token to train on"


@dataclass(frozen=True)
class Part:
    """A stretch of a row's tokens: Part("completion", [7, 2], "trained on")"""

    name: str
    tokens: Sequence[int]
    use: str
    labels: Mapping[int, float] = field(default_factory=dict)
    """Index in `tokens` -> the label that its score learns."""


@dataclass(frozen=True)
class InspectedRow:
    """A row, or one demonstration of a conversation, as the trainer sees it."""

    row: Row
    parts: list[Part]
    lengths: dict[str, int]
    """Lengths in tokens before anything is cut: {"prompt": 5, "completion": 2, "together": 7}"""
    fate: Fate = "kept"
    reason: str = ""
    """Why it is cut or dropped."""
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """ "train.jsonl row 3 (519)", with the length that a limit is compared with."""
        return f"{self.row.source} ({list(self.lengths.values())[-1]})"


@dataclass
class Inspection:
    """The rows of one data set as the trainer sees them."""

    what: str
    """prompts, demonstrations, pairs or texts."""
    read: int
    """Rows of the data set."""
    rows: list[InspectedRow]
    notes: list[str] = field(default_factory=list)

    def fates(self) -> dict[tuple[Fate, str], list[InspectedRow]]:
        """(fate, reason) -> its rows; cut before dropped."""
        grouped: dict[tuple[Fate, str], list[InspectedRow]] = {}
        for fate in ("cut", "dropped"):
            for row in self.rows:
                if row.fate == fate:
                    grouped.setdefault((row.fate, row.reason), []).append(row)
        return grouped

    @property
    def trained(self) -> int:
        return sum(row.fate != "dropped" for row in self.rows)


def inspect_prompts(
    rows: list[Row], tokenizer: Any, config: TrainingConfig, context: int, sampled: str = "sampled"
) -> Inspection:
    """Prompts whose completions are sampled. `context`: the model's positions. Raises UserError for a row that cannot
    be encoded."""
    limit = prompt_limit(context, config)
    why = _over(limit, "max_prompt_length" if limit == config.max_prompt_length else "the model's positions")
    inspected = []
    for row in rows:
        ids = encode_prompt(tokenizer, row, config.chat_template_kwargs)
        fitted = fit_prompt(ids, limit, config.truncation)
        parts = [Part("prompt", ids if fitted is None else fitted, "no loss")]
        if fitted is not None:
            lost = ids[: len(ids) - len(fitted)]
            parts = [*([Part("prompt", lost, "cut off")] if lost else []), *parts, Part(sampled, (), "")]
        fate = _fate(fitted is None, fitted != ids)
        inspected.append(InspectedRow(row, parts, {"prompt": len(ids)}, fate, why if fate != "kept" else ""))
    return Inspection("prompts", len(rows), inspected)


def inspect_demonstrations(rows: list[Row], tokenizer: Any, config: TrainingConfig, context: int) -> Inspection:
    """Demonstrations, of a conversation with every answer that is trained on. Raises UserError for a row without a
    completion."""
    limit, key = demonstration_limit(context, config)
    last_only = isinstance(config, SFTConfig) and config.mask_history
    inspected, several = [], 0
    for row in rows:
        if row.completion is None:
            raise UserError(f"{row.source}: no completion; it has the columns {', '.join(row.columns) or 'prompt'}")
        encoded = encode_demonstrations(tokenizer, row, config.chat_template_kwargs, last_only)
        several += len(encoded) > 1
        for each in encoded:
            fitted = fit_demonstration(each, limit, config.truncation)
            lengths = {"prompt": len(each.prompt), "completion": len(each.completion)}
            lengths["together"] = sum(lengths.values())
            fate = _fate(fitted is None, fitted != each)
            why = _over(limit, key)
            if fate == "dropped" and config.truncation == "cut":
                why += NOTHING_LEFT
            parts = [Part("prompt", each.prompt, "no loss"), *_completion("completion", each, fitted)]
            inspected.append(InspectedRow(row, parts, lengths, fate, why if fate != "kept" else ""))
    notes = []
    if several:
        notes.append(
            f"{several} conversations are several demonstrations each: the template renders an answer differently once "
            "others follow (it leaves out earlier thoughts)"
        )
    return Inspection("demonstrations", len(rows), inspected, notes)


def inspect_pairs(rows: list[Row], tokenizer: Any, config: TrainingConfig, context: int) -> Inspection:
    """Preference pairs. Raises UserError for a row whose sides cannot be encoded."""
    limit, key = demonstration_limit(context, config)
    inspected = []
    for row in rows:
        both = encode_pair(tokenizer, row, config)
        fitted = fit_pair(both, limit, config.truncation)
        alike = fitted is not None and fitted[0] == fitted[1]
        fate, why = _fate(fitted is None or alike, fitted != both), _over(limit, key)
        if alike and both[0] == both[1]:
            why = "chosen and rejected are the same tokens"
        elif fitted is None and config.truncation == "cut":
            why += NOTHING_LEFT
        elif alike:
            why = f"chosen and rejected are the same tokens within {limit} ({key})"
        kept = fitted if fate != "dropped" and fitted is not None else [None, None]
        parts = [Part("prompt", both[0].prompt, "no loss")]
        for name, side, left in zip(("chosen", "rejected"), both, kept, strict=True):
            parts += _completion(name, side, left)
        lengths = {name: len(side.completion) for name, side in zip(("chosen", "rejected"), both, strict=True)}
        longer = max(len(side.prompt) + len(side.completion) for side in both)
        lengths = {"prompt": len(both[0].prompt), **lengths, "longer side": longer}
        inspected.append(InspectedRow(row, parts, lengths, fate, why if fate != "kept" else ""))
    return Inspection("pairs", len(rows), inspected)


def inspection_of(source: str, config: TrainingConfig) -> Callable[[list[Row], Any, Any, int], Inspection]:
    """The inspection of rows for a method with this source."""
    if source == "demonstrations":
        return inspect_demonstrations
    if source == "preferences" and isinstance(config, DPOConfig) and config.dpo_pairs is None:
        return inspect_pairs
    told = {
        "start": "completions, sampled from the starting model{}; those that are right are trained on",
        "preferences": "completions, sampled from the starting model{}; a pair of them is trained on",
    }.get(source, "completion, sampled{}, trained on")
    sampled = told.format(f", up to {config.max_completion_length} tokens")
    return lambda rows, tokenizer, config, context: inspect_prompts(rows, tokenizer, config, context, sampled)


def _completion(name: str, whole: Demonstration, fitted: Demonstration | None) -> list[Part]:
    """The runs of a completion's tokens that are trained on, that are not, and that are cut off."""
    if fitted is None:
        return [Part(name, whole.completion, "no loss")]
    trained, parts, start = fitted.trained or [True] * len(fitted.completion), list[Part](), 0
    for i in range(1, len(trained) + 1):
        if i == len(trained) or trained[i] != trained[start]:
            parts.append(Part(name, fitted.completion[start:i], "trained on" if trained[start] else "no loss"))
            start = i
    lost = whole.completion[len(fitted.completion) :]
    return [*parts, *([Part(name, lost, "cut off")] if lost else [])]


def _fate(dropped: bool, changed: bool) -> Fate:
    return "dropped" if dropped else "cut" if changed else "kept"


def _over(limit: int, key: str) -> str:
    return f"over {limit} tokens ({key})"


def repeated_rows(rows: Sequence[Row], held_out: Sequence[Row]) -> list[tuple[Row, Row, bool]]:
    """(held-out row, the first training row with its prompt, whether a training row is the same in all columns)."""
    prompts: dict[str, Row] = {}
    for row in rows:
        prompts.setdefault(prompt_key(row), row)
    whole = {row_key(row) for row in rows}
    return [(row, prompts[prompt_key(row)], row_key(row) in whole) for row in held_out if prompt_key(row) in prompts]


def prompt_key(row: Row) -> str:
    """What two rows share that ask the same: the prompt; of a text without one, the text."""
    return json.dumps(row.prompt or row.completion, sort_keys=True, default=str)


def row_key(row: Row) -> str:
    """What two rows share that are the same in all columns."""
    return json.dumps([row.prompt, row.completion, row.columns], sort_keys=True, default=str)


def counted(values: Sequence[float]) -> str:
    """Labels in words: "3 of 0, 5 of 1"; of many different ones "20 from 0.1 to 0.9, mean 0.5"."""
    counts = Counter(values)
    if len(counts) <= 6:
        return ", ".join(f"{count} of {value:g}" for value, count in sorted(counts.items()))
    return f"{len(values)} from {min(values):g} to {max(values):g}, mean {sum(values) / len(values):.3g}"


def quantiles(lengths: list[int]) -> dict[str, float]:
    """Statistics of at least one length. "95%" is the smallest length that 95% of the rows do not exceed."""
    ordered = sorted(lengths)
    n = len(ordered)
    return {
        "rows": n,
        "min": ordered[0],
        "median": ordered[(n - 1) // 2],
        "mean": sum(ordered) / n,
        "95%": ordered[-(-95 * n // 100) - 1],
        "max": ordered[-1],
    }


def histogram(lengths: list[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """(first length, last length, rows) of at most `bins` equally wide bins from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // bins)
    counts = Counter((length - low) // width for length in lengths)
    return [
        (low + i * width, min(high, low + (i + 1) * width - 1), counts[i]) for i in range((high - low) // width + 1)
    ]
