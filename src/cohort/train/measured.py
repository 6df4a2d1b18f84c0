"""What an update says of single completions, beside its gradient and its metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor

from cohort.policy import ranks
from cohort.policy.packed.pack import Part
from cohort.rollouts.collect import has_equal_rewards
from cohort.types import Group, Measured

log = logging.getLogger("cohort")

Place = tuple[int, int]
"""(group, completion)."""


def choose(groups: Sequence[Group], count: int) -> None:
    """Have `count` groups measured by their first update: the first ones whose rewards differ, then the first
    others."""
    # Sorting is stable.
    for group in sorted(groups, key=has_equal_rewards)[:count]:
        group.measured = Measured()


def is_chosen(groups: Sequence[Group], place: Place) -> bool:
    return groups[place[0]].measured is not None


def note(groups: Sequence[Group], logprobs: Mapping[Place, Tensor], own_entropies: Mapping[Place, Tensor]) -> None:
    """Note what the update computed of chosen groups: `logprobs` of all ranks, the entropies of this one."""
    if all(group.measured is None for group in groups):
        return
    chosen = {place: values.float().cpu() for place, values in own_entropies.items() if is_chosen(groups, place)}
    for (g, r), entropies in ranks.joined(chosen, "the update's entropies").items():
        measured = groups[g].measured
        assert measured is not None
        measured.entropies[r], measured.logprobs[r] = entropies, logprobs[g, r]


def note_after(groups: Sequence[Group], logprobs: Mapping[Place, Tensor]) -> None:
    """Note log-probabilities of chosen groups after the update."""
    for (g, r), values in logprobs.items():
        measured = groups[g].measured
        if measured is not None:
            measured.logprobs_after[r] = values


def left_out(groups: Sequence[Group], parts: Sequence[Part]) -> list[Tensor]:
    """The sampler's log-probabilities of the completions that are in no part. Their negatives are an unbiased estimate
    of the tokens' entropies, by their own sampling: with it, `entropy` is a mean over all sampled tokens, also of
    groups without spread."""
    passed = {(part.group, r) for part in parts for r in part.rows}
    every = ((g, r, c) for g, group in enumerate(groups) for r, c in enumerate(group.completions))
    return [completion.logprobs for g, r, completion in every if (g, r) not in passed]


FAR = 1e3
"""A token's KL estimate above which there is a warning: k3 has it where the policy gives a token e^-7 of the
reference's probability."""


def tell_far(metrics: dict[str, float], told: bool) -> bool:
    """Warn, once in a run, where a token's KL estimate is above FAR; returns whether it was told."""
    if told or metrics.get("kl/max", 0.0) <= FAR:
        return told
    log.warning(
        "the KL estimate of a token is %.3g (kl/max): the policy is far from the reference there, and that "
        "token's gradient outweighs all others. Lower learning_rate, or take kl_estimator: k2, which grows "
        "with the square of the log-ratio and not with its exponential",
        metrics["kl/max"],
    )
    return True
