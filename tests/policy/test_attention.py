"""The forms of the grouped attention against the one that makes its scores."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from cohort.config import TrainingConfig
from cohort.methods.table import METHODS
from cohort.policy.head import BLOCK_BYTES
from cohort.policy.packed import flex, tiles
from cohort.policy.packed import layout as module
from cohort.policy.packed.layout import GroupLayout
from cohort.policy.packed.options import AttentionOptions
from cohort.policy.packed.pack import Part
from cohort.policy.paths import FastPath
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.train.step import Updater
from helpers import random_groups, seeds, settings, small_policy, tokens_of

LAYOUTS: list[tuple[list[int], list[list[int]]]] = [
    ([5, 3], [[4, 2, 1], [3]]),
    ([4, 4], [[3, 3], [3, 3]]),
    ([7, 2, 40], [[], [1], [50, 3]]),
    ([6, 3], [[], []]),
]


def stream(layout: GroupLayout, heads: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    tokens = len(layout.places)
    return [torch.randn(tokens, n, 16, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("scores", [tiles.SCORES, 300], ids=["large tiles", "small tiles"])
@pytest.mark.parametrize("block", [tiles.BLOCK, 7], ids=["whole rows", "cut rows"])
@pytest.mark.parametrize("copied", [0, math.inf], ids=["copied keys", "shared keys"])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_tiles_equal_scores(
    lengths: tuple[list[int], list[list[int]]],
    heads: tuple[int, int],
    block: int,
    scores: int,
    copied: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "BLOCK", block)
    monkeypatch.setattr(tiles, "SCORES", scores)
    monkeypatch.setattr(tiles, "TILE", scores // 16)
    monkeypatch.setattr(tiles, "COPIED", copied)
    layout = GroupLayout(*lengths, torch.device("cpu"))
    inputs = stream(layout, *heads, torch.float64)
    grad = torch.randn(inputs[0].shape, dtype=torch.float64)
    found = []
    for attend in (layout._by_tiles, layout._by_scores):
        out = attend(*inputs, AttentionOptions(0, 0.2, None, None, None))
        found.append([out, *torch.autograd.grad(out, inputs, grad)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@given(st.lists(st.tuples(*[st.integers(1, 40)] * 3), min_size=1, max_size=7, unique=True), st.integers(0, 20_000))
def test_tiles_are_cut_where_scores_are_fewest(shapes: list[tiles.Shape], tile: int) -> None:
    shapes.sort(reverse=True)
    counts = [1 + sum(shape) % 5 for shape in shapes]

    def scores(runs: list[tuple[int, int]]) -> int:
        whole = [tuple(map(max, zip(*shapes[a:b], strict=True))) for a, b in runs]
        sizes = [R * C * (L + C) for L, R, C in whole]
        return sum(sum(counts[a:b]) * size + tile for (a, b), size in zip(runs, sizes, strict=True))

    found = tiles._batches(shapes, counts, lambda shape: shape[1] * shape[2] * (shape[0] + shape[2]), tile)
    runs = [(first, last) for first, last, _ in found]
    every = range(1, len(shapes))
    cuts = [[0, *cut, len(shapes)] for n in range(len(shapes)) for cut in combinations(every, n)]
    assert scores(runs) == min(scores(list(pairwise(cut))) for cut in cuts)
    for first, last, whole in found:
        assert whole == tuple(map(max, zip(*shapes[first:last], strict=True)))


def test_a_card_has_larger_tiles_than_a_cpu() -> None:
    """Its plan is made without one: on tensors without storage."""
    groups = [(np.arange(600), [tiles.TokenRun(np.arange(i, i + 90 + i % 7)) for i in range(600, 3600, 100)])]

    def plan(device: str) -> list[tiles.Tile]:
        return tiles.tiles_of_groups(groups, False, 3700, 4, 2, torch.device(device))

    with FakeTensorMode():
        of_card = plan("meta")
    of_cpu = plan("cpu")
    assert len(of_card) <= len(of_cpu) / 10

    def scores(tile: tiles.Tile) -> int:
        U, L, R, C = tile.shape
        return U * R * C * 2 * (L + C)

    assert max(map(scores, of_cpu)) <= tiles.SCORES < max(map(scores, of_card)) <= tiles.SCORES_OF_A_CARD


@pytest.mark.parametrize("lengths", LAYOUTS)
def test_tiles_for_what_is_read_alone(lengths: tuple[list[int], list[list[int]]]) -> None:
    layout = GroupLayout(*lengths, torch.device("cpu"))
    assert set(layout.sources.tolist()) <= set(layout.read.tolist())
    if not any(lengths[1]):
        assert layout.read.tolist() == (layout.prompt_lengths.cumsum(0) - 1).tolist()
    inputs = stream(layout, 4, 2, torch.float64)
    grad = torch.randn(len(layout.read), 4, 16, dtype=torch.float64)
    found = []
    for only_read in (True, False):
        out = layout.attend(*inputs, AttentionOptions(0, 0.2, None, None, None), only_read)[layout.read]
        found.append([out, *torch.autograd.grad(out, inputs, grad)])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"window": 3}, {"softcap": 5.0}, {"sinks": torch.zeros(4)}], ids=["window", "softcap", "sinks"]
)
def test_what_tiles_do_not_know_is_not_given_to_them(options: dict[str, Any]) -> None:
    layout = GroupLayout([7, 2], [[5, 3], [4]], torch.device("cpu"))
    q, k, v = stream(layout, 4, 2, torch.float32)
    head = AttentionOptions(0, 0.2, **{"window": None, "softcap": None, "sinks": None, **options})
    expected = layout._by_scores(q, k, v, head)
    torch.testing.assert_close(layout.attend(q, k, v, head), expected, rtol=0, atol=0)


def test_no_scores_are_kept_for_the_gradient() -> None:
    policy = small_policy()
    groups = random_groups([(40, [60, 50, 60, 55])])
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    config = settings(beta=0.0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
    tokens = 40 + 60 + 50 + 60 + 55
    assert max(sizes) <= tokens * 48  # the widest activation, the MLP's


def test_flex_attention_is_tried_with_gradients_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer of a shape is met in inference mode, whose tensors autograd refuses."""
    monkeypatch.setattr(GroupLayout, "_by_flex", GroupLayout._by_scores)
    with torch.inference_mode():
        inputs = [torch.zeros(5, heads, 16) for heads in (4, 2, 2)]
        assert module._flex_equals_scores(*inputs, AttentionOptions(0, 0.25))


