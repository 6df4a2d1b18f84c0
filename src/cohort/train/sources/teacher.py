"""The teacher's log-probabilities of sampled completions, which on-policy distillation learns from."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch

from cohort.config import DistillConfig
from cohort.data.order import prompt_seeds
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.rollouts.collect import length_statistics, training_sampling
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.engine import Engine, sampled_together
from cohort.train.sources.attachments import logprobs_under
from cohort.types import Group, UserError


def attach_teacher(groups: list[Group], teacher: Policy, config: DistillConfig) -> dict[str, float]:
    """Set the teacher's log-probabilities of every completion, in the place of a reference's. Returns the mean over
    tokens of log pi - log teacher, an estimate of KL(policy || teacher), and the time it took."""
    started = time.perf_counter()
    for group, logprobs in zip(groups, logprobs_under(lambda: nullcontext(teacher), groups, config), strict=True):
        group.reference_logprobs = logprobs
    gaps = [c.logprobs - t for g in groups for c, t in zip(g.completions, g.reference_logprobs or [], strict=True)]
    return {"teacher/kl": float(torch.cat(gaps).mean()), "seconds/teacher": time.perf_counter() - started}


def require_room(prompts: list[Prompt], teacher: Policy, config: DistillConfig) -> None:
    """Raise UserError where the teacher has fewer positions than a prompt and its completion can need."""
    needed = max(len(prompt.ids) for prompt in prompts) + config.max_completion_length
    if needed > teacher.context_length:
        raise UserError(
            f"prompts and completions may have {needed:,} tokens, and the teacher {teacher.name!r} has "
            f"{teacher.context_length:,} positions: lower max_completion_length or max_prompt_length"
        )


def held_out_metrics(
    prompts: list[Prompt], policy: Policy, engine: Engine, teacher: Policy, config: DistillConfig
) -> dict[str, float]:
    """KL(policy || teacher) on completions of held-out prompts, sampled as in training."""
    started = time.perf_counter()
    sampling, n = training_sampling(config, policy.eos_ids), config.num_generations_eval
    own, seeds = ranks.share(prompts), ranks.share(prompt_seeds(config.seed, len(prompts)))
    with sampled_together(engine):
        sampled = engine.generate([prompt.ids for prompt in own], n, sampling, seeds).completions if own else []
    sampled = ranks.merged(sampled, "evaluating")
    groups = [Group(prompt.ids, row, prompt.row) for prompt, row in zip(prompts, sampled, strict=True)]
    kl = attach_teacher(groups, teacher, config)["teacher/kl"]
    lengths = length_statistics([completion for row in sampled for completion in row])
    return {
        "eval/teacher_kl": kl,
        "eval/samples": float(len(prompts)),
        **{f"eval/{name}": value for name, value in lengths.items()},
        "seconds/eval": time.perf_counter() - started,
    }
