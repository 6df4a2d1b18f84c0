"""The fused decoder against the model's own code, token by token."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from cohort.config import TrainingConfig
from cohort.methods.table import METHODS
from cohort.policy import decoding
from cohort.policy.decoding import ModelDecoder, decoder_of
from cohort.policy.fast import products
from cohort.policy.fast.decoder import FusedDecoder, _joined, rearranged_bytes
from cohort.policy.fast.layers import why_unsupported
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.parity import choose_paths
from cohort.policy.paths import FastPath
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.train.step import Updater
from cohort.types import Completion
from helpers import LORA, MODELS, random_groups, seeds, settings, small_policy, take_own_layers, tokens_of


def sampled(policy: Policy, fused: bool) -> list[Completion]:
    take_own_layers(policy, fused)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 97, (n,), generator=generator) for n in (5, 40, 2)]
    found = (
        LocalEngine(policy, 8).generate(prompts, 4, Sampling(max_tokens=40, eos_ids=[1]), seeds(prompts)).completions
    )
    return [completion for group in found for completion in group]


@pytest.mark.parametrize("name", MODELS)
def test_it_samples_what_the_model_samples(name: str) -> None:
    architecture, overrides = MODELS[name]
    policy = small_policy(architecture, **overrides)
    assert policy.paths.layers.taken and not why_unsupported(policy.backbone)
    with torch.no_grad():  # biases start at zero, norms at one
        for parameter in policy.model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for ours, models in zip(sampled(policy, True), sampled(policy, False), strict=True):
        assert ours.ids.tolist() == models.ids.tolist()
        torch.testing.assert_close(ours.logprobs, models.logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("short", [0, 1000], ids=["shared prompts", "copied prompts"])
@pytest.mark.parametrize("name", ["Qwen2", "Mistral, window"])
def test_a_fixed_cache_samples_the_same(name: str, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that replays a recorded step: keys are read to the end of their room, and from one change to the
    next every tensor that a step reads is the same one."""
    architecture, overrides = MODELS[name]
    monkeypatch.setattr("cohort.policy.paths.FORKING", ())
    policy = small_policy(architecture, **overrides)
    monkeypatch.setattr("cohort.rollouts.decoding.SHORT_PROMPT", short)
    expected = sampled(policy, True)
    seen: dict[object, set[Any]] = {}

    class Fixed(DecodeCache):
        def __init__(self, share: bool, fixed: bool):
            super().__init__(share, True)

        def attend(self, *given: Any) -> Any:
            assert int(self.positions.max()) < self.reach
            kept = [self.lengths, self.group, *self.own[0], *self.prompt[0]]
            seen.setdefault(self.change, set()).add(tuple(x.data_ptr() for x in kept))
            return super().attend(*given)

    monkeypatch.setattr("cohort.rollouts.decoding.DecodeCache", Fixed)
    found = sampled(policy, True)
    assert [c.ids.tolist() for c in found] == [c.ids.tolist() for c in expected]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, rtol=0, atol=1e-4)
    assert len(seen) > 3 and all(len(places) == 1 for places in seen.values())


