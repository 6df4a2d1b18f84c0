"""What sampling made of every token, kept so that the update on it begins with its backward pass.

The first update on a sampled batch would run the weights that sampled it over the same tokens once more. Its stream is
here what was decoded, in that order: prompts as they were let in, and one token of each row after the other. Tokens
with which several completions begin were decoded once, and are there once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cohort.policy.packed.heads import HeadOptions, Made
from cohort.policy.packed.layout import GroupLayout
from cohort.policy.packed.pack import Pack, Part, targets
from cohort.policy.packed.tiles import Row, Tile, TiledAttention, of_groups
from cohort.types import Completion

USED = 0.9
"""Share of the decoded tokens from which on those without a gradient stay in the stream: leaving them out is a copy."""


class Room(NamedTuple):
    """Where a layer leaves what it makes of N tokens, each [N, ...]; None: anywhere."""

    heads: Tensor | None = None
    """Queries, scaled, keys and values, beside one another, as attention takes them."""
    unnormed: Tensor | None = None
    """Queries and keys before the norms of heads, where there are such."""
    attended: Tensor | None = None
    between: Tensor | None = None
    gate_up: Tensor | None = None
    rows: Tensor | None = None


NOWHERE = Room()


class _Rows:
    """Rows that are written a few at a time: one block of memory, of which only what is written is taken."""

    def __init__(self, room: int):
        self.room, self.count = room, 0
        self.block = torch.empty(0)

    def next(self, count: int) -> Tensor:
        """The next rows, to be written."""
        self.count += count
        return self.block[self.count - count : self.count]

    def add(self, *parts: Tensor) -> None:
        """[T, ...] each, beside one another."""
        parts = tuple(part.flatten(1) for part in parts)
        if not self.count:
            with torch.inference_mode(False):  # autograd refuses what was made in it
                self.block = parts[0].new_empty(self.room, sum(part.shape[1] for part in parts))
        torch.cat(parts, 1, out=self.next(len(parts[0])))

    @property
    def written(self) -> Tensor:
        return self.block[: self.count]


class Decoded:
    """Filled while one generation runs, whose rows are the completions, prompt by prompt; serves one update."""

    def __init__(self, scales: list[float], heads: tuple[int, int], room: int):
        self.layers = [[_Rows(room) for _ in NOWHERE] for _ in scales]
        """By layer, what it made: the fields of Room."""
        self.scales, self.heads = scales, heads
        """Of each layer, what its queries are scaled by; how many heads are of queries, and of keys."""
        self.room, self.tokens = room, 0
        """Tokens that may be kept, and tokens that are."""
        self.completions: list[Completion] = []
        self._ids: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._worked: list[np.ndarray] = []
        """For each token, whether the last layer worked for it."""
        self._prompts: list[np.ndarray] = []
        self._prompt_of: dict[int, int] = {}
        """Completion -> which of the prompts it follows."""
        self._steps: list[tuple[np.ndarray, ...]] = []
        """Of each step the completions, where their tokens stand, and which of them live."""

    def admit(self, pack: Pack, completions: list[range]) -> None:
        """A pass over prompts, each with the completions that follow it."""
        layout: GroupLayout = pack.inputs["grouped"]
        assert layout.kept is not None
        for layer, scale in enumerate(self.scales):
            made = layout.kept.pop(0)  # its memory is free for the next layer's block
            assert made.attended is not None
            queries, *others = made.heads
            between, gate, up, found = made.rest
            fields = (queries * scale, *others), made.unnormed, (made.attended,), (between,), (gate, up), (found,)
            for field, parts in zip(self.layers[layer], fields, strict=True):
                if parts:
                    field.add(*parts)
        for (places,), of_prompt in zip(layout.group_places(), completions, strict=True):
            self._prompt_of |= dict.fromkeys(of_prompt, len(self._prompts))
            self._prompts.append(places + self.tokens)
        worked = np.ones(len(layout.places), dtype=bool)
        if layout.alone is not None:
            worked[:] = False
            worked[layout.alone.cpu().numpy()] = True
        self._add(pack.inputs["input_ids"][0], layout.positions, worked)

    def next(self, layer: int, tokens: int) -> Room:
        """For as many tokens more, prompts having been let in."""
        return Room(*(field.next(tokens) if field.count else None for field in self.layers[layer]))

    def step(self, tokens: Tensor, positions: Tensor, completions: Tensor, rows: Tensor, alive: Tensor) -> None:
        """A token of each row [N]; the layers have been given what they made. [M], completions, their rows, and
        whether they live."""
        self._steps.append((completions.numpy(), rows.numpy() + self.tokens, alive.numpy()))
        self._add(tokens, positions.clone(), np.ones(len(tokens), dtype=bool))

    def _add(self, ids: Tensor, positions: Tensor, worked: np.ndarray) -> None:
        self._ids.append(ids)
        self._positions.append(positions)
        self._worked.append(worked)
        self.tokens += len(ids)

    def pack(self, parts: list[Part], completions: Sequence[Completion]) -> Pack | None:
        """The parts, whose completions are given in their order, as a stream whose layers are known; None where one of
        them is not of this generation. Once: the layers' numbers go over to it."""
        number = {id(completion): row for row, completion in enumerate(self.completions)}
        rows = [number.get(id(completion)) for completion in completions]
        if None in rows:
            return None
        places = self._places()
        groups: dict[int, dict[bytes, np.ndarray]] = {}
        sources = []
        for row in rows:
            assert row is not None
            prompt, own = self._prompt_of[row], places[row]
            groups.setdefault(prompt, {})[own.tobytes()] = own
            sources += [self._prompts[prompt][-1:], own]
        distinct = [[self._prompts[prompt], *of_prompt.values()] for prompt, of_prompt in groups.items()]
        layout = DecodedLayout(self, distinct, np.concatenate(sources))
        inputs = {
            "input_ids": layout.of_stream(torch.cat(self._ids)).unsqueeze(0),
            "position_ids": layout.of_stream(torch.cat(self._positions)).unsqueeze(0),
            "grouped": layout,
        }
        return Pack(parts, inputs, layout.sources, targets(parts, layout.sources.device))

    def _places(self) -> list[np.ndarray]:
        """Of each completion's tokens, in their order."""
        nothing = np.zeros((3, 0), dtype=np.int64)
        completions, places, alive = map(np.concatenate, zip(*self._steps, nothing, strict=True))
        completions, places = completions[alive != 0], places[alive != 0]
        order = np.argsort(completions, kind="stable")
        counts = np.bincount(completions, minlength=len(self.completions))
        return np.split(places[order], counts.cumsum()[:-1])

    @property
    def worked(self) -> np.ndarray:
        return np.concatenate(self._worked)


