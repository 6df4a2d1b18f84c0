"""The object that says which fast paths a policy takes, and `fast_paths: off`, held to the same numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from cohort import GRPOConfig, GRPOTrainer, UserError
from cohort.config import TrainingConfig
from cohort.data.chains import build_tokenizer, make_chains
from cohort.methods.table import METHODS
from cohort.policy import parity
from cohort.policy.model import Policy
from cohort.policy.paths import NAMES, OWN_LAYERS
from cohort.rollouts.engine import local_engine
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Sampling
from cohort.train.step import Updater
from helpers import (
    ARCHITECTURES,
    SIZES,
    assert_close,
    digits,
    gradients,
    perturbed,
    prompts_of,
    random_groups,
    seeds,
    settings,
    small_model,
    small_policy,
    tokens_of,
)

OFF = TrainingConfig(bf16=False, use_cpu=True, fast_paths="off")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_off_gives_the_same_gradient_and_the_same_greedy_completions(architecture: str) -> None:
    fast, plain = small_policy(architecture), small_policy(architecture, OFF)
    assert fast.packed and not any(getattr(plain.paths, name).taken for name in NAMES)
    found = []
    for policy in (fast, plain):
        groups = random_groups(SIZES)
        for group, old in zip(groups, perturbed(policy, groups, 0.3, 1), strict=True):
            group.old_logprobs = group.reference_logprobs = old
        metrics = Updater(policy, METHODS["grpo"], settings(beta=0.1)).gradient(groups, tokens_of(groups))
        sampling = Sampling(temperature=0.0, max_tokens=8, eos_ids=[1])
        completions = local_engine(policy, 8).generate(prompts_of(), 1, sampling, seeds(prompts_of())).completions
        found.append((metrics, gradients(policy.model), [row[0].ids.tolist() for row in completions]))
    (ours, ours_gradient, ours_ids), (theirs, theirs_gradient, theirs_ids) = found
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert_close(ours_gradient, theirs_gradient, 5e-5)
    assert ours_ids == theirs_ids


def test_off_runs_the_models_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("code of a fast path ran")

    for place in ("cohort.policy.model.hidden_states", "cohort.policy.model.fast_float32", "cohort.policy.model.pack_groups"):  # fmt: skip  # noqa: E501
        monkeypatch.setattr(place, fails)
    policy = small_policy(config=OFF)
    assert isinstance(local_engine(policy, 8), RowEngine)
    groups = random_groups(SIZES)
    Updater(policy, METHODS["grpo"], settings(beta=0.0)).gradient(groups, tokens_of(groups))


def test_paths_say_why() -> None:
    paths = small_policy("Gemma").paths
    assert paths.packed.taken and not any(getattr(paths, name).taken for name in OWN_LAYERS)
    assert paths.layers.reason == "GemmaDecoderLayer is not of Llama's family"
    assert paths.cuda_graph.reason == "GemmaDecoderLayer is not of Llama's family"
    assert paths.flex_attention.reason == "CUDA only"
    assert len(paths.lines()) == len(NAMES) and paths.lines()[0].startswith("packed: yes, ")
    assert paths.summary().startswith("packed, forks") and "not layers, decoder, reuse, cuda_graph: Gemma" in paths.summary()  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(("fast_paths", "line"), [("auto", "fast paths: packed, layers"), ("off", "fast paths: none; not packed")])  # fmt: skip  # noqa: E501
def test_a_run_logs_its_paths_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fast_paths: str, line: str
) -> None:
    caplog.set_level(logging.INFO, "cohort")
    torch.manual_seed(0)
    config = GRPOConfig(
        output_dir=str(tmp_path),
        fast_paths=fast_paths,
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=6,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        reward_preflight=False,
    )
    _, train, _ = make_chains(2, 4, 0, seed=0)
    GRPOTrainer(small_model(vocab_size=22), digits, config, train, processing_class=build_tokenizer()).train()
    assert caplog.text.count("fast paths:") == 1 and line in caplog.text


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_memory_that_runs_out_is_told_as_such(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no model that does not run the grouped attention."""

    def full(policy: Policy) -> float:
        raise error

    monkeypatch.setattr(parity, "_largest_difference", full)
    with pytest.raises(UserError, match="out of memory on cpu before the run"):
        small_policy()


@pytest.mark.parametrize("architecture", ["Qwen2", "Llama"])
def test_rounding_of_bfloat16_is_not_taken_for_a_wrong_path(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors round differently: a difference above the usual one counts by the model's own rounding, and by what
    float32 says."""
    monkeypatch.setattr(parity, "PARITY_BF16", 0.0)
    policy = small_policy(architecture, TrainingConfig(bf16=True, use_cpu=True))
    assert policy.bf16 and policy.packed and policy.paths.layers.taken


@pytest.mark.parametrize(("difference", "in_float32"), [(0.5, 0.1), (50.0, 1e-6), (float("nan"), 1e-6)])
def test_a_wrong_path_is_not_taken_for_rounding(
    difference: float, in_float32: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that float32 shows; one far beyond the model's own rounding, which only bfloat16 has; and NaN."""

    def differs(policy: Policy) -> float:
        return difference if policy.bf16 else in_float32

    monkeypatch.setattr(parity, "_largest_difference", differs)
    monkeypatch.setattr(parity, "_check_head", lambda policy: None)
    policy = small_policy(config=TrainingConfig(bf16=True, use_cpu=True))
    assert policy.bf16 and not policy.packed
