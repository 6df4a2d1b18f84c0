"""Mathematics: the answer is compared as mathematics, and must stand in a tag or a box.

    reward_funcs:
      - {name: accuracy, strict: true}
      - {name: format, strict: true}

    python examples/rewards/maths.py

shows what they give to four completions. The reference may be in `answer`, `solution`, `output`, … of each row.
"""

from __future__ import annotations

from cohort.rewards import Rewards

PROMPT = "A jug holds 3 litres. Half of it is poured out. How many litres are left?"
REFERENCE = "3 / 2 = 1.5\n#### 1.5 litres"
COMPLETIONS = [
    "<think>Half of 3 is 3/2.</think><answer>\\frac{3}{2}</answer>",
    "<think>3 litres are 3000 ml.</think><answer>1500 ml</answer>",
    "Half of 3 litres is \\boxed{1.5}",
    "<think>3 - 2 = 1</think><answer>1</answer>",
]

if __name__ == "__main__":
    rewards = Rewards([{"name": "accuracy", "strict": True}, {"name": "format", "strict": True}])
    n = len(COMPLETIONS)
    scores = rewards([PROMPT] * n, COMPLETIONS, [[0]] * n, {"answer": [REFERENCE] * n})
    for completion, total, *parts in zip(COMPLETIONS, scores.totals, *scores.components.values(), strict=True):
        print(total, dict(zip(rewards.names, parts, strict=True)), completion)
