"""Multiple choice: any labels, from the configuration or from each row's `choices` or `options`.

    reward_funcs:
      - {name: choice, labels: [agree, disagree, unsure]}

    python examples/rewards/multiple_choice.py

shows what `choice` gives. The reference may be a label, a choice's text, or its number from 0, as in MMLU.
"""

from __future__ import annotations

from cohort.rewards import choice, reward

CHOICES = ["Oslo", "Rome", "Paris", "Bern"]
COMPLETIONS = [
    "France's capital is Paris.\n<answer>C</answer>",
    "<answer>C. Paris</answer>",
    "The answer is (C).",
    "<answer>A, B, C or D</answer>",
    "<answer>B</answer>",
]

if __name__ == "__main__":
    scores = choice(COMPLETIONS, answer=[2] * 5, choices=[CHOICES] * 5)
    stricter = reward("choice", strict=True)(COMPLETIONS, answer=[2] * 5, choices=[CHOICES] * 5)
    for completion, score, strict in zip(COMPLETIONS, scores, stricter, strict=True):
        print(score, strict, repr(completion))
    opinion = reward("choice", labels=["agree", "disagree", "unsure"])
    print(opinion(["<answer>I disagree.</answer>", "<answer>agree, disagree</answer>"], answer=["disagree"] * 2))