@pytest.mark.parametrize("small", [0, 2**20], ids=["in oneDNN's order", "turned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("onednn", [False, True])
def test_a_weight_laid_out_multiplies_as_it_does(
    small: int, dtype: torch.dtype, has_bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "SMALL", small)
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(96, 64, generator=generator).to(dtype), torch.randn(96, generator=generator).to(dtype)
    product = products.prepared(weight, bias if has_bias else None, onednn)
    for count in (1, 3, 20, 70):
        rows = torch.randn(count, 64, generator=generator).to(dtype)
        expected = rows.double() @ weight.double().t() + (bias.double() if has_bias else 0)
        found = product(rows)
        assert found.dtype is dtype
        assert float((found - expected).norm() / expected.norm()) < (1e-6 if dtype is torch.float32 else 1e-2)
        plus, out = torch.randn(count, 96, generator=generator), torch.empty(count, 96)
        assert product(rows, plus, out).data_ptr() == out.data_ptr()
        torch.testing.assert_close(out, plus + found, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)
        into = torch.empty_like(found)
        assert product(rows, out=into).data_ptr() == into.data_ptr() and into.equal(found)


def adapted(bf16: bool, **settings: Any) -> Policy:
    policy = small_policy("Qwen3", TrainingConfig(bf16=bf16, use_cpu=True, **LORA, **settings))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return policy


@pytest.mark.parametrize("target", ["all", "q_proj,up_proj"])
def test_adapters_sample_what_the_model_samples(target: str) -> None:
    policy = adapted(False, lora_target=target)
    assert isinstance(decoder_of(policy), FusedDecoder)
    for ours, models in zip(sampled(policy, True), sampled(policy, False), strict=True):
        assert ours.ids.tolist() == models.ids.tolist()
        torch.testing.assert_close(ours.logprobs, models.logprobs, rtol=0, atol=1e-4)
    with policy.peft.disable_adapter():
        for ours, models in zip(sampled(policy, True), sampled(policy, False), strict=True):
            assert ours.ids.tolist() == models.ids.tolist()


def test_in_bfloat16_a_small_adapter_is_a_product_of_its_own() -> None:
    """Added to a weight that has eight bits, it would be rounded away."""
    generator = torch.Generator().manual_seed(0)
    layer = adapted(False).backbone.layers[1].mlp.up_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    rows = torch.randn(64, layer.in_features, generator=generator)
    found = []
    with torch.no_grad():
        layer.base_layer.weight.copy_(layer.base_layer.weight.bfloat16())
        up.fill_(1e-5)
        whole = layer.base_layer.weight + layer.scaling["default"] * up @ down
        assert float((whole.bfloat16() != layer.base_layer.weight).float().mean()) < 0.05
        for values in (0.0, 1e-5, 1.0):
            up.fill_(values)
            found.append(_joined([(layer, 1.0, None)], None, torch.bfloat16, False))
        change = layer.scaling["default"] * rows.bfloat16().float() @ down.t() @ up.t()
    nothing, little, much = (product(rows).float() for product in found)
    assert float((much - nothing - change).norm() / change.norm()) < 0.02
    assert not little.equal(nothing)


def test_where_there_is_no_room_for_a_copy_the_models_own_code_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = adapted(False)
    size = sum(m.base_layer.weight.nbytes for m in policy.model.modules() if hasattr(m, "base_layer"))
    assert rearranged_bytes(policy.backbone, torch.float32) == size
    expected = sampled(policy, True)
    monkeypatch.setattr(decoding, "total_bytes", lambda device: 8 * size)
    choose_paths(policy)
    assert isinstance(decoder_of(policy), FusedDecoder)
    monkeypatch.setattr(decoding, "total_bytes", lambda device: 8 * size - 1)
    choose_paths(policy)
    assert isinstance(decoder_of(policy), ModelDecoder)
    assert policy.paths.layers.taken and policy.packed  # training goes on by layers of our own
    assert "more than 12% of the memory" in policy.paths.decoder.reason
    sampling = Sampling(max_tokens=40, eos_ids=[1])
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 97, (n,), generator=generator) for n in (5, 40, 2)]
    found = [
        c for group in LocalEngine(policy, 8).generate(prompts, 4, sampling, seeds(prompts)).completions for c in group
    ]
    for ours, fused in zip(found, expected, strict=True):
        assert ours.ids.tolist() == fused.ids.tolist()
        torch.testing.assert_close(ours.logprobs, fused.logprobs, rtol=0, atol=1e-4)


def test_it_decodes_with_the_weights_of_the_moment() -> None:
    policy = small_policy()
    before = sampled(policy, True)
    groups = random_groups([(5, [4, 7, 1])])
    Updater(policy, METHODS["grpo"], settings(beta=0.0)).step(groups, tokens_of(groups), 1e-2)
    after, models = sampled(policy, True), sampled(policy, False)
    assert [c.ids.tolist() for c in after] == [c.ids.tolist() for c in models]
    assert [c.ids.tolist() for c in after] != [c.ids.tolist() for c in before]


def test_in_bfloat16_it_stays_near_the_model() -> None:
    policy = small_policy(config=TrainingConfig(bf16=True, use_cpu=True))
    ours, models = sampled(policy, True), sampled(policy, False)
    first = [(a.logprobs[0] - b.logprobs[0]).abs() for a, b in zip(ours, models, strict=True) if a.ids[0] == b.ids[0]]
    assert len(first) > 6 and max(first) < 0.15


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("Gemma", {}), ("Granite", {}), ("Qwen2", {**LORA, "use_dora": True})],
    ids=["Gemma", "Granite", "DoRA"],
)
def test_other_models_decode_by_their_own_code(architecture: str, settings: dict[str, Any]) -> None:
    policy = small_policy(architecture, TrainingConfig(bf16=False, use_cpu=True, **settings))
    assert policy.packed and why_unsupported(policy.backbone)


def test_a_policy_that_leaves_onednn_decodes_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small weight is laid out for MKL where the policy's path is not taken, whatever the processor."""
    taken = []
    monkeypatch.setattr(products, "_by_transpose", lambda weight, bias: taken.append(weight.shape))
    policy = small_policy()
    for onednn in (True, False):
        policy.paths = replace(policy.paths, onednn=FastPath(onednn, "test"))
        policy.head.reader(torch.float32, policy.paths.onednn.taken)
        decoder_of(policy)
        assert bool(taken) is not onednn


def test_threads_share_the_setting_of_float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_better", lambda: True)
    matmul, cpu = torch.backends.mkldnn.matmul, torch.device("cpu")
    before, seen = matmul.fp32_precision, []
    with ExitStack() as training, ExitStack() as sampling:
        training.enter_context(products.fast_float32(cpu))
        sampling.enter_context(products.fast_float32(cpu))
        training.close()
        seen.append(matmul.fp32_precision)
        training.enter_context(products.fast_float32(cpu))
        sampling.close()
        seen.append(matmul.fp32_precision)
    assert seen == ["bf16", "bf16"] and matmul.fp32_precision == before
