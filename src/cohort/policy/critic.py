"""The critic: a value for each token of the packed stream, from a backbone of its own or from the policy's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cohort.policy.model import Policy


class Critic:
    """One linear layer on final hidden states. A backbone of its own starts as a copy of the policy's; weights that are
    not trained (with LoRA, all but the adapter) are shared with the policy."""

    def __init__(self, policy: Policy, own_backbone: bool):
        self.own_backbone = own_backbone
        self.model = backbone_copy(policy) if own_backbone else policy
        self.head = nn.Linear(policy.head.output.weight.shape[1], 1, device=policy.device)
        # Values start at 0, so that an untrained critic adds no noise to the advantages.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the critic's optimiser. A shared backbone is trained by the policy's."""
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad] if self.own_backbone else []
        return [*backbone, *self.head.parameters()]

    @torch.no_grad()
    def values(self, hidden_N: Tensor) -> Tensor:
        """[N, D] -> float32 [N]."""
        values: Tensor = self.head(hidden_N.float()).squeeze(1)
        return values

    @torch.no_grad()
    def backward(self, hidden_N: Tensor, slope_N: Tensor) -> Tensor:
        """The gradient for the hidden states, [N, D], from the loss's gradient for the values, `slope_N` [N]. The
        head's gradient is added to its `.grad`."""
        for parameter, grad in (
            (self.head.weight, slope_N.unsqueeze(0) @ hidden_N.float()),
            (self.head.bias, slope_N.sum().unsqueeze(0)),
        ):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return (slope_N.unsqueeze(1) * self.head.weight).to(hidden_N.dtype)


def backbone_copy(policy: Policy) -> Policy:
    """A copy of the policy's model with its own trained weights; frozen weights and the output layer are shared."""
    trained = {id(p) for p in policy.backbone.parameters() if p.requires_grad}
    shared = {id(p): p for p in policy.model.parameters() if id(p) not in trained}
    return policy.of_copy(copy.deepcopy(policy.model, dict(shared)))
