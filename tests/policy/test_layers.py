"""Layers with gradients written out against the model's own code under autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.policy.critic import backbone_copy
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.parity import choose_paths
from cohort.policy.reference import reference_of
from helpers import LORA, MODELS, small_policy, take_own_layers

LENGTHS = [(5, [4, 7, 1]), (9, [3]), (30, [40, 2])]


def states(policy: Policy, fused: bool, generator: torch.Generator) -> Tensor:
    """The hidden states of a packed stream that are read."""
    take_own_layers(policy, fused)
    parts = []
    for g, (prompt, lengths) in enumerate(LENGTHS):
        ids = [torch.randint(2, 97, (n,), generator=generator) for n in (prompt, *lengths)]
        parts.append(Part(g, ids[0], range(len(lengths)), ids[1:]))
    inputs = policy.pack(parts).inputs
    return policy.hidden(inputs)[inputs["grouped"].read]


def gradients(policy: Policy, fused: bool, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """These states, and the gradient that a fixed one of theirs gives every parameter."""
    policy.model.zero_grad()
    with policy.attending():
        generator = torch.Generator().manual_seed(seed)
        hidden = states(policy, fused, generator)
        hidden.backward(torch.randn(hidden.shape, generator=generator).to(hidden.dtype))
    found = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    return hidden.detach(), found


def disturbed(architecture: str, config: TrainingConfig | None = None, **overrides: Any) -> Policy:
    """Biases and adapters start at zero and norms at one: a mistake in them would not show."""
    policy = small_policy(architecture, config, **overrides)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if parameter.dim() == 1 or "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    policy.model.train()
    return policy


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_autograds(name: str, checkpointing: bool) -> None:
    architecture, overrides = MODELS[name]
    policy = disturbed(
        architecture, TrainingConfig(bf16=False, use_cpu=True, gradient_checkpointing=checkpointing), **overrides
    )
    hidden, ours = gradients(policy, True)
    expected, autograds = gradients(policy, False)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=2e-5)
    assert ours.keys() == autograds.keys()
    for key, grad in autograds.items():
        assert float((ours[key] - grad).norm() / grad.norm()) < 2e-5, key


def test_frozen_weights_get_no_gradient() -> None:
    policy = disturbed("Qwen2")
    frozen = [name for name, _ in policy.model.named_parameters() if "layers.0." in name or "q_proj" in name]
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    ours, autograds = gradients(policy, True)[1], gradients(policy, False)[1]
    assert ours.keys() == autograds.keys() and not set(frozen) & ours.keys()
    for key, grad in autograds.items():
        assert float((ours[key] - grad).norm() / grad.norm()) < 2e-5, key


ADAPTERS: dict[str, dict[str, Any]] = {
    "all": LORA,
    "queries and values": LORA | {"lora_target": "q_proj,v_proj"},
    "MLP": LORA | {"lora_target": "gate_proj,down_proj", "lora_alpha": 3, "use_rslora": True},
    "checkpointing": LORA | {"gradient_checkpointing": True},
    "trained embeddings": LORA | {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3"])
def test_adapters_gradients_equal_autograds(architecture: str, name: str) -> None:
    policy = disturbed(architecture, TrainingConfig(bf16=False, use_cpu=True, **ADAPTERS[name]))
    assert policy.paths.layers.taken
    hidden, ours = gradients(policy, True)
    expected, autograds = gradients(policy, False)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=2e-5)
    assert ours.keys() == autograds.keys() and any("lora_A" in key for key in ours)
    for key, grad in autograds.items():
        assert float((ours[key] - grad).norm() / grad.norm()) < 2e-5, key
    with policy.peft.disable_adapter(), torch.no_grad():
        bare, base = (states(policy, fused, torch.Generator().manual_seed(0)) for fused in (True, False))
    torch.testing.assert_close(bare, base, rtol=0, atol=2e-5)
    assert float((bare - hidden).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"lora_dropout": 0.1, "disable_dropout": False},
        {"modules_to_save": ["input_layernorm"]},
    ],
    ids=str,
)
def test_other_adapters_run_by_the_models_own_code(settings: dict[str, Any]) -> None:
    assert not small_policy(config=TrainingConfig(bf16=False, use_cpu=True, **LORA, **settings)).paths.layers.taken


@pytest.mark.parametrize("dtype", ["autocast", "weights"])
def test_bfloat16_is_no_further_from_float32_than_the_models_own(dtype: str) -> None:
    exact = torch.cat([g.flatten() for g in gradients(disturbed("Qwen3"), False)[1].values()])
    errors = []
    for fused in (True, False):
        policy = disturbed("Qwen3", TrainingConfig(bf16=dtype == "autocast", use_cpu=True))
        if dtype == "weights":
            policy.model.to(torch.bfloat16)
        found = torch.cat([g.flatten().float() for g in gradients(policy, fused)[1].values()])
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] < 1.2 * errors[1] < 0.1


@pytest.mark.parametrize("dtype", ["autocast", "weights"])
def test_adapters_in_bfloat16_are_no_further_from_float32_than_the_models_own(dtype: str) -> None:
    """On average: of one input the errors are by chance up to a third apart, either way."""
    plain = disturbed("Qwen3", TrainingConfig(bf16=False, use_cpu=True, **LORA))
    policy = disturbed("Qwen3", TrainingConfig(bf16=dtype == "autocast", use_cpu=True, **LORA))
    if dtype == "weights":
        policy.model.to(torch.bfloat16)

    def error(fused: bool, seed: int) -> float:
        every = gradients(plain, False, seed)[1], gradients(policy, fused, seed)[1]
        exact, found = (torch.cat([grad.flatten().float() for grad in grads.values()]) for grads in every)
        return float((found - exact).norm() / exact.norm())

    ours, models = (sum(error(fused, seed) for seed in range(4)) / 4 for fused in (True, False))
    assert ours < 1.2 * models < 0.1


def test_a_model_that_computes_otherwise_runs_by_its_own_code_and_so_do_its_copies() -> None:
    policy = small_policy()
    mlp = policy.backbone.layers[0].mlp
    policy.backbone.layers[0].mlp.forward = lambda rows: 2 * type(mlp).forward(mlp, rows)
    choose_paths(policy)
    assert policy.packed and not policy.paths.layers.taken
    with reference_of(policy)() as frozen:
        assert frozen.packed and not frozen.paths.layers.taken
    assert backbone_copy(policy).packed and not backbone_copy(policy).paths.layers.taken
