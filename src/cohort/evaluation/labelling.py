"""Training data for reward models, sampled from a policy and labelled by rules: rows with a label, pairs, or rows with
a Monte Carlo label for each step."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cohort.config import TrainingConfig
from cohort.data.order import prompt_seeds
from cohort.data.templates import as_completion
from cohort.evaluation.loaded_model import LoadedModel
from cohort.policy.process import seed_everything
from cohort.policy.text import text_of
from cohort.progress import Task
from cohort.rewards.check.references import require_references
from cohort.rewards.compose import Rewards
from cohort.rewards.steps import Split, cut
from cohort.rollouts.collect import score
from cohort.rollouts.encoding import Prompt, token_ends
from cohort.rollouts.engine import Engine
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion, Row, TrainerState, UserError

COMPLETIONS_PER_CALL = 512
"""Completions, or roll-outs, of one call of the engine."""


@dataclass(frozen=True)
class LabelledGroup:
    """A prompt's completions and the rules' verdicts.

    LabelledGroup(prompt, [c0, c1], rewards=[1.5, 0.5], right=[True, False])
    """

    prompt: Prompt
    completions: list[Completion]
    rewards: list[float]
    """Sum of the rules' scores."""
    right: list[bool]
    """Whether the first rule's score is above 0."""


