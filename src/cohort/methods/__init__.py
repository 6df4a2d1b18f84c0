"""Methods: where completions come from, how rewards become advantages (credit), how advantages become gradients
(coefficient).

Enter at `table.py`, which holds the rows; `method.py` says what a row is; `coefficients.py` and `credits.py` hold the
functions that rows name; `named.py` finds a row by its name or in a file. What a row of your own needs
(docs/new-method.md) can be imported from this package.
"""

from cohort.methods.coefficients import Objective, TokenBatch, imitate, whole_groups
from cohort.methods.credits import Advantages, to_tokens
from cohort.methods.method import Method, Paper
from cohort.methods.table import METHODS, pair_mean, sequence_mean

__all__ = [
    "METHODS",
    "Advantages",
    "Method",
    "Objective",
    "Paper",
    "TokenBatch",
    "imitate",
    "pair_mean",
    "sequence_mean",
    "to_tokens",
    "whole_groups",
]
