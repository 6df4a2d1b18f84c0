"""Completions sampled in segments are those of one call: their ends, texts, limits and stop strings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort.data.chains import build_tokenizer
from cohort.policy.text import text_of
from cohort.rollouts.encoding import Prompt
from cohort.rollouts.sampling import Generation, OnGroup, Sampling
from cohort.rollouts.segments import Segments, begun
from cohort.rollouts.stop_strings import StopStrings
from cohort.types import Completion, Group, Row
from helpers import byte_fallback, byte_tokenizer, seeds


class Scripted:
    """Continues each prompt by the script that its first token names: what is sampled does not depend on where a
    segment ends. Sees its own tokens alone, as every engine does."""

    def __init__(self, tokenizer: Any, scripts: list[list[int]], context: int = 10**6):
        self.tokenizer, self.scripts, self.context = tokenizer, scripts, context
        self.version, self.asked = 0, list[tuple[list[int], int, list[int]]]()

    def generate(
        self, prompts: list[Tensor], n: int, sampling: Sampling, seeds: Sequence[int], *others: Any, **options: Any
    ) -> Generation:
        self.asked.append(([len(prompt) for prompt in prompts], sampling.max_tokens, list(seeds)))
        return Generation([[self._completion(prompt.tolist(), sampling) for _ in range(n)] for prompt in prompts])

    def _completion(self, prompt: list[int], sampling: Sampling) -> Completion:
        stops = StopStrings(self.tokenizer, sampling.stop) if sampling.stop else None
        script, done = self.scripts[prompt[0]], len(prompt) - 2
        ids, ended = list[int](), False
        while not ended and len(ids) < min(sampling.max_tokens, self.context - len(prompt)):
            ids.append(script[done + len(ids)])
            ended = ids[-1] in sampling.eos_ids or (stops is not None and stops.ended([0], ids[-1:])[0])
        logprobs = -torch.arange(done, done + len(ids), dtype=torch.float32)
        text = text_of(self.tokenizer, ids, sampling.eos_ids)
        return Completion(torch.tensor(ids), logprobs, text, not ended, self.version)

    def follow(self, *_: Any) -> None: ...

    def check(self) -> None: ...


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(Row(str(i)), torch.tensor([i, 0])) for i in range(count)]


def segments(engine: Scripted, groups: list[Group], sampling: Sampling, length: int) -> Segments:
    policy: Any = SimpleNamespace(tokenizer=engine.tokenizer, context_length=engine.context)
    return Segments(engine, policy, sampling, length, groups, seeds(groups))


def in_segments(engine: Scripted, sampling: Sampling, length: int, n: int = 1) -> list[Group]:
    groups = begun(prompts_of(len(engine.scripts)), n)
    for engine.version in range(-(-sampling.max_tokens // length)):
        segments(engine, groups, sampling, length).sample()
    return groups


def plain(completions: list[Completion]) -> list[Any]:
    return [(c.ids.tolist(), c.logprobs.tolist(), c.text, c.truncated) for c in completions]


STOPS = [[], ["ab"], ["a"], ["ab ba", "bbb"], [" a"], ["日本"], ["é"], ["1-2", "2+1"]]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 13])
@pytest.mark.parametrize("make", [byte_tokenizer, byte_fallback, build_tokenizer])
def test_the_completions_are_those_of_one_call(make: Callable[[], Any], length: int) -> None:
    tokenizer, chance = make(), random.Random(length)
    texts = ["ab", " ba", "bbb", "日本", " a", "été", " an", "+1", "2-", "12", "a", "b"]
    pieces = [ids for text in texts if (ids := tokenizer.encode(text, add_special_tokens=False))]
    eos = max(map(max, pieces)) + 1
    scripts = [
        [token for _ in range(20) for token in chance.choice([*pieces, *pieces, [eos]])] + [eos] * 20 for _ in range(40)
    ]
    continued = 0
    for stop in STOPS:
        sampling = Sampling(max_tokens=13, eos_ids=[eos], stop=stop)
        engine = Scripted(tokenizer, scripts)
        whole = engine.generate([p.ids for p in prompts_of(40)], 1, sampling, range(40)).completions
        groups = in_segments(engine, sampling, length)
        assert [plain(g.completions) for g in groups] == [plain(completions) for completions in whole], stop
        for completion in (c for group in groups for c in group.completions):
            counts = [count for _, count in completion.segments]
            assert sum(counts) == len(completion.ids) and counts[:-1] == [length] * (len(counts) - 1)
            assert [version for version, _ in completion.segments] == list(range(len(counts)))
            assert completion.version == 0
            continued += len(counts) > 1
    assert continued or length == 13


def test_a_stop_string_over_three_segments_ends_the_completion_where_it_ends() -> None:
    tokenizer = byte_tokenizer()
    script = tokenizer.encode("xyEND of it", add_special_tokens=False)
    (group,) = in_segments(Scripted(tokenizer, [script]), Sampling(max_tokens=10, stop=["END"]), 3)
    (completion,) = group.completions
    assert completion.text == "xyEND" and not completion.truncated and completion.segments == [(0, 3), (1, 2)]
    (group,) = in_segments(Scripted(tokenizer, [script]), Sampling(max_tokens=10, stop=["END"]), 1)
    assert group.completions[0].text == "xyEND" and len(group.completions[0].segments) == 5
    (group,) = in_segments(Scripted(tokenizer, [script]), Sampling(max_tokens=4, stop=["END"]), 2)
    assert group.completions[0].text == "xyEN" and group.completions[0].truncated


def test_the_limits_are_those_of_one_call() -> None:
    scripts = [[3] * 20] * 3
    engine = Scripted(build_tokenizer(), scripts)
    groups = in_segments(engine, Sampling(max_tokens=7, eos_ids=[1]), 3)
    assert [len(c.ids) for g in groups for c in g.completions] == [7] * 3, "the last segment samples 2 of 3 for nothing"
    assert all(c.truncated for g in groups for c in g.completions)
    narrow = Scripted(build_tokenizer(), scripts, context=8)  # 2 of the prompt: a segment's end is the context's
    groups = in_segments(narrow, Sampling(max_tokens=12, eos_ids=[1]), 3)
    assert [len(c.ids) for g in groups for c in g.completions] == [6] * 3
    assert len(narrow.asked) == 2, "nothing is asked where nobody has room"


def test_each_segment_of_each_completion_has_a_seed_of_its_own() -> None:
    engine = Scripted(build_tokenizer(), [[3] * 20] * 3)
    groups = in_segments(engine, Sampling(max_tokens=6, eos_ids=[1]), 2, n=4)
    assert [(lengths, most) for lengths, most, _ in engine.asked] == [([2 + 2 * m] * 12, 2) for m in range(3)]
    assert len({seed for *_, given in engine.asked for seed in given}) == 36
    alone = Scripted(build_tokenizer(), [[3] * 20])
    in_segments(alone, Sampling(max_tokens=6, eos_ids=[1]), 2, n=4)
    assert [given for *_, given in alone.asked] == [given[:4] for *_, given in engine.asked]
    assert all(c.segments == [(0, 2), (1, 2), (2, 2)] for g in groups for c in g.completions)


def test_groups_are_told_once_those_that_ended_earlier_before_the_call() -> None:
    engine = Scripted(build_tokenizer(), [[3, 1], [3, 3, 3, 1], [3, 3, 3, 3], [1] * 4, [3, 3, 3, 1]])
    sampling, told = Sampling(max_tokens=4, eos_ids=[1]), list[tuple[int, int, list[int]]]()
    groups = begun(prompts_of(5), 2)
    segments(engine, groups, sampling, 2).sample()

    def tell(i: int, completions: list[Completion]) -> None:
        told.append((len(engine.asked), i, [len(c.ids) for c in completions]))

    on_group: OnGroup = tell
    last = segments(engine, groups, sampling, 2)  # the last group is another batch's
    generation = last.generate([g.prompt_ids for g in groups[:4]], 2, sampling, [], on_group=on_group)
    assert told == [(1, 0, [2, 2]), (1, 3, [1, 1]), (2, 1, [4, 4]), (2, 2, [4, 4])]
    assert [plain(c) for c in generation.completions] == [plain(g.completions) for g in groups[:4]]
    assert [len(c.ids) for c in groups[4].completions] == [4, 4]


def test_a_last_segment_goes_to_the_limit() -> None:
    engine = Scripted(build_tokenizer(), [[3] * 20] * 2)
    groups, sampling = begun(prompts_of(2), 1), Sampling(max_tokens=9, eos_ids=[1])
    segments(engine, groups, sampling, 2).sample()
    segments(engine, groups, sampling, 3).generate([groups[0].prompt_ids], 1, sampling, [])
    assert [len(g.completions[0].ids) for g in groups] == [9, 5]
