"""The answers on which several samples of a problem vote: what the reward reads, equal where the reward says so.

Your own function votes if it has the attribute `mine.vote = lambda text, row: answer`, where `text` is a completion's
text, `row` maps column names to the values of its row, and the answer is a text, or None for no vote. Equal texts are
one candidate.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cohort.rewards.answers import extract
from cohort.rewards.answers.quantities import quantity
from cohort.rewards.component import Component
from cohort.rewards.functions import choice, facts, matched
from cohort.rewards.functions.table import record_of
from cohort.rewards.functions.tags import LETTERS

log = logging.getLogger("cohort")

MOST_FORMULAS = 100
"""Pairs of a problem's answers that are compared as formulas; each takes milliseconds, and at most two seconds. Others
are one candidate only if their spelling is."""

Read = Callable[[str, Mapping[str, Any]], str | None]
Equal = Callable[[str, str], bool]


@dataclass(frozen=True)
class Ballot:
    """How the completions of a reward vote."""

    read: Read
    """(the completion's text, the columns of its row) -> the answer that the reward reads; None: no vote."""
    spelling: Callable[[str], str] = str
    """Answer -> a key; answers of one key are equal."""
    equal: Equal | None = None
    """Whether two answers of different keys are equal; None: they are not."""


def ballot_of(part: Component) -> Ballot | None:
    """How the reward's completions vote; None where it reads no answer: programs, formats, other functions."""
    own: Read | None = getattr(part.function, "vote", None)
    record = record_of(part.function)
    if own is not None:
        return Ballot(own)
    return None if record is None or record.name not in BALLOTS else BALLOTS[record.name](part)


def _of_accuracy(part: Component) -> Ballot:
    # With `strict`, a number alone is no answer.
    strict = not _pays(part, "3", "3")
    read = extract.marked_answer if strict else extract.extract_answer
    return Ballot(lambda text, row: read(text) or None, lambda answer: extract.plain(answer).casefold(), extract.equal)


def _of_correctness(part: Component) -> Ballot:
    def read(text: str, row: Mapping[str, Any]) -> str | None:
        answer = matched.tagged_answer(text, row).found or ""
        return None if answer in ("", "...") else answer

    return Ballot(read, equal=lambda a, b: _pays(part, f"<answer>{a}</answer>", b))


def _of_choice(part: Component) -> Ballot:
    given = part.spec.get("labels") if isinstance(part.spec, Mapping) else None
    labels = None if given is None else tuple(given)

    def read(text: str, row: Mapping[str, Any]) -> str | None:
        columns = {name: [row[name]] for name in choice.CHOICE_COLUMNS if row.get(name) is not None}
        return _paid(part, text, tuple(choice._choices(columns, 0, labels)), columns)

    return Ballot(read)


def _of_boxed_letter(part: Component) -> Ballot:
    return Ballot(lambda text, row: _paid(part, text, tuple(LETTERS), {}))


def _of_facts(part: Component) -> Ballot:
    strict = not _pays(part, "3", "3")
    return Ballot(lambda text, row: facts.normalised(facts._answer(text, strict)) or None)


def _of_gym(part: Component) -> Ballot:
    def read(text: str, row: Mapping[str, Any]) -> str | None:
        return None if row.get("reasoning_gym_entry") is None else matched.gym_answer(text, row).found or None

    # A task's verifier compares with its own entry only, so that spelling decides.
    return Ballot(read, lambda answer: " ".join(answer.casefold().split()))


BALLOTS: dict[str, Callable[[Component], Ballot]] = {
    "accuracy": _of_accuracy,
    "correctness": _of_correctness,
    "choice": _of_choice,
    "choice_accuracy": _of_boxed_letter,
    "facts": _of_facts,
    "reasoning_gym": _of_gym,
}
"""The built-in rewards with answers to vote on."""


def _pays(part: Component, text: str, reference: str) -> bool:
    (score,) = part.function(completions=[text], answer=[reference])
    return score is not None and score > 0


def _paid(part: Component, text: str, labels: Sequence[str], columns: Mapping[str, list[Any]]) -> str | None:
    """The label for which the reward pays the text."""
    repeated = {name: values * len(labels) for name, values in columns.items()}
    scores = part.function(completions=[text] * len(labels), answer=list(labels), **repeated)
    return next((label for label, score in zip(labels, scores, strict=True) if score is not None and score > 0), None)


def candidates(
    ballot: Ballot, texts: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]
) -> list[list[str | None]]:
    """[problems][samples], the candidate that each sample votes for; None: no vote."""
    votes, cut = [], 0
    for of_problem, row in zip(texts, rows, strict=True):
        read = {text: ballot.read(text, row) for text in dict.fromkeys(of_problem)}
        grouped, whole = group([read[text] for text in of_problem], ballot)
        votes.append(grouped)
        cut += not whole
    if cut:
        log.warning(
            "maj@k: %d of %d problems have more than %d pairs of formulas to compare; of these problems, answers that "
            "few samples gave are compared by spelling only",
            cut,
            len(votes),
            MOST_FORMULAS,
        )
    return votes


def group(answers: Sequence[str | None], ballot: Ballot) -> tuple[list[str | None], bool]:
    """The candidate of each answer, and whether all pairs were compared that had to be.

    Answers that are equal to a third one are one candidate, so that no order of the samples matters.
    """
    spellings = {answer: ballot.spelling(answer) for answer in set(answers) if answer is not None}
    counts = Counter(spellings[answer] for answer in answers if answer is not None)
    # The most frequent first: where not all are compared, these are.
    keys = sorted(counts, key=lambda key: (-counts[key], key))
    candidate = {key: key for key in keys}
    whole = True
    if ballot.equal is not None:
        spelled: dict[str, str] = {}
        for answer in sorted(spellings):
            spelled.setdefault(spellings[answer], answer)
        whole = _unite(keys, spelled, candidate, ballot.equal)
    return [None if answer is None else candidate[spellings[answer]] for answer in answers], whole


def _unite(keys: list[str], spelled: dict[str, str], candidate: dict[str, str], equal: Equal) -> bool:
    """Give equal keys one candidate, in place. Returns False if MOST_FORMULAS left pairs out."""
    is_number = {key: quantity(extract.plain(spelled[key])) is not None for key in keys}
    formulas = 0
    for i, key in enumerate(keys):
        for other in keys[:i]:
            if candidate[key] == candidate[other]:
                continue
            formulas += not (is_number[key] and is_number[other])
            if (formulas <= MOST_FORMULAS or (is_number[key] and is_number[other])) and equal(
                spelled[key], spelled[other]
            ):
                old, new = candidate[key], candidate[other]
                candidate.update({each: new for each, its in candidate.items() if its == old})
    return formulas <= MOST_FORMULAS
