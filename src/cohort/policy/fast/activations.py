"""Activations kept while sampling, so that the first update on the sampled batch runs its backward pass only.

The first update on a batch would run the weights that sampled it over the same tokens once more. Its stream consists of
the tokens in the order in which they were decoded: prompts as they were prefilled, then one token of every row after
the other. Tokens with which several completions begin were decoded once, and are in the stream once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cohort.policy.fast.functions import LayerActivations
from cohort.policy.packed.layout import GroupLayout
from cohort.policy.packed.options import AttentionOptions
from cohort.policy.packed.pack import Pack, Part, targets
from cohort.policy.packed.tiles import Tile, TokenRun, attend_tiles, tiles_of_groups
from cohort.types import Completion

KEEP_ALL_ABOVE = 0.9
"""Where at least this share of the decoded tokens has a gradient, the others stay in the stream: leaving them out would
copy all of the activations."""


class LayerSlots(NamedTuple):
    """Where a layer writes its activations for N tokens, each [N, ...]; None: nothing is kept."""

    heads: Tensor | None = None
    """Queries, scaled, keys and values side by side."""
    before_head_norms: Tensor | None = None
    """Queries and keys side by side, before the norms of heads."""
    attended: Tensor | None = None
    residual: Tensor | None = None
    gate_up: Tensor | None = None
    output: Tensor | None = None


NO_SLOTS = LayerSlots()


class _Buffer:
    """A block of memory for `capacity` rows that is filled a few rows at a time."""

    def __init__(self, capacity: int):
        self.capacity, self.count = capacity, 0
        self.block = torch.empty(0)

    def next(self, count: int) -> Tensor:
        """The next `count` rows, to be written by the caller."""
        self.count += count
        return self.block[self.count - count : self.count]

    def append(self, *parts: Tensor) -> None:
        """Copy tensors [T, ...] in, flattened and side by side."""
        parts = tuple(part.flatten(1) for part in parts)
        if not self.count:
            with torch.inference_mode(False):  # autograd refuses tensors that were made in inference mode
                self.block = parts[0].new_empty(self.capacity, sum(part.shape[1] for part in parts))
        torch.cat(parts, 1, out=self.next(len(parts[0])))

    @property
    def written(self) -> Tensor:
        return self.block[: self.count]


class ActivationStore:
    """The activations of one generation: filled while it decodes, then used by one update.

    `scales`: each layer's attention scale. `heads`: the numbers of query heads and of key heads. `capacity`: the most
    tokens that may be kept.
    """

    def __init__(self, scales: list[float], heads: tuple[int, int], capacity: int):
        self.layers = [[_Buffer(capacity) for _ in LayerSlots._fields] for _ in scales]
        """By layer, a buffer for each field of LayerSlots."""
        self.scales, self.heads, self.capacity = scales, heads, capacity
        self.tokens = 0
        """Tokens kept so far."""
        self.completions: list[Completion] = []
        """The completions of the generation, once it has ended, prompt by prompt."""
        self._ids: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._in_last_layer: list[np.ndarray] = []
        """bool, the tokens that the last layer computed."""
        self._prompts: list[np.ndarray] = []
        """Indices of each prompt's tokens."""
        self._prompt_of: dict[int, int] = {}
        """Completion -> its prompt's place in `_prompts`."""
        self._steps: list[tuple[np.ndarray, ...]] = []
        """For each decoding step: the completions, the index of each one's token, and whether each is live."""

    def clear(self) -> None:
        """Free the activations, for a second try without them: whoever keeps the store does not use it again."""
        self.layers.clear()

    def has_room_for(self, tokens: int) -> bool:
        return self.tokens + tokens <= self.capacity

    def add_prefill(self, pack: Pack, layers: list[LayerActivations], completions: list[range]) -> None:
        """Add a forward pass over prompts. `completions[i]`: those that continue the i-th prompt. Empties `layers`."""
        layout: GroupLayout = pack.inputs["grouped"]
        for buffers, scale in zip(self.layers, self.scales, strict=True):
            layer = layers.pop(0)  # frees its memory for the next layer's buffers
            queries, *others = layer.heads
            fields = (
                (queries * scale, *others),
                layer.before_head_norms,
                (layer.attended,),
                (layer.residual,),
                (layer.gate, layer.up),
                (layer.output,),
            )
            for buffer, parts in zip(buffers, fields, strict=True):
                if parts:
                    buffer.append(*parts)
        for (prompt,), of_prompt in zip(layout.group_places(), completions, strict=True):
            self._prompt_of |= dict.fromkeys(of_prompt, len(self._prompts))
            self._prompts.append(prompt + self.tokens)
        computed = np.ones(len(layout.places), dtype=bool)
        if layout.last_layer_tokens is not None:
            computed[:] = False
            computed[layout.last_layer_tokens.cpu().numpy()] = True
        self._add(pack.inputs["input_ids"][0], layout.positions, computed)

    def slots(self, layer: int, tokens: int) -> LayerSlots:
        """Where the layer writes its activations for the next `tokens` decoded tokens; prompts come before."""
        return LayerSlots(*(buffer.next(tokens) if buffer.count else None for buffer in self.layers[layer]))

    def add_step(self, tokens: Tensor, positions: Tensor, completions: Tensor, rows: Tensor, live: Tensor) -> None:
        """Add one decoded token of each row [N], whose layers have filled their slots. `completions` [M] are those that
        are decoded, `rows` [M] their rows, `live` [M] whether they have not ended."""
        self._steps.append((completions.numpy(), rows.numpy() + self.tokens, live.numpy()))
        self._add(tokens, positions.clone(), np.ones(len(tokens), dtype=bool))

    def _add(self, ids: Tensor, positions: Tensor, in_last_layer: np.ndarray) -> None:
        self._ids.append(ids)
        self._positions.append(positions)
        self._in_last_layer.append(in_last_layer)
        self.tokens += len(ids)

    def held(self, of_parts: Iterable[list[Completion]]) -> list[bool]:
        """For the completions of each part, whether all are of this generation."""
        known = {id(completion) for completion in self.completions}
        return [all(id(completion) in known for completion in completions) for completions in of_parts]

    def pack(self, parts: list[Part], completions: Sequence[Completion]) -> Pack | None:
        """The parts as a stream whose activations are known; None where a completion is not of this generation.
        `completions`: those of the parts, in order. May be called once: the stream takes the activations over."""
        number = {id(completion): row for row, completion in enumerate(self.completions)}
        rows = [number[id(completion)] for completion in completions if id(completion) in number]
        if len(rows) < len(completions):
            return None
        indices = self._indices()
        groups: dict[int, dict[bytes, np.ndarray]] = {}
        sources = []
        for row in rows:
            prompt, of_completion = self._prompt_of[row], indices[row]
            groups.setdefault(prompt, {})[of_completion.tobytes()] = of_completion
            sources += [self._prompts[prompt][-1:], of_completion]
        distinct = [[self._prompts[prompt], *of_prompt.values()] for prompt, of_prompt in groups.items()]
        layout = ReusedLayout(self, distinct, np.concatenate(sources))
        inputs = {
            "input_ids": layout.of_stream(torch.cat(self._ids)).unsqueeze(0),
            "position_ids": layout.of_stream(torch.cat(self._positions)).unsqueeze(0),
            "grouped": layout,
        }
        return Pack(parts, inputs, layout.sources, targets(parts, layout.sources.device))

    def _indices(self) -> list[np.ndarray]:
        """For each completion, the indices of its tokens in order."""
        nothing = np.zeros((3, 0), dtype=np.int64)
        completions, indices, live = map(np.concatenate, zip(*self._steps, nothing, strict=True))
        completions, indices = completions[live != 0], indices[live != 0]
        order = np.argsort(completions, kind="stable")
        counts = np.bincount(completions, minlength=len(self.completions))
        return np.split(indices[order], counts.cumsum()[:-1])

    @property
    def in_last_layer(self) -> np.ndarray:
        return np.concatenate(self._in_last_layer)


