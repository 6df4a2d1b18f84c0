"""The key/value cache of grouped decoding: a prompt's keys once per group, each row's own keys beside them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from cohort.policy.packed.heads import HeadOptions
from cohort.policy.packed.layout import GroupLayout, _bias

GROWTH = 32
"""Room for own keys grows by this many tokens, or by a quarter where that is more."""


class DecodeCache:
    """N rows being decoded, each belonging to one of P prompts.

    A step: `advance()`, then a forward pass with the cache as the layout (one token for each row, in row order).
    `share`: prompts stand once for all their rows, worth it where they are long; else each row has its prompt's keys
    in front of its own, and the shared part is empty. Completions that begin with the same tokens are one row until
    they part (`fork`), for which there is room.

    Own keys are read to the end of their room: a part of them would be copied first. `fixed`: they are written without
    asking the device for anything either, so that from one `change` to the next every step is the same: what a CUDA
    graph records.
    """

    def __init__(self, share: bool, fixed: bool = False) -> None:
        self.share, self.fixed = share, fixed
        self.change = object()
        """Another one after each change of the rows or of their room."""
        self.reach = 0
        """No row's position gets here before the next change."""
        self.prompt: dict[int, tuple[Tensor, ...]] = {}
        """layer -> shared keys and values [P, Hkv, L, D]."""
        self.own: dict[int, tuple[Tensor, ...]] = {}
        """layer -> keys and values [N or more, Hkv, capacity, D]; behind the N rows is room for those to come."""
        self.prompt_lengths = torch.zeros(0, dtype=torch.long)
        """[P], shared tokens: 0 where prompts are copied."""
        self.group = torch.zeros(0, dtype=torch.long)
        """[N], the row's prompt."""
        self.lengths = torch.zeros(0, dtype=torch.long)
        """[N], own tokens written, the one of the current step included after `advance()`."""
        self.positions = torch.zeros(0, dtype=torch.long)
        """[N], where the token of the current step stands."""

    def __len__(self) -> int:
        return len(self.group)

    def extend(self, layout: GroupLayout, rows: list[int], more: int = 0) -> None:
        """Let in the prompts that `layout` captured, `rows[i]` rows for the i-th, with room for `more` to part."""
        assert layout.captured, "no layer of the model called the grouped attention"
        device = layout.grid.device
        group = torch.arange(len(rows), device=device).repeat_interleave(torch.tensor(rows, device=device))
        lengths, before = layout.prompt_lengths, len(self)
        for layer, both in layout.captured.items():
            if self.share:
                prompt = both
                own = tuple(x.new_zeros(len(group), x.shape[1], GROWTH, x.shape[3]) for x in both)
            else:
                room = -both[0].shape[2] % GROWTH
                prompt = tuple(x[:, :, :0] for x in both)
                own = tuple(pad(x, (0, 0, 0, room))[group] for x in both)
            spare = more
            if before:
                prompt = tuple(map(_stack, self.prompt[layer], prompt))
                spare += len(self.own[layer][0]) - before
                own = tuple(_stack(x[:before], new) for x, new in zip(self.own[layer], own, strict=True))
            self.prompt[layer], self.own[layer] = _read_often(*prompt), tuple(_with_room(x, spare) for x in own)
        shared, written = (lengths, lengths.new_zeros(len(group))) if self.share else (0 * lengths, lengths[group])
        if before:
            shared = torch.cat([self.prompt_lengths, shared])
            written = torch.cat([self.lengths, written])
            group = torch.cat([self.group, group + len(self.prompt_lengths)])
        self.prompt_lengths, self.lengths, self.group = shared, written, group
        self._settle()

    def fork(self, rows: Tensor) -> None:
        """One more row behind the others for each of `rows`, the same as it until now."""
        N = len(self)
        for own in self.own.values():
            for x in own:
                torch.index_select(x[:N], 0, rows, out=x[N : N + len(rows)])
        self.group, self.lengths = (torch.cat([x, x[rows]]) for x in (self.group, self.lengths))
        self._settle()

    def keep(self, rows: Tensor, more: int = 0) -> None:
        """Drop every row but `rows` (ascending, at least one) and the prompts that no row needs any more; keep room
        for `more` to part."""
        groups, group = torch.unique(self.group[rows], return_inverse=True)
        used, longest = int(self.lengths[rows].max()), int(self.prompt_lengths[groups].max())
        room = min(self._room, -(-(used + 1) // GROWTH) * GROWTH)
        for layer, own in self.own.items():
            if len(groups) < len(self.prompt_lengths):
                self.prompt[layer] = _read_often(*(x[groups, :, :longest] for x in self.prompt[layer]))
            self.own[layer] = tuple(_with_room(x[rows, :, :room], more) for x in own)
        self.prompt_lengths, self.group, self.lengths = self.prompt_lengths[groups], group, self.lengths[rows]
        self._settle()

    def advance(self) -> None:
        """Make room for one more token in every row."""
        self.lengths += 1
        self.positions += 1
        self._used += 1
        if self._used > self._room:
            more = max(GROWTH, self._used // 4)
            for layer, own in self.own.items():
                self.own[layer] = tuple(pad(x, (0, 0, 0, more)) for x in own)
            self._moved()
        self.forget()

    def forget(self) -> None:
        """Lay out this step's masks anew."""
        self._biases: dict[tuple[int | None, torch.dtype], Tensor] = {}

    @property
    def _room(self) -> int:
        return next(iter(self.own.values()))[1].shape[2]

    def _moved(self) -> None:
        self.change = object()
        self.reach = self._longest + self._room

    def _settle(self) -> None:
        """What stays the same while the rows do."""
        self._used, self._longest = int(self.lengths.max()), int(self.prompt_lengths.max())
        self._rows = torch.arange(len(self), device=self.group.device)
        self.positions = self.prompt_lengths[self.group] + self.lengths - 1
        self._even = bool((self.lengths == self._used).all())
        shared = next(iter(self.prompt.values()))[1].shape[2]
        self._full = self._even and bool((self.prompt_lengths == shared).all())
        self._moved()
        if self.share:
            # Rows on a grid [P, R], so that a prompt's keys meet all its rows in one product.
            P, counts = len(self.prompt_lengths), torch.bincount(self.group, minlength=len(self.prompt_lengths))
            R = int(counts.max())
            starts = counts.cumsum(0) - counts
            order = self.group.argsort(stable=True)
            slot = torch.empty_like(self.group)
            slot[order] = self.group[order] * R + self._rows - starts[self.group[order]]
            self._shape = (P, R)
            self._slot = None if len(self) == P * R and bool((order == self._rows).all()) else slot
            self._grid = torch.zeros(P * R, dtype=torch.long, device=slot.device)
            self._grid[slot] = self._rows

    def attend(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions, out: Tensor | None = None) -> Tensor:
        """q [N, H, D], k and v [N, Hkv, D] of a token of each row to [N, H, D], in `out` where there is one."""
        (N, H, D), K, Dv = q.shape, k.shape[1], v.shape[-1]
        rep = H // K
        keys, values = (x[:N] for x in self.own[head.layer])
        for kept, new in ((keys, k), (values, v)):
            if self._even and not self.fixed:
                kept.select(2, self._used - 1).copy_(new)
            else:
                kept[self._rows, :, self.lengths - 1] = new.to(kept.dtype)
        q = (q if head.scaling == 1.0 else q * head.scaling).reshape(N, K, rep, D)
        scores = q @ keys.transpose(2, 3)
        L = self.prompt[head.layer][0].shape[2]
        if self.share:
            scores = torch.cat([self._prompt_scores(q, head.layer), scores], -1)
        scores, bias = head.cap(scores), self._bias_for(head.window, q.dtype, L)
        if bias is not None:
            scores = scores + bias
        elif self._used < self._room:
            scores.narrow(-1, L + self._used, self._room - self._used).fill_(torch.finfo(scores.dtype).min)
        weights = head.softmax(scores, (1, K, rep))
        found = torch.matmul(weights[..., L:], values, out=None if out is None else out.view(N, K, rep, Dv))
        if self.share:
            found += self._prompt_values(weights[..., :L], head.layer)
        return found.view(N, H, Dv)

    def _prompt_scores(self, q: Tensor, layer: int) -> Tensor:
        """Queries [N, K, rep, D] against their prompts' keys, [N, K, rep, L]."""
        (_, K, rep, D), (P, R) = q.shape, self._shape
        keys = self.prompt[layer][0].transpose(2, 3)
        grid = self._to_grid(q).view(P, R, K, rep, D).transpose(1, 2).reshape(P, K, R * rep, D)
        return self._to_rows((grid @ keys).view(P, K, R, rep, -1).transpose(1, 2).reshape(P * R, K, rep, -1))

    def _prompt_values(self, weights: Tensor, layer: int) -> Tensor:
        """Weights [N, K, rep, L] on their prompts' values, [N, K, rep, D]."""
        (_, K, rep, L), (P, R) = weights.shape, self._shape
        values = self.prompt[layer][1]
        grid = self._to_grid(weights).view(P, R, K, rep, L).transpose(1, 2).reshape(P, K, R * rep, L)
        return self._to_rows((grid @ values).view(P, K, R, rep, -1).transpose(1, 2).reshape(P * R, K, rep, -1))

    def _to_grid(self, rows: Tensor) -> Tensor:
        return rows if self._slot is None else rows[self._grid]

    def _to_rows(self, grid: Tensor) -> Tensor:
        return grid if self._slot is None else grid[self._slot]

    def _bias_for(self, window: int | None, dtype: torch.dtype, L: int) -> Tensor | None:
        """Additive mask [N, 1, 1, L + own] over prompt keys, then own keys; None where every row sees them all."""
        if window is None and self._full and not self.fixed:
            return None
        if (window, dtype) not in self._biases:
            device = self.group.device
            prompt_lengths = self.prompt_lengths[self.group].unsqueeze(1)
            lengths = self.lengths.unsqueeze(1)
            prompt, own = torch.arange(L, device=device), torch.arange(self._room, device=device)
            seen_prompt, seen_own = prompt < prompt_lengths, own < lengths
            if window is not None:
                seen_prompt = seen_prompt & (prompt_lengths + lengths - 1 - prompt < window)
                seen_own = seen_own & (lengths - 1 - own < window)
            seen = torch.cat([seen_prompt, seen_own], 1)
            self._biases[window, dtype] = _bias(seen, dtype).view(len(self), 1, 1, -1)
        return self._biases[window, dtype]


def _read_often(keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """The same, in the order in memory in which products with them read fastest. (Own keys are written in the order in
    which they come: a token's, spread over memory, cost more than their product gained.)"""
    return keys.transpose(2, 3).contiguous().transpose(2, 3), values.contiguous()


def _stack(old: Tensor, new: Tensor) -> Tensor:
    """[*, Hkv, L, D] below one another, the shorter padded."""
    longest = max(old.shape[2], new.shape[2])
    return torch.cat([pad(x, (0, 0, 0, longest - x.shape[2])) for x in (old, new)])


def _with_room(rows: Tensor, more: int) -> Tensor:
    """The same rows at the beginning of memory for as many more."""
    if not more:
        return rows
    found = rows.new_empty(len(rows) + more, *rows.shape[1:])
    found[: len(rows)] = rows
    return found
