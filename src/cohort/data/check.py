"""A check of a file's rows: the invalid ones, the forms they are read as, and the methods that can use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cohort.data.dataset_info import Entry, entry_row, guess_format
from cohort.data.files import parsed
from cohort.data.forms import TOKEN_IDS, form_of
from cohort.data.inspect import prompt_key, row_key
from cohort.data.labels import label, probability, sides, step_labels
from cohort.data.messages import in_turns
from cohort.data.preferences import has_pair, pair, token_ids
from cohort.data.rows import make_row, mapped_record, read_records
from cohort.types import Row, Text, UserError

TEXT_ALONE = "text alone"


@dataclass
class Use:
    """Rows that a method can use, and why it cannot use others."""

    rows: int = 0
    reasons: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> places of the rows."""


@dataclass
class FileCheck:
    """The result of `cohort data check`."""

    rows: int = 0
    problems: list[str] = field(default_factory=list)
    """A message for each invalid row."""
    columns: Counter[str] = field(default_factory=Counter)
    """Column name -> rows that have it."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Number of plain and of conversational prompts."""
    forms: Counter[str] = field(default_factory=Counter)
    """Form of docs/data.md -> rows that are read as it."""
    repeated: int = 0
    """Rows that repeat an earlier prompt."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """What is odd about a row, though it is valid -> places."""
    labels: dict[str, list[float]] = field(default_factory=dict)
    """`label` and `labels` -> all values."""
    uses: dict[str, Use] = field(default_factory=dict)
    """What rows can be used for -> how many can."""


Needed = Callable[[Row], str | None]
"""A row -> why it cannot be used, or None. May raise UserError."""


def check_file(
    path: Path,
    columns: dict[str, str],
    needs: tuple[str, ...] = (),
    entry: Entry | None = None,
    uses: Mapping[str, Needed] | None = None,
) -> FileCheck:
    """Check every row of a file; an invalid row does not stop the check. `needs`: columns that a row must have, or
    `completion`. `uses`: more to use rows for than METHODS. Raises UserError if the file cannot be read."""
    every = {**METHODS, **(uses or {})}
    result, prompts, whole = FileCheck(uses={name: Use() for name in every}), set[str](), set[str]()
    for where, record in _every_record(path):
        result.rows += 1
        try:
            if isinstance(record, UserError):
                raise record
            row = make_row(record, where, columns, None) if entry is None else entry_row(record, entry, where)
            form = _form(record, where, columns, entry)
            _check_row(row, needs, form)
        except UserError as error:
            result.problems.append(str(error))
            continue
        result.forms[form] += 1
        result.columns.update(name for name, value in row.columns.items() if value is not None)
        result.columns.update(["completion"] * (row.completion is not None))
        result.kinds["plain" if isinstance(row.prompt, str) else "conversational"] += 1
        prompt, everything = prompt_key(row), row_key(row)
        result.repeated += prompt in prompts
        odd = [*_odd(row), *(["rows that repeat an earlier row"] if everything in whole else [])]
        for what in odd:
            result.places.setdefault(what, []).append(where)
        prompts.add(prompt)
        whole.add(everything)
        _count_labels(row, result)
        for name, needed in every.items():
            _use(result.uses[name], row, needed)
    return result


def _form(record: Any, where: str, columns: dict[str, str], entry: Entry | None) -> str:
    if entry is None:
        return form_of(mapped_record(record, where, columns), where)
    return f"{entry.formatting or guess_format(record)} of LLaMA-Factory{', ranked' * entry.ranking}"


def _check_row(row: Row, needs: tuple[str, ...], form: str) -> None:
    texts = [row.prompt] if isinstance(row.prompt, str) else [str(message["content"]) for message in row.prompt]
    if form not in (TEXT_ALONE, "token ids", TOKEN_IDS) and not any(text.strip() for text in texts):
        raise UserError(f"{row.source}: the prompt is empty")
    for name in needs:
        value = row.completion if name == "completion" else row.columns.get(name)
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{row.source}: no {name}; it has {', '.join(row.columns) or 'a prompt only'}")


def _odd(row: Row) -> list[str]:
    """What a row has that can be read, and is likely a mistake."""
    texts = {"completion": row.completion, "chosen": row.columns.get("chosen"), "rejected": row.columns.get("rejected")}
    odd = [f"rows with an empty {name}" for name, text in texts.items() if text is not None and _is_empty(text)]
    if has_pair(row) and _alike(row):
        odd.append("rows whose chosen and rejected are the same")
    return odd


def _is_empty(text: Text) -> bool:
    """Whether a completion has nothing to say: no text and no tool call."""
    if isinstance(text, str):
        return not text.strip()
    turns = [turn for turn in text if isinstance(turn, dict)] if isinstance(text, list) else []
    said = ("content", "value", "tool_calls")
    return bool(turns) and not any(str(turn.get(name) or "").strip() for turn in turns for name in said)


def _count_labels(row: Row, result: FileCheck) -> None:
    """Add the row's labels, where they are numbers. What is wrong with others is told of the methods that need them."""
    with suppress(UserError):
        if row.columns.get("label") is not None:
            result.labels.setdefault("label", []).append(label(row))
    with suppress(UserError):
        if row.columns.get("labels") is not None:
            result.labels.setdefault("labels", []).extend(step_labels(row))


