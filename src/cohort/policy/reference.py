"""The reference model: the policy as it was at the start of the run, or of the current iteration."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from cohort.policy.model import Policy


class Reference(ABC):
    """Lends a policy that does not learn: `with reference() as frozen: frozen.logprobs(...)`."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.followed = False

    @abstractmethod
    def __call__(self) -> AbstractContextManager[Policy]: ...

    def follow(self) -> None:
        """Make it the policy as that is now."""
        self._take([parameter.detach() for parameter in self.policy.parameters])

    def tensors(self) -> dict[str, Tensor]:
        """Its trained weights by their place in the order of parameters, for a checkpoint. Empty where it is as the
        run found it: a resumed run finds it so again."""
        return {str(i): weight for i, weight in enumerate(self._weights())} if self.followed else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        if tensors:
            self._take([tensors[str(i)].to(self.policy.device) for i in range(len(tensors))])

    def _take(self, weights: list[Tensor]) -> None:
        self._set(weights)
        self.followed = True

    @abstractmethod
    def _weights(self) -> list[Tensor]: ...

    @abstractmethod
    def _set(self, weights: list[Tensor]) -> None: ...


class _Copy(Reference):
    """A frozen copy of the whole model."""

    def __init__(self, policy: Policy):
        super().__init__(policy)
        model = copy.deepcopy(policy.model)
        self._trained: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
        self.frozen = policy.of_copy(model.requires_grad_(False).eval())

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        yield self.frozen

    def _weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._trained]

    @torch.no_grad()
    def _set(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self._trained, weights, strict=True):
            parameter.copy_(weight)


class _Adapter(Reference):
    """The policy's own model: with its adapter off (bit for bit the base model) until the reference follows the
    policy, then with the adapter's weights of that moment, which change places with the policy's while it is lent."""

    def __init__(self, policy: Policy):
        super().__init__(policy)
        self._kept: list[Tensor] = []

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        if not self.followed:
            with self.policy.peft.disable_adapter():
                yield self.policy
            return
        training = self.policy.model.training
        self._change_places()
        self.policy.model.eval()
        try:
            yield self.policy
        finally:
            self.policy.model.train(training)
            self._change_places()

    def _change_places(self) -> None:
        parameters = self.policy.parameters
        self._kept, current = [p.data for p in parameters], self._kept
        for parameter, weight in zip(parameters, current, strict=True):
            parameter.data = weight

    def _weights(self) -> list[Tensor]:
        return self._kept

    def _set(self, weights: list[Tensor]) -> None:
        self._kept = [weight.clone() for weight in weights]


def reference_of(policy: Policy) -> Reference:
    """The policy as it is now; with LoRA the model without its adapter."""
    return _Adapter(policy) if policy.peft is not None else _Copy(policy)
