"""One forward pass over prompts, for a cache of keys and values."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cohort.policy.packed.layout import FEW_READ, GroupLayout, autocasted
from cohort.policy.packed.options import AttentionOptions


class CapturingLayout:
    """A layout for one forward pass over P prompts that also collects each layer's keys and values, for a cache.

    `layout` has a group for each prompt; or one group for all of them, whose prompt is their common beginning and whose
    completions are the rests.
    """

    def __init__(self, layout: GroupLayout):
        self.layout = layout
        places = [
            np.concatenate([beginning, rest])
            for beginning, *rests in layout.group_places()
            for rest in rests or [beginning[:0]]
        ]
        device, lengths = layout.places.device, [len(prompt) for prompt in places]
        grid = np.zeros((len(places), max(lengths)), dtype=np.int64)
        for row, prompt in zip(grid, places, strict=True):
            row[: len(prompt)] = prompt
        self._grid = torch.from_numpy(grid).to(device)
        self.lengths = torch.tensor(lengths, device=device)
        """[P], tokens of each prompt."""
        self.ends = torch.tensor([prompt[-1] for prompt in places], device=device)
        """[P], the place in the stream of each prompt's last token."""
        self.last_layer_tokens = self.ends if len(places) < FEW_READ * len(layout.places) else None
        """The tokens that the last layer computes; None: all."""
        self.keys_values: dict[int, tuple[Tensor, Tensor]] = {}
        """layer -> keys and values [P, Hkv, L, D], padded to the longest prompt."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, only_read: bool = False) -> Tensor:
        q, k, v = (autocasted(x) for x in (q, k, v))
        keys, values = (x[self._grid].transpose(1, 2).contiguous() for x in (k, v))
        self.keys_values[options.layer] = (keys, values)
        return self.layout.attend(q, k, v, options, only_read)
