"""Records as other tools and data sets write them, in the columns that rows have.

Each form is recognised by its own columns; a record without them is unchanged. docs/data.md lists them.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from typing import Any

from cohort.types import Message, UserError

log = logging.getLogger("cohort")

Record = dict[str, Any]

PROMPTS = ("prompt", "question", "problem", "query", "instruction", "messages", "conversations")
"""Columns that can hold the prompt; the first that a record has is used."""

STEP_END = "ки"
"""What Math-Shepherd puts at the end of each step (arXiv 2312.08935)."""
FIRST_STEP = "Step 1:"
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_SIDES = (("response_A", "response_B"), ("response_a", "response_b"), ("response_0", "response_1"))
_WINNERS = ("preference", "preferred", "winner", "better_response_id")


def _two_responses(record: Record, where: str) -> Record:
    """response_A, response_B and which of them is preferred -> chosen and rejected."""
    names = next((pair for pair in _SIDES if pair[0] in record and pair[1] in record), None)
    winner = next((name for name in _WINNERS if record.get(name) is not None), None)
    if names is None or winner is None:
        return record
    index = _index(record[winner], names)
    if index is None:
        raise UserError(
            f"{where}: `{winner}` is {str(record[winner])[:40]!r}, and neither {names[0]} nor {names[1]}: leave rows "
            "without a winner out"
        )
    chosen, rejected = names[index], names[1 - index]
    if record.get("chosen") is not None and record["chosen"] != record[chosen]:
        raise UserError(
            f"{where}: `chosen` is mapped to {rejected}, and `{winner}` says {chosen}: leave the mapping of chosen and "
            "rejected out; they are read from that column"
        )
    return {**record, "chosen": record[chosen], "rejected": record[rejected]}


def _index(value: Any, names: tuple[str, str]) -> int | None:
    """0 or 1 for the side that a value names: "A", "response_b", or the number in the columns' names."""
    endings = [name[-1].lower() for name in names]
    said = str(value).strip().lower()
    said = said.rpartition("_")[2] if "_" in said else said.rpartition(" ")[2]
    return endings.index(said) if said in endings and not isinstance(value, bool) else None


def _human_assistant(record: Record, where: str) -> Record:
    """HH-RLHF's chosen and rejected, each one text with turns after "Human:" and "Assistant:" -> messages."""
    sides = [record.get(name) for name in ("chosen", "rejected")]
    if not all(isinstance(side, str) and _TURN.match(side) for side in sides):
        return record
    return {**record, "chosen": _turns(str(sides[0])), "rejected": _turns(str(sides[1]))}


def _turns(text: str) -> list[Message]:
    _, *parts = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": said.strip()} for speaker, said in pairs]


