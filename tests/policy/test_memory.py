"""What counts as memory that ran out, and what is left of a failed attempt when the next one begins."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cohort.methods.table import METHODS
from cohort.policy.fast.activations import ActivationStore
from cohort.policy.memory import is_out_of_memory, retry_smaller
from cohort.policy.packed.layout import GroupLayout
from cohort.policy.paths import OWN_LAYERS
from cohort.rollouts import decoding
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.train.step import Updater
from helpers import LORA, prompts_of, random_groups, seeds, settings, small_policy, tokens_of

CAPTURE = (
    "CUDA error: operation failed due to a previous error during capture\nSearch for "
    "`cudaErrorStreamCaptureInvalidated' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html "
    "for more information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)
RAN_OUT = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 8 MiB is free",
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/",
    "CUDA driver error: out of memory",
    "HIP out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 63.98 GiB",
    "HIP error: out of memory",
    "XPU out of memory. Tried to allocate 64.00 GiB (GPU 0; 48.00 GiB total capacity)",
    "Triton Error [CUDA]: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "MPS backend out of memory (MPS allocated: 7.64 GiB, other allocations: 68.91 GiB, max allowed: 88.13 GiB). Tried "
    "to allocate 33.92 GiB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit",
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)",
    "std::bad_alloc",
]
DID_NOT = [
    CAPTURE,
    "CUDA error: operation not permitted when stream is capturing",
    "out of resource: shared memory, Required: 147456, Hardware limit: 101376. Reducing block sizes or `num_stages` "
    "may help.",
    "No valid triton configs. OutOfMemoryError: out of resource: triton_tem_fused_0 Required: 147456 Hardware limit: "
    "101376 Reducing block sizes or `num_stages` may help.",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
]


@pytest.mark.parametrize("text", RAN_OUT)
def test_memory_ran_out(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize("text", DID_NOT)
def test_memory_did_not_run_out(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))


def raised(first: Exception, then: Exception, *, hidden: bool = False) -> Exception:
    """`then`, as it is raised while `first` is handled."""
    with pytest.raises(type(then)) as found:
        try:
            raise first
        except type(first):
            if hidden:
                raise then from None
            raise then  # noqa: B904
    return found.value


def test_an_error_that_follows_from_it_is_out_of_memory_too() -> None:
    ran_out, capture = torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError(CAPTURE)
    assert is_out_of_memory(ran_out) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(raised(ran_out, capture))
    assert not is_out_of_memory(raised(RuntimeError("another"), torch.AcceleratorError(CAPTURE)))
    assert not is_out_of_memory(raised(ran_out, ValueError("told apart"), hidden=True))


@pytest.fixture
def no_collector() -> Any:
    """Objects that know one another stay until something collects them."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
