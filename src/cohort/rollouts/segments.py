"""Completions that are sampled in segments, each by the weights of its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cohort.data.order import derive
from cohort.policy.model import Policy
from cohort.policy.text import text_of
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.engine import Engine
from cohort.rollouts.sampling import Generation, OnGroup, OnTokens, Sampling
from cohort.rollouts.stop_strings import StopStrings
from cohort.types import Completion, Group


def begun(prompts: Sequence[Prompt], n: int) -> list[Group]:
    """Groups of `n` completions that have no tokens yet."""
    nothing = Completion(torch.zeros(0, dtype=torch.long), torch.zeros(0), truncated=True)
    return [Group(prompt.ids, [nothing] * n, prompt.row) for prompt in prompts]


@dataclass(frozen=True)
class Segments:
    """The next segment, of up to `length` tokens, of every completion of the groups that has not ended. All are in one
    call of the engine, each as a prompt of its own: the longest completions of a batch are sampled beside the first
    tokens of later ones."""

    engine: Engine
    policy: Policy
    sampling: Sampling
    """Of whole completions."""
    length: int
    groups: list[Group]
    seeds: list[int]
    """One of each group."""

    def sample(self) -> dict[str, float]:
        """Add the segment to the groups' completions; returns what the engine logs."""
        return self._extend(self.groups, self.length)

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ) -> Generation:
        """As an engine's, for the first groups, whose prompts these are: adds the segment, and to theirs the rest."""
        groups = self.groups[: len(prompts)]
        # Most have ended before: their rewards need not wait for this segment.
        waiting = [i for i, group in enumerate(groups) if any(self._room(group, c) for c in group.completions)]
        if on_group is not None:
            for i in sorted(set(range(len(groups))) - set(waiting)):
                on_group(i, groups[i].completions)
        logged = self.sample() | self._extend(groups, sampling.max_tokens)
        if on_group is not None:
            for i in waiting:
                on_group(i, groups[i].completions)
        return Generation([group.completions for group in groups], logged=logged)

    def follow(self, policy: Policy, version: int) -> None:
        """The engine keeps its weights."""

    def check(self) -> None:
        self.engine.check()

    def _room(self, group: Group, completion: Completion) -> int:
        """How many tokens more the completion may have; 0 where it has ended."""
        limit = min(self.sampling.max_tokens, self.policy.context_length - len(group.prompt_ids))
        return max(0, limit - len(completion.ids)) if completion.truncated else 0

    def _extend(self, groups: list[Group], length: int) -> dict[str, float]:
        places = [
            (g, c)
            for g, group in enumerate(groups)
            for c, completion in enumerate(group.completions)
            if self._room(group, completion)
        ]
        if not places:
            return {}
        before = [groups[g].completions[c] for g, c in places]
        prompts = [torch.cat([groups[g].prompt_ids, c.ids]) for (g, _), c in zip(places, before, strict=True)]
        # A segment's own seed: that of the completion, and the number of tokens that it has.
        seeds = [derive(derive(self.seeds[g], c), len(b.ids)) for (g, c), b in zip(places, before, strict=True)]
        sampled = self.engine.generate(prompts, 1, replace(self.sampling, max_tokens=length), seeds)
        for (g, c), old, (new,) in zip(places, before, sampled.completions, strict=True):
            groups[g].completions[c] = self._joined(old, new, self._room(groups[g], old))
        return sampled.logged or {}

    def _joined(self, old: Completion, new: Completion, room: int) -> Completion:
        """The completion with up to `room` new tokens. A stop string may have begun among the old ones, where the
        engine did not see it: it ends the completion all the same."""
        stopped: int | None = None
        if len(old.ids) and self.sampling.stop:
            stops = StopStrings(self.policy.tokenizer, self.sampling.stop)
            stopped = stops.end_across(old.ids.tolist(), new.ids.tolist())
        length = len(new.ids) if stopped is None else stopped
        truncated = length > room or (new.truncated if stopped is None else False)
        length = min(length, room)
        ids = torch.cat([old.ids, new.ids[:length]])
        return Completion(
            ids,
            torch.cat([old.logprobs, new.logprobs[:length]]),
            text_of(self.policy.tokenizer, ids.tolist(), self.sampling.eos_ids),
            truncated,
            old.version if old.segments else new.version,
            [*old.segments, (new.version, length)],
        )
