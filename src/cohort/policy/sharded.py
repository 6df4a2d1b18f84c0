"""A policy whose weights are divided among ranks: FSDP2 in training, the whole weights on every rank while sampling.

Each decoder layer is gathered when a training pass reaches it. Embedding, last norm and output layer are the root's:
they stay gathered from the forward pass to the end of the backward pass, so that a gradient that the head writes in
between is reduced with the others. Gradients are summed over ranks, since denominators count the whole step.

Sampling and scoring take as many forward passes as a rank's own sequences need, and passes of a sharded model must be
equal in number on all ranks. They run on `ShardedPolicy.whole` therefore, an ordinary policy that has the weights
within `gathered()`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from cohort.policy import ranks
from cohort.policy.divided import full
from cohort.policy.first_layers import layer_stack
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.paths import OWN_LAYERS
from cohort.types import UserError


@dataclass(frozen=True)
class Sharding:
    """Sharding(mesh, param_dtype=torch.bfloat16, offload=True)"""

    mesh: DeviceMesh
    """One-dimensional: weights are divided among its ranks."""
    param_dtype: torch.dtype | None = None
    """What gathered weights are converted to; None: they keep their own dtype, and products may be autocast."""
    offload: bool = False
    """Each rank's part of weights, gradients and optimiser state is in the CPU's memory. Gradients are then summed over
    ranks on the CPU too: a group on CUDA needs the backends cuda:nccl,cpu:gloo."""

    @property
    def device(self) -> torch.device:
        kind = self.mesh.device_type
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


class ShardedPolicy(Policy):
    """A policy on a sharded model. Every rank makes the same calls: `hidden` and backward passes equally often (see
    `idle_pass`), `logprobs`, `entropies`, `gathered` and `copy` whatever they are given."""

    is_sharded = True

    def __init__(self, model: Any, whole: Policy, sharding: Sharding):
        super().__init__(model, whole.tokenizer, peft=whole.peft, bf16=whole.bf16)
        self.whole, self.sharding = whole, sharding
        self.device = sharding.device
        self.layers = _layers(self.backbone)
        _fully_shard(model, self.backbone, self.layers, sharding)
        self.take_paths()

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else self.sharding.param_dtype or super().dtype

    def take_paths(self) -> None:
        """Take the paths of `whole` that keep the model's own layers, which FSDP gathers."""
        self.paths = self.whole.paths.without("weights are sharded", *OWN_LAYERS)

    @property
    def parameters(self) -> list[nn.Parameter]:
        self.reshard()
        return super().parameters

    def reshard(self) -> None:
        """Drop gathered weights. A forward pass without a backward pass leaves the root's."""
        assert not self._is_gathered, "weights would be dropped while they are in use: leave gathered() first"
        for module in (self.model, *self.layers):
            module.reshard()

    @property
    def _is_gathered(self) -> bool:
        return not any(p.is_meta for p in self.whole.model.parameters())

    @contextmanager
    def gathered(self) -> Iterator[Policy]:
        """Within the context `whole` has all weights on this rank, in `param_dtype`, beside the rank's part."""
        if self._is_gathered:
            yield self.whole
            return
        for module in (self.model, *self.layers):
            module.unshard()
        placeholders = _exchange(self.whole.model, dict(_slots(self.model)))
        self.whole.version = self.version
        try:
            yield self.whole
        finally:
            _exchange(self.whole.model, placeholders)
            self.reshard()

    @contextmanager
    def assembled(self) -> Iterator[Policy | None]:
        """Within the context rank 0's `whole` has all weights in their own dtype and in the CPU's memory, for saving;
        other ranks get None."""
        self.reshard()
        is_first = self.sharding.mesh.get_rank() == 0
        weights: dict[int, nn.Parameter] = {}
        for parameter in self.model.parameters():
            weight = full(parameter.detach())
            if is_first:
                weights[id(parameter)] = nn.Parameter(weight.cpu(), parameter.requires_grad)
        if not is_first:
            yield None
            return
        by_name = {name: weights[id(parameter)] for name, parameter in _slots(self.model)}
        placeholders = _exchange(self.whole.model, by_name)
        try:
            yield self.whole
        finally:
            _exchange(self.whole.model, placeholders)

    def logprobs(self, batches: Iterable[list[Part]], temperature: float) -> dict[tuple[int, int], Tensor]:
        with self.gathered() as whole:
            return whole.logprobs(batches, temperature)

    def entropies(self, batches: Iterable[list[Part]], temperature: float) -> dict[tuple[int, int], Tensor]:
        with self.gathered() as whole:
            return whole.entropies(batches, temperature)

    def copy(self) -> ShardedPolicy:
        """Each rank copies its part of the weights: nothing is sent."""
        self.reshard()
        policy = _on_meta(self.whole, self.sharding)
        weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        policy.model.load_state_dict(weights, assign=True)
        policy.model.tie_weights()
        return policy

    @contextmanager
    def even_passes(self, own: int) -> Iterator[None]:
        """After the rank's own passes come idle ones, until it has as many as the rank that has most."""
        most = max(ranks.gather(own, "the update"))
        yield
        for _ in range(most - own):
            self.idle_pass()

    def idle_pass(self) -> None:
        """A forward and backward pass over two tokens with a gradient of 0, on a rank that has fewer micro-batches than
        another."""
        part = Part(0, torch.zeros(1, dtype=torch.long), range(1), [torch.zeros(1, dtype=torch.long)])
        with self.attending():
            pack = self.pack([part])
            hidden = self.hidden(pack.inputs)
            with self.autocast():
                self.head.backward(
                    hidden.detach()[pack.sources_N], pack.targets_N, 1.0, lambda _, logprobs: torch.zeros_like(logprobs)
                )
            hidden.backward(torch.zeros_like(hidden))


