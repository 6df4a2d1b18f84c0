"""The process in which untrusted answers are judged: JSON requests in, JSON replies out, nothing else.

Run by path, with what to judge ("math" or "gym") and the seconds one judgement may take.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

MEMORY = 4 << 30
"""Bytes of address space: an answer may not eat the trainer's memory."""

MALFORMED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a task's verifier raises when an answer is not in the form it expects."""

GRIDS_ARE_TUPLES = ("arc_agi", "rearc")
"""Tasks whose verifiers compare with tuples, which JSON turned into lists."""


def math_judge() -> Callable[..., Any]:
    """Judge [candidate, reference] as whole LaTeX expressions."""
    from math_verify import parse, verify

    def judge(candidate: str, reference: str) -> bool:
        # Boxed, an answer is read whole: bare, math-verify picks the number out of `(1, 2)`. Its own time
        # limits use SIGALRM and sympy's simplification ignores them; the limits here stand outside.
        gold, guess = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (reference, candidate))
        return bool(verify(gold, guess, timeout_seconds=None))

    judge("x^2 + 2x + 1 + \\frac{1}{2}", "(x + 1)^2 + 0.5")
    judge("(1, 2]", "\\sqrt{2}")
    return judge


def gym_judge() -> Callable[..., Any]:
    """Score [task, answer, entry] with the reasoning-gym task's own verifier: a float, or an error's text."""
    from reasoning_gym import get_score_answer_fn

    verifiers: dict[str, Callable[..., float]] = {}

    def judge(task: str, answer: str, entry: dict[str, Any]) -> float | str:
        if task not in verifiers:
            try:
                verifiers[task] = get_score_answer_fn(task)
            except ValueError as error:
                return str(error)
        score = verifiers[task]
        entry = _tuples(entry) if task in GRIDS_ARE_TUPLES else entry
        try:
            return float(score(answer, entry))
        except MALFORMED:
            try:
                score(entry.get("answer"), entry)
            except MALFORMED as error:
                return f"it fails on the entry's own answer too: {type(error).__name__}: {error}"
            return 0.0

    return judge


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


JUDGES = {"math": math_judge, "gym": gym_judge}


def main(kind: str, seconds: float) -> None:
    # Run by path, this file's folder heads the module path, and its names are not top-level modules.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    # The pipes are moved away from 0 and 1, so that no library can read a request or print into a reply.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    logging.disable(logging.CRITICAL)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def reply(value: Any) -> None:
        replies.write(json.dumps(value).encode() + b"\n")
        replies.flush()

    try:
        judge = JUDGES[kind]()
    except ImportError as error:
        reply(str(error))
        return
    reply("ready")
    # Libraries are imported once: a judgement that does not end costs its time limit and a fork.
    while not _serve_in_a_child(requests, judge, reply, seconds):
        reply([])


def _serve_in_a_child(
    requests: BinaryIO, judge: Callable[..., Any], reply: Callable[[Any], None], seconds: float
) -> bool:
    """Answer requests in a forked process until they end, True; or until one of them ends the process, False.

    An answer is a list of one; an empty list stands for a request that ended the process.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return status == 0
    for line in requests:
        # No handler: the signal ends the process inside any library.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply([answer])
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
