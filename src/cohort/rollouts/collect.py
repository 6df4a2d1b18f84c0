"""Prompts to groups: sampled, rewarded, credited. Where a prompt enters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from cohort.config import SampledConfig
from cohort.data.templates import as_completion
from cohort.formulas.credit import zero_spread
from cohort.rewards.compose import Rewards, Scores
from cohort.rollouts.engine import Engine
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion, Group, Row, Steps, TrainerState


@dataclass(frozen=True)
class Prompt:
    """A row and its prompt's token ids, int64 [p]."""

    row: Row
    ids: Tensor


def training_sampling(config: SampledConfig, eos_ids: list[int]) -> Sampling:
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


@dataclass
class Round:
    """Rewarded groups of one call of the engine, what reward functions logged of them, and the seconds it took."""

    groups: list[Group]
    logged: dict[str, float]
    seconds: dict[str, float]


def collect(
    prompts: list[Prompt],
    engine: Engine,
    rewards: Rewards,
    config: SampledConfig,
    sampling: Sampling,
    seed: int,
    state: TrainerState,
) -> Round:
    """Sample and reward one group for each prompt."""
    G = config.num_generations
    started = time.perf_counter()
    with record_function("generate"):
        sampled = engine.generate([prompt.ids for prompt in prompts], G, sampling, seed)
    generated = time.perf_counter()
    with record_function("reward"):
        scores = score(prompts, sampled, rewards, state)
    rewarded = time.perf_counter()
    steps = [Steps(*pair) for pair in zip(scores.step_rewards, scores.step_ends, strict=True)]
    groups = [
        Group(
            prompt_ids=prompt.ids,
            completions=found,
            row=prompt.row,
            rewards=scores.totals[p * G : (p + 1) * G],
            components={name: values[p * G : (p + 1) * G] for name, values in scores.counted.items()},
            steps=steps[p * G : (p + 1) * G] or None,
        )
        for p, (prompt, found) in enumerate(zip(prompts, sampled, strict=True))
    ]
    seconds = {
        "seconds/generate": generated - started,
        "seconds/reward": rewarded - generated,
        **{f"seconds/reward/{name}": spent for name, spent in scores.seconds.items()},
    }
    return Round(groups, scores.metrics, seconds)


def says_nothing(group: Group) -> bool:
    """Whether all that is rewarded in the group, completions or steps, has one reward."""
    values = group.rewards if group.steps is None else [r for steps in group.steps for r in steps.rewards]
    return min(values) == max(values)


def statistics(rounds: list[Round]) -> dict[str, float]:
    """What to log of all groups that were sampled for a batch; what functions logged is averaged over groups."""
    groups = [group for found in rounds for group in found.groups]
    metrics = {
        **reward_statistics(torch.tensor([group.rewards for group in groups])),
        **component_statistics(groups),
        **length_statistics([completion for group in groups for completion in group.completions]),
        **step_statistics([steps for group in groups for steps in group.steps or ()]),
    }
    for name in {name: None for found in rounds for name in found.logged}:
        having = [found for found in rounds if name in found.logged]
        total = sum(found.logged[name] * len(found.groups) for found in having)
        metrics[name] = total / sum(len(found.groups) for found in having)
    for found in rounds:
        for name, seconds in found.seconds.items():
            metrics[name] = metrics.get(name, 0.0) + seconds
    return metrics


def reward_statistics(rewards_PG: Tensor) -> dict[str, float]:
    """The mean, and the spread within groups where a group has several completions."""
    found = {"reward": float(rewards_PG.mean())}
    if rewards_PG.shape[1] > 1:
        found["reward_std"] = float(rewards_PG.std(1).mean())
        found["frac_reward_zero_std"] = float(zero_spread(rewards_PG).float().mean())
    return found


def component_statistics(groups: list[Group]) -> dict[str, float]:
    """rewards/{name}/mean and /std over the rows a function applies to."""
    found = {}
    for name in groups[0].components:
        applied = torch.tensor([x for group in groups for x in group.components[name] if x is not None])
        if len(applied):
            found[f"rewards/{name}/mean"] = float(applied.mean())
            found[f"rewards/{name}/std"] = float(applied.std()) if len(applied) > 1 else 0.0
    return found


def step_statistics(steps: list[Steps]) -> dict[str, float]:
    """steps/reward: mean over steps; steps/count: steps of a completion. Nothing where steps are not rewarded."""
    if not steps:
        return {}
    rewards = [reward for found in steps for reward in found.rewards]
    return {"steps/reward": sum(rewards) / len(rewards), "steps/count": len(rewards) / len(steps)}


def length_statistics(completions: list[Completion]) -> dict[str, float]:
    lengths = torch.tensor([float(len(completion.ids)) for completion in completions])
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": sum(c.truncated for c in completions) / len(completions),
    }
