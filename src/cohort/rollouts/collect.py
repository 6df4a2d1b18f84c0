"""From prompts to rewarded groups, and the metrics of a batch of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from cohort.config import SampledConfig
from cohort.data.templates import as_completion
from cohort.formulas.credit import zero_spread
from cohort.formulas.spread import all_equal
from cohort.policy import ranks
from cohort.policy.fast.activations import ActivationStore
from cohort.rewards.calls import RewardFunctionError
from cohort.rewards.compose import Rewards, Scores
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.engine import Engine, sampled_together
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion, Group, NotFinite, Row, Steps, TrainerState

ONE_AT_A_TIME = Lock()
"""Held while rewards are called: batches that are sampled ahead are rewarded beside training, and evaluations."""


def training_sampling(config: SampledConfig, eos_ids: list[int]) -> Sampling:
    """The configuration's settings for sampling in training."""
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
    rows = [prompt.row for prompt, completions in zip(prompts, sampled, strict=True) for _ in completions]
    flat = [completion for completions in sampled for completion in completions]
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in rows] for name in names}
    try:
        with ONE_AT_A_TIME:
            return rewards(
                prompts=[row.prompt for row in rows],
                completions=[as_completion(row.prompt, c.text) for row, c in zip(rows, flat, strict=True)],
                completion_ids=[completion.ids.tolist() for completion in flat],
                columns=columns,
                trainer_state=state,
            )
    except RewardFunctionError as error:
        error.row = None if error.place is None else rows[error.place].number
        raise


NO_ROW = Row("")


@dataclass
class Round:
    """Rewarded groups of one call of the engine, what reward functions logged of them, and the seconds it took."""

    groups: list[Group]
    logged: dict[str, float]
    seconds: dict[str, float]
    activations: ActivationStore | None = None
    """Of sampling, for the first update on all of these groups."""


def collect(
    prompts: list[Prompt],
    engine: Engine,
    rewards: Rewards | None,
    config: SampledConfig,
    sampling: Sampling,
    seeds: Sequence[int],
    state: TrainerState,
    keep_tokens: int = 0,
) -> Round:
    """Sample and reward one group for each prompt, each rank those of its share; where `rewards` is None, only sample.
    `seeds`: one of each prompt. `keep_tokens`: the most tokens whose activations are kept."""
    own = ranks.share(prompts)
    round_ = Round([], {}, {})
    with sampled_together(engine):
        if own:
            round_ = _collect(own, engine, rewards, config, sampling, ranks.share(seeds), state, keep_tokens)
    return round_ if ranks.count() == 1 else _of_all_ranks(round_, prompts)


def _of_all_ranks(own: Round, prompts: list[Prompt]) -> Round:
    """The rounds of all ranks as one, in the order of the prompts, with this rank's activations."""
    # Every rank has the rows: they are not sent.
    sent = [replace(group, row=NO_ROW) for group in own.groups]
    rounds = [Round(*each) for each in ranks.gather((sent, own.logged, own.seconds), "the sampled groups")]
    of_rank = [iter(each.groups) for each in rounds]
    groups = [replace(next(of_rank[i % len(rounds)]), row=prompt.row) for i, prompt in enumerate(prompts)]
    seconds = {name: max(each.seconds.get(name, 0.0) for each in rounds) for each in rounds for name in each.seconds}
    return Round(groups, mean_logged(rounds), seconds, own.activations)


def _collect(
    prompts: list[Prompt],
    engine: Engine,
    rewards: Rewards | None,
    config: SampledConfig,
    sampling: Sampling,
    seeds: Sequence[int],
    state: TrainerState,
    keep_tokens: int,
) -> Round:
    started = time.perf_counter()
    ids = [prompt.ids for prompt in prompts]
    G = config.num_generations
    if config.overlap_rewards:
        with _RewardThread(prompts, rewards, state) as thread:
            with record_function("generate"):
                generation = engine.generate(ids, G, sampling, seeds, on_group=thread.take, keep_tokens=keep_tokens)
            generated = time.perf_counter()
            round_ = thread.round()
    else:
        with record_function("generate"):
            generation = engine.generate(ids, G, sampling, seeds, keep_tokens=keep_tokens)
        generated = time.perf_counter()
        round_ = reward_groups(prompts, generation.completions, rewards, state)
    round_.activations = generation.activations
    round_.logged = {**(generation.logged or {}), **round_.logged}
    round_.seconds = {
        "seconds/generate": generated - started,
        "seconds/reward": time.perf_counter() - generated,
        **round_.seconds,
    }
    return round_


def reward_groups(
    prompts: list[Prompt], sampled: list[list[Completion]], rewards: Rewards | None, state: TrainerState
) -> Round:
    """Call the rewards on sampled completions; returns groups, what the functions logged, and the seconds of each.
    Raises NotFinite for completions whose log-probabilities are NaN or infinite."""
    _require_finite(sampled)
    if rewards is None:
        groups = [Group(p.ids, completions, p.row) for p, completions in zip(prompts, sampled, strict=True)]
        return Round(groups, {}, {})
    with record_function("reward"):
        scores = score(prompts, sampled, rewards, state)
    steps = [Steps(*pair) for pair in zip(scores.step_rewards, scores.step_ends, strict=True)]
    groups, end = [], 0
    for prompt, completions in zip(prompts, sampled, strict=True):
        of_prompt = slice(end, end := end + len(completions))
        groups.append(
            Group(
                prompt_ids=prompt.ids,
                completions=completions,
                row=prompt.row,
                rewards=scores.totals[of_prompt],
                components={name: values[of_prompt] for name, values in scores.counted.items()},
                steps=steps[of_prompt] or None,
                extra={name: values[of_prompt] for name, values in scores.extra.items()},
            )
        )
    return Round(groups, scores.metrics, {f"seconds/reward/{name}": spent for name, spent in scores.seconds.items()})


