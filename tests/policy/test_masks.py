"""What a model tells its masks and not its attention function: a sliding window, or chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from helpers import SHAPE, largest_difference, padded_logprobs, prompts_of, random_groups, seeds

EXPERTS = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
WINDOW = 16
"""Longer than the sequences on which a run compares its paths at the start."""


def policy_of(model: str, config: str, **changes: Any) -> Policy:
    torch.manual_seed(0)
    made = getattr(transformers, f"{model}ForCausalLM")(getattr(transformers, f"{config}Config")(**SHAPE, **changes))
    return make_policy(made, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("Qwen2Moe", {"use_sliding_window": True, "max_window_layers": 0, "shared_expert_intermediate_size": 16}),
        ("Qwen2Moe", {"use_sliding_window": True, "max_window_layers": 1, "shared_expert_intermediate_size": 16}),
        ("Phimoe", {}),
        ("Mistral", {}),
    ],
)
def test_a_window_in_the_mask_alone_is_a_window(model: str, changes: dict[str, Any]) -> None:
    policy = policy_of(model, model, sliding_window=WINDOW, **EXPERTS, **changes)
    assert policy.packed
    groups = random_groups([(5, [30, 14]), (29, [3, 8])])
    parts = [Part(g, x.prompt_ids, range(2), [c.ids for c in x.completions]) for g, x in enumerate(groups)]
    found = policy.logprobs(iter([parts]), 1.0)
    for g, group in enumerate(groups):
        for r, expected in enumerate(padded_logprobs(policy.model, group)):
            torch.testing.assert_close(found[g, r], expected.detach(), atol=1e-4, rtol=0)
    if model == "Phimoe":
        return  # its router has thresholds, at which rounding decides
    prompts = prompts_of((5, 20))
    sampled = (
        local_engine(policy, 4).generate(prompts, 2, Sampling(max_tokens=24, eos_ids=[]), seeds(prompts)).completions
    )
    assert largest_difference(policy, prompts, sampled, 1.0) < 1e-4


def test_chunks_take_the_row_path(caplog: pytest.LogCaptureFixture) -> None:
    shape = {"head_dim": 8, "intermediate_size_mlp": 32, **EXPERTS}
    policy = policy_of("Llama4", "Llama4Text", attention_chunk_size=WINDOW, **shape)
    assert not policy.packed and "its attention is divided into chunks" in caplog.text
