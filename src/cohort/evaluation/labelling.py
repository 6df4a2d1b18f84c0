"""What reward models learn from, made by a policy and a rule: labelled samples, pairs, and steps with Monte Carlo
labels."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cohort.config import TrainingConfig
from cohort.data.order import derive
from cohort.data.templates import as_completion
from cohort.policy.load import make_policy
from cohort.rewards.compose import Rewards
from cohort.rewards.steps import Split, cut
from cohort.rollouts.collect import score
from cohort.rollouts.encoding import Prompt, encode_prompts, token_ends
from cohort.rollouts.engine import Engine, local_engine
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion, Row, TrainerState, UserError

AT_A_TIME = 512
"""Completions, or roll-outs, sampled and judged between two records."""


@dataclass(frozen=True)
class Judged:
    """A prompt's samples with what the rules say: Judged(prompt, [c0, c1], rewards=[1.5, 0.5], right=[True, False])"""

    prompt: Prompt
    completions: list[Completion]
    rewards: list[float]
    """The rules' sum."""
    right: list[bool]
    """Whether the first rule's score is above 0."""


class Labeller:
    """Samples a policy through its engine and judges by rules; the first of them says what is right."""

    def __init__(self, tokenizer: Any, engine: Engine, rewards: Rewards, sampling: Sampling, samples: int, seed: int):
        self.tokenizer, self.engine, self.rewards, self.sampling = tokenizer, engine, rewards, sampling
        self.samples, self.seed = samples, seed
        self.rolled_out = 0
        """Prefixes so far."""

    def judged(self, prompts: Sequence[Prompt]) -> Iterator[Judged]:
        """`samples` completions of each prompt, prompts in order."""
        step = max(1, AT_A_TIME // self.samples)
        for first in range(0, len(prompts), step):
            chunk = list(prompts[first : first + step])
            seed = derive(self.seed, first)
            ids = [prompt.ids for prompt in chunk]
            sampled = self.engine.generate(ids, self.samples, self.sampling, seed).completions
            yield from self._verdicts(chunk, sampled)

    def _verdicts(self, prompts: list[Prompt], sampled: list[list[Completion]]) -> list[Judged]:
        scores = score(prompts, sampled, self.rewards, TrainerState())
        first = [value is not None and value > 0 for value in scores.components[self.rewards.names[0]]]
        found, at = [], 0
        for prompt, completions in zip(prompts, sampled, strict=True):
            end = at + len(completions)
            found.append(Judged(prompt, completions, scores.totals[at:end], first[at:end]))
            at = end
        return found

    def step_labels(self, found: Sequence[Judged], split: Split, rollouts: int, soft: bool) -> list[list[list[float]]]:
        """[prompts][samples][steps]: how many of `rollouts` completions of each step's prefix end right; the share
        (`soft`), or 1 where any does (Math-Shepherd, arXiv 2312.08935, Eq. 3 and 4). The last step's prefix is the
        whole completion, and its label the rule's. A prefix that several samples share is rolled out once."""
        prefixes: dict[tuple[int, tuple[int, ...]], int] = {}
        places: list[list[list[int]]] = []
        for p, judged in enumerate(found):
            places.append([])
            for completion in judged.completions:
                ends = cut(completion.text, split).ends
                tokens = token_ends(completion.ids.tolist(), completion.text, ends, self.tokenizer)[:-1]
                keys = [(p, tuple(completion.ids[: end + 1].tolist())) for end in tokens]
                places[-1].append([prefixes.setdefault(key, len(prefixes)) for key in keys])
        shares = self._shares(found, list(prefixes), rollouts)
        values = shares if soft else [float(share > 0) for share in shares]
        return [
            [[*(values[i] for i in steps), float(right)] for steps, right in zip(of_prompt, judged.right, strict=True)]
            for of_prompt, judged in zip(places, found, strict=True)
        ]

    def _shares(
        self, found: Sequence[Judged], prefixes: list[tuple[int, tuple[int, ...]]], rollouts: int
    ) -> list[float]:
        """How many of the roll-outs from each prefix end right. A prefix is a prompt to the engine, which reads it
        once for all of its roll-outs."""
        shares: list[float] = []
        step = max(1, AT_A_TIME // rollouts)
        for first in range(0, len(prefixes), step):
            chunk = [(found[p].prompt, torch.tensor(ids)) for p, ids in prefixes[first : first + step]]
            starts = [torch.cat([prompt.ids, ids]) for prompt, ids in chunk]
            seed = derive(self.seed + 1, self.rolled_out)
            sampled = self.engine.generate(starts, rollouts, self.sampling, seed).completions
            self.rolled_out += len(starts)
            whole = [
                [self._joined(ids, rest) for rest in rests] for (_, ids), rests in zip(chunk, sampled, strict=True)
            ]
            verdicts = self._verdicts([prompt for prompt, _ in chunk], whole)
            shares += [sum(judged.right) / rollouts for judged in verdicts]
        return shares

    def _joined(self, prefix: torch.Tensor, rest: Completion) -> Completion:
        ids = torch.cat([prefix, rest.ids])
        text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return Completion(ids, torch.zeros(len(ids)), text, rest.truncated)


def labelled(judged: Judged) -> list[dict[str, Any]]:
    """A row for each sample: prompt, completion, label (1 right, 0 wrong), reward, and the data's own columns."""
    return [
        {**_start(judged.prompt.row, completion), "label": int(right), "reward": reward}
        for completion, reward, right in zip(judged.completions, judged.rewards, judged.right, strict=True)
    ]


def pairs(judged: Judged, rng: random.Random) -> list[dict[str, Any]]:
    """Right samples beside wrong ones as rows of chosen and rejected, each text once: as many as the rarer have."""
    row = judged.prompt.row
    texts: dict[bool, list[str]] = {True: [], False: []}
    for completion, right in zip(judged.completions, judged.right, strict=True):
        if completion.text not in texts[right]:
            texts[right].append(completion.text)
    for found in texts.values():
        rng.shuffle(found)
    return [
        {**row.columns, "prompt": row.prompt, "chosen": _text(row, good), "rejected": _text(row, bad)}
        for good, bad in zip(texts[True], texts[False], strict=False)
    ]


def with_steps(judged: Judged, labels: list[list[float]]) -> list[dict[str, Any]]:
    """A row for each sample, with a label for each of its steps."""
    return [
        {**_start(judged.prompt.row, completion), "labels": steps, "label": int(right)}
        for completion, steps, right in zip(judged.completions, labels, judged.right, strict=True)
    ]


def _start(row: Row, completion: Completion) -> dict[str, Any]:
    return {**row.columns, "prompt": row.prompt, "completion": _text(row, completion.text)}


def _text(row: Row, text: str) -> Any:
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
    seed: int,
) -> Iterator[list[dict[str, Any]]]:
    """Records to write, prompt by prompt: labelled rows, pairs, or rows with step labels. Raises UserError for bad
    input."""
    functions = Rewards(list(rewards))
    config = TrainingConfig(seed=seed, max_completion_length=max_completion_length)
    torch.manual_seed(seed)
    policy = make_policy(model, None, config)
    sampling = Sampling(temperature=temperature, max_tokens=max_completion_length, eos_ids=policy.eos_ids)
    labeller = Labeller(policy.tokenizer, local_engine(policy, config.max_rows), functions, sampling, samples, seed)
    judged = labeller.judged(encode_prompts(rows, policy, config))
    rng = random.Random(seed)
    if kind in ("hard", "soft"):
        yield from _process(labeller, judged, split, rollouts, soft=kind == "soft")
        return
    for each in judged:
        yield labelled(each) if kind == "rows" else pairs(each, rng)


def _process(
    labeller: Labeller, judged: Iterator[Judged], split: Split, rollouts: int, soft: bool
) -> Iterator[list[dict[str, Any]]]:
    """The rows of process labels; many prompts' prefixes go to the engine together."""
    together = max(1, AT_A_TIME // (labeller.samples * rollouts))
    chunk = list(itertools.islice(judged, together))
    if all(len(cut(c.text, split).ends) == 1 for each in chunk for c in each.completions):
        raise UserError(
            f"none of the first {sum(len(each.completions) for each in chunk)} completions has more than one step: the "
            "step separator never occurs. Set --step-separator to what ends a step in this model's completions"
        )
    while chunk:
        labels = labeller.step_labels(chunk, split, rollouts, soft)
        for each, found in zip(chunk, labels, strict=True):
            yield with_steps(each, found)
        chunk = list(itertools.islice(judged, together))
