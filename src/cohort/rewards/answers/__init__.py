"""Extracting the final answer from a completion and comparing it with a reference.

Enter at `extract`: `extract_answer` finds an answer, `reference_from` and `accepted` read the reference of a row,
`equal` compares two answers. It compares numbers with `quantities` (units) and `numerals` (Chinese numerals), and
formulas with `verify`, which asks math-verify in a separate process (`verify_worker`) with a time limit.

For other rooms: those four functions, `quantities.quantity`, and `verify.Worker` and `verify.read_reply` for other
code that needs a worker process.
"""
