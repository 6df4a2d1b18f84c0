"""AdamW, and one step of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from cohort.config import TrainingConfig
from cohort.policy.divided import full
from cohort.policy.finite import first_not_finite
from cohort.types import NotFinite

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
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    learning_rate: float,
    config: TrainingConfig,
    model: nn.Module | None = None,
) -> float:
    """Clip the gradient, take one step, drop the gradient; returns its norm before clipping. Where the norm is not
    finite nothing is updated: raises NotFinite, or with `on_nonfinite: skip` warns. `model`: gives the parameters
    their names in messages."""
    for parameter in parameters:
        if parameter.grad is None:  # no signal is a zero gradient: momentum and decay go on
            parameter.grad = torch.zeros_like(parameter)
    total = full(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    norm = float(total)
    if not math.isfinite(norm):
        message = _why_no_step(parameters, model)
        optimizer.zero_grad(set_to_none=True)
        if config.on_nonfinite == "stop":
            raise NotFinite(message)
        log.warning("%s: this update is skipped", message)
        return norm
    if config.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm, total)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def skipped(norm: float, config: TrainingConfig) -> dict[str, float]:
    """The metric `update_skipped`, where updates may be skipped."""
    return {"update_skipped": float(not math.isfinite(norm))} if config.on_nonfinite == "skip" else {}


def _why_no_step(parameters: list[nn.Parameter], model: nn.Module | None) -> str:
    names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    gradients = [(names.get(id(p), f"parameter {i}"), p.grad) for i, p in enumerate(parameters) if p.grad is not None]
    broken = first_not_finite(gradients)
    if broken is not None:
        return f"the gradient is NaN or infinite, first in {broken}"
    sizes = {name: float(full(g.abs().max())) if g.numel() else 0.0 for name, g in gradients}
    name, largest = max(sizes.items(), key=lambda pair: pair[1])
    return f"the gradient's norm overflows: its largest entry is {largest:.3g}, in {name}"