def _use(use: Use, row: Row, needed: Needed) -> None:
    try:
        reason = needed(row)
    except UserError as error:
        reason = str(error).removeprefix(f"{row.source}: ")
    if reason is None:
        use.rows += 1
    else:
        use.reasons.setdefault(reason, []).append(row.source)


def _prompt(row: Row) -> str | None:
    return None if row.prompt else "no prompt"


def _completion(row: Row) -> str | None:
    if row.completion is None:
        near = next((name for name in ("output", "response", "answer", "solution") if row.columns.get(name)), None)
        return "no completion" + ("" if near is None else f" (columns: {{completion: {near}}} makes one)")
    mixed = isinstance(row.prompt, list) and isinstance(row.completion, str)
    return "the prompt is messages and the completion plain text" if mixed else None


ALIKE = "chosen and rejected are the same"


def _alike(row: Row) -> bool:
    """Whether the sides of a pair are the same, as texts or as token ids."""
    ids = token_ids(row)
    return row.columns["chosen"] == row.columns["rejected"] if ids is None else ids[1] == ids[2]


def _pair(row: Row) -> str | None:
    if not has_pair(row):
        return "no chosen and rejected"
    pair(in_turns(row))  # as a plain prompt is read where there is a chat template
    return ALIKE if _alike(row) else None if token_ids(row) else _prompt(row)


def _reward(row: Row) -> str | None:
    if has_pair(row):
        if _alike(row):
            return ALIKE
        sides(in_turns(row))
    elif row.completion is None or row.columns.get("label") is None:
        return "no pair, and no completion with a label"
    else:
        probability(label(row), row, "label")
    return None


def _steps(row: Row) -> str | None:
    if row.columns.get("labels") is None:
        return "no labels of steps"
    labels, listed = step_labels(row), row.columns.get("completions")
    if row.completion is not None:
        return None
    if not isinstance(listed, list):
        return "no completion, and no completions with its steps"
    return None if len(labels) == len(listed) else f"{len(labels)} labels for {len(listed)} steps"


METHODS: dict[str, Needed] = {
    "sft": _completion,
    "dpo": _pair,
    "reward_model": _reward,
    "process_reward_model": _steps,
    "grpo with a reward that needs no answer": _prompt,
}
"""What rows can be used for -> what a row must have."""


def _every_record(path: Path) -> Iterator[tuple[str, Any]]:
    """(location, record) of each line. A line that is not valid JSON gives a UserError as its record, so that the later
    lines are checked too."""
    if path.suffix != ".jsonl":
        yield from read_records(str(path))
        return
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                if "\ufffd" in line:
                    raise UserError(f"{where}: not UTF-8 text")
                yield where, parsed(line, where)
            except UserError as error:
                yield where, error
