"""Rotary embeddings whose angles depend on the length of the sequence, against each sequence's own forward pass."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cohort import UserError
from cohort.config import DPOConfig, GRPOConfig, SFTConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.methods.table import METHODS
from cohort.policy.load import make_policy
from cohort.policy.packed.pack import Part
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from cohort.train.step import Updater
from cohort.types import Group
from helpers import (
    LLAMA3,
    LONGROPE,
    SHAPE,
    assert_close,
    gradients,
    padded_logprobs,
    prompts_of,
    random_groups,
    seeds,
    settings,
    tokens_of,
)

DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
DYNAMIC = {**DEFAULT, "rope_type": "dynamic", "factor": 4.0}
SHORT: dict[str, Any] = {"max_position_embeddings": 16}
BY_LAYER: dict[str, Any] = {"head_dim": 8, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
DEPENDENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dynamic": ("Llama", "Llama", {"rope_parameters": DYNAMIC, **SHORT}),
    "longrope": ("Phi3", "Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "longrope of Llama": ("Llama", "Llama", {"rope_parameters": LONGROPE}),
    "dynamic, some layers": (
        "Gemma3",
        "Gemma3Text",
        {"rope_parameters": {"sliding_attention": DEFAULT, "full_attention": DYNAMIC}, **BY_LAYER, **SHORT},
    ),
    "longrope, some layers": (
        "Gemma3",
        "Gemma3Text",
        {"rope_parameters": {"sliding_attention": LONGROPE, "full_attention": DEFAULT}, **BY_LAYER},
    ),
}
INDEPENDENT: dict[str, dict[str, Any]] = {
    "default": DEFAULT,
    "linear": {**DEFAULT, "rope_type": "linear", "factor": 4.0},
    "yarn": {**DEFAULT, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 16},
}
SIZES = [(5, [20, 4, 7]), (9, [3, 7, 16]), (2, [22, 15, 11]), (20, [3, 8, 1])]
"""Sequences of less than 16 tokens, of 16, and of more."""
CPU = TrainingConfig(bf16=False, use_cpu=True)


def small(kind: str) -> Any:
    model, config, changes = DEPENDENT[kind]
    torch.manual_seed(0)
    return getattr(transformers, f"{model}ForCausalLM")(
        getattr(transformers, f"{config}Config")(**{**SHAPE, "initializer_range": 0.1, **changes})
    )


def alone(model: Any, groups: list[Group]) -> list[tuple[Any, Group, Tensor]]:
    """Each completion with a copy of the model that saw no other one, and its log-probabilities by that."""
    singles = []
    for group in groups:
        for r, completion in enumerate(group.completions):
            fresh = copy.deepcopy(model)
            single = Group(group.prompt_ids, [completion], group.row, advantages=[group.advantages[r]])
            singles.append((fresh, single, padded_logprobs(fresh, single)[0]))
    return singles


def given(model: Any) -> list[Group]:
    """Groups with old and reference log-probabilities near the model's own."""
    groups, noise = random_groups(SIZES), torch.Generator().manual_seed(1)
    values = iter([logp.detach() for _, _, logp in alone(model, groups)])
    for group in groups:
        own = [next(values) for _ in group.completions]
        group.old_logprobs, group.reference_logprobs = (
            [logp + 0.3 * torch.randn(logp.shape, generator=noise) for logp in own] for _ in range(2)
        )
    return groups


def textbook_gradient(model: Any, groups: list[Group]) -> dict[str, Tensor]:
    """Of GRPO with KL by k3 (DeepSeekMath Eq. 3), summed over passes on one sequence each."""
    old = [logp for group in groups for logp in group.old_logprobs or []]
    reference = [logp for group in groups for logp in group.reference_logprobs or []]
    total: dict[str, Tensor] = {}
    singles = alone(model, groups)
    for (fresh, single, logp), before, frozen in zip(singles, old, reference, strict=True):
        ratio, A, d = (logp - before).exp(), single.advantages[0], logp - frozen
        objective = torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A) - 0.1 * ((-d).exp() + d - 1)
        (-objective.mean() / len(singles)).backward()
        for name, grad in gradients(fresh).items():
            total[name] = total.get(name, 0) + grad
    return total


