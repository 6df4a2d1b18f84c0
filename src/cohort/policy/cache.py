"""The key/value cache of grouped decoding: a prompt's keys once per group, each row's own keys beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from cohort.policy.attention import GroupLayout, HeadOptions, _bias

GROWTH = 64
"""Own keys are allocated in blocks of this many tokens."""


class DecodeCache:
    """N rows being decoded, each belonging to one of P prompts; rows of a prompt are neighbours.

    A step: `advance()`, then a forward pass with the cache as the layout (one token for each row, in row order).
    """

    def __init__(self) -> None:
        self.prompt: dict[int, tuple[Tensor, Tensor]] = {}
        """layer -> keys [P, Hkv, L, D] and values."""
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        """layer -> keys [N, Hkv, capacity, D] and values."""
        self.prompt_lengths = torch.zeros(0, dtype=torch.long)
        self.group = torch.zeros(0, dtype=torch.long)
        """[N], the row's prompt."""
        self.lengths = torch.zeros(0, dtype=torch.long)
        """[N], own tokens written, the one of the current step included after `advance()`."""

    def __len__(self) -> int:
        return len(self.group)

    @property
    def positions(self) -> Tensor:
        """[N], where the token of the current step stands."""
        return self.prompt_lengths[self.group] + self.lengths - 1

    def extend(self, layout: GroupLayout, rows: list[int]) -> None:
        """Let in the prompts that `layout` captured, `rows[i]` rows for the i-th."""
        assert layout.captured is not None
        device = layout.grid.device
        new_rows = sum(rows)
        counts = torch.tensor(rows, device=device)
        group = torch.arange(len(rows), device=device).repeat_interleave(counts) + len(self.prompt_lengths)
        for layer, (keys, values) in layout.captured.items():
            if len(self):
                old_keys, old_values = self.prompt[layer]
                self.prompt[layer] = (_stack(old_keys, keys), _stack(old_values, values))
                self.own[layer] = tuple(  # type: ignore[assignment]
                    torch.cat([x, x.new_zeros(new_rows, *x.shape[1:])]) for x in self.own[layer]
                )
            else:
                self.prompt[layer] = (keys, values)
                self.own[layer] = tuple(  # type: ignore[assignment]
                    x.new_zeros(new_rows, x.shape[1], GROWTH, x.shape[-1]) for x in (keys, values)
                )
        if len(self):
            self.prompt_lengths = torch.cat([self.prompt_lengths, layout.prompt_lengths])
            self.group = torch.cat([self.group, group])
            self.lengths = torch.cat([self.lengths, self.lengths.new_zeros(new_rows)])
        else:
            self.prompt_lengths, self.group = layout.prompt_lengths, group
            self.lengths = torch.zeros(new_rows, dtype=torch.long, device=device)

    def keep(self, rows: Tensor) -> None:
        """Drop every row but `rows` (ascending) and the prompts that no row needs any more."""
        groups, group = torch.unique_consecutive(self.group[rows], return_inverse=True)
        used = int(self.lengths[rows].max()) if len(rows) else 0
        longest = int(self.prompt_lengths[groups].max()) if len(rows) else 0
        for layer in self.own:
            if len(groups) < len(self.prompt_lengths):
                keys, values = self.prompt[layer]
                self.prompt[layer] = (
                    keys[groups, :, :longest].contiguous(),
                    values[groups, :, :longest].contiguous(),
                )
            room = min(self.own[layer][0].shape[2], -(-(used + 1) // GROWTH) * GROWTH)
            keys, values = self.own[layer]
            self.own[layer] = (keys[rows, :, :room], values[rows, :, :room])
        self.prompt_lengths, self.group, self.lengths = self.prompt_lengths[groups], group, self.lengths[rows]

    def advance(self) -> None:
        """Make room for one more token in every row, and lay out this step's masks."""
        self.lengths = self.lengths + 1
        self._used = int(self.lengths.max())
        for layer, (keys, values) in self.own.items():
            if self._used > keys.shape[2]:
                more = (*keys.shape[:2], GROWTH)
                self.own[layer] = (
                    torch.cat([keys, keys.new_zeros(*more, keys.shape[-1])], 2),
                    torch.cat([values, values.new_zeros(*more, values.shape[-1])], 2),
                )
        self._rows = torch.arange(len(self), device=self.group.device)
        self._even = bool((self.lengths == self._used).all())
        # Rows on a grid [P, R], so that a prompt's keys meet all its rows in one product.
        P, counts = len(self.prompt_lengths), torch.bincount(self.group, minlength=len(self.prompt_lengths))
        R = int(counts.max())
        starts = counts.cumsum(0) - counts
        slot = self.group * R + self._rows - starts[self.group]
        self._shape = (P, R)
        self._slot = None if len(self) == P * R else slot
        self._grid = torch.zeros(P * R, dtype=torch.long, device=slot.device)
        self._grid[slot] = self._rows
        self._biases: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, head: HeadOptions) -> Tensor:
        (N, H, D), K, Dv = q.shape, k.shape[1], v.shape[-1]
        rep, (P, R) = H // K, self._shape
        keys, values = self.own[head.layer]
        if self._even:
            keys[:, :, self._used - 1] = k
            values[:, :, self._used - 1] = v
        else:
            keys[self._rows, :, self.lengths - 1] = k.to(keys.dtype)
            values[self._rows, :, self.lengths - 1] = v.to(values.dtype)
        keys, values = keys[:, :, : self._used], values[:, :, : self._used]
        k_prompt, v_prompt = self.prompt[head.layer]
        L = k_prompt.shape[2]
        q = (q * head.scaling).reshape(N, K, rep, D)
        shared = self._to_grid(q).view(P, R, K, rep, D).transpose(1, 2).reshape(P * K, R * rep, D)
        shared = shared @ k_prompt.view(P * K, L, D).transpose(1, 2)
        shared = self._to_rows(shared.view(P, K, R, rep, L).transpose(1, 2).reshape(P * R, K, rep, L))
        own = q @ keys.transpose(2, 3)
        scores = head.cap(torch.cat([shared, own], -1)) + self._bias_for(head.window, q.dtype, L)
        weights = head.softmax(scores, (1, K, rep))
        shared = self._to_grid(weights[..., :L]).view(P, R, K, rep, L).transpose(1, 2).reshape(P * K, R * rep, L)
        shared = (shared @ v_prompt.view(P * K, L, Dv)).view(P, K, R, rep, Dv)
        shared = self._to_rows(shared.transpose(1, 2).reshape(P * R, K, rep, Dv))
        return (shared + weights[..., L:] @ values).reshape(N, H, Dv)

    def _to_grid(self, rows: Tensor) -> Tensor:
        return rows if self._slot is None else rows[self._grid]

    def _to_rows(self, grid: Tensor) -> Tensor:
        return grid if self._slot is None else grid[self._slot]

    def _bias_for(self, window: int | None, dtype: torch.dtype, L: int) -> Tensor:
        """Additive mask [N, 1, 1, L + own] over prompt keys, then own keys."""
        if (window, dtype) not in self._biases:
            device = self.group.device
            prompt_lengths = self.prompt_lengths[self.group].unsqueeze(1)
            lengths = self.lengths.unsqueeze(1)
            prompt, own = torch.arange(L, device=device), torch.arange(self._used, device=device)
            seen_prompt, seen_own = prompt < prompt_lengths, own < lengths
            if window is not None:
                seen_prompt = seen_prompt & (prompt_lengths + lengths - 1 - prompt < window)
                seen_own = seen_own & (lengths - 1 - own < window)
            seen = torch.cat([seen_prompt, seen_own], 1)
            self._biases[window, dtype] = _bias(seen, dtype).view(len(self), 1, 1, -1)
        return self._biases[window, dtype]


def _stack(old: Tensor, new: Tensor) -> Tensor:
    """[P, Hkv, L, D] below one another, the shorter padded."""
    longest = max(old.shape[2], new.shape[2])
    return torch.cat([torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[2])) for x in (old, new)])
