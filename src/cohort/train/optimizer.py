"""AdamW, and one step of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from cohort.config import TrainingConfig

log = logging.getLogger("cohort")

BITSANDBYTES = {
    "adamw_bnb_8bit": "AdamW8bit",
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW",
}
"""transformers' name -> bitsandbytes' class."""


def make_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW; biases and norms (one-dimensional parameters) are not decayed, as in transformers."""
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    kind = adamw_of(config.optim, parameters[0].device)
    return kind(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def bitsandbytes_class(optim: str, device: str) -> str | None:
    """The class of bitsandbytes that `optim` names on a kind of device; None for torch's AdamW. Off CUDA nothing is
    paged."""
    if optim not in BITSANDBYTES or device not in ("cpu", "cuda"):
        return None
    name = BITSANDBYTES[optim]
    return name if device == "cuda" else name.removeprefix("Paged")


def adamw_of(optim: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """bitsandbytes' AdamW of that name where it is installed; else torch's, with a notice."""
    fused = partial(torch.optim.AdamW, fused=device.type in ("cpu", "cuda"))
    if optim not in BITSANDBYTES:
        return fused
    name = bitsandbytes_class(optim, device.type)
    if name is None:
        log.warning("optim=%s needs CUDA or a CPU: torch's AdamW takes its place", optim)
        return fused
    try:
        import bitsandbytes
    except ImportError:
        log.warning("optim=%s needs bitsandbytes (pip install bitsandbytes): torch's AdamW takes its place", optim)
        return fused
    if name != BITSANDBYTES[optim]:
        log.warning("optim=%s: paging needs CUDA: bitsandbytes' %s takes its place", optim, name)
    kind: Callable[..., torch.optim.Optimizer] = getattr(bitsandbytes.optim, name)
    return kind


def descend(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], learning_rate: float, config: TrainingConfig
) -> float:
    """Clip the gradient, take one step, drop the gradient; returns its norm before clipping. Raises
    FloatingPointError where it is NaN."""
    for parameter in parameters:
        if parameter.grad is None:  # no signal is a zero gradient: momentum and decay go on
            parameter.grad = torch.zeros_like(parameter)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or float("inf")))
    if norm != norm:
        raise FloatingPointError("the gradient is NaN: the weights or the log-probabilities are broken")
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
