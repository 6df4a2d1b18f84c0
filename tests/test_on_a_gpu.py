"""Tests that need a GPU: its kernels, decoding by CUDA graphs, bitsandbytes, running out of its memory. The expected
values are the CPU's in float32."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cohort import GRPOConfig, GRPOTrainer
from cohort.data.chains import build_tokenizer, make_chains
from cohort.methods.table import METHODS
from cohort.policy import head
from cohort.policy.fast import cuda_graph as graph
from cohort.policy.model import Policy
from cohort.policy.packed import layout as attention
from cohort.rollouts import decoding
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.train.optimizer import BITSANDBYTES
from cohort.train.step import Updater
from helpers import largest_difference, prompts_of, random_groups, seeds, small_model, small_policy, tokens_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: PyTorch sees none")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'cohort-rl[quantization]'"
)
WIDE = {"hidden_size": 128, "intermediate_size": 192, "initializer_range": 0.1, "max_position_embeddings": 512}
"""Heads of 32 numbers: FlexAttention needs at least 16."""
SIZES = [(5, [40, 70, 1]), (140, [30, 138, 60]), (20, [110, 20, 50])]
"""Packed streams of several FlexAttention blocks."""
TOLERANCE = 5e-3
"""Relative tolerance: FlexAttention multiplies in TF32."""


def policy_on(device: str, architecture: str = "Qwen2", bf16: bool = False, **overrides: Any) -> Policy:
    config = GRPOConfig(bf16=bf16, use_cpu=device == "cpu")
    shape = {**WIDE, **({"head_dim": 32} if architecture.startswith(("Gemma", "Qwen3")) else {})}
    return small_policy(architecture, config, **shape, **overrides)


def gradient(policy: Policy) -> dict[str, torch.Tensor]:
    """The policy's gradient, in float32 on the CPU."""
    groups = random_groups(SIZES)
    for group in groups:
        draw = torch.Generator().manual_seed(len(group.prompt_ids))
        scores = [-4 + torch.randn(len(c.ids), generator=draw) for c in group.completions]
        group.old_logprobs, group.reference_logprobs = scores, [score - 0.1 for score in scores]
    config = GRPOConfig(num_generations=3, max_completion_length=200)
    updater = Updater(policy, METHODS["grpo"], config)
    updater.gradient(groups, tokens_of(groups))
    return {name: p.grad.float().cpu() for name, p in policy.model.named_parameters() if p.grad is not None}


def assert_near(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(grad.norm()) for grad in theirs.values())
    for name, grad in ours.items():
        difference = float((grad - theirs[name]).norm()) / max(float(theirs[name].norm()), 1e-2 * largest)
        assert difference < tolerance, (name, difference)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3", "Mistral", "Gemma2"])
def test_the_gradient_is_the_cpus(architecture: str) -> None:
    assert_near(gradient(policy_on("cuda", architecture)), gradient(policy_on("cpu", architecture)), TOLERANCE)


def test_attention_is_flex_and_needs_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_FLEX_WORKS", {})
    policy = policy_on("cuda")
    assert policy.packed and policy.paths.layers.taken
    gradient(policy)
    monkeypatch.delattr(attention.GroupLayout, "_by_scores")  # fails if the code path with scores is taken
    gradient(policy)
    assert attention._FLEX_WORKS and all(attention._FLEX_WORKS.values())


@pytest.mark.usefixtures("layers")
def test_in_bfloat16_the_gradient_points_the_same_way() -> None:
    ours, theirs = (
        torch.cat([grad.flatten() for grad in gradient(policy).values()])
        for policy in (policy_on("cuda", bf16=True), policy_on("cpu"))
    )
    assert float(torch.cosine_similarity(ours, theirs, dim=0)) > 0.99


def greedy(policy: Policy, max_rows: int = 256) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 97, (n,), generator=draw) for n in (5, 40, 2, 7)]
    sampling = Sampling(temperature=0, max_tokens=60, eos_ids=[1])
    found = LocalEngine(policy, max_rows).generate(prompts, 2, sampling, seeds(prompts)).completions
    return [completion.ids.tolist() for group in found for completion in group]


@pytest.mark.parametrize("short", [0, 1000], ids=["shared prompts", "copied prompts"])
@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3", "Mistral", "Gemma2"])
def test_recorded_decoding_draws_the_cpus_tokens(
    architecture: str, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "SHORT_PROMPT", short)
    monkeypatch.setattr(graph.GraphDecoder, "works", None)
    policy = policy_on("cuda", architecture)
    expected = greedy(policy_on("cpu", architecture))
    assert greedy(policy) == greedy(policy, max_rows=3) == expected
    assert graph.GraphDecoder.works is (True if policy.paths.layers.taken else None)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_samplers_log_probabilities_are_the_policys(bf16: bool) -> None:
    policy, prompts = policy_on("cuda", bf16=bf16), prompts_of()
    found = (
        LocalEngine(policy, 6)
        .generate(prompts, 4, Sampling(max_tokens=40, eos_ids=[1, 5, 7]), seeds(prompts, 1))
        .completions
    )
    assert largest_difference(policy, prompts, found, 1.0) < (0.3 if bf16 else 1e-2)