def shard(policy: Policy, sharding: Sharding) -> ShardedPolicy:
    """A sharded policy with rank 0's weights; the policy stays as it is. On other ranks its weights may be on meta.
    Raises UserError for a model that cannot be sharded."""
    require_torch()
    _require_shardable(policy.model)
    sharded = _on_meta(policy, sharding)
    _take_weights(sharded.model, policy.model, sharding)
    return sharded


@torch.no_grad()
def _take_weights(model: Any, source: Any, sharding: Sharding) -> None:
    """Send each rank its part of rank 0's weights, one tensor after the other, and rank 0's buffers."""
    given = source.state_dict(keep_vars=True)
    parts: dict[int, Any] = {}
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if id(value) not in parts:
            on_rank_0 = sharding.mesh.get_rank() == 0
            tensor = (
                given[name].to(sharding.device)
                if on_rank_0
                else torch.empty(value.shape, dtype=value.dtype, device=sharding.device)
            )
            is_weight = isinstance(value, DTensor)
            part: Any = distribute_tensor(tensor, sharding.mesh, value.placements if is_weight else [Replicate()])
            parts[id(value)] = (part.cpu() if sharding.offload else part) if is_weight else part.to_local()
    model.load_state_dict({name: parts[id(value)] for name, value in state.items()}, assign=True)
    model.tie_weights()


def skeleton(model: Any) -> Any:
    """A copy of the model with its buffers and with weights on meta, which take no memory."""
    weights: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, weights)


def _on_meta(policy: Policy, sharding: Sharding) -> ShardedPolicy:
    """A sharded policy of the same model and settings, whose weights are on meta."""
    model, _ = _skeletons(policy)
    whole_model, whole_peft = _skeletons(policy)
    whole = Policy(whole_model, policy.tokenizer, peft=whole_peft, bf16=policy.bf16)
    whole.device, whole.paths, whole.version = sharding.device, policy.paths, policy.version
    _move_buffers(whole_model, sharding.device)
    sharded = ShardedPolicy(model, whole, sharding)
    sharded.version = policy.version
    return sharded


def _skeletons(policy: Policy) -> tuple[Any, Any]:
    """(model, PeftModel or None)."""
    if policy.peft is None:
        return skeleton(policy.model), None
    peft = skeleton(policy.peft)
    return peft.get_base_model(), peft


def _fully_shard(model: Any, backbone: Any, layers: list[Any], sharding: Sharding) -> None:
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    reduced = None if sharding.param_dtype is None else torch.float32
    options: dict[str, Any] = {
        "mesh": sharding.mesh,
        "mp_policy": MixedPrecisionPolicy(sharding.param_dtype, reduce_dtype=reduced, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy(pin_memory=sharding.device.type == "cuda")
        if sharding.offload
        else OffloadPolicy(),
    }
    for layer in layers:
        fully_shard(layer, reshard_after_forward=True, **options)
    fully_shard(model, reshard_after_forward=False, **options)
    for module in (model, *layers):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    # A policy calls the backbone, and the root is the whole model, since the head's weights are outside the backbone.
    model.backbone_forward = backbone.forward
    register_fsdp_forward_method(model, "backbone_forward")
    backbone.forward = model.backbone_forward


def _layers(backbone: nn.Module) -> list[Any]:
    stack = layer_stack(backbone)
    if stack is None:
        raise UserError(
            f"no stack of layers to shard was found in {type(backbone).__name__}: use distributed: replicated"
        )
    module, name = stack
    return list(getattr(module, name))


def require_torch() -> None:
    """Raise UserError where PyTorch's FSDP2 lacks what is used here."""
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise UserError(f"torch {torch.__version__} is too old for distributed: fsdp2, which was tried with 2.13")


def _require_shardable(model: Any) -> None:
    remedy = "use distributed: replicated"
    if getattr(model, "is_quantized", False):
        raise UserError(f"quantised weights of {type(model).__name__} cannot be divided among ranks: {remedy}")
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    if len(dtypes) > 1:
        raise UserError(
            f"trained weights are {', '.join(sorted(map(str, dtypes)))}: sharding needs one dtype; {remedy}"
        )


def _slots(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every name of every parameter: a tied one has several."""
    yield from model.named_parameters(remove_duplicate=False)


def _exchange(model: nn.Module, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Put the parameters in the place of the model's, and return those."""
    before = dict(_slots(model))
    for name, parameter in parameters.items():
        path, _, last = name.rpartition(".")
        model.get_submodule(path)._parameters[last] = parameter
    return before


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
