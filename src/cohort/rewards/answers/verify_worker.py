"""The worker process that judges untrusted answers: JSON requests on stdin, JSON replies on stdout.

It is started by its path with two arguments: the kind of judge ("math", "gym" or "trl") and the time limit in seconds.
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
"""Limit of the address space in bytes, so that an answer cannot use up the trainer's memory."""

DIGITS = 400
"""Digits to which numbers are computed."""

SURE_DIGITS = 350
"""Digits in which two numbers must agree to be equal."""

MOST_DIGITS = 20_000
"""Greater numbers are equal only if their formulas are."""

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
"""Exceptions that a task's verifier raises for an answer in an unexpected format."""

GRIDS_ARE_TUPLES = ("arc_agi", "rearc")
"""Tasks whose verifiers expect tuples, which JSON turns into lists."""


def math_judge() -> Callable[..., Any]:
    """Judge [candidate, reference] as whole LaTeX expressions; of two lists, all pairs must be equal."""
    from math_verify import grader, parse, verify

    # Its own comparison takes numbers that differ by less than 1e-15 for equal, such as 1/2004! and 1/2006!.
    grader.sympy_numeric_eq = numerically_equal
    simplified = grader.sympy_symbolic_eq
    grader.sympy_symbolic_eq = lambda a, b: not decided(a, b) and simplified(a, b)

    def judge(candidate: str | list[str], reference: str | list[str]) -> bool:
        if isinstance(candidate, str) or isinstance(reference, str):
            # In a box, the whole answer is read; without, math-verify takes only a number out of `(1, 2)`. Its time
            # limits are off: they use SIGALRM, and sympy's simplification ignores them. _serve_in_a_child has one.
            gold, guess = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (reference, candidate))
            return bool(verify(gold, guess, timeout_seconds=None))
        return all(judge(*pair) for pair in zip(candidate, reference, strict=True))

    judge("x^2 + 2x + 1 + \\frac{1}{2}", "(x + 1)^2 + 0.5")
    judge("(1, 2]", "\\sqrt{2}")
    return judge


def numerically_equal(a: Any, b: Any, *_: int) -> bool:
    """Whether two sympy expressions are equal: numbers in their first 350 digits, formulas in those of each term.

    If only one of two numbers is written as a decimal, it may round the other, to six digits.
    """
    from sympy import Float, Integral, Limit, MatrixBase, Product, Rational, Sum, UnevaluatedExpr

    if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
        return a.shape == b.shape and all(map(numerically_equal, a.flat(), b.flat()))
    rounded = a.has(Float) != b.has(Float)
    a, b = (x.xreplace({number: Rational(str(number)) for number in x.atoms(Float)}) for x in (a, b))
    a, b = (x.replace(UnevaluatedExpr, lambda inner: inner) if x.has(UnevaluatedExpr) else x for x in (a, b))
    if a == b:
        return True
    if a.free_symbols or b.free_symbols:
        terms, others = (x.expand().evalf(DIGITS).as_coefficients_dict() for x in (a, b))
        return all(_agree(terms[term], others[term], SURE_DIGITS) for term in {*terms, *others})
    if rounded:
        return not (_terminates(a) and _terminates(b)) and _agree(a.evalf(30), b.evalf(30), 6)
    if a.has(Integral, Limit, Product, Sum) or b.has(Integral, Limit, Product, Sum):
        return _agree(a.evalf(15), b.evalf(15), 12)
    size = max(_size(a), _size(b))
    digits = size + DIGITS
    return size <= MOST_DIGITS and _agree(a.evalf(digits), b.evalf(digits), size + SURE_DIGITS)


def decided(a: Any, b: Any) -> bool:
    """Whether digits have decided on two numbers: there are no variables, and neither may be a zero with an error."""
    from sympy import Expr, Integral, Limit, Product, Sum

    if not isinstance(a, Expr) or not isinstance(b, Expr) or a.free_symbols or b.free_symbols:
        return False
    if a.has(Integral, Limit, Product, Sum) or b.has(Integral, Limit, Product, Sum):
        return False
    return all(bool(abs(x.evalf(DIGITS)) * 10**SURE_DIGITS > 1) for x in (a, b))


def _agree(x: Any, y: Any, digits: int) -> bool:
    return bool(x.is_finite and y.is_finite and abs(x - y) * 10**digits <= max(abs(x), abs(y)))


def _size(number: Any) -> int:
    """The number of digits before the decimal point."""
    from sympy import Float

    value = abs(number.evalf(15))
    if not isinstance(value, Float):
        return 0 if value == 0 else MOST_DIGITS + 1
    _, _, exponent, bits = value._mpf_
    return max(0, int((exponent + bits) * 0.30103))


def _terminates(number: Any) -> bool:
    """Whether a number has an end as a decimal."""
    if not number.is_rational or _size(number) > DIGITS:
        return False
    value = number.doit()
    return bool(value.is_Rational and 10**DIGITS % value.q == 0)


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


def trl_judge() -> Callable[..., Any]:
    """Judge [completion, solution] as trl.rewards does: (score or None, the solution as read, the answer as read)."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # Only a box, or LaTeX that is said to be the answer, is read.
    latex = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )

    def judge(completion: str, solution: str) -> tuple[float | None, str, str]:
        gold = parse(solution, parsing_timeout=None)
        if not gold:
            return None, "[unparseable]", "[skipped]"
        answer = parse(completion, extraction_config=[latex], extraction_mode="first_match", parsing_timeout=None)
        score = float(verify(gold, answer, timeout_seconds=None))
        return score, _shown(gold), _shown(answer) if answer else "[unparseable]"

    return judge


def _shown(value: Any) -> str:
    """The text of what was read, for the record."""
    try:
        return str(value)[:1000]
    except ValueError:  # Python prints no integer of thousands of digits
        return "[too long to print]"


JUDGES = {"math": math_judge, "gym": gym_judge, "trl": trl_judge}


def main(kind: str, seconds: float) -> None:
    # A script's folder is first in the module path; it is removed, because its files are not top-level modules.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    # The pipes move to other descriptors than 0 and 1, so that no library can read a request or print into a reply.
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
    # Libraries are imported once, in the parent: after a judgement that was stopped, a fork is enough to go on.
    while not _serve_in_a_child(requests, judge, reply, seconds):
        reply([])


def _serve_in_a_child(
    requests: BinaryIO, judge: Callable[..., Any], reply: Callable[[Any], None], seconds: float
) -> bool:
    """Answer requests in a forked process. True: no more requests; False: a request ended the process.

    A reply is a list with one answer; the caller sends an empty list for a request that ended the process.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return status == 0
    for line in requests:
        # Without a handler, the signal ends the process in any library's code.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        answer = judge(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply([answer])
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
