"""Groups to the tensors of one forward pass, and batches to micro-batches that fit a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cohort.policy.packed.layout import GroupLayout


@dataclass(frozen=True)
class Part:
    """Completions of one prompt in one micro-batch. A group larger than the token budget is several parts.

    Part(group=0, prompt_ids=tensor([5, 6]), rows=range(0, 4), completion_ids=[tensor([7, 2]), ...])
    """

    group: int
    prompt_ids: Tensor
    rows: Sequence[int]
    completion_ids: list[Tensor]

    @cached_property
    def distinct(self) -> tuple[list[Tensor], list[int]]:
        """The distinct completions, and the index of each row's. Equal completions are computed once."""
        keys = [ids.numpy().tobytes() for ids in self.completion_ids]
        distinct = dict(zip(keys, self.completion_ids, strict=True))
        number = {key: i for i, key in enumerate(distinct)}
        return list(distinct.values()), [number[key] for key in keys]

    @property
    def tokens(self) -> int:
        """Tokens that a forward pass over the part computes."""
        return len(self.prompt_ids) + sum(map(len, self.distinct[0]))


@dataclass(frozen=True)
class Pack:
    """The inputs of one forward pass. `sources_N` are the rows of the flattened hidden states [T, D] that predict the
    tokens `targets_N`, part after part and completion after completion. Equal completions of a part have the same
    sources. A completion's last token predicts nothing: it is no input of a stream, only of a row."""

    parts: list[Part]
    inputs: dict[str, Any]
    sources_N: Tensor
    targets_N: Tensor


def pack_groups(parts: list[Part], device: torch.device, flex: bool = False) -> Pack:
    """One stream without padding, each prompt once: for models that run the grouped attention. `flex`: by
    FlexAttention."""
    layout = GroupLayout(
        [len(part.prompt_ids) for part in parts],
        [[len(ids) for ids in part.distinct[0]] for part in parts],
        device,
        flex,
    )
    stream = torch.cat([ids for part in parts for ids in (part.prompt_ids, *(c[:-1] for c in part.distinct[0]))])
    inputs = {
        "input_ids": stream.to(device).unsqueeze(0),
        "position_ids": layout.positions.unsqueeze(0),
        "grouped": layout,
    }
    return Pack(parts, inputs, _of_rows(layout.sources, parts), targets(parts, device))


def pack_prompts(prompts: list[Tensor], common: int, device: torch.device, flex: bool = False) -> Pack:
    """One stream of prompts that begin with the same `common` tokens, which are in it once."""
    if not common:
        return pack_groups([Part(i, prompt, [], []) for i, prompt in enumerate(prompts)], device, flex)
    rests = [prompt[common:] for prompt in prompts]
    # The layout leaves out the last token of a completion, and here all are read.
    layout = GroupLayout([common], [[len(rest) + 1 for rest in rests]], device, flex)
    inputs = {
        "input_ids": torch.cat([prompts[0][:common], *rests]).to(device).unsqueeze(0),
        "position_ids": layout.positions.unsqueeze(0),
        "grouped": layout,
    }
    return Pack([], inputs, layout.sources, targets([], device))


def pack_rows(parts: list[Part], device: torch.device) -> Pack:
    """A padded row for each completion, with its prompt repeated: for models with an attention of their own. The last
    token predicts nothing, but counts where the model's angles depend on the length of the sequence."""
    rows = [torch.cat([part.prompt_ids, ids]) for part in parts for ids in part.distinct[0]]
    prompts = [len(part.prompt_ids) for part in parts for _ in part.distinct[0]]
    lengths = [len(ids) for part in parts for ids in part.distinct[0]]
    longest = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    sources = []
    for i, (row, prompt, n) in enumerate(zip(rows, prompts, lengths, strict=True)):
        input_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
        sources.append(i * longest + torch.arange(prompt - 1, prompt - 1 + n))
    inputs = {
        "input_ids": input_ids.to(device),
        "attention_mask": mask.to(device),
        "lengths": [len(row) for row in rows],
    }
    return Pack(parts, inputs, _of_rows(torch.cat(sources).to(device), parts), targets(parts, device))


def _of_rows(sources: Tensor, parts: list[Part]) -> Tensor:
    """The sources of all rows, from those of the distinct completions."""
    if all(len(part.distinct[0]) == len(part.rows) for part in parts):
        return sources
    spans = iter(sources.split([len(ids) for part in parts for ids in part.distinct[0]]))
    by_part = [([next(spans) for _ in part.distinct[0]], part.distinct[1]) for part in parts]
    return torch.cat([sources[i] for sources, which in by_part for i in which])


def targets(parts: list[Part], device: torch.device) -> Tensor:
    """[N], the tokens of all completions."""
    ids = [ids for part in parts for ids in part.completion_ids]
    return torch.cat(ids).to(device) if ids else torch.zeros(0, dtype=torch.long, device=device)


def micro_batches(parts: list[Part], token_budget: int, whole: bool = False) -> Iterator[list[Part]]:
    """Micro-batches of at most `token_budget` tokens, the parts with the longest completions first. Larger parts are
    split between completions unless they are to stay `whole`; a single completion is never split."""
    small = parts[:] if whole else [piece for part in parts for piece in _split(part, token_budget)]
    # Parts of similar length side by side need the least padding inside attention.
    small.sort(key=lambda part: -max(len(ids) for ids in part.completion_ids))
    batch: list[Part] = []
    tokens = 0
    for part in small:
        if batch and tokens + part.tokens > token_budget:
            yield batch
            batch, tokens = [], 0
        batch.append(part)
        tokens += part.tokens
    if batch:
        yield batch


def _split(part: Part, token_budget: int) -> Iterator[Part]:
    def piece(start: int, end: int) -> Part:
        if end - start == len(part.rows):
            return part
        return Part(part.group, part.prompt_ids, part.rows[start:end], part.completion_ids[start:end])

    start, tokens, inside = 0, len(part.prompt_ids), set[int]()
    for i, (ids, which) in enumerate(zip(part.completion_ids, part.distinct[1], strict=True)):
        if i > start and which not in inside and tokens + len(ids) > token_budget:
            yield piece(start, i)
            start, tokens, inside = i, len(part.prompt_ids), set()
        tokens += 0 if which in inside else len(ids)
        inside.add(which)
    if part.rows:
        yield piece(start, len(part.rows))
