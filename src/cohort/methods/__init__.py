"""Methods: where completions come from, how rewards become advantages (credit), how advantages become gradients
(coefficient).

Enter at `table.py`, which holds the rows. `coefficients.py` and `methods/credits.py` hold the functions that rows name.
What a row of one's own needs (docs/new-method.md) can be imported from here."""

from cohort.methods.coefficients import Terms, Tokens, imitate, whole_groups
from cohort.methods.credits import Advantages, to_tokens
from cohort.methods.table import METHODS, Method, pair_mean, sequence_mean

__all__ = [
    "METHODS",
    "Advantages",
    "Method",
    "Terms",
    "Tokens",
    "imitate",
    "pair_mean",
    "sequence_mean",
    "to_tokens",
    "whole_groups",
]
