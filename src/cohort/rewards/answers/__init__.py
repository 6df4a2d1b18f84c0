"""Extracting the final answer from a completion and comparing it with a reference.

Enter at `extract`: `extract_answer` finds an answer, `reference_from` and `accepted` read the reference of a row.
`thoughts` leaves out what a model thought before its answer, `boxes` finds `\\boxed{…}`, and `solutions` finds the
answer of a solution in prose. `compare.equal` compares two answers: numbers with `quantities` (units), `numerals`
(Chinese numerals) and `notations` (powers of ten, bases), formulas by their tokens (`latex`, `environments`) and with
`verify`, which asks math-verify in a separate process (`verify_worker`) with a time limit.

For other rooms: those functions, `quantities.quantity`, and `verify.Worker` and `verify.read_reply` for other
code that needs a worker process.
"""
