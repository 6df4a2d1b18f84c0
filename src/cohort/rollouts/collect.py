"""Prompts to groups: sampled, rewarded, credited. Where a prompt enters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cohort.config import GRPOConfig
from cohort.data.templates import as_completion
from cohort.formulas.credit import zero_spread
from cohort.methods import Method
from cohort.rewards.compose import Rewards, Scores
from cohort.rollouts.engine import Engine
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion, Group, Row, TrainerState


@dataclass(frozen=True)
class Prompt:
    """A row and its prompt's token ids, int64 [p]."""

    row: Row
    ids: Tensor


def training_sampling(config: GRPOConfig, eos_ids: list[int]) -> Sampling:
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        max_tokens=config.max_completion_length,
        eos_ids=eos_ids,
        stop=config.stop,
    )


def score(prompts: list[Prompt], sampled: list[list[Completion]], rewards: Rewards, state: TrainerState) -> Scores:
    """Call the reward functions on every completion, prompts and columns repeated as TRL repeats them."""
    rows = [prompt.row for prompt, found in zip(prompts, sampled, strict=True) for _ in found]
    flat = [completion for found in sampled for completion in found]
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in rows] for name in names}
    return rewards(
        prompts=[row.prompt for row in rows],
        completions=[as_completion(row.prompt, c.text) for row, c in zip(rows, flat, strict=True)],
        completion_ids=[completion.ids.tolist() for completion in flat],
        columns=columns,
        trainer_state=state,
    )


def collect(
    prompts: list[Prompt],
    engine: Engine,
    rewards: Rewards,
    method: Method,
    config: GRPOConfig,
    sampling: Sampling,
    seed: int,
    state: TrainerState,
) -> tuple[list[Group], dict[str, float]]:
    """One batch of groups with advantages, and what to log of it."""
    G = config.num_generations
    started = time.perf_counter()
    sampled = engine.generate([prompt.ids for prompt in prompts], G, sampling, seed)
    generated = time.perf_counter()
    scores = score(prompts, sampled, rewards, state)
    rewarded = time.perf_counter()
    rewards_PG = torch.tensor(scores.totals).view(len(prompts), G)
    advantages_PG = method.credit(rewards_PG, config)
    groups = [
        Group(
            prompt_ids=prompt.ids,
            completions=found,
            row=prompt.row,
            rewards=scores.totals[p * G : (p + 1) * G],
            components={name: values[p * G : (p + 1) * G] for name, values in scores.counted.items()},
            advantages=[a.expand(len(c.ids)) for a, c in zip(advantages_PG[p], found, strict=True)],
        )
        for p, (prompt, found) in enumerate(zip(prompts, sampled, strict=True))
    ]
    metrics = {
        "reward": float(rewards_PG.mean()),
        "reward_std": float(rewards_PG.std(1).mean()),
        "frac_reward_zero_std": float(zero_spread(rewards_PG).float().mean()),
        **component_statistics(scores),
        **length_statistics([completion for found in sampled for completion in found]),
        "seconds/generate": generated - started,
        "seconds/reward": rewarded - generated,
        **{f"seconds/reward/{name}": seconds for name, seconds in scores.seconds.items()},
    }
    return groups, metrics


def component_statistics(scores: Scores) -> dict[str, float]:
    """rewards/{name}/mean and /std over the rows a function applies to, and the metrics functions logged."""
    found = dict(scores.metrics)
    for name, values in scores.components.items():
        applied = torch.tensor([value for value in values if value is not None])
        if len(applied):
            found[f"rewards/{name}/mean"] = float(applied.mean())
            found[f"rewards/{name}/std"] = float(applied.std()) if len(applied) > 1 else 0.0
    return found


def length_statistics(completions: list[Completion]) -> dict[str, float]:
    lengths = torch.tensor([float(len(completion.ids)) for completion in completions])
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": sum(c.truncated for c in completions) / len(completions),
    }
