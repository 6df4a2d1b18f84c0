"""The rewards of `trl.rewards`, with TRL 1.16's names, arguments and scores.

Untrusted text is read by math-verify in a separate process with a time limit, and by linear searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cohort.rewards.answers.verify import Worker
from cohort.rewards.functions.text import content
from cohort.types import Text, UserError

_judge = Worker("trl", seconds=5.0)

INCOMPLETE = "[incomplete reasoning]"

LogExtra = Callable[[str, "list[Any]"], None]


@lru_cache(maxsize=4096)
def _judged(text: str, solution: str) -> tuple[float | None, str, str]:
    """(score, the solution as read, the answer as read)."""
    reply = _judge.ask([text, solution])
    return (0.0, "[time limit]", "[time limit]") if reply is None else tuple(reply)


def _of_row(text: str, solution: Any) -> tuple[float | None, str, str]:
    return (None, "[unparseable]", "[skipped]") if solution is None else _judged(text, str(solution))


def _logged(
    rows: list[tuple[float | None, str, str]], solution: Sequence[Any], log_extra: LogExtra | None
) -> list[float | None]:
    if log_extra is not None:
        log_extra("solution", list(solution))
        log_extra("gold_parsed", [gold for _, gold, _ in rows])
        log_extra("answer_parsed", [answer for _, _, answer in rows])
    return [score for score, _, _ in rows]


def accuracy_reward(
    completions: Sequence[Text], solution: Sequence[Any], log_extra: LogExtra | None = None, **_: Any
) -> list[float | None]:
    r"""1 if math-verify finds the completion's answer equal to the row's solution, else 0; None where it cannot read
    the solution. An answer is LaTeX in a box or after words such as "the final answer is"; `accuracy` takes others."""
    rows = zip(completions, solution, strict=True)
    return _logged([_of_row(content(completion), right) for completion, right in rows], solution, log_extra)


def reasoning_accuracy_reward(
    completions: Sequence[Text],
    solution: Sequence[Any],
    reasoning_delimiters: Sequence[str] | None = None,
    log_extra: LogExtra | None = None,
    **_: Any,
) -> list[float | None]:
    """As `accuracy_reward`, of what follows the last delimiter, `</think>` by default; 0 without one. Of several
    delimiters the first that occurs counts."""
    marks = ["</think>"] if reasoning_delimiters is None else list(reasoning_delimiters)
    if not all(marks):
        raise UserError(f"reasoning_delimiters is {marks}: a delimiter is a text of at least one character")
    rows: list[tuple[float | None, str, str]] = []
    for completion, right in zip(completions, solution, strict=True):
        text = content(completion)
        mark = next((mark for mark in marks if mark in text), None)
        rows.append((0.0, INCOMPLETE, INCOMPLETE) if mark is None else _of_row(text.rpartition(mark)[2], right))
    return _logged(rows, solution, log_extra)


def think_format_reward(completions: Sequence[Text], **_: Any) -> list[float]:
    """1 if the completion starts with `<think>`, has no other one, and closes it, else 0."""
    rest = [content(completion).partition("<think>") for completion in completions]
    return [float(not before and "</think>" in after and "<think>" not in after) for before, _, after in rest]


@dataclass(frozen=True)
class _CosineScaled:
    # A class, so that the reward can be pickled for other processes.
    max_len: int
    min_value_wrong: float
    max_value_wrong: float
    min_value_correct: float
    max_value_correct: float

    __name__ = "cosine_scaled_reward"

    def __call__(
        self, completions: Sequence[Text], solution: Sequence[Any], completion_ids: Sequence[Any], **_: Any
    ) -> list[float | None]:
        right = accuracy_reward(completions, solution)
        lengths = [len(ids) for ids in completion_ids]
        return [None if each is None else self._score(each > 0, n) for each, n in zip(right, lengths, strict=True)]

    def _score(self, right: bool, length: int) -> float:
        short, long = (
            (self.max_value_correct, self.min_value_correct) if right else (self.min_value_wrong, self.max_value_wrong)
        )
        return long + 0.5 * (short - long) * (1.0 + math.cos(min(length / self.max_len, 1.0) * math.pi))


def get_cosine_scaled_reward(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
) -> Callable[..., Any]:
    """A reward of `accuracy_reward` by the number of tokens, a half cosine up to `max_len`: right answers from
    `max_value_correct` when short to `min_value_correct`, wrong ones from `min_value_wrong` to `max_value_wrong`
    (Demystifying Long Chain-of-Thought Reasoning, arXiv 2502.03373, appendix C.1)."""
    if max_len < 1:
        raise UserError(f"max_len is {max_len}: give the number of tokens, at least 1")
    return _CosineScaled(max_len, min_value_wrong, max_value_wrong, min_value_correct, max_value_correct)


@dataclass(frozen=True)
class _RepetitionPenalty:
    ngram_size: int
    max_penalty: float

    __name__ = "repetition_penalty_reward"

    def __call__(self, completion_ids: Sequence[Any], **_: Any) -> list[float]:
        return [self._score(list(ids)) for ids in completion_ids]

    def _score(self, ids: list[int]) -> float:
        total = len(ids) - self.ngram_size + 1
        if total < 2:
            return 0.0
        ngrams = set(zip(*(ids[i : i + total] for i in range(self.ngram_size)), strict=True))
        repeated = 1 - len(ngrams) / total
        return repeated * self.max_penalty if repeated else 0.0


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> Callable[..., Any]:
    """A reward of `max_penalty` times the fraction of a completion's n-grams of tokens that are repeats (arXiv
    2502.03373, appendix C.2)."""
    if max_penalty > 0:
        raise UserError(f"max_penalty is {max_penalty}: a penalty is at most 0")
    if ngram_size < 1:
        raise UserError(f"ngram_size is {ngram_size}: give the number of tokens, at least 1")
    return _RepetitionPenalty(ngram_size, max_penalty)


@dataclass(frozen=True)
class _SoftOverlong:
    max_completion_len: int
    soft_punish_cache: int

    __name__ = "soft_overlong_punishment_reward"

    def __call__(self, completion_ids: Sequence[Any], **_: Any) -> list[float]:
        return [self._score(len(ids)) for ids in completion_ids]

    def _score(self, length: int) -> float:
        free = self.max_completion_len - self.soft_punish_cache
        if length > self.max_completion_len:
            return -1.0
        return (free - length) / self.soft_punish_cache if length > free else 0.0


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> Callable[..., Any]:
    """DAPO's penalty (arXiv 2503.14476, Eq. 13) of n tokens: 0 up to max_completion_len - soft_punish_cache, then down
    to -1 at max_completion_len, and -1 beyond."""
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise UserError(
            f"soft_punish_cache is {soft_punish_cache}; it must lie between 0 and max_completion_len, "
            f"{max_completion_len}"
        )
    return _SoftOverlong(max_completion_len, soft_punish_cache)