@pytest.mark.parametrize("taken", [False, True])
def test_the_policys_paths_decide_on_flex_attention(taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def by_flex(layout: GroupLayout, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        calls.append(options.layer)
        return layout._by_scores(q, k, v, options)

    monkeypatch.setattr(GroupLayout, "_by_flex", by_flex)
    monkeypatch.setattr(module, "_FLEX_WORKS", {})
    policy = small_policy()
    policy.paths = replace(policy.paths, flex_attention=FastPath(taken, "test"))
    part = Part(0, torch.tensor([5, 6, 7]), range(1), [torch.tensor([8, 9])])
    policy.logprobs(iter([[part]]), 1.0)
    assert (len(calls) == 3) == taken and bool(calls) == taken  # once on trial, then in both layers


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 5.0}], ids=["plain", "window", "softcap"])
@pytest.mark.parametrize("lengths", LAYOUTS)
def test_flex_equals_scores(
    lengths: tuple[list[int], list[list[int]]], heads: tuple[int, int], options: dict[str, Any]
) -> None:
    # Uncompiled, FlexAttention has no gradient on the CPU.
    layout = GroupLayout(*lengths, torch.device("cpu"))
    inputs = [x.detach() for x in stream(layout, *heads, torch.float32)]
    head = AttentionOptions(0, 0.2, **{"window": None, "softcap": None, "sinks": None, **options})
    expected = layout._by_scores(*inputs, head)
    torch.testing.assert_close(layout._by_flex(*inputs, head), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 200])
