"""What the decoder does around a recording, with PyTorch's CUDA graphs replaced: where a card replays a recorded step,
the step runs again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cohort.policy.decoding import decoder_of
from cohort.policy.fast import cuda_graph
from cohort.policy.fast.cuda_graph import GraphDecoder
from cohort.policy.fast.decoder import FusedDecoder
from cohort.policy.model import Policy
from cohort.policy.paths import FastPath
from cohort.rollouts import decoding
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Sampling
from helpers import prompts_of, seeds, small_policy

INVALIDATED = torch.AcceleratorError("CUDA error: operation failed due to a previous error during capture\nSearch for")
REFUSED = torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\nSearch for")
RAN_OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
FULL_LIBRARY = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@dataclass
class Card:
    """PyTorch's state, and what a test asks of it."""

    stream: Any = field(default_factory=lambda: SimpleNamespace(device_index=0))
    pools: list[Any] = field(default_factory=list)
    """In which the allocator puts new tensors."""
    modes: list[str] = field(default_factory=list)
    replays: int = 0
    step: Any = None
    failures: list[tuple[Exception, bool]] = field(default_factory=list)
    """For each next recording: the error of its operations, and whether its end fails as well."""
    replay_adds: float = 0.0


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()

    class Graph:
        def replay(self) -> None:
            card.replays += 1
            *step, result = self.step  # type: ignore[attr-defined]
            result.copy_(call(*step) + card.replay_adds)

    @contextmanager
    def recording(graph: Any, pool: Any, capture_error_mode: str = "global") -> Iterator[None]:
        card.modes.append(capture_error_mode)
        before, card.stream = card.stream, SimpleNamespace(device_index=0)
        card.pools.append(pool)
        failure, end_fails = card.failures.pop(0) if card.failures else (None, False)
        try:
            if failure is not None:
                raise failure
            yield
            graph.step, card.step = card.step, None
        finally:
            if end_fails:
                raise INVALIDATED
            card.pools.remove(pool)
            card.stream = before

    def end(device: int, pool: Any) -> None:
        if pool not in card.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        card.pools.remove(pool)

    call = FusedDecoder.__call__

    def watched(self: FusedDecoder, tokens: Any, cache: Any, store: Any = None) -> Any:
        result = call(self, tokens, cache, store)
        if card.pools:
            card.step = self, tokens, cache, result
        return result

    monkeypatch.setattr(FusedDecoder, "__call__", watched)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: card.stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(card, "stream", stream))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: None, raising=False)
    monkeypatch.setattr("cohort.policy.paths.FORKING", ())
    monkeypatch.setattr(GraphDecoder, "works", None)
    monkeypatch.setattr(cuda_graph, "_TOLD", set())
    return card


def recording_policy() -> Policy:
    policy = small_policy()
    policy.paths = replace(policy.paths, cuda_graph=FastPath(True, "test"))
    assert isinstance(decoder_of(policy), GraphDecoder)
    return policy


def sampled(policy: Policy, max_rows: int = 8) -> tuple[list[list[int]], int]:
    engine = LocalEngine(policy, max_rows)
    found = engine.generate(prompts_of(), 4, Sampling(max_tokens=20, eos_ids=[1, 5]), seeds(prompts_of())).completions
    return [completion.ids.tolist() for group in found for completion in group], engine.max_rows


@pytest.fixture
def expected(card: Card) -> dict[int, list[list[int]]]:
    """Completions without graphs, by `max_rows`."""
    return {rows: sampled(small_policy(), rows)[0] for rows in (8, 4)}


def test_a_recorded_step_samples_the_same_tokens(card: Card, expected: dict[int, list[list[int]]]) -> None:
    assert sampled(recording_policy()) == (expected[8], 8)
    assert card.replays > 10 and GraphDecoder.works
    assert set(card.modes) == {"thread_local"}


@pytest.mark.parametrize("end_fails", [False, True], ids=["recording ends", "its end fails"])
@pytest.mark.parametrize("failure", [RAN_OUT, FULL_LIBRARY], ids=["allocator", "library"])
def test_out_of_memory_in_a_recording_halves_the_rows(
    failure: Exception,
    end_fails: bool,
    card: Card,
    expected: dict[int, list[list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card.failures, stream = [(failure, end_fails)], card.stream
    held: list[weakref.ref[Any]] = []
    start = decoding.Decoding.__init__

    def watched(self: Any, *args: Any) -> None:
        assert [ref() for ref in held] == [None] * len(held)
        start(self, *args)
        held.extend(map(weakref.ref, (self, self.cache, self.decoder, self.decoder.fused)))

    monkeypatch.setattr(decoding.Decoding, "__init__", watched)
    assert sampled(recording_policy()) == (expected[4], 4)
    assert len(held) == 8 and card.replays and GraphDecoder.works
    assert card.stream is stream and not card.pools


@pytest.mark.parametrize("end_fails", [False, True], ids=["recording ends", "its end fails"])
def test_where_recording_fails_one_generation_is_eager(
    end_fails: bool, card: Card, expected: dict[int, list[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    policy, stream = recording_policy(), card.stream
    for _ in range(2):
        card.failures = [(REFUSED, end_fails)]
        assert sampled(policy) == (expected[8], 8)
        assert card.replays == 0 and card.stream is stream and not card.pools
    assert caplog.text.count("without CUDA graphs: CUDA error: operation not permitted when stream is capturing") == 1
    assert "previous error" not in caplog.text
    assert sampled(policy) == (expected[8], 8)
    assert card.replays > 10


def test_where_a_replayed_step_differs_the_process_is_eager(
    card: Card, expected: dict[int, list[list[int]]], caplog: pytest.LogCaptureFixture
) -> None:
    card.replay_adds = 1.0
    for _ in range(2):
        assert sampled(recording_policy()) == (expected[8], 8)
    assert card.replays == 1 and GraphDecoder.works is False
    assert caplog.text.count("it differs by") == 1
