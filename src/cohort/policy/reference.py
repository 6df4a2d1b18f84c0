"""The reference model: the policy as it was at the start of the run or of the current iteration, or an average of
earlier policies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from cohort.policy.model import Policy


class Reference(ABC):
    """A policy that is not trained: `with reference() as frozen: frozen.logprobs(...)`."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.followed = False

    @abstractmethod
    def __call__(self) -> AbstractContextManager[Policy]: ...

    @abstractmethod
    def is_policy(self) -> bool:
        """Whether it is known to have the policy's current weights. False at the first weight that differs, so it costs
        little once the policy has been updated."""

    @property
    def model(self) -> nn.Module | None:
        """The frozen model; None where it is the policy's own, without its adapter or with another one."""
        return None

    def follow(self, alpha: float = 1.0) -> None:
        """Set the reference to alpha * policy + (1 - alpha) * reference; 1: to the policy's current weights."""
        current = (parameter.detach() for parameter in self.policy.parameters)
        if alpha == 1:
            self._take(current)
        else:
            self._take(old.lerp(new, alpha) for old, new in zip(self._weights(), current, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Its weights for a checkpoint, named by their index among the trained parameters. Empty where the reference is
        still the starting model, which a resumed run loads anyway."""
        return {str(i): weight for i, weight in enumerate(self._weights())} if self.followed else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        if tensors:
            self._take([tensors[str(i)].to(self.policy.device) for i in range(len(tensors))])

    def _take(self, weights: Iterable[Tensor]) -> None:
        self._set(weights)
        self.followed = True

    @abstractmethod
    def _weights(self) -> list[Tensor]: ...

    @abstractmethod
    def _set(self, weights: Iterable[Tensor]) -> None: ...


class _Copy(Reference):
    """A frozen copy of the whole model."""

    def __init__(self, policy: Policy, frozen: Policy | None):
        super().__init__(policy)
        self.frozen = frozen or policy.copy()
        names = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
        of_frozen = dict(self.frozen.model.named_parameters())
        self._trained: list[nn.Parameter] = [of_frozen[name] for name in names]
        self.frozen.model.requires_grad_(False).eval()

    @property
    def model(self) -> nn.Module:
        model: nn.Module = self.frozen.model
        return model

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        yield self.frozen

    def is_policy(self) -> bool:
        return _same(self._trained, self.policy.parameters)

    def _weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._trained]

    @torch.no_grad()
    def _set(self, weights: Iterable[Tensor]) -> None:
        for parameter, weight in zip(self._trained, weights, strict=True):
            parameter.copy_(weight)


class _Adapter(Reference):
    """The policy's own model. At first with its adapter off, which is the base model bit for bit; once the reference
    has followed the policy, with the adapter weights of that moment, swapped in while the reference is in use."""

    def __init__(self, policy: Policy):
        super().__init__(policy)
        self._adapter: list[Tensor] = []

    @contextmanager
    def __call__(self) -> Iterator[Policy]:
        if not self.followed:
            with self.policy.peft.disable_adapter():
                yield self.policy
            return
        training = self.policy.model.training
        self._swap()
        self.policy.model.eval()
        try:
            yield self.policy
        finally:
            self.policy.model.train(training)
            self._swap()

    def is_policy(self) -> bool:
        if self.followed:
            return _same(self._adapter, self.policy.parameters)
        trained = [(name, p) for name, p in self.policy.model.named_parameters() if p.requires_grad]
        # An adapter whose B is 0 adds nothing. Of DoRA's magnitudes and whole modules the start is not kept.
        return all("lora_A" in name or ("lora_B" in name and not p.any()) for name, p in trained)

    def _swap(self) -> None:
        parameters = self.policy.parameters
        self._adapter, current = [p.data for p in parameters], self._adapter
        for parameter, weight in zip(parameters, current, strict=True):
            parameter.data = weight

    def _weights(self) -> list[Tensor]:
        return self._adapter

    def _set(self, weights: Iterable[Tensor]) -> None:
        self._adapter = [weight.clone() for weight in weights]


def _same(weights: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights, parameters, strict=True))


def reference_of(policy: Policy, start: Policy | None = None) -> Reference:
    """A reference for the policy as it is now; with LoRA the model without its adapter. `start`: another model of the
    same form that it begins with, where all weights are trained."""
    return _Adapter(policy) if policy.peft is not None else _Copy(policy, start)