def _common_prompt(record: Record, where: str) -> Record:
    """Chosen and rejected that are whole conversations -> their common turns as the prompt."""
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if not isinstance(chosen, list) or not isinstance(rejected, list) or isinstance(record.get("prompt"), list):
        return record
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared:
        return record
    return {**record, "prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _common_beginning(record: Record, where: str) -> Record:
    """Chosen and rejected texts without a prompt -> their common words as the prompt. A record with other texts, one of
    which may be the prompt under another name, is unchanged."""
    chosen, rejected = record.get("chosen"), record.get("rejected")
    others = (value for name, value in record.items() if name not in ("chosen", "rejected", "tools"))
    if not isinstance(chosen, str) or not isinstance(rejected, str) or any(isinstance(v, str | list) for v in others):
        return record
    end = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    end = min(len(chosen), len(rejected)) if end is None else end
    while end and _WORD.match(chosen, end - 1) and (_WORD.match(chosen, end) or _WORD.match(rejected, end)):
        end -= 1
    end -= chosen[:end].endswith(" ")  # as most tokenizers have it, a space belongs to the word behind it
    return {**record, "prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _token_ids(record: Record, where: str) -> Record:
    """A pair as token ids -> a pair without text. Without prompt_ids, the ids are of prompt and completion together, as
    reward models take them."""
    if any(name in record for name in _LEGACY_IDS):
        warnings.warn(
            "`chosen_input_ids` and `rejected_input_ids` are old names, which TRL says will not be supported in v1: "
            "rename these columns to `chosen_ids` and `rejected_ids`",
            FutureWarning,
            stacklevel=2,
        )
        record = {_LEGACY_IDS.get(name, name): value for name, value in record.items()}
    ids = {name: record[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids") if record.get(name) is not None}
    if "chosen_ids" not in ids or "rejected_ids" not in ids:
        return record
    for name, value in ids.items():
        if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
            raise UserError(f"{where}: `{name}` holds {str(value)[:60]!r}: it must be a list of token ids")
    return {**record, "prompt": record.get("prompt") or "", "chosen": "", "rejected": ""}


def _tokenised(record: Record, where: str) -> Record:
    """A row as token ids alone -> a row without text."""
    ids = record.get("input_ids")
    if ids is None or any(record.get(name) is not None for name in (*PROMPTS, "completion", "text")):
        return record
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise UserError(f"{where}: `input_ids` holds {str(ids)[:60]!r}: it must be a list of token ids")
    return {**record, "prompt": "", "completion": ""}


TOKEN_IDS, TWO_TEXTS = "preferences, token ids", "preferences, two texts"
_LEGACY_IDS = {"chosen_input_ids": "chosen_ids", "rejected_input_ids": "rejected_ids"}
_WORD = re.compile(r"\w", re.ASCII)


def _first_error(record: Record, where: str) -> Record:
    """ProcessBench (arXiv 2412.06559): steps, and the index of the first wrong one or -1 -> a label for each step up to
    it; what follows is not labelled and is left out."""
    steps, first = record.get("steps"), record.get("label")
    if not isinstance(steps, list) or "problem" not in record or not isinstance(first, int) or isinstance(first, bool):
        return record
    if not steps or not -1 <= first < len(steps) or not all(isinstance(step, str) for step in steps):
        raise UserError(f"{where}: `label` is {first} and there are {len(steps)} `steps`: the first wrong one, or -1")
    kept = len(steps) if first < 0 else first + 1
    labels = [1.0] * kept if first < 0 else [*[1.0] * first, 0.0]
    others = {key: value for key, value in record.items() if key not in ("steps", "label")}
    return {**others, "completions": steps[:kept], "labels": labels}


def _rated_steps(record: Record, where: str) -> Record:
    """PRM800K (arXiv 2305.20050): the chosen completion of each step and its rating -> steps with a label, up to the
    first that is rated -1. A neutral rating counts as right, as in the paper's evaluation."""
    question, label = record.get("question"), record.get("label")
    if not isinstance(question, dict) or not isinstance(label, dict) or not isinstance(label.get("steps"), list):
        return record
    texts: list[str] = []
    labels: list[float] = []
    for step in label["steps"]:
        if labels and not labels[-1]:
            break
        chosen = _chosen(step)
        if chosen is None:
            break
        texts.append(str(chosen.get("text")))
        labels.append(float((chosen.get("rating") or 0) >= 0))
    if not texts or not isinstance(question.get("problem"), str):
        raise UserError(f"{where}: looks like PRM800K's form, and has no problem or no rated step: leave the row out")
    others = {key: value for key, value in record.items() if key not in ("question", "label")}
    return {**others, "prompt": question["problem"], "completions": texts, "labels": labels}


def _chosen(step: Any) -> dict[str, Any] | None:
    """The completion with which a solution went on; of a step where none was chosen, a wrong one."""
    if not isinstance(step, dict):
        return None
    rated = [each for each in step.get("completions") or [] if isinstance(each, dict)]
    index = step.get("chosen_completion")
    if isinstance(index, int) and 0 <= index < len(rated):
        return rated[index]
    human = step.get("human_completion")
    if isinstance(human, dict):
        return human
    return next((each for each in rated if each.get("rating") == -1), None)


def _marked_steps(record: Record, where: str) -> Record:
    """Math-Shepherd: the input with a mark after each step, and the same text with + or - for the marks."""
    text, marked = record.get("input"), record.get("label")
    if not isinstance(text, str) or not isinstance(marked, str) or "prompt" in record:
        return record
    if STEP_END not in text or FIRST_STEP not in text:
        return record
    steps, labels, at = [], [], 0
    *pieces, _ = text.split(STEP_END)
    for piece in pieces:
        at += len(piece)
        if marked[at - len(piece) : at] != piece or marked[at : at + 1] not in ("+", "-"):
            raise UserError(f"{where}: `label` is not `input` with + or - in place of each {STEP_END!r}")
        steps.append(piece.strip())
        labels.append(float(marked[at] == "+"))
        at += 1
    question, start, first = steps[0].partition(FIRST_STEP)
    others = {key: value for key, value in record.items() if key not in ("input", "label")}
    completions = [f"{start}{first}", *steps[1:]]
    return {**others, "prompt": question.strip(), "completions": completions, "labels": labels}


def _text(record: Record, where: str) -> Record:
    """A text alone -> a completion without a prompt."""
    if not isinstance(record.get("text"), str) or any(name in record for name in (*PROMPTS, "completion")):
        return record
    return {**record, "prompt": "", "completion": record["text"]}


FORMS: dict[str, Callable[[Record, str], Record]] = {
    "two responses": _two_responses,
    "HH-RLHF": _human_assistant,
    TOKEN_IDS: _token_ids,
    "preferences, two conversations": _common_prompt,
    TWO_TEXTS: _common_beginning,
    "ProcessBench": _first_error,
    "PRM800K": _rated_steps,
    "Math-Shepherd": _marked_steps,
    "token ids": _tokenised,
    "text alone": _text,
}
"""Name of a form -> the function from its records to records with the columns of a row. Each leaves a record of another
form as it is."""


def in_columns(record: Record, where: str) -> Record:
    """The record with the columns of a row. Raises UserError for one of a known form that does not hold what it has."""
    for form in FORMS.values():
        record = form(record, where)
    return record


def tell_form(record: Record, where: str) -> None:
    """Log where a first record is read in a way that its columns do not say."""
    if form_of(record, where) == TWO_TEXTS:
        log.info("%s: no prompt: the words that chosen and rejected begin with are the prompt, in all rows", where)


def form_of(record: Record, where: str) -> str:
    """The form that a record is read as, by its columns; of FORMS, the first that changes it."""
    changed = next((name for name, form in FORMS.items() if form(record, where) is not record), None)
    if changed is not None:
        return changed
    name = next((name for name in PROMPTS if record.get(name) is not None), "")
    has = {key for key, value in record.items() if value is not None}
    if name in ("messages", "conversations"):
        turns = record[name]
        first = turns[0] if isinstance(turns, list) and turns else None
        return "ShareGPT" if isinstance(first, dict) and "from" in first else "conversations"
    for form, columns in _BY_COLUMNS.items():
        if columns <= has:
            return form
    truth = record.get("reward_model")
    return "verl" if isinstance(truth, dict) and "ground_truth" in truth else "prompts"


_BY_COLUMNS = {
    "preferences": {"chosen", "rejected"},
    "labelled steps": {"labels"},
    "labelled": {"completion", "label"},
    "demonstrations": {"completion"},
}