@pytest.mark.parametrize("kind", DEPENDENT)
def test_each_sequence_has_its_own_angles_however_the_work_is_cut(kind: str) -> None:
    model = small(kind)
    pristine, groups = copy.deepcopy(model), given(model)
    expected, textbook = alone(pristine, groups), textbook_gradient(pristine, groups)
    policy = make_policy(model, build_tokenizer(), CPU)
    assert not policy.packed and policy.paths.packed.reason.startswith("beyond 16 tokens its ")
    parts = [Part(g, x.prompt_ids, range(3), [c.ids for c in x.completions]) for g, x in enumerate(groups)]
    for batches in ([parts], [[part] for part in reversed(parts)]):
        found = policy.logprobs(iter(batches), 1.0)
        in_order = [found[g, r] for g in range(len(groups)) for r in range(3)]
        for ours, (_, _, theirs) in zip(in_order, expected, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=0)
    for token_budget in (1, 40, 10_000):
        config = settings(beta=0.1, token_budget=token_budget)
        Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
        assert_close(gradients(model), textbook, 1e-5)
        row = padded_logprobs(model, Group(groups[0].prompt_ids, groups[0].completions[2:], groups[0].row))[0]
        torch.testing.assert_close(row, expected[2][2], atol=1e-6, rtol=0)  # no longer sequence left its trace


@pytest.mark.parametrize("kind", ["longrope", "longrope of Llama"])
def test_sampling_beyond_the_limit_is_transformers_own(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    policy = make_policy(small(kind), build_tokenizer(), CPU)
    assert caplog.text.count("more than 16 tokens together, the completion's first ones are sampled with other") == 1
    prompts = prompts_of((12, 3, 20))
    sampling = Sampling(temperature=0.0, max_tokens=12, eos_ids=[])
    found = local_engine(policy, 8).generate(prompts, 1, sampling, seeds(prompts)).completions
    for prompt, row in zip(prompts, found, strict=True):
        expected = policy.model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            min_new_tokens=12,
            max_new_tokens=12,
            pad_token_id=0,
        )[0, len(prompt) :]
        if 1 not in row[0].ids:
            assert row[0].ids.tolist() == expected.tolist()
        whole = Group(prompt, row, random_groups([(1, [1])])[0].row)
        torch.testing.assert_close(row[0].logprobs, padded_logprobs(policy.model, whole)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rope", INDEPENDENT)
def test_other_rotary_embeddings_keep_the_packed_stream(rope: str, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**SHAPE, "initializer_range": 0.1, "rope_parameters": INDEPENDENT[rope]})
    )
    pristine, groups = copy.deepcopy(model), given(model)
    policy = make_policy(model, build_tokenizer(), CPU)
    assert policy.paths.packed.taken and policy.paths.layers.taken and not caplog.text
    Updater(policy, METHODS["grpo"], settings(beta=0.1)).gradient(groups, tokens_of(groups))
    assert_close(gradients(model), textbook_gradient(pristine, groups), 1e-5)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (CPU, None),
        (GRPOConfig(max_completion_length=8), None),
        (GRPOConfig(max_prompt_length=8, max_completion_length=8), 16),
        (SFTConfig(max_length=16), None),
        (SFTConfig(max_length=16, max_prompt_length=4, max_completion_length=8), 16),
        (DPOConfig(max_length=9, max_prompt_length=8, max_completion_length=9), 17),
        (DPOConfig(max_prompt_length=8, max_completion_length=9), None),
    ],
)
def test_the_longest_sequence_that_a_configuration_allows(config: TrainingConfig, longest: int | None) -> None:
    assert config.longest_sequence == longest


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize(("completion", "packed"), [(8, True), (9, False)])
def test_packed_where_the_run_keeps_within_the_limit(
    kind: str, completion: int, packed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "cohort")
    config = GRPOConfig(max_prompt_length=8, max_completion_length=completion, bf16=False, use_cpu=True)
    policy = make_policy(small(kind), build_tokenizer(), config)
    assert policy.packed == packed == (not caplog.text)
    found = (
        local_engine(policy, 8)
        .generate(prompts_of((8,)), 2, Sampling(max_tokens=8, eos_ids=[]), seeds(prompts_of((8,))))
        .completions
    )
    group = Group(prompts_of((8,))[0], found[0], random_groups([(1, [1])])[0].row)
    for completion_, expected in zip(found[0], padded_logprobs(policy.model, group), strict=True):
        torch.testing.assert_close(completion_.logprobs, expected, atol=1e-5, rtol=0)
    if packed:
        longer = [Part(0, torch.arange(2, 10), [0], [torch.arange(2, 11)])]
        with pytest.raises(UserError, match=r"of up to 17 tokens is longer .* right up to 16: .* fast_paths: off"):
            policy.pack(longer)
        if kind == "longrope":  # the other has no positions left
            with pytest.raises(UserError, match="of up to 17 tokens is longer"):
                local_engine(policy, 8).generate(
                    prompts_of((8,)), 2, Sampling(max_tokens=9, eos_ids=[]), seeds(prompts_of((8,)))
                )
