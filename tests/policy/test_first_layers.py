"""A model cut to its first layers for comparisons of two ways to compute it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.policy.first_layers import first_layers, on_first_layers
from cohort.policy.load import make_policy
from helpers import small_model


def layers_within(model: Any) -> int:
    with first_layers(model.model) as shortened:
        count = len(model.model.layers)
    assert shortened == (count < len(model.model.layers))
    return count


def test_two_layers_stand_for_many_of_one_kind() -> None:
    model = small_model("Llama", num_hidden_layers=6)
    layers = model.model.layers
    assert layers_within(model) == 2
    assert model.model.layers is layers


@pytest.mark.parametrize("other", [2, 4])
def test_each_kind_of_layer_is_among_them(other: int) -> None:
    types = ["sliding_attention"] * 6
    types[other] = "full_attention"
    model = small_model("Qwen2", num_hidden_layers=6, layer_types=types, sliding_window=4)
    assert layers_within(model) == other + 1


def test_a_layer_with_another_setting_or_shape_is_another_kind() -> None:
    model = small_model("Llama", num_hidden_layers=6)
    model.model.layers[3].self_attn.scaling = 0.7
    assert layers_within(model) == 4
    model.model.layers[4].mlp.down_proj = nn.Linear(7, 7)
    assert layers_within(model) == 5


def test_a_model_that_needs_all_its_layers_is_measured_with_all() -> None:
    model = small_model("Llama", num_hidden_layers=6)

    def measure() -> int:
        if len(model.model.layers) < 6:
            raise IndexError("layer 5")
        return len(model.model.layers)

    assert on_first_layers(model.model, measure) == 6


def test_a_model_without_a_stack_of_layers_stays_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert on_first_layers(model, lambda: float(model(torch.zeros(1, 2)).shape[1])) == 2.0


def test_a_wrong_layer_behind_the_first_two_is_seen() -> None:
    """The fast layers compute a scaling of their own; a later layer of another kind is compared too."""
    model = small_model("Llama", num_hidden_layers=6, initializer_range=0.3)

    class Doubled(type(model.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = 2 * super().forward(x)
            return result

    model.model.layers[4].mlp.__class__ = Doubled
    policy = make_policy(model, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True))
    assert policy.packed and not policy.paths.layers.taken