class DecodedLayout:
    """Who attends to whom in a stream of decoded tokens, and what the layers made of them."""

    def __init__(self, decoded: Decoded, groups: list[list[np.ndarray]], sources: np.ndarray):
        self.layers, self.heads = decoded.layers, decoded.heads
        used, worked = np.zeros(decoded.tokens, dtype=bool), decoded.worked
        for group in groups:
            used[np.concatenate(group)] = True
        if used.mean() > USED:
            used[:] = True
        place = used.cumsum() - 1
        self.tokens = int(used.sum())
        self.groups = [(place[prompt], _attending([place[places] for places in rows])) for prompt, *rows in groups]
        self.sources = torch.from_numpy(place[sources])
        self.alone = None if worked[used].all() else torch.from_numpy(worked[used].nonzero()[0])
        self._chosen = None if used.all() else torch.from_numpy(used.nonzero()[0])
        """Tokens of the stream, of all that were decoded."""
        self._chosen_alone = None if used.all() else torch.from_numpy(used[worked].nonzero()[0])
        """Those of the last layer's, of all it worked for."""
        self._tiles: dict[tuple[int, int, bool], list[Tile]] = {}
        self._attended: tuple[Tensor, ...] = ()

    def of_stream(self, rows: Tensor) -> Tensor:
        return rows if self._chosen is None else rows.index_select(0, self._chosen)

    @torch.no_grad()
    def made(self, layer: int) -> Made:
        """All that the layer made, which is then given away."""
        fields, self.layers[layer] = self.layers[layer], []
        heads, unnormed, attended, *rest = (field.written for field in fields)
        of_rest = self._chosen_alone if layer == len(self.layers) - 1 else self._chosen
        H, K = self.heads
        D = heads.shape[1] // (H + 2 * K)

        def by_heads(rows: Tensor, *counts: int) -> list[Tensor]:
            return [_taken(part, self._chosen) for part in rows.unflatten(1, (-1, D)).split(counts, 1)]

        self._attended = tuple(by_heads(attended, H))
        between, gate_up, found = (_taken(rows, of_rest) for rows in rest)
        before_norms = tuple(by_heads(unnormed, H, K)) if len(unnormed) else ()
        return Made(tuple(by_heads(heads, H, K, K)), before_norms, None, (between, *gate_up.chunk(2, 1), found))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions, only_read: bool = False) -> Tensor:
        heads = k.shape[1], q.shape[1] // k.shape[1]
        key = (*heads, only_read)
        if key not in self._tiles:
            self._tiles[key] = of_groups(self.groups, only_read, self.tokens, *heads, q.device)
        known, self._attended = self._attended, ()
        return TiledAttention.apply(q, k, v, self._tiles[key], head.scaling, known)


def _attending(completions: list[np.ndarray]) -> list[Row]:
    """A prompt's completions; with what several begin, the first of them attends."""
    rows, known = [], set[int]()
    for places in completions:
        listed = places.tolist()
        seen = next((i for i, place in enumerate(listed) if place not in known), len(listed))
        rows.append(Row(places, seen))
        known.update(listed[seen:])
    return rows


def _taken(rows: Tensor, chosen: Tensor | None) -> Tensor:
    """The chosen of them, or all, one behind the other."""
    return rows.contiguous() if chosen is None else rows.index_select(0, chosen)
