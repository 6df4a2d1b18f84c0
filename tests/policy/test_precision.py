"""Weights in half precision: what is trained is float32, what is frozen keeps its dtype where it can."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from cohort import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from cohort.config import RewardConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.methods.table import METHODS
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.train.output.checkpoint import load_weights, save_policy
from cohort.train.reward_models.model import make_reward_model
from cohort.train.step import Updater
from helpers import (
    SIZES,
    byte_tokenizer,
    classifier,
    gradients,
    random_groups,
    saved,
    settings,
    small_model,
    tokens_of,
)

HALVES = (torch.bfloat16, torch.float16)
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "freeze, norm": {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": ["norm"]},
    "lora": {"finetuning_type": "lora"},
    "dora": {"finetuning_type": "lora", "use_dora": True},
    "lora, embeddings whole": {"finetuning_type": "lora", "modules_to_save": ["embed_tokens"]},
}


def policy_of(dtype: torch.dtype, bf16: bool, changes: dict[str, Any], architecture: str = "Llama") -> Policy:
    model = small_model(architecture, initializer_range=0.1)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    torch.manual_seed(1)
    return make_policy(model, build_tokenizer(), TrainingConfig(bf16=bf16, use_cpu=True, **changes))


def gradient(policy: Policy) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    groups = random_groups(SIZES)
    Updater(policy, METHODS["grpo"], settings(beta=0.0)).gradient(groups, tokens_of(groups))
    return gradients(policy.model)


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([g[name].flatten() for name in ours]) for g in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("architecture", ["Llama", "Gemma"])
@pytest.mark.parametrize(("way", "dtype", "bf16"), product(WAYS, HALVES, (False, True)))
def test_what_is_trained_is_float32_and_has_the_right_gradient(
    way: str, dtype: torch.dtype, bf16: bool, architecture: str
) -> None:
    policy = policy_of(dtype, bf16, WAYS[way], architecture)
    assert {p.dtype for p in policy.parameters} == {torch.float32}
    assert policy.packed
    frozen = {p.dtype for p in policy.model.parameters() if not p.requires_grad}
    mixes = way in ("lora", "dora") or bf16
    expected = torch.bfloat16 if mixes and (bf16 or dtype is torch.bfloat16) else torch.float32
    assert frozen == ({expected} if way != "full" else set())
    plain = policy_of(torch.float32, False, WAYS[way], architecture)
    plain.model.load_state_dict(policy.model.state_dict())
    found = gradient(policy)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert difference(found, gradient(plain)) < (0.05 if bf16 or torch.bfloat16 in frozen else 1e-5)


def letters(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


ROWS = [{"prompt": f"{i}+{i}="} for i in range(4)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("given", ["by name", "as a model"])
def test_an_update_at_a_small_learning_rate_is_not_rounded_away(
    given: str, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cohort")
    name = str(dtype).removeprefix("torch.")
    model: Any = small_model("Llama").to(dtype)
    if given == "by name":
        model = saved(tmp_path / "m", model, build_tokenizer())
    args = GRPOConfig(
        str(tmp_path / "out"), max_steps=1, num_generations=4, per_device_train_batch_size=8, learning_rate=1e-6,
        max_completion_length=6, bf16=False, use_cpu=True, reward_preflight=False, beta=0.04,
        model_init_kwargs={"dtype": name} if given == "by name" else {},
    )  # fmt: skip
    trainer = GRPOTrainer(model, letters, args, ROWS, processing_class=build_tokenizer())
    total = sum(p.numel() for p in trainer.model.parameters())
    assert f"{total:,} trained weights were {name} and are float32 now" in caplog.text
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    changed = sum(int((p != old).sum()) for p, old in zip(trainer.model.parameters(), before, strict=True))
    assert changed > 0.5 * total


def test_an_adapter_that_peft_left_in_half_precision_is_widened() -> None:
    model = small_model("Llama").to(torch.bfloat16)
    lora = LoraConfig(r=4, target_modules="all-linear")
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    policy = make_policy(model, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True))
    assert {p.dtype for p in policy.parameters} == {torch.float32}
    assert policy.model.lm_head.weight.dtype is torch.bfloat16


@pytest.mark.parametrize("way", ["linear", "lora", "mlp, frozen"])
def test_reward_models_too(way: str) -> None:
    changes: dict[str, Any] = {
        "linear": {},
        "lora": {"finetuning_type": "lora", "lora_target": "query"},
        "mlp, frozen": {"finetuning_type": "freeze", "freeze_trainable_layers": 0},
    }[way]
    base = classifier("Bert").to(torch.bfloat16)
    model = make_reward_model(base, byte_tokenizer(bert=True), RewardConfig(bf16=False, use_cpu=True, **changes))
    assert model.parameters and {p.dtype for p in model.parameters} == {torch.float32}
    assert torch.isfinite(torch.tensor(model.scorer.score([model.scorer.encode("a", "b")], 1)[0]))


def test_resuming_does_not_round_what_is_trained_to_the_dtype_of_what_is_frozen(tmp_path: Path) -> None:
    policy = policy_of(torch.bfloat16, True, WAYS["freeze"])
    for parameter in policy.parameters:
        parameter.data += 1e-6
    expected = [p.clone() for p in policy.model.parameters()]
    save_policy(policy, tmp_path)
    other = policy_of(torch.bfloat16, True, WAYS["freeze"])
    load_weights(tmp_path, other)
    assert all(torch.equal(p, e) for p, e in zip(other.model.parameters(), expected, strict=True))
    assert {p.dtype for p in other.model.parameters()} == {torch.float32, torch.bfloat16}


def test_a_reference_of_its_own_keeps_its_dtype_and_has_no_adapter(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{i}+{i}=", "chosen": str(2 * i % 10), "rejected": "7-7"} for i in range(4)]
    config = DPOConfig(str(tmp_path), max_steps=1, bf16=False, use_cpu=True, finetuning_type="lora")
    reference = small_model("Llama").to(torch.bfloat16)
    trainer = DPOTrainer(small_model("Llama"), config, pairs, processing_class=build_tokenizer(), ref_model=reference)
    assert {p.dtype for p in trainer.reference.model.parameters()} == {torch.bfloat16}
    assert not [name for name, _ in trainer.reference.model.named_modules() if "lora" in name]
    assert not trainer.reference.parameters
