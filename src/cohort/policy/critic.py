"""The critic: a value for each token of the packed stream, from a trunk of its own or from the policy's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cohort.policy.model import Policy


class Critic:
    """One linear layer on final hidden states. A trunk of its own starts as a copy of the policy's; weights that are
    not trained (with LoRA: all but the adapter) are shared with the policy."""

    def __init__(self, policy: Policy, own_trunk: bool):
        self.own_trunk = own_trunk
        self.model = trunk_copy(policy) if own_trunk else policy
        self.head = nn.Linear(policy.head.output.weight.shape[1], 1, device=policy.device)
        # Values start at 0: nothing random, and no advantage from a value that nothing has been learned of.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the critic's optimiser moves; a shared trunk is the policy's to move."""
        trunk = [p for p in self.model.trunk.parameters() if p.requires_grad] if self.own_trunk else []
        return [*trunk, *self.head.parameters()]

    @torch.no_grad()
    def values(self, hidden_N: Tensor) -> Tensor:
        """[N, D] -> float32 [N]."""
        found: Tensor = self.head(hidden_N.float()).squeeze(1)
        return found

    @torch.no_grad()
    def backward(self, hidden_N: Tensor, slope_N: Tensor) -> Tensor:
        """Gradient for the hidden states, [N, D], where the loss's for the values is `slope_N`; the head's is added
        to its `.grad`."""
        for parameter, grad in (
            (self.head.weight, slope_N.unsqueeze(0) @ hidden_N.float()),
            (self.head.bias, slope_N.sum().unsqueeze(0)),
        ):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return (slope_N.unsqueeze(1) * self.head.weight).to(hidden_N.dtype)


def trunk_copy(policy: Policy) -> Policy:
    """A copy of the policy's model with trained weights of its own; frozen ones and the output layer are the same
    tensors as the policy's."""
    trained = {id(p) for p in policy.trunk.parameters() if p.requires_grad}
    shared = {id(p): p for p in policy.model.parameters() if id(p) not in trained}
    return policy.of_copy(copy.deepcopy(policy.model, dict(shared)))
