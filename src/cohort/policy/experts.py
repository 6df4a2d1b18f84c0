"""Models that are mixtures of experts: the logits of their routers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cohort.policy.model import Policy


def balances_experts(policy: Policy) -> bool:
    """Whether transformers has a load-balancing loss for the model."""
    return hasattr(policy.model, "router_aux_loss_coef") and hasattr(policy.model, "num_experts_per_tok")


def hidden_and_router_logits(policy: Policy, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Final hidden states [T, Dm] of one forward pass by the model's own layers, and the logits [T, E] of each layer's
    router."""
    with policy.autocast(), policy.attending():
        out = policy.backbone(**inputs, use_cache=False, output_router_logits=True)
    hidden: Tensor = out.last_hidden_state
    return hidden.flatten(0, 1), [logits.flatten(0, -2) for logits in out.router_logits]