def _require_finite(sampled: list[list[Completion]]) -> None:
    every = [completion.logprobs for completions in sampled for completion in completions]
    if not every or bool(torch.cat(every).isfinite().all()):
        return
    for p, completions in enumerate(sampled):
        for c, completion in enumerate(completions):
            for t, logprob in enumerate(completion.logprobs.tolist()):
                if not math.isfinite(logprob):
                    raise NotFinite(
                        f"the engine gave token {t} of completion {c} of prompt {p} the log-probability {logprob}: of "
                        "each sampled token it must return the finite one, at the sampling temperature and before "
                        "top_k, top_p and min_p"
                    )


class _RewardThread:
    """Rewards finished groups in a thread beside the sampling of others; all that wait are rewarded in one call."""

    def __init__(self, prompts: list[Prompt], rewards: Rewards | None, state: TrainerState) -> None:
        self.prompts, self.rewards, self.state = prompts, rewards, state
        self.waiting: dict[int, list[Completion]] = {}
        self.lock = Lock()
        self.thread = ThreadPoolExecutor(1, "rewards")
        self.done: dict[int, Group] = {}
        self.rounds: list[Round] = []
        self.calls: list[Future[None]] = []

    def __enter__(self) -> _RewardThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def take(self, prompt: int, completions: list[Completion]) -> None:
        """Add a finished group. It is rewarded, with all others that wait, when the thread is free."""
        with self.lock:
            self.waiting[prompt] = completions
        self.calls.append(self.thread.submit(self._reward))

    def _reward(self) -> None:
        with self.lock:
            ended, self.waiting = self.waiting, {}
        if ended:
            round_ = reward_groups([self.prompts[i] for i in ended], list(ended.values()), self.rewards, self.state)
            self.rounds.append(round_)
            self.done |= zip(ended, round_.groups, strict=True)

    def round(self) -> Round:
        """All groups in the order of their prompts. Raises the error of a reward function."""
        for call in self.calls:
            call.result()
        return Round(
            [self.done[i] for i in range(len(self.prompts))], mean_logged(self.rounds), total_seconds(self.rounds)
        )


def has_equal_rewards(group: Group) -> bool:
    """Whether all rewards of the group, of completions or of steps, are equal up to rounding: its advantages are 0."""
    values = group.rewards if group.steps is None else [r for steps in group.steps for r in steps.rewards]
    return not values or all_equal(values)


def statistics(rounds: list[Round]) -> dict[str, float]:
    """What to log of all groups that were sampled for a batch."""
    groups = [group for each in rounds for group in each.groups]
    metrics = {
        **reward_statistics(torch.tensor([group.rewards for group in groups])),
        **component_statistics(groups),
        **length_statistics([completion for group in groups for completion in group.completions]),
        **step_statistics([steps for group in groups for steps in group.steps or ()]),
    }
    return metrics | mean_logged(rounds) | total_seconds(rounds)


def mean_logged(rounds: list[Round]) -> dict[str, float]:
    """The values that reward functions logged, averaged over groups."""
    means = {}
    for name in {name: None for each in rounds for name in each.logged}:
        having = [each for each in rounds if name in each.logged]
        total = sum(each.logged[name] * len(each.groups) for each in having)
        means[name] = total / sum(len(each.groups) for each in having)
    return means


def total_seconds(rounds: list[Round]) -> dict[str, float]:
    """The seconds of all rounds together."""
    totals: dict[str, float] = {}
    for each in rounds:
        for name, spent in each.seconds.items():
            totals[name] = totals.get(name, 0.0) + spent
    return totals


def reward_statistics(rewards_PG: Tensor) -> dict[str, float]:
    """The mean, and the spread within groups where a group has several completions; nothing without rewards."""
    if not rewards_PG.numel():
        return {}
    metrics = {"reward": float(rewards_PG.mean())}
    if rewards_PG.shape[1] > 1:
        metrics["reward_std"] = float(rewards_PG.std(1).mean())
        metrics["frac_reward_zero_std"] = float(zero_spread(rewards_PG).float().mean())
    return metrics


def component_statistics(groups: list[Group]) -> dict[str, float]:
    """rewards/{name}/mean and /std over the rows a function applies to."""
    metrics = {}
    for name in groups[0].components:
        applied = torch.tensor([x for group in groups for x in group.components[name] if x is not None])
        if len(applied):
            metrics[f"rewards/{name}/mean"] = float(applied.mean())
            metrics[f"rewards/{name}/std"] = float(applied.std()) if len(applied) > 1 else 0.0
    return metrics


def step_statistics(steps: list[Steps]) -> dict[str, float]:
    """steps/reward: mean over steps; steps/count: steps of a completion. Nothing where steps are not rewarded."""
    if not steps:
        return {}
    rewards = [reward for each in steps for reward in each.rewards]
    mean = {"steps/reward": sum(rewards) / len(rewards)} if rewards else {}
    return {**mean, "steps/count": len(rewards) / len(steps)}


def length_statistics(completions: list[Completion]) -> dict[str, float]:
    lengths = torch.tensor([float(len(completion.ids)) for completion in completions])
    ended = torch.tensor([float(len(c.ids)) for c in completions if not c.truncated] or [0.0])
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/mean_terminated_length": float(ended.mean()),
        "completions/min_terminated_length": float(ended.min()),
        "completions/max_terminated_length": float(ended.max()),
        "completions/clipped_ratio": sum(c.truncated for c in completions) / len(completions),
    }
