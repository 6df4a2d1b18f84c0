"""Held-out evaluation: accuracy, pass@k and maj@k of sampled completions."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np

from cohort.data.order import prompt_seeds
from cohort.policy import ranks
from cohort.progress import Task
from cohort.rewards.component import column_of
from cohort.rewards.compose import Rewards, Scores
from cohort.rollouts.collect import length_statistics, score
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.engine import Engine, sampled_together
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion, TrainerState

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """n completions of each problem, and their scores.

    `components[name]` and `totals` hold one value for each completion: problems in order, the n completions of a
    problem one after the other.
    """

    prompts: list[Prompt]
    sampled: list[list[Completion]]
    components: dict[str, list[float | None]]
    totals: list[float]
    seconds: float

    @property
    def n(self) -> int:
        return len(self.sampled[0])

    def correct(self, component: str) -> list[list[bool]]:
        """[problems][n], whether the component gave a positive score."""
        flat = [bool(value is not None and value > 0) for value in self.components[component]]
        return [flat[i : i + self.n] for i in range(0, len(flat), self.n)]

    def metrics(self) -> dict[str, float]:
        """The row of metrics.jsonl: eval/reward, eval/{component} (means, and the standard deviations over problems)
        and of several samples its pass@n, lengths, problems, seconds."""
        metrics = {"eval/reward": sum(self.totals) / len(self.totals), "eval/samples": float(len(self.prompts))}
        metrics["eval/reward/std"] = self._deviation([*self.totals])
        for name, values in self.components.items():
            applied = [value for value in values if value is not None]
            if applied:
                metrics[f"eval/{column_of(name)}"] = sum(applied) / len(applied)
                metrics[f"eval/{column_of(name)}/std"] = self._deviation(values)
                if self.n > 1:
                    metrics[f"eval/{column_of(name)}/pass@{self.n}"] = pass_at_k(self.correct(name), self.n)
        lengths = length_statistics([c for completions in self.sampled for c in completions])
        metrics |= {f"eval/{name}": value for name, value in lengths.items()}
        return metrics | {"seconds/eval": self.seconds}

    def _deviation(self, values: list[float | None]) -> float:
        """The standard deviation, ddof 1, of the problems' means: samples of one problem are not independent."""
        of_problems = [values[i : i + self.n] for i in range(0, len(values), self.n)]
        means = [fmean(x for x in row if x is not None) for row in of_problems if any(x is not None for x in row)]
        return stdev(means) if len(means) > 1 else 0.0


def evaluate(
    prompts: list[Prompt],
    engine: Engine,
    rewards: Rewards,
    sampling: Sampling,
    n: int,
    seed: int,
    state: TrainerState,
) -> Evaluation:
    """Sample and score n completions of each prompt, or one at temperature 0; each rank those of its share."""
    started = time.perf_counter()
    n = 1 if sampling.temperature == 0 else n
    own, seeds = ranks.share(prompts), ranks.share(prompt_seeds(seed, len(prompts)))
    sampled, scores = list[list[Completion]](), Scores([], {name: [] for name in rewards.names}, {})
    with sampled_together(engine):
        if own:
            with Task("evaluating", len(own), "prompts") as task:
                ids = [prompt.ids for prompt in own]
                sampled = engine.generate(ids, n, sampling, seeds, on_group=task.ended).completions
    if own:
        with Task(f"scoring {len(own) * n:,} completions"):
            # A copy: reward functions that write to the state must not change the training's.
            scores = score(own, sampled, rewards, replace(state))
    sampled = ranks.merged(sampled, "evaluating")
    components = {name: _of_all_ranks(values, n) for name, values in scores.components.items()}
    return Evaluation(prompts, sampled, components, _of_all_ranks(scores.totals, n), time.perf_counter() - started)


def _of_all_ranks(values: list[T], n: int) -> list[T]:
    """The values of all prompts' n completions, from those of this rank's share."""
    of_prompts = [values[i : i + n] for i in range(0, len(values), n)]
    return [value for of_prompt in ranks.merged(of_prompts, "evaluating") for value in of_prompt]


def pass_at_k(correct: list[list[bool]], k: int) -> float:
    """1 - C(n - c, k) / C(n, k), mean over problems: Chen et al., arXiv 2107.03374, Eq. 1.

    Raises ValueError if k exceeds a problem's samples.
    """
    if not all(1 <= k <= len(row) for row in correct):
        raise ValueError(f"pass@{k} needs at least {k} samples of each problem")
    return sum(1 - math.comb(len(row) - sum(row), k) / math.comb(len(row), k) for row in correct) / len(correct)


def maj_at_k(
    answers: list[list[str | None]], correct: list[list[bool]], k: int, same: Callable[[str], str] = str
) -> float:
    """Probability that the most frequent answer among k of the n samples, drawn without replacement, is correct; mean
    over problems. Answers that are equally frequent share it; None (no answer could be read) does not vote.

    `same` maps equal answers to one key. Of equal answers that are not all correct, the correct share counts. maj@1 is
    pass@1 where every correct sample has a readable answer. Raises ValueError if k exceeds a problem's samples.
    """
    if not all(1 <= k <= len(row) for row in correct):
        raise ValueError(f"maj@{k} needs at least {k} samples of each problem")
    total = 0.0
    for of_problem, verdicts in zip(answers, correct, strict=True):
        keys = [None if answer is None else same(answer) for answer in of_problem]
        counts = Counter(key for key in keys if key is not None)
        right = Counter(key for key, verdict in zip(keys, verdicts, strict=True) if verdict and key is not None)
        for key in right:
            others = [count for other, count in counts.items() if other != key]
            total += right[key] / counts[key] * _win(counts[key], others, keys.count(None), k)
    return total / len(answers)


def _win(count: int, others: list[int], silent: int, k: int) -> float:
    """Probability that an answer with `count` of the samples has the most votes among k that are drawn; of t others
    with as many votes it wins one time in t + 1. `silent`: samples without a vote."""
    wins = 0.0
    for votes in range(1, min(count, k) + 1):
        rest = k - votes
        # ways[drawn, ties]: choices of samples of the other answers, none with more than `votes`.
        ways = np.zeros((rest + 1, rest // votes + 1))
        ways[0, 0] = 1.0
        for other in others:
            before, ways = ways, np.zeros_like(ways)
            for drawn in range(min(other, votes, rest) + 1):
                tied = int(drawn == votes)
                ways[drawn:, tied:] += math.comb(other, drawn) * before[: rest + 1 - drawn, : before.shape[1] - tied]
        unheard = np.array([float(math.comb(silent, rest - drawn)) for drawn in range(rest + 1)])
        shares = 1 / np.arange(1, ways.shape[1] + 1)
        wins += math.comb(count, votes) * float(unheard @ ways @ shares)
    return wins / math.comb(count + sum(others) + silent, k)