class Labeller:
    """Samples prompts through an engine and labels the completions by rules; the first rule says what is right."""

    def __init__(self, tokenizer: Any, engine: Engine, rewards: Rewards, sampling: Sampling, samples: int, seed: int):
        self.tokenizer, self.engine, self.rewards, self.sampling = tokenizer, engine, rewards, sampling
        self.samples, self.seed = samples, seed
        self.prefixes_sampled = 0

    def groups(self, prompts: Sequence[Prompt]) -> Iterator[LabelledGroup]:
        """`samples` completions of each prompt, prompts in order."""
        step = max(1, COMPLETIONS_PER_CALL // self.samples)
        with Task("labelling", len(prompts), "prompts") as task:
            for first in range(0, len(prompts), step):
                chunk = list(prompts[first : first + step])
                seeds = prompt_seeds(self.seed, len(chunk), first)
                ids = [prompt.ids for prompt in chunk]
                sampled = self.engine.generate(ids, self.samples, self.sampling, seeds).completions
                yield from self._labelled(chunk, sampled)
                task.add(len(chunk))

    def _labelled(self, prompts: list[Prompt], sampled: list[list[Completion]]) -> list[LabelledGroup]:
        scores = score(prompts, sampled, self.rewards, TrainerState())
        right = [value is not None and value > 0 for value in scores.components[self.rewards.names[0]]]
        groups, start = [], 0
        for prompt, completions in zip(prompts, sampled, strict=True):
            end = start + len(completions)
            groups.append(LabelledGroup(prompt, completions, scores.totals[start:end], right[start:end]))
            start = end
        return groups

    def step_labels(
        self, groups: Sequence[LabelledGroup], split: Split, rollouts: int, soft: bool
    ) -> list[list[list[float]]]:
        """[prompts][samples][steps]: a label for each step, from `rollouts` completions of the prefix that ends with
        it. `soft`: the share of them that are right; else 1 where any is (Math-Shepherd, arXiv 2312.08935, Eq. 4 and
        3). The last step's prefix is the whole completion, and its label is the rule's. A prefix that several samples
        begin with is sampled once."""
        prefixes: dict[tuple[int, tuple[int, ...]], int] = {}
        places: list[list[list[int]]] = []
        for p, group in enumerate(groups):
            places.append([])
            for completion in group.completions:
                ends = cut(completion.text, split).ends
                tokens = token_ends(completion.ids.tolist(), completion.text, ends, self.tokenizer)[:-1]
                keys = [(p, tuple(completion.ids[: end + 1].tolist())) for end in tokens]
                places[-1].append([prefixes.setdefault(key, len(prefixes)) for key in keys])
        shares = self._shares_right(groups, list(prefixes), rollouts)
        values = shares if soft else [float(share > 0) for share in shares]
        return [
            [[*(values[i] for i in steps), float(right)] for steps, right in zip(of_prompt, group.right, strict=True)]
            for of_prompt, group in zip(places, groups, strict=True)
        ]

    def _shares_right(
        self, groups: Sequence[LabelledGroup], prefixes: list[tuple[int, tuple[int, ...]]], rollouts: int
    ) -> list[float]:
        """The share of right roll-outs from each prefix. Prompt and prefix go to the engine as one prompt, which it
        prefills once for all of its roll-outs."""
        shares: list[float] = []
        step = max(1, COMPLETIONS_PER_CALL // rollouts)
        for first in range(0, len(prefixes), step):
            chunk = [(groups[p].prompt, torch.tensor(ids)) for p, ids in prefixes[first : first + step]]
            starts = [torch.cat([prompt.ids, ids]) for prompt, ids in chunk]
            seeds = prompt_seeds(self.seed + 1, len(starts), self.prefixes_sampled)
            sampled = self.engine.generate(starts, rollouts, self.sampling, seeds).completions
            self.prefixes_sampled += len(starts)
            whole = [
                [self._joined(ids, rest) for rest in rests] for (_, ids), rests in zip(chunk, sampled, strict=True)
            ]
            labelled = self._labelled([prompt for prompt, _ in chunk], whole)
            shares += [sum(group.right) / rollouts for group in labelled]
        return shares

    def _joined(self, prefix: torch.Tensor, rest: Completion) -> Completion:
        ids = torch.cat([prefix, rest.ids])
        text = text_of(self.tokenizer, ids.tolist(), self.sampling.eos_ids)
        return Completion(ids, torch.zeros(len(ids)), text, rest.truncated)


def labelled_rows(group: LabelledGroup) -> list[dict[str, Any]]:
    """A row for each completion: prompt, completion, label (1 right, 0 wrong), reward, and the data's columns."""
    return [
        {**_with_completion(group.prompt.row, completion), "label": int(right), "reward": reward}
        for completion, reward, right in zip(group.completions, group.rewards, group.right, strict=True)
    ]


def pairs(group: LabelledGroup, rng: random.Random) -> list[dict[str, Any]]:
    """Rows of a right completion (chosen) and a wrong one (rejected). Each different text is used once, so there are
    as many rows as the rarer kind has texts."""
    row = group.prompt.row
    texts: dict[bool, list[str]] = {True: [], False: []}
    for completion, right in zip(group.completions, group.right, strict=True):
        if completion.text not in texts[right]:
            texts[right].append(completion.text)
    for of_kind in texts.values():
        rng.shuffle(of_kind)
    return [
        {**row.columns, "prompt": row.prompt, "chosen": _message(row, good), "rejected": _message(row, bad)}
        for good, bad in zip(texts[True], texts[False], strict=False)
    ]


def rows_with_steps(group: LabelledGroup, labels: list[list[float]]) -> list[dict[str, Any]]:
    """A row for each completion, with a label for each of its steps."""
    return [
        {**_with_completion(group.prompt.row, completion), "labels": steps, "label": int(right)}
        for completion, steps, right in zip(group.completions, labels, group.right, strict=True)
    ]


def _with_completion(row: Row, completion: Completion) -> dict[str, Any]:
    return {**row.columns, "prompt": row.prompt, "completion": _message(row, completion.text)}


def _message(row: Row, text: str) -> Any:
    return as_completion(row.prompt, text)


def label_model(
    model: str,
    rows: list[Row],
    *,
    rewards: Sequence[str],
    samples: int,
    kind: Literal["rows", "pairs", "hard", "soft"],
    rollouts: int,
    split: Split,
    temperature: float,
    max_completion_length: int,
    plain: bool = False,
    seed: int,
) -> Iterator[list[dict[str, Any]]]:
    """The records of one prompt after the other: labelled rows, pairs, or rows with step labels (`hard`, `soft`).
    Raises UserError for bad input."""
    functions = Rewards(list(rewards), seed=seed)
    require_references(functions, rows)
    config = TrainingConfig(seed=seed, max_completion_length=max_completion_length, apply_chat_template=not plain)
    seed_everything(seed)
    loaded = LoadedModel(model, config)
    sampling = loaded.sampling(temperature=temperature, max_tokens=max_completion_length)
    labeller = Labeller(loaded.tokenizer, loaded.engine, functions, sampling, samples, seed)
    groups = labeller.groups(loaded.encode(rows))
    rng = random.Random(seed)
    if kind in ("hard", "soft"):
        yield from _with_step_labels(labeller, groups, split, rollouts, soft=kind == "soft")
        return
    for group in groups:
        yield labelled_rows(group) if kind == "rows" else pairs(group, rng)


def _with_step_labels(
    labeller: Labeller, groups: Iterator[LabelledGroup], split: Split, rollouts: int, soft: bool
) -> Iterator[list[dict[str, Any]]]:
    """Rows with step labels; the prefixes of many prompts go to the engine together."""
    together = max(1, COMPLETIONS_PER_CALL // (labeller.samples * rollouts))
    chunk = list(itertools.islice(groups, together))
    if all(len(cut(c.text, split).ends) == 1 for group in chunk for c in group.completions):
        raise UserError(
            f"none of the first {sum(len(group.completions) for group in chunk)} completions has more than one step: "
            "the step separator never occurs. Set --step-separator to what ends a step in this model's completions"
        )
    while chunk:
        labels = labeller.step_labels(chunk, split, rollouts, soft)
        for group, of_group in zip(chunk, labels, strict=True):
            yield rows_with_steps(group, of_group)
        chunk = list(itertools.islice(groups, together))
