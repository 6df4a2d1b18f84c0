"""How far an update moves the policy on its own batch."""

from __future__ import annotations

import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.formulas.divergence import k2
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part, micro_batches
from cohort.train.measured import note_after
from cohort.types import Group

MOST = 512
"""Tokens on which it is measured: one small forward pass, a second of a 135M model on two cores."""


def movement(policy: Policy, groups: list[Group], config: TrainingConfig) -> float | None:
    """Mean of (log pi - log pi_old)^2 / 2 over the batch's first completions, in nats a token: KL(pi_old, pi) to second
    order; below temperature 1, times temperature^2. None where no completion was on policy at its first update."""
    parts: list[Part] = []
    old: list[Tensor] = []
    left = MOST
    for g, group in enumerate(groups):
        left -= len(group.prompt_ids)
        rows = []
        for r, completion in enumerate(group.completions):
            left -= len(completion.ids)
            if (left < 0 and old) or group.old_logprobs is None:
                break
            rows.append(r)
            old.append(group.old_logprobs[r])
        if rows:
            parts.append(Part(g, group.prompt_ids, rows, [group.completions[r].ids for r in rows]))
    if not parts:
        return None
    logprobs = policy.logprobs(micro_batches(parts, config.token_budget), config.training_temperature)
    note_after(groups, logprobs)
    now = torch.cat([logprobs[part.group, r] for part in parts for r in part.rows])
    # Below temperature 1 a log-probability moves 1 / temperature times as far as the logits.
    return float(k2(now, torch.cat(old)).value_N.mean()) * min(1.0, config.training_temperature) ** 2
