"""Short facts: the answer is any of several accepted names, however it is spelt.

    reward_funcs: facts

    python examples/rewards/facts_with_aliases.py

shows what it gives. Names come from the reference (a text, a list, TriviaQA's or SQuAD's form) and from the columns
`aliases` and `possible_answers`.
"""

from __future__ import annotations

from cohort.rewards import facts

ROW = {"answer": "New York City", "aliases": ["NYC", "The Big Apple"]}
COMPLETIONS = [
    "<answer>new york city</answer>",
    "It is called so since 1921.\nThe answer is the Big Apple.",
    "<answer>N.Y.C.</answer>",
    "<answer>New York City, Boston, Chicago</answer>",
    "<answer>New York</answer>",
]

if __name__ == "__main__":
    columns = {name: [value] * len(COMPLETIONS) for name, value in ROW.items()}
    for completion, score in zip(COMPLETIONS, facts(COMPLETIONS, **columns), strict=True):
        print(score, repr(completion))
