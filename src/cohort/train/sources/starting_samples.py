"""Samples of the starting model, made once before the first step, and the source of RFT, which imitates the good
ones."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cohort.config import SampledConfig
from cohort.data.order import picks, prompt_seeds
from cohort.methods.method import Method
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.progress import Task
from cohort.rewards.compose import Rewards
from cohort.rollouts.collect import collect, training_sampling
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.engine import Engine
from cohort.train.output.record import SAMPLES
from cohort.train.sources.source import Batch
from cohort.types import Completion, Group, TrainerState, UserError

log = logging.getLogger("cohort")

AT_A_TIME = 1024
"""Completions sampled between two writes to the file."""


MADE_WITH = ("seed", "max_completion_length", "num_generations", "temperature", "top_p", "top_k", "min_p", "stop",
             "reward_weights", "reward_clip")  # fmt: skip
"""The settings that samples depend on, beside model, prompts and rewards."""


class StartingSamples:
    """Rewarded completions of the starting model. They are sampled once and kept in the run's folder; a resumed run
    reads them and samples the missing prompts."""

    def __init__(self, prompts: list[Prompt], policy: Policy, engine: Engine, rewards: Rewards, config: SampledConfig):
        self.prompts, self.policy, self.engine, self.rewards, self.config = prompts, policy, engine, rewards, config

    def groups(self, folder: Path, reuse: bool) -> list[Group]:
        """Rewarded groups, one for each prompt. Call it before the first update. `reuse`: read what the folder holds.
        Raises UserError where that was sampled with other settings."""
        path, step = folder / SAMPLES, max(1, AT_A_TIME // self.config.num_generations)
        kept = ranks.from_main(lambda: self._begin(path, reuse, step), "reading samples")
        groups = [_group(prompt, line) for prompt, line in zip(self.prompts, kept, strict=False)]
        sampling = training_sampling(self.config, self.policy.eos_ids)
        count = len(self.prompts)
        # Rank 0 alone writes.
        target = path if ranks.is_main() else os.devnull
        with open(target, "a", encoding="utf-8") as file, Task("sampling the starting model", count, "prompts") as task:
            for first in range(len(groups), len(self.prompts), step):
                task.done = first
                chunk = self.prompts[first : first + step]
                seeds = prompt_seeds(self.config.seed, len(chunk), first)
                sampled = collect(chunk, self.engine, self.rewards, self.config, sampling, seeds, TrainerState()).groups
                groups += sampled
                file.writelines(_text(_line(group)) for group in sampled)
                file.flush()
                if ranks.is_main():
                    os.fsync(file.fileno())
        return groups

    def _begin(self, path: Path, reuse: bool, step: int) -> list[dict[str, Any]]:
        """Write the file's beginning; returns the lines of an earlier run that it keeps."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read(path) if reuse and path.is_file() else []
        kept = kept[: len(kept) // step * step] if len(kept) < len(self.prompts) else kept
        whole = path.with_suffix(".partial")
        whole.write_text("".join(map(_text, [self._made_with(), *kept])), encoding="utf-8")
        whole.replace(path)
        return kept

    def _made_with(self) -> dict[str, Any]:
        """The settings the samples were made with, to recognise samples made with others."""
        settings = self.config.model_dump(include=set(MADE_WITH))
        ids = hashlib.sha256(b"".join(prompt.ids.numpy().tobytes() + b"|" for prompt in self.prompts))
        return {**settings, "rewards": self.rewards.names, "prompts": ids.hexdigest()}

    def _read(self, path: Path) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for text in path.read_text(encoding="utf-8").split("\n"):
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # a kill in mid-write leaves half a line, always the last
                break
        made_with = json.loads(json.dumps(self._made_with()))
        header = lines[0] if lines else {}
        other = [key for key in made_with if header.get(key) != made_with[key]]
        if other:
            raise UserError(
                f"{path} was sampled with another {', '.join(other)}: resume with the settings it was made with, or "
                "start without --resume to sample anew"
            )
        return lines[1:]


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _line(group: Group) -> dict[str, Any]:
    completions = [
        {
            "text": c.text,
            "reward": reward,
            "components": {name: values[i] for name, values in group.components.items()},
            "truncated": c.truncated,
            "ids": c.ids.tolist(),
        }
        for i, (c, reward) in enumerate(zip(group.completions, group.rewards, strict=True))
    ]
    return {"prompt": group.row.prompt, "completions": completions}


def _group(prompt: Prompt, line: dict[str, Any]) -> Group:
    completions = [
        Completion(torch.tensor(c["ids"], dtype=torch.long), torch.zeros(len(c["ids"])), c["text"], c["truncated"])
        for c in line["completions"]
    ]
    return Group(prompt.ids, completions, prompt.row, [c["reward"] for c in line["completions"]])


class KeptSamples:
    """The starting model's completions with a non-zero advantage, equal texts of a prompt once, used as
    demonstrations."""

    def __init__(self, samples: StartingSamples, config: SampledConfig, method: Method):
        self.samples, self.config, self.method = samples, config, method
        self.per_batch = config.batch_size
        self.kept: list[Group] = []

    @property
    def size(self) -> int:
        return len(self.kept)

    def prepare(self, folder: Path, reuse: bool) -> None:
        groups = self.samples.groups(folder, reuse)
        masked = self.config.masks_truncated
        wanted = 0
        self.kept = []
        for group, advantages in zip(groups, self.method.credit(groups, self.config), strict=True):
            seen: set[str] = set()
            for completion, advantage in zip(group.completions, advantages, strict=True):
                if not bool(advantage.any()) or (masked and completion.truncated):
                    continue
                wanted += 1
                if completion.text.strip() not in seen:
                    seen.add(completion.text.strip())
                    self.kept.append(Group(group.prompt_ids, [completion], group.row, advantages=[advantage]))
        total = sum(len(group.completions) for group in groups)
        if not self.kept:
            best = max(reward for group in groups for reward in group.rewards)
            raise UserError(
                f"none of the {total} completions sampled from the starting model is good enough for "
                f"{self.method.name} (the best reward is {best:g}): lower reward_threshold, sample more "
                "(num_generations), or start from a better model"
            )
        log.info(
            "%s: %d of %d samples kept (%d are correct, %d of these say what another says), for %d of %d prompts",
            self.method.name,
            len(self.kept),
            total,
            wanted,
            wanted - len(self.kept),
            len({id(group.row) for group in self.kept}),
            len(groups),
        )

    def batch(self, index: int, state: TrainerState) -> Batch:
        return Batch(next_groups(self.kept, self.per_batch, index, self.config), {})


def next_groups(groups: list[Group], count: int, index: int, config: SampledConfig) -> list[Group]:
    """Groups `index * count` to `(index + 1) * count` of an endless sequence of epochs over the groups."""
    return [replace(groups[i]) for i in picks(len(groups), index * count, count, config.seed, config.shuffle_dataset)]