@pytest.mark.parametrize("lengths", [*LAYOUTS, ([150, 20], [[300, 900], [40, 3]]), ([128], [[129, 129, 1]])])
def test_blocks_are_those_of_pytorch(lengths: tuple[list[int], list[list[int]]], window: int | None) -> None:
    layout = GroupLayout(*lengths, torch.device("cpu"))
    ours = flex.FlexPlan(layout.groups, layout.segments, layout.positions)._mask(window)
    T = len(layout.places)
    theirs = create_block_mask(ours.mask_mod, None, None, T, T, device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    names = ("kv_num_blocks", "q_num_blocks", "full_kv_num_blocks", "full_q_num_blocks")
    for name in names:
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name in names:
        counts, indices = getattr(ours, name)[0, 0], name.replace("num_blocks", "indices")
        for row, count in enumerate(counts.tolist()):
            found, expected = (getattr(mask, indices)[0, 0, row, :count] for mask in (ours, theirs))
            assert torch.equal(found, expected), indices


@pytest.mark.slow
def test_flex_is_compiled_for_more_cases_than_pytorch_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for a card, but run by PyTorch's own operations. Each case is compiled anew; behind PyTorch's limit, 8,
    nothing would be."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    flex._compiled.cache_clear()
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), torch.no_grad():
            for window, softcap, dtype, heads in product(
                (None, 3), (None, 5.0), (torch.float32, torch.bfloat16), ((4, 2), (2, 2))
            ):
                layout = GroupLayout([150, 20], [[9, 90], [40, 3]], torch.device("cpu"))
                layout._flex = flex.FlexPlan(layout.groups, layout.segments, layout.positions)
                layout._flex.attention = flex._compiled()
                inputs = [x.detach() for x in stream(layout, *heads, dtype)]
                head = AttentionOptions(0, 0.2, window, softcap, None)
                found, expected = layout._by_flex(*inputs, head), layout._by_scores(*inputs, head)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 5e-2)
    finally:
        flex._compiled.cache_clear()


class _LargestTensor(TorchDispatchMode):
    """The most numbers that any operation's result held."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return found


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_no_tensor_of_tokens_by_vocabulary(beta: float) -> None:
    vocabulary, rows = 40_000, 2
    policy = small_policy(vocab_size=vocabulary)
    prompts = [torch.randint(2, vocabulary, (8,)) for _ in range(2)]
    config = settings(beta=beta, entropy_coef=0.01)
    with _LargestTensor() as seen:
        sampled = (
            LocalEngine(policy, max_rows=4)
            .generate(prompts, rows, Sampling(max_tokens=110, eos_ids=[]), seeds(prompts))
            .completions
        )
        groups = random_groups([(8, [110] * rows)] * 2)
        parts = []
        for g, (group, prompt, found) in enumerate(zip(groups, prompts, sampled, strict=True)):
            group.prompt_ids, group.completions = prompt, found
            parts.append(Part(g, prompt, range(rows), [c.ids for c in found]))
        scores = policy.logprobs(iter([parts]), 1.0)
        for g, group in enumerate(groups):
            group.reference_logprobs = [scores[g, r] for r in range(rows)] if beta else None
        Updater(policy, METHODS["grpo"], config).step(groups, tokens_of(groups), 1e-6)
    tokens = 2 * rows * 110
    # The weights themselves, and one chunk of the head.
    assert seen.largest <= max(vocabulary * 32, BLOCK_BYTES["cpu"] // 4) < tokens * vocabulary


def test_bfloat16_stays_near_float32() -> None:
    groups = random_groups([(40, [60, 50]), (9, [12, 61])])
    found = []
    for bf16 in (False, True):
        policy = small_policy(config=TrainingConfig(bf16=bf16, use_cpu=True))
        config = settings(beta=0.0).model_copy(update={"bf16": bf16})
        Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
        found.append(torch.cat([p.grad.flatten().float() for p in policy.model.parameters()]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.1
