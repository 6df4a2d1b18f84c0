"""A fused decoder's step as a CUDA graph: recorded once while rows and room stay, then started as one operation.

Eagerly a step is some twenty kernels a layer, each of which the processor starts by itself; for one token they take
less time than their starting.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from cohort.policy.fast.decoder import FusedDecoder
from cohort.policy.memory import is_out_of_memory
from cohort.policy.packed.cache import DecodeCache

log = logging.getLogger("cohort")

TOLERANCE = 1e-2
"""Of the largest hidden value: what a recorded step may differ from the eager one in bfloat16."""


class GraphDecoder:
    """`GraphDecoder(fused)` takes a fused decoder's place for a cache that is `fixed`. The first step after a change of
    the cache is eager, the second records. The first recording of a process is checked against the eager step: a step
    may be repeated, it writes the same keys to the same places. Where recording fails, the run goes on eagerly, and
    says so."""

    works: bool | None = None
    """In this process; None before the first recording."""

    def __init__(self, fused: FusedDecoder):
        self.fused = fused
        self.graph: torch.cuda.CUDAGraph | None = None
        """The last recording. It stays until the next is made: with no graph left their pool of memory is gone."""
        self.change = object()
        """Of the cache, when it was last seen."""
        self.recorded = object()
        """The change of the cache that the graph is of."""
        self.pool = torch.cuda.graph_pool_handle()
        self.tokens_N = self.hidden_ND = torch.zeros(0)

    def __call__(self, tokens_N: Tensor, cache: DecodeCache) -> Tensor:
        """The final hidden states [N, Dm], valid until the next call."""
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
        except RuntimeError as error:  # what the driver raises for what cannot be recorded
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0]
        if reason:
            GraphDecoder.works = False
            cache.forget()  # masks that were only recorded hold nothing
            log.warning("decoding goes on without CUDA graphs: %s", reason)
            return False
        self.graph, self.recorded, GraphDecoder.works = graph, self.change, True
        return True

    def _difference(self, graph: torch.cuda.CUDAGraph, tokens_N: Tensor, cache: DecodeCache) -> str:
        """What is wrong with a replayed step; empty where it equals the eager one."""
        graph.replay()
        cache.forget()
        expected = self.fused(tokens_N, cache)
        difference = float((self.hidden_ND - expected).abs().max() / expected.abs().max())
        return "" if difference <= TOLERANCE else f"it differs by {difference:.2g} of the largest value"
