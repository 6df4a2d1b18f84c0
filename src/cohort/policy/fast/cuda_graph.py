"""A fused decoder's step as a CUDA graph: recorded once, replayed as one launch until rows or capacity change.

Without a graph a step launches some twenty kernels a layer, and for one token launching takes longer than computing.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from cohort.policy.fast.activations import ActivationStore
from cohort.policy.fast.decoder import FusedDecoder
from cohort.policy.memory import is_out_of_memory
from cohort.policy.packed.cache import DecodeCache

log = logging.getLogger("cohort")

TOLERANCE = 1e-2
"""Largest difference between a replayed and an eager step in bfloat16, as a share of the largest hidden value."""


class GraphDecoder:
    """`GraphDecoder(fused)` replaces a fused decoder where the cache is `fixed`. The first step after a change of the
    cache runs eagerly, the second is recorded. The first recording of a process is compared with the eager step, which
    may run twice since it writes the same keys to the same places. Where recording fails, decoding goes on eagerly with
    a warning."""

    uses_model_code = False
    works: bool | None = None
    """Whether recording works in this process; None before the first one."""

    def __init__(self, fused: FusedDecoder):
        self.fused = fused
        self.graph: torch.cuda.CUDAGraph | None = None
        """The last recording, kept until the next one: the memory pool is freed with its last graph."""
        self.change = object()
        """The cache's `change` at the last call."""
        self.recorded = object()
        """The cache's `change` when the graph was recorded."""
        self.pool = torch.cuda.graph_pool_handle()
        self.tokens_N = self.hidden_ND = torch.zeros(0)

    def __call__(self, tokens_N: Tensor, cache: DecodeCache, store: ActivationStore | None = None) -> Tensor:
        """The final hidden states [N, Dm], valid until the next call. Activations are kept on a CPU only."""
        assert store is None
        if cache.change is not self.change:
            self.change = cache.change
            return self.fused(tokens_N, cache)
        if self.recorded is not self.change and not self._record(tokens_N, cache):
            return self.fused(tokens_N, cache)
        assert self.graph is not None
        self.tokens_N.copy_(tokens_N)
        self.graph.replay()
        return self.hidden_ND

    def _record(self, tokens_N: Tensor, cache: DecodeCache) -> bool:
        if GraphDecoder.works is False:
            return False
        self.tokens_N, graph = tokens_N.clone(), torch.cuda.CUDAGraph()
        cache.forget()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                self.hidden_ND = self.fused(self.tokens_N, cache)
            reason = "" if GraphDecoder.works else self._difference(graph, tokens_N, cache)
        except RuntimeError as error:  # raised by the driver for operations that cannot be recorded
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        if reason:
            GraphDecoder.works = False
            cache.forget()  # masks that were recorded but not run hold no values
            log.warning("decoding goes on without CUDA graphs: %s", reason)
            return False
        self.graph, self.recorded, GraphDecoder.works = graph, self.change, True
        return True

    def _difference(self, graph: torch.cuda.CUDAGraph, tokens_N: Tensor, cache: DecodeCache) -> str:
        """How a replayed step differs from the eager one; empty where they agree."""
        graph.replay()
        cache.forget()
        expected = self.fused(tokens_N, cache)
        difference = float((self.hidden_ND - expected).abs().max() / expected.abs().max())
        return "" if difference <= TOLERANCE else f"it differs by {difference:.2g} of the largest value"
