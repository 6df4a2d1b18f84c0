"""A fused decoder's step as a CUDA graph: recorded once, replayed as one launch until rows or capacity change.

Without a graph a step launches some twenty kernels a layer, and for one token launching takes longer than computing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from cohort.policy.fast.activations import ActivationStore
from cohort.policy.fast.decoder import FusedDecoder
from cohort.policy.memory import is_out_of_memory
from cohort.policy.packed.cache import DecodeCache

log = logging.getLogger("cohort")

TOLERANCE = 1e-2
"""Largest difference between a replayed and an eager step in bfloat16, as a share of the largest hidden value."""

_TOLD: set[str] = set()
"""The reasons for decoding eagerly that were warned of."""


class GraphDecoder:
    """`GraphDecoder(fused)` replaces a fused decoder where the cache is `fixed`. The first step after a change of the
    cache runs eagerly, the second is recorded. The first recording of a process is compared with the eager step, which
    may run twice since it writes the same keys to the same places. Where recording fails, this generation goes on
    eagerly; where a replayed step differs, the process does. Each reason is warned of once."""

    uses_model_code = False
    works: bool | None = None
    """Whether a replayed step equals the eager one in this process; None before the first recording."""

    def __init__(self, fused: FusedDecoder):
        self.fused = fused
        self.records = True
        """Whether recording has not failed in this generation."""
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
        if not self.records or GraphDecoder.works is False:
            return False
        self.tokens_N, graph = tokens_N.clone(), torch.cuda.CUDAGraph()
        cache.forget()
        try:
            with _recording(graph, self.pool):
                self.hidden_ND = self.fused(self.tokens_N, cache)
            reason = "" if GraphDecoder.works else self._difference(graph, tokens_N, cache)
            GraphDecoder.works = not reason
        except RuntimeError as error:  # raised by the driver for operations that cannot be recorded
            if is_out_of_memory(error):
                raise
            cause = error.__context__ or error  # the end of the recording fails too, and says nothing
            reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        if reason:
            self.records, self.graph = False, None
            cache.forget()  # masks that were recorded but not run hold no values
            if reason not in _TOLD:
                _TOLD.add(reason)
                log.warning("decoding goes on without CUDA graphs: %s", reason)
            return False
        self.graph, self.recorded = graph, self.change
        return True

    def _difference(self, graph: torch.cuda.CUDAGraph, tokens_N: Tensor, cache: DecodeCache) -> str:
        """How a replayed step differs from the eager one; empty where they agree."""
        graph.replay()
        cache.forget()
        expected = self.fused(tokens_N, cache)
        difference = float((self.hidden_ND - expected).abs().max() / expected.abs().max())
        return "" if difference <= TOLERANCE else f"it differs by {difference:.2g} of the largest value"


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Within the context, this thread's operations are recorded, with their memory from `pool`. Other threads, such as
    one that scores completions, go on as they are: in PyTorch's default mode their allocations end the recording."""
    before = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    except RuntimeError:
        # Where the end of a recording fails, PyTorch leaves its stream in use, and its allocator in a state in which a
        # tensor that does not fit frees no cached memory.
        torch.cuda.set_stream(before)
        core: Any = torch._C
        end = getattr(core, "_cuda_endAllocateToPool", None) or core._cuda_endAllocateCurrentStreamToPool  # PyTorch 2.6
        with suppress(RuntimeError):  # the recording did end
            end(before.device_index, pool)
            core._cuda_releasePool(before.device_index, pool)
        raise
