"""Which code computes a decoding step of a policy: the fused decoder, or the model's own forward pass."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from cohort.policy.fast.activations import ActivationStore
from cohort.policy.fast.cuda_graph import GraphDecoder
from cohort.policy.fast.decoder import SHARE_OF_MEMORY, FusedDecoder, rearranged_bytes
from cohort.policy.memory import total_bytes
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache


class Decoder(Protocol):
    """One more token for each row of a cache."""

    uses_model_code: bool
    """Whether prompts must be prefilled by the model's own code, so that all keys of the cache agree."""

    def __call__(self, tokens_N: Tensor, cache: DecodeCache, store: ActivationStore | None = None) -> Tensor:
        """Tokens [N] to final hidden states [N, Dm]; `cache.advance()` comes before."""
        ...


class ModelDecoder:
    """A decoding step by the model's own code."""

    uses_model_code = True

    def __init__(self, policy: Policy):
        self.policy = policy

    def __call__(self, tokens_N: Tensor, cache: DecodeCache, store: ActivationStore | None = None) -> Tensor:
        assert store is None
        inputs = {"input_ids": tokens_N[None], "position_ids": cache.positions[None], "grouped": cache}
        return self.policy.hidden(inputs, self.uses_model_code)


def decoder_of(policy: Policy) -> Decoder:
    """A decoder for one generation: a fused one holds the weights as they are now."""
    if not policy.paths.decoder.taken:
        return ModelDecoder(policy)
    fused = FusedDecoder(policy.backbone, policy.dtype, policy.paths.onednn.taken)
    return GraphDecoder(fused) if policy.paths.cuda_graph.taken else fused


def why_no_fused_decoder(policy: Policy) -> str:
    """Why a policy whose layers are supported decodes by its own code; empty where it need not."""
    if policy.peft is None or has_room_for(rearranged_bytes(policy.backbone, policy.dtype), total_bytes(policy.device)):
        return ""
    return f"a rearranged copy of the weights would take more than {SHARE_OF_MEMORY:.0%} of the memory"


def has_room_for(rearranged: float, memory: float) -> bool:
    """Whether a model with an adapter may have rearranged matrices of so many bytes. (Where all weights are trained,
    their gradients and the optimiser take more than the copy.)"""
    return rearranged <= SHARE_OF_MEMORY * memory
