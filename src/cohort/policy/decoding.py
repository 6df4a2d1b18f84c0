"""Which code decodes a policy: the fused decoder, or the model's own forward pass."""

from __future__ import annotations

from torch import Tensor

from cohort.policy.fast.decoder import SHARE_OF_MEMORY, FusedDecoder, laid_out_bytes
from cohort.policy.memory import total_bytes
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache


class ModelDecoder:
    """The same by the model's own code, for every other model, and where there is no room for matrices laid out."""

    by_model = True

    def __init__(self, policy: Policy):
        self.policy = policy

    def __call__(self, tokens_N: Tensor, cache: DecodeCache) -> Tensor:
        inputs = {"input_ids": tokens_N[None], "position_ids": cache.positions[None], "grouped": cache}
        return self.policy.hidden(inputs, self.by_model)


def decoder_of(policy: Policy) -> FusedDecoder | ModelDecoder:
    """For one generation: a fused decoder holds the weights as they are now."""
    trunk, dtype = policy.trunk, policy.dtype
    fused = policy.fuses and (
        policy.peft is None or has_room_for(laid_out_bytes(trunk, dtype), total_bytes(policy.device))
    )
    return FusedDecoder(trunk, dtype) if fused else ModelDecoder(policy)


def has_room_for(laid_out: float, memory: float) -> bool:
    """Whether a model with an adapter decodes by matrices of that many bytes of their own. (Where all weights are
    trained, their gradients take more.)"""
    return laid_out <= SHARE_OF_MEMORY * memory
