"""Names of metrics in transformers and TRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALIASES = {
    "step_time": "seconds/step",
    "clip_ratio/low_min": "clip_ratio/low_mean",
    "clip_ratio/high_max": "clip_ratio/high_mean",
}
"""TRL's further names of metrics of a step -> ours. Its least and greatest are over processes; here all have one
value."""


def named_as_in_transformers(row: dict[str, Any], rewards: Mapping[str, str], held_out: str = "eval") -> dict[str, Any]:
    """A row of metrics.jsonl under the names that transformers' and TRL's callbacks know: eval/reward is eval_reward.
    `rewards`: a reward's name in held-out metrics -> its own name. `held_out`: how names of held-out metrics begin:
    eval/reward, or eval_easy/reward of the held-out rows named `easy`.

    Of methods with rewards `eval_loss` is the negative of eval_reward, so that less is better by either name.

    >>> named_as_in_transformers({"eval/reward": 0.5, "eval/accuracy": 0.25}, {"accuracy": "accuracy"})
    {'eval_reward': 0.5, 'eval_loss': -0.5, 'eval_rewards/accuracy/mean': 0.25}
    """
    named: dict[str, Any] = {}
    for name, value in row.items():
        prefix, rest = held_out, name.removeprefix(f"{held_out}/")  # the prefix itself may have a slash
        if rest == name:
            prefix, slash, rest = name.partition("/")
            if not slash or not prefix.startswith(f"{held_out}_"):
                named[name] = value
                continue
        score = next((reward for reward in rewards if rest == reward or rest.startswith(f"{reward}/")), None)
        if score is None:
            rest_named = {"reward/std": "reward_std", "loss/std": "loss_std"}.get(rest, rest)
        else:
            rest_named = f"rewards/{rewards[score]}/{rest[len(score) + 1 :] or 'mean'}"
        named[f"{prefix}_{rest_named}"] = value
        if rest == "reward":
            named[f"{prefix}_loss"] = -value
    return named | {name: row[ours] for name, ours in ALIASES.items() if ours in row}