def run(folder: Path, model: Any = None, **settings: Any) -> GRPOTrainer:
    trainer = GRPOTrainer(
        small_model(vocab_size=22, **WIDE) if model is None else model,
        lambda completions, **_: [float(len(completion[0]["content"])) for completion in completions],
        GRPOConfig(
            output_dir=str(folder),
            num_generations=4,
            per_device_train_batch_size=12,
            max_completion_length=6,
            max_steps=2,
            learning_rate=1e-2,
            **settings,
        ),
        make_chains(2, 40, 8, seed=0)[1],
        processing_class=build_tokenizer(),
    )
    trainer.train()
    return trainer


@needs_bitsandbytes
@pytest.mark.parametrize("optim", BITSANDBYTES)
def test_optimisers_of_bitsandbytes(optim: str, tmp_path: Path) -> None:
    before = small_model(vocab_size=22, **WIDE).model.layers[0].mlp.up_proj.weight
    trainer = run(tmp_path, optim=optim)
    assert type(trainer.loop.updater.optimizer).__name__ == BITSANDBYTES[optim]
    after = trainer.model.model.layers[0].mlp.up_proj.weight.detach().cpu()
    assert after.isfinite().all() and not torch.equal(before, after)


@needs_bitsandbytes
def test_adapters_on_quantised_weights(tmp_path: Path) -> None:
    small_model(vocab_size=22, **WIDE).save_pretrained(tmp_path / "base")
    four = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}}
    run(tmp_path / "out", str(tmp_path / "base"), finetuning_type="lora", model_init_kwargs=four)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_resumed_run_ends_where_the_undisturbed_one_does(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", save_steps=1)
    for name in ("model.safetensors", "metrics.jsonl"):
        (tmp_path / "whole" / name).unlink()
    expected = [p.detach().clone() for p in whole.policy.parameters]
    shutil.rmtree(tmp_path / "whole" / "checkpoint-2")
    again = run(tmp_path / "whole", resume_from_checkpoint=True)
    for a, b in zip(again.policy.parameters, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.fixture
def whole_memory() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("whole_memory")
def test_out_of_memory_halves_the_budget_and_the_step_goes_on() -> None:
    policy = policy_on("cuda")
    groups = random_groups([(30, [400] * 8) for _ in range(4)])
    config = GRPOConfig(num_generations=8, max_completion_length=400, beta=0.0, token_budget=16_384)
    for group in groups:
        group.old_logprobs = [torch.full((400,), -4.0) for _ in group.completions]
    updater = Updater(policy, METHODS["grpo"], config)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    kept = torch.cuda.memory_allocated()
    updater.gradient(groups, tokens_of(groups))
    expected = {name: p.grad.cpu() for name, p in policy.model.named_parameters()}
    updater.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    allowed = kept + 0.7 * (torch.cuda.max_memory_allocated() - kept)
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    updater.gradient(groups, tokens_of(groups))
    assert updater.token_budget < 16_384
    assert_near({name: p.grad.cpu() for name, p in policy.model.named_parameters()}, expected, TOLERANCE)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_the_heads_gradient_of_many_spans_is_added_in_float32(
    weights: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With cuBLAS's mixed products, and by products in bfloat16."""
    policy = policy_on("cuda", bf16=True, vocab_size=512)
    policy.head.output.to(weights)
    hidden = torch.randn(400, 128, device="cuda").to(weights)
    targets = torch.randint(512, (400,), device="cuda")
    monkeypatch.setattr(head, "BLOCK_BYTES", {"cuda": 4 * 512 * 4})
    monkeypatch.setattr(head, "FEW_TOKENS", 1)
    found = []
    for mixed in (head._adds_in_float32, lambda device: False):
        monkeypatch.setattr(head, "_adds_in_float32", mixed)
        policy.head.output.weight.grad = None
        with torch.autocast("cuda", torch.bfloat16, enabled=weights is torch.float32):
            policy.head.backward(hidden, targets, 1.0, lambda span, logp: torch.ones_like(logp))
        found.append(policy.head.output.weight.grad.double())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 5e-3


def test_tiles_of_a_card_give_the_cpus_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flex_works", lambda *_: False)
    assert_near(gradient(policy_on("cuda")), gradient(policy_on("cpu")), TOLERANCE)


def test_a_layer_is_first_tried_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention is compared with plain attention, gradients included, where PyTorch is in inference mode."""
    monkeypatch.setattr(attention, "_FLEX_WORKS", {})
    greedy(policy_on("cuda"))
    assert attention._FLEX_WORKS and all(attention._FLEX_WORKS.values())


def test_a_profile_has_the_gpus_work_of_two_steps(tmp_path: Path) -> None:
    run(tmp_path, profile=True)
    text = (tmp_path / "profile.txt").read_text(encoding="utf-8")
    assert "not whole" not in text and "steps 2 to 2" in text
    assert '"cat": "kernel"' in (tmp_path / "trace.json").read_text(encoding="utf-8")