class ReusedLayout:
    """The layout of a stream of decoded tokens, with the layers' activations.

    `groups`: for each prompt the indices of its tokens and of the tokens of each completion; `sources`: the indices of
    the tokens that predict a token.
    """

    def __init__(self, store: ActivationStore, groups: list[list[np.ndarray]], sources: np.ndarray):
        self.layers, self.heads = store.layers, store.heads
        used, computed = np.zeros(store.tokens, dtype=bool), store.in_last_layer
        for group in groups:
            used[np.concatenate(group)] = True
        if used.mean() > KEEP_ALL_ABOVE:
            used[:] = True
        place = used.cumsum() - 1
        self.tokens = int(used.sum())
        self.groups = [(place[prompt], _without_repeats([place[p] for p in rows])) for prompt, *rows in groups]
        self.sources = torch.from_numpy(place[sources])
        self.last_layer_tokens = None if computed[used].all() else torch.from_numpy(computed[used].nonzero()[0])
        self._chosen = None if used.all() else torch.from_numpy(used.nonzero()[0])
        """The stream's tokens among all that were decoded; None: all of them."""
        self._chosen_in_last_layer = None if used.all() else torch.from_numpy(used[computed].nonzero()[0])
        """The same among the tokens that the last layer computed."""
        self._tiles: dict[tuple[int, int, bool], list[Tile]] = {}

    def of_stream(self, rows: Tensor) -> Tensor:
        """The rows of the stream's tokens, from those of all decoded tokens."""
        return rows if self._chosen is None else rows.index_select(0, self._chosen)

    @torch.no_grad()
    def take_activations(self, layer: int) -> LayerActivations:
        """The layer's activations. The layout gives them up: a second call fails."""
        buffers, self.layers[layer] = self.layers[layer], []
        heads, before_norms, attended, *rest = (buffer.written for buffer in buffers)
        of_rest = self._chosen_in_last_layer if layer == len(self.layers) - 1 else self._chosen
        H, K = self.heads
        D = heads.shape[1] // (H + 2 * K)

        def by_heads(rows: Tensor, *counts: int) -> list[Tensor]:
            return [_chosen_rows(part, self._chosen) for part in rows.unflatten(1, (-1, D)).split(counts, 1)]

        of_attention = by_heads(attended, H)[0]
        residual, gate_up, output = (_chosen_rows(rows, of_rest) for rows in rest)
        before = tuple(by_heads(before_norms, H, K)) if len(before_norms) else ()
        gate, up = gate_up.chunk(2, 1)
        return LayerActivations(tuple(by_heads(heads, H, K, K)), before, of_attention, residual, gate, up, output)

    def attend_known(
        self, heads: tuple[Tensor, ...], options: AttentionOptions, only_read: bool, known: Tensor
    ) -> Tensor:
        """The known result; the backward pass goes through the tiles."""
        q, k, v = heads
        return attend_tiles(q, k, v, self._tiles_for(q, k, only_read), options.scaling, known)

    def _tiles_for(self, q: Tensor, k: Tensor, only_read: bool) -> list[Tile]:
        heads = k.shape[1], q.shape[1] // k.shape[1]
        key = (*heads, only_read)
        if key not in self._tiles:
            self._tiles[key] = tiles_of_groups(self.groups, only_read, self.tokens, *heads, q.device)
        return self._tiles[key]


def _without_repeats(completions: list[np.ndarray]) -> list[TokenRun]:
    """A prompt's completions. Tokens that several begin with attend as part of the first of them only."""
    rows, seen = [], set[int]()
    for places in completions:
        listed = places.tolist()
        repeated = next((i for i, place in enumerate(listed) if place not in seen), len(listed))
        rows.append(TokenRun(places, repeated))
        seen.update(listed[repeated:])
    return rows


def _chosen_rows(rows: Tensor, chosen: Tensor | None) -> Tensor:
    """The chosen rows, or all of them, contiguous in memory."""
    return rows.contiguous() if chosen is None else rows.index_select(0, chosen)
