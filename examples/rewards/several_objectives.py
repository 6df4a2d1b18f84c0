"""Several objectives: a right answer above all, the form it is asked for, and no padding.

    reward_funcs:
      - accuracy
      - {name: format, strict: true}
      - {name: repetition, penalty: -0.5}
      - overlong
    reward_weights: [2.0, 0.5, 1.0, 1.0]

    python examples/rewards/several_objectives.py

shows the components and their weighted sum. What form can earn stays below what a right answer earns: otherwise a
policy learns the form and leaves it at that.
"""

from __future__ import annotations

from cohort.rewards import Rewards, reward

COMPLETIONS = [
    "<think>6 * 7 = 42</think><answer>42</answer>",
    "42",
    "<think>" + "six times seven is what? " * 20 + "</think><answer>42</answer>",
    "<think>6 + 7 = 13</think><answer>13</answer>",
]
TOKENS = [[0] * 20, [0], [0] * 95, [0] * 20]

if __name__ == "__main__":
    objectives = [
        "accuracy",
        {"name": "format", "strict": True},
        {"name": "repetition", "penalty": -0.5},
        reward("overlong", max_length=100, cache=20),
    ]
    rewards = Rewards(objectives, weights=[2.0, 0.5, 1.0, 1.0])
    scores = rewards(["6 * 7 = ?"] * 4, COMPLETIONS, TOKENS, {"answer": ["42"] * 4})
    for completion, total, *parts in zip(COMPLETIONS, scores.totals, *scores.components.values(), strict=True):
        print(total, dict(zip(rewards.names, parts, strict=True)), completion[:40])