def test_a_failed_run_is_gone_when_the_next_begins(error: Exception) -> None:
    """Also where its tensors are in a circle of objects, and where somebody keeps the error."""
    seen: list[weakref.ref[Tensor]] = []

    def run(size: int) -> int:
        alone, circle = torch.zeros(size), [torch.zeros(size)]
        circle.append(circle)  # type: ignore[arg-type]
        assert [ref() for ref in seen] == [None] * len(seen)
        seen.extend(map(weakref.ref, (alone, circle[0])))
        if size > 2:
            raise raised(error, RuntimeError("after it"))
        return size

    assert retry_smaller(run, 8, lambda: 1, "%d") == (2, 2)
    assert len(seen) == 6


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> Exception:
    """The function's call of this number raises an error that the caller of this keeps."""
    function, calls, error = getattr(owner, name), [0], torch.OutOfMemoryError("CUDA out of memory")

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    return error


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("fused", [True, False], ids=["fused decoder", "model's own"])
@pytest.mark.parametrize("place", ["prefill", "later prefill", "decoder", "sampling", "cache"])
def test_decoding_starts_again_without_what_the_first_attempt_held(
    place: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, prompts = small_policy(), prompts_of()
    if not fused:
        policy.paths = policy.paths.without("test", *OWN_LAYERS)
    sampling = Sampling(max_tokens=8, eos_ids=[1, 5, 7])
    expected = LocalEngine(policy, 4).generate(prompts, 4, sampling, seeds(prompts)).completions
    held: list[weakref.ref[Any]] = []
    start = decoding.Decoding.__init__

    def watched(self: Any, *args: Any) -> None:
        assert [ref() for ref in held] == [None] * len(held)
        start(self, *args)
        held.extend(map(weakref.ref, (self, self.cache, self.decoder, self.transcript, self.transcript.ids)))
        if self.store is not None:
            held.append(weakref.ref(self.store))
        if fused:
            held.append(weakref.ref(self.decoder.layers[0]))

    monkeypatch.setattr(decoding.Decoding, "__init__", watched)
    owner, name, call = {
        "prefill": (policy, "prefill", 1),
        "later prefill": (policy, "prefill", 2),
        "decoder": (decoding.DecodeCache, "attend", 6),
        "sampling": (decoding, "draw", 4),
        "cache": (decoding.DecodeCache, "extend", 1),
    }[place]
    kept = fails_once(monkeypatch, owner, name, call)
    engine = LocalEngine(policy, 8)
    found = engine.generate(prompts, 4, sampling, seeds(prompts), keep_tokens=10_000).completions
    assert engine.max_rows == 4 and kept.__traceback__ is None
    assert [[c.ids.tolist() for c in row] for row in found] == [[c.ids.tolist() for c in row] for row in expected]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["head", "a layer that runs again"])
def test_an_update_starts_again_without_what_the_first_attempt_held(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(beta=0.0, token_budget=64, gradient_checkpointing=checkpointing, **LORA)
    policy = small_policy(config=config)
    policy.model.train()
    groups = random_groups([(5, [4, 7, 1]), (9, [3, 8, 6])])
    for group in groups:
        group.old_logprobs = [torch.zeros(len(c.ids)) for c in group.completions]
    held: list[weakref.ref[Any]] = []
    hidden = policy.hidden

    def watched(*args: Any) -> Tensor:
        assert [ref() for ref in held] == [None] * len(held)
        result = hidden(*args)
        if not held:
            held.extend(map(weakref.ref, (result, args[0]["grouped"])))
        return result

    monkeypatch.setattr(policy, "hidden", watched)
    place = (GroupLayout, "attend", 3) if checkpointing else (policy.head, "backward", 1)
    kept = fails_once(monkeypatch, *place)
    updater = Updater(policy, METHODS["grpo"], config)
    updater.gradient(groups, tokens_of(groups))
    assert updater.token_budget == 32 and kept.__traceback__ is None


def test_activations_of_sampling_are_freed_before_the_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = small_policy(), prompts_of((5, 9))
    sampling = Sampling(max_tokens=8, eos_ids=[])
    generation = LocalEngine(policy, 8).generate(prompts, 3, sampling, seeds(prompts), keep_tokens=10_000)
    store = generation.activations
    assert isinstance(store, ActivationStore)
    block = weakref.ref(store.layers[1][0].block)
    groups = random_groups([(5, [8, 8, 8]), (9, [8, 8, 8])])
    for group, prompt, sampled in zip(groups, prompts, generation.completions, strict=True):
        group.prompt_ids, group.completions = prompt, sampled
    alive: list[bool] = []
    hidden: Callable[..., Tensor] = policy.hidden

    def watched(*args: Any) -> Tensor:
        alive.append(block() is not None)
        if len(alive) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(*args)

    monkeypatch.setattr(policy, "hidden", watched)
    updater = Updater(policy, METHODS["grpo"], settings(beta=0.0, token_budget=100))
    updater.gradient(groups, tokens_of(groups), store)
    assert alive[0] and not any(alive[1:]) and len(alive) > 1
