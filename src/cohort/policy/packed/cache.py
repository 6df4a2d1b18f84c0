"""The key/value cache of decoding: each prompt's keys once for its group, and each row's own keys."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from cohort.policy.packed.options import AttentionOptions, additive_mask
from cohort.policy.packed.prompts import CapturingLayout

GROWTH = 32
"""Tokens by which the capacity for own keys grows, or a quarter of it where that is more."""


class DecodeCache:
    """The keys and values of N rows being decoded, each of which continues one of P prompts.

    A decoding step is `advance()`, then a forward pass with the cache as the layout, one token for each row in row
    order. `share`: a prompt's keys are stored once for all its rows, which pays for long prompts; otherwise each row
    has a copy in front of its own keys and the shared part is empty. Completions that begin with the same tokens are
    one row until they differ (`fork`).

    Own keys are always read up to the capacity, since a slice of them would be copied. `fixed`: every step between two
    changes of `change` runs the same operations without waiting for the device, as a CUDA graph needs.
    """

    def __init__(self, share: bool, fixed: bool = False) -> None:
        self.share, self.fixed = share, fixed
        self.change = object()
        """A new object after each change of the rows or of the capacity."""
        self.reach = 0
        """An upper bound of the rows' positions until the next change."""
        self.prompt: dict[int, tuple[Tensor, ...]] = {}
        """layer -> shared keys and values [P, Hkv, L, D]."""
        self.own: dict[int, tuple[Tensor, ...]] = {}
        """layer -> keys and values [N or more, Hkv, capacity, D]; rows behind the N are free for forks."""
        self.prompt_lengths = torch.zeros(0, dtype=torch.long)
        """[P], tokens stored once for all rows: 0 where prompts are copied."""
        self.group = torch.zeros(0, dtype=torch.long)
        """[N], the prompt of each row."""
        self.lengths = torch.zeros(0, dtype=torch.long)
        """[N], own tokens so far, with the current step's after `advance()`."""
        self.positions = torch.zeros(0, dtype=torch.long)
        """[N], the position of the current step's token."""

    def __len__(self) -> int:
        return len(self.group)

    def extend(self, prefill: CapturingLayout, rows: list[int], spare_rows: int = 0) -> None:
        """Add the prompts of a forward pass, `rows[i]` rows for the i-th, and keep `spare_rows` free for forks. Empties
        `prefill.keys_values`."""
        assert prefill.keys_values, "no layer of the model called the grouped attention"
        device = prefill.lengths.device
        group = torch.arange(len(rows), device=device).repeat_interleave(torch.tensor(rows, device=device))
        lengths, before = prefill.lengths, len(self)
        for layer in list(prefill.keys_values):
            both = prefill.keys_values.pop(layer)  # frees its memory for the next layer's
            prompt: tuple[Tensor, ...] = both
            own: tuple[Tensor, ...]
            if self.share:
                own = tuple(x.new_zeros(len(group), x.shape[1], GROWTH, x.shape[3]) for x in both)
            else:
                room = -both[0].shape[2] % GROWTH
                prompt = tuple(x[:, :, :0] for x in both)
                own = tuple(pad(x, (0, 0, 0, room))[group] for x in both)
            spare = spare_rows
            if before:
                prompt = tuple(map(_stack, self.prompt[layer], prompt))
                spare += len(self.own[layer][0]) - before
                own = tuple(_stack(x[:before], new) for x, new in zip(self.own[layer], own, strict=True))
            self.prompt[layer], self.own[layer] = _for_products(*prompt), tuple(_with_spare_rows(x, spare) for x in own)
        shared, written = (lengths, lengths.new_zeros(len(group))) if self.share else (0 * lengths, lengths[group])
        if before:
            shared = torch.cat([self.prompt_lengths, shared])
            written = torch.cat([self.lengths, written])
            group = torch.cat([self.group, group + len(self.prompt_lengths)])
        self.prompt_lengths, self.lengths, self.group = shared, written, group
        self._settle()

    def fork(self, rows: Tensor) -> None:
        """Append a copy of each of `rows`."""
        N = len(self)
        for own in self.own.values():
            for x in own:
                torch.index_select(x[:N], 0, rows, out=x[N : N + len(rows)])
        self.group, self.lengths = (torch.cat([x, x[rows]]) for x in (self.group, self.lengths))
        self._settle()

    def keep(self, rows: Tensor, spare_rows: int = 0) -> None:
        """Drop every row but `rows` (ascending, at least one), and prompts without rows; keep `spare_rows` free for
        forks."""
        groups, group = torch.unique(self.group[rows], return_inverse=True)
        used, longest = int(self.lengths[rows].max()), int(self.prompt_lengths[groups].max())
        capacity = min(self._capacity, -(-(used + 1) // GROWTH) * GROWTH)
        for layer, own in self.own.items():
            if len(groups) < len(self.prompt_lengths):
                self.prompt[layer] = _for_products(*(x[groups, :, :longest] for x in self.prompt[layer]))
            self.own[layer] = tuple(_with_spare_rows(x[rows, :, :capacity], spare_rows) for x in own)
        self.prompt_lengths, self.group, self.lengths = self.prompt_lengths[groups], group, self.lengths[rows]
        self._settle()

    def advance(self) -> None:
        """Begin a step: one more token in every row. Grows the capacity where it is used up."""
        self.lengths += 1
        self.positions += 1
        self._used += 1
        if self._used > self._capacity:
            more = max(GROWTH, self._used // 4)
            for layer, own in self.own.items():
                self.own[layer] = tuple(pad(x, (0, 0, 0, more)) for x in own)
            self._note_change()
        self.forget()

    def forget(self) -> None:
        """Drop the masks: they are computed again for this step."""
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    @property
    def _capacity(self) -> int:
        return next(iter(self.own.values()))[1].shape[2]

    def _note_change(self) -> None:
        self.change = object()
        self.reach = self._longest + self._capacity

    def _settle(self) -> None:
        """Compute what depends on the rows and not on the step."""
        self._used, self._longest = int(self.lengths.max()), int(self.prompt_lengths.max())
        self._rows = torch.arange(len(self), device=self.group.device)
        self.positions = self.prompt_lengths[self.group] + self.lengths - 1
        self._even = bool((self.lengths == self._used).all())
        shared = next(iter(self.prompt.values()))[1].shape[2]
        self._full = self._even and bool((self.prompt_lengths == shared).all())
        self._note_change()
        if self.share:
            # A grid [P, R] of rows, so that one product multiplies a prompt's keys with all its rows.
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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, out: Tensor | None = None) -> Tensor:
        """q [N, H, D], k and v [N, Hkv, D] of one token of each row to [N, H, D], written to `out` if given."""
        (N, H, D), K, Dv = q.shape, k.shape[1], v.shape[-1]
        rep = H // K
        keys, values = (x[:N] for x in self.own[options.layer])
        for stored, new in ((keys, k), (values, v)):
            if self._even and not self.fixed:
                stored.select(2, self._used - 1).copy_(new)
            else:
                stored[self._rows, :, self.lengths - 1] = new.to(stored.dtype)
        q = (q if options.scaling == 1.0 else q * options.scaling).reshape(N, K, rep, D)
        scores = q @ keys.transpose(2, 3)
        L = self.prompt[options.layer][0].shape[2]
        if self.share:
            scores = torch.cat([self._prompt_scores(q, options.layer), scores], -1)
        scores, mask = options.cap(scores), self._mask_for(options.window, q.dtype, L)
        if mask is not None:
            scores = scores + mask
        elif self._used < self._capacity:
            scores.narrow(-1, L + self._used, self._capacity - self._used).fill_(torch.finfo(scores.dtype).min)
        weights = options.softmax(scores, (1, K, rep))
        result = torch.matmul(weights[..., L:], values, out=None if out is None else out.view(N, K, rep, Dv))
        if self.share:
            result += self._prompt_values(weights[..., :L], options.layer)
        return result.view(N, H, Dv)

    def _prompt_scores(self, q: Tensor, layer: int) -> Tensor:
        """Scores of queries [N, K, rep, D] with their prompts' keys, [N, K, rep, L]."""
        (_, K, rep, D), (P, R) = q.shape, self._shape
        keys = self.prompt[layer][0].transpose(2, 3)
        grid = self._to_grid(q).view(P, R, K, rep, D).transpose(1, 2).reshape(P, K, R * rep, D)
        return self._to_rows((grid @ keys).view(P, K, R, rep, -1).transpose(1, 2).reshape(P * R, K, rep, -1))

    def _prompt_values(self, weights: Tensor, layer: int) -> Tensor:
        """The prompts' values weighted by [N, K, rep, L], [N, K, rep, D]."""
        (_, K, rep, L), (P, R) = weights.shape, self._shape
        values = self.prompt[layer][1]
        grid = self._to_grid(weights).view(P, R, K, rep, L).transpose(1, 2).reshape(P, K, R * rep, L)
        return self._to_rows((grid @ values).view(P, K, R, rep, -1).transpose(1, 2).reshape(P * R, K, rep, -1))

    def _to_grid(self, rows: Tensor) -> Tensor:
        return rows if self._slot is None else rows[self._grid]

    def _to_rows(self, grid: Tensor) -> Tensor:
        return grid if self._slot is None else grid[self._slot]

    def _mask_for(self, window: int | None, dtype: torch.dtype, L: int) -> Tensor | None:
        """Additive mask [N, 1, 1, L + own] over prompt keys and own keys; None where every row attends to all of
        them."""
        if window is None and self._full and not self.fixed:
            return None
        if (window, dtype) not in self._masks:
            device = self.group.device
            prompt_lengths = self.prompt_lengths[self.group].unsqueeze(1)
            lengths = self.lengths.unsqueeze(1)
            prompt, own = torch.arange(L, device=device), torch.arange(self._capacity, device=device)
            seen_prompt, seen_own = prompt < prompt_lengths, own < lengths
            if window is not None:
                seen_prompt = seen_prompt & (prompt_lengths + lengths - 1 - prompt < window)
                seen_own = seen_own & (lengths - 1 - own < window)
            seen = torch.cat([seen_prompt, seen_own], 1)
            self._masks[window, dtype] = additive_mask(seen, dtype).view(len(self), 1, 1, -1)
        return self._masks[window, dtype]


def _for_products(keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """The same in the memory order that products read fastest. Own keys stay in the order in which they are written:
    scattering each new token costs more than the products gain."""
    return keys.transpose(2, 3).contiguous().transpose(2, 3), values.contiguous()


def _stack(old: Tensor, new: Tensor) -> Tensor:
    """Concatenate two [*, Hkv, L, D], the shorter padded."""
    longest = max(old.shape[2], new.shape[2])
    return torch.cat([pad(x, (0, 0, 0, longest - x.shape[2])) for x in (old, new)])


def _with_spare_rows(rows: Tensor, spare: int) -> Tensor:
    """The rows, followed by `spare` uninitialised ones."""
    if not spare:
        return rows
    result = rows.new_empty(len(rows) + spare, *rows.shape[1:])
    result[: len(rows)] = rows
    return result
