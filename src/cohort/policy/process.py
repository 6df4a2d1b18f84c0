"""The process that a run is: its seeds, and that there is one of it."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from cohort.types import UserError


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators: reward functions and models may use any of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def require_one_process() -> None:
    """Raise UserError where a launcher started several processes: each would train the whole run, on the same device
    and into the same folder."""
    size = os.environ.get("WORLD_SIZE", "")
    if size not in ("", "0", "1"):
        raise UserError(
            f"WORLD_SIZE is {size}: a run is one process on one device. Start it with `cohort train` or `python`, not "
            "with torchrun or accelerate launch; unset WORLD_SIZE where nothing else was started"
        )
