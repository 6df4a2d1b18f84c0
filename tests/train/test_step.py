"""The step's closed-form gradient against autograd on the textbook objective, over the ordinary padded forward."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from cohort.config import GRPOConfig, SFTConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.methods.table import METHODS
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part, micro_batches
from cohort.policy.paths import NAMES
from cohort.train.step import Updater
from cohort.types import Group
from helpers import (
    ARCHITECTURES,
    SIZES,
    assert_close,
    gradients,
    padded_logprobs,
    perturbed,
    random_groups,
    settings,
    small_model,
    small_policy,
    tokens_of,
)


def textbook_loss(model: Any, groups: list[Group], config: GRPOConfig) -> Tensor:
    """DeepSeekMath Eq. 3 and its variants, written out with autograd."""
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    per_sequence, lengths = [], []
    for group in groups:
        for r, logp in enumerate(padded_logprobs(model, group, config.temperature)):
            old = logp.detach() if group.old_logprobs is None else group.old_logprobs[r]
            ratio = (logp - old).exp()
            A = group.advantages[r]
            objective = torch.min(ratio * A, ratio.clamp(1 - config.epsilon, 1 + high) * A)
            if group.reference_logprobs is not None:
                d = logp - group.reference_logprobs[r]
                kl = {"k1": d, "k2": d * d / 2, "k3": (-d).exp() + d - 1}[config.kl_estimator]
                objective = objective - config.beta * (kl * ratio if config.use_bias_correction_kl else kl)
            active = 0.0 if config.mask_truncated_completions and group.completions[r].truncated else 1.0
            per_sequence.append(objective * active)
            lengths.append(len(logp) * active)
    total, count = sum(lengths), len(per_sequence)
    if config.loss_type == "grpo":
        return -sum(o.mean() for o in per_sequence) / count
    summed = -sum(o.sum() for o in per_sequence)
    return summed / (count * config.max_completion_length if config.loss_type == "dr_grpo" else total)


def autograd(policy: Policy, groups: list[Group], config: GRPOConfig) -> tuple[float, dict[str, Tensor]]:
    policy.model.zero_grad()
    loss = textbook_loss(policy.model, groups, config)
    loss.backward()
    return float(loss.detach()), gradients(policy.model)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("kl", ["none", "k1", "k2", "k3", "k3_ratio"])
def test_gradient_and_loss_equal_autograd(loss_type: str, kl: str) -> None:
    config = settings(
        loss_type=loss_type,
        beta=0.0 if kl == "none" else 0.1,
        kl_estimator="k3" if kl == "none" else kl[:2],
        use_bias_correction_kl=kl == "k3_ratio",
        epsilon_high=0.28,
    )
    policy = small_policy()
    groups = random_groups(SIZES)
    for group, old, reference in zip(
        groups, perturbed(policy, groups, 0.6, 1), perturbed(policy, groups, 0.5, 2), strict=True
    ):
        group.old_logprobs = old
        group.reference_logprobs = None if kl == "none" else reference
    updater = Updater(policy, METHODS["grpo"], config)
    metrics = updater.gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    loss, theirs = autograd(policy, groups, config)
    assert metrics["clip_ratio/low_mean"] > 0.02 and metrics["clip_ratio/high_mean"] > 0.02
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_on_policy_gradient_at_any_temperature(temperature: float) -> None:
    config = settings(beta=0.0, temperature=temperature)
    policy = small_policy()
    groups = random_groups(SIZES)
    for group in groups:
        for completion in group.completions:
            completion.version = policy.version
    metrics = Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    for group in groups:
        group.old_logprobs = None
    _, theirs = autograd(policy, groups, config)
    assert (metrics["ratio/min"], metrics["ratio/max"]) == (1.0, 1.0)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packing_equals_the_padded_forward(architecture: str) -> None:
    policy = small_policy(architecture)
    assert policy.packed
    groups = random_groups(SIZES)
    parts = [Part(g, x.prompt_ids, range(3), [c.ids for c in x.completions]) for g, x in enumerate(groups)]
    packed = policy.logprobs(iter([parts]), 1.0)
    for g, group in enumerate(groups):
        for r, expected in enumerate(padded_logprobs(policy.model, group)):
            torch.testing.assert_close(packed[g, r], expected.detach(), atol=1e-5, rtol=0)
    config = settings(beta=0.0)
    for group in groups:
        group.old_logprobs = [logp.detach() for logp in padded_logprobs(policy.model, group)]
    Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    _, theirs = autograd(policy, groups, config)
    assert_close(ours, theirs, 1e-4)


@pytest.mark.parametrize("budget", [1, 20, 45])
def test_micro_batches_are_invisible(budget: int) -> None:
    groups = random_groups(SIZES)
    found = []
    for token_budget in (10_000, budget):
        policy = small_policy()
        config = settings(beta=0.1, loss_type="bnpo", token_budget=token_budget)
        for group, old in zip(groups, perturbed(policy, groups, 0.3, 1), strict=True):
            group.old_logprobs = group.reference_logprobs = old
        metrics = Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
        found.append((metrics, gradients(policy.model)))
    assert found[0][0]["loss"] == pytest.approx(found[1][0]["loss"], rel=1e-6)
    whole, split = (torch.cat([g.flatten() for g in grads.values()]) for _, grads in found)
    assert float((whole - split).norm() / whole.norm()) < 2e-6  # rounding: 1.1e-6 on an AMD EPYC


def test_micro_batches_keep_every_completion_once_and_split_large_groups() -> None:
    parts = [
        Part(g, x.prompt_ids, range(3), [c.ids for c in x.completions]) for g, x in enumerate(random_groups(SIZES))
    ]
    batches = list(micro_batches(parts, 14))
    seen = sorted((part.group, row) for batch in batches for part in batch for row in part.rows)
    assert seen == [(g, r) for g in range(3) for r in range(3)]
    sizes = [sum(len(p.prompt_ids) + sum(map(len, p.completion_ids)) for p in batch) for batch in batches]
    single = [len(batch) == 1 and len(batch[0].rows) == 1 for batch in batches]
    assert all(size <= 14 or alone for size, alone in zip(sizes, single, strict=True))


def test_micro_batches_can_keep_groups_whole() -> None:
    parts = [
        Part(g, x.prompt_ids, range(3), [c.ids for c in x.completions]) for g, x in enumerate(random_groups(SIZES))
    ]
    batches = list(micro_batches(parts, 14, whole=True))
    assert sorted((part.group, list(part.rows)) for batch in batches for part in batch) == [
        (g, [0, 1, 2]) for g in range(3)
    ]
    assert len(batches) == 3 and len(list(micro_batches(parts, 60, whole=True))) == 2


def test_order_of_groups_is_invisible() -> None:
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        policy = small_policy()
        groups = random_groups(SIZES)
        for group, old in zip(groups, perturbed(policy, groups, 0.3, 1), strict=True):
            group.old_logprobs = old
        config = settings(beta=0.0)
        Updater(policy, METHODS["grpo"], config).gradient([groups[i] for i in order], tokens_of(groups))
        found.append(gradients(policy.model))
    assert_close(found[1], found[0], 1e-6)


def test_masked_truncated_completions_have_no_loss() -> None:
    config = settings(beta=0.0, mask_truncated_completions=True)
    policy = small_policy()
    groups = random_groups(SIZES)
    assert any(c.truncated for g in groups for c in g.completions)
    for group, old in zip(groups, perturbed(policy, groups, 0.1, 1), strict=True):
        group.old_logprobs = old
    Updater(policy, METHODS["grpo"], config).gradient(groups, 1.0)
    ours = gradients(policy.model)
    _, theirs = autograd(policy, groups, config)
    assert_close(ours, theirs, 1e-5)


def test_zero_advantages_skip_the_backward_and_leave_no_gradient() -> None:
    policy = small_policy()
    groups = random_groups(SIZES)
    for group in groups:
        group.advantages = [torch.zeros_like(a) for a in group.advantages]
    before = copy.deepcopy(policy.model.state_dict())
    metrics = Updater(policy, METHODS["grpo"], settings(beta=0.0)).step(groups, 1.0, 1e-2)
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0
    assert all(torch.equal(before[name], value) for name, value in policy.model.state_dict().items())


def test_a_step_improves_the_objective() -> None:
    config = settings(beta=0.0)
    policy = small_policy()
    groups = random_groups(SIZES)
    for group in groups:
        group.old_logprobs = [logp.detach() for logp in padded_logprobs(policy.model, group)]
    before = float(textbook_loss(policy.model, groups, config).detach())
    updater = Updater(policy, METHODS["grpo"], config)
    updater.step(groups, tokens_of(groups), 1e-4)
    assert float(textbook_loss(policy.model, groups, config).detach()) < before - 1e-4


def test_second_update_sees_the_first_ones_policy_as_old() -> None:
    config = settings(beta=0.0, num_iterations=2)
    policy = small_policy()
    groups = random_groups(SIZES)
    for group in groups:
        for completion in group.completions:
            completion.version = policy.version
    before = [padded_logprobs(policy.model, group) for group in groups]
    updater = Updater(policy, METHODS["grpo"], config)
    first = updater.step(groups, tokens_of(groups), 1e-2)
    for group, expected in zip(groups, before, strict=True):
        for recorded, logp in zip(group.old_logprobs or [], expected, strict=True):
            torch.testing.assert_close(recorded, logp.detach(), atol=1e-5, rtol=0)
    second = updater.step(groups, tokens_of(groups), 1e-2)
    assert first["ratio/max"] == 1.0 and second["ratio/max"] > 1.05


def test_prompt_tokens_get_no_gradient() -> None:
    """With untied embeddings, only tokens of the stream get one, and no logit is ever asked of a prompt token but
    the last: the hidden states that carry gradient are the completions' sources."""
    policy = small_policy(tie_word_embeddings=False)
    groups = random_groups([(5, [4, 3, 2])])
    pack = policy.pack([Part(0, groups[0].prompt_ids, range(3), [c.ids for c in groups[0].completions])])
    assert pack.sources_N.tolist() == [4, 5, 6, 7, 4, 8, 9, 4, 10]
    assert pack.targets_N.tolist() == [int(i) for c in groups[0].completions for i in c.ids]


def repeated(groups: list[Group]) -> list[Group]:
    """Of each group the last completion's tokens are the first one's, its advantages and all else its own."""
    for group in groups:
        first, *_, last = group.completions
        last.ids = first.ids.clone()
        group.advantages[-1] = group.advantages[-1][:1].expand(len(first.ids))
    return groups


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("budget", [10_000, 17])
def test_the_same_completions_are_computed_once(grouped: bool, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, groups = small_policy(), repeated(random_groups(SIZES))
    if not grouped:
        policy.paths = policy.paths.without("test", *NAMES)
    old, reference = perturbed(policy, groups, 0.6, 1), perturbed(policy, groups, 0.5, 2)
    for group, *known in zip(groups, old, reference, strict=True):
        group.old_logprobs, group.reference_logprobs = known
    tokens: list[int] = []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda given: (tokens.append(given["input_ids"].numel()), hidden(given))[1])
    config = settings(beta=0.1, token_budget=budget)
    metrics = Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    loss, theirs = autograd(policy, groups, config)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert_close(ours, theirs, 1e-5)
    once = sum(len(group.prompt_ids) + sum(len(c.ids) - 1 for c in group.completions[:2]) for group in groups)
    assert not (grouped and budget > 17) or tokens == [once]


def test_micro_batches_count_the_same_completions_once() -> None:
    first, other = torch.arange(5), torch.arange(5, 10)
    part = Part(0, torch.arange(3), range(4), [first, other, first.clone(), other.clone()])
    assert part.tokens == 13 and [p.rows for batch in micro_batches([part], 13) for p in batch] == [range(4)]
    part = Part(0, torch.arange(3), range(4), [first, first.clone(), other, other.clone()])
    assert [list(p.rows) for batch in micro_batches([part], 12) for p in batch] == [[0, 1], [2, 3]]


def test_row_path_gives_the_same_gradient() -> None:
    groups = random_groups(SIZES)
    found = []
    for grouped in (True, False):
        policy = small_policy()
        if not grouped:
            policy.paths = policy.paths.without("test", *NAMES)
        for group, old in zip(groups, perturbed(policy, groups, 0.3, 1), strict=True):
            group.old_logprobs = old
        Updater(policy, METHODS["grpo"], settings(beta=0.0)).gradient(groups, tokens_of(groups))
        found.append(gradients(policy.model))
    assert_close(found[1], found[0], 1e-5)


def test_gradient_checkpointing_and_lora_change_no_gradient() -> None:
    groups = random_groups(SIZES)
    found = []
    for checkpointing in (False, True):
        config = settings(beta=0.0, gradient_checkpointing=checkpointing, finetuning_type="lora", lora_rank=4)
        policy = make_policy(small_model(), build_tokenizer(), config)
        torch.manual_seed(3)
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide lora_A's gradient
                torch.nn.init.normal_(parameter, std=0.1)
        policy.model.train()
        for group, old in zip(groups, perturbed(policy, groups, 0.3, 1), strict=True):
            group.old_logprobs = old
        Updater(policy, METHODS["grpo"], config).gradient(groups, tokens_of(groups))
        found.append(gradients(policy.model))
        _, theirs = autograd(policy, groups, config)
        assert_close(found[-1], theirs, 1e-4)
    assert len(found[0]) == 2 * 7 * 2  # A and B of seven linear layers in two blocks; the base stays frozen
    assert_close(found[1], found[0], 1e-5)


def test_out_of_memory_halves_the_budget_and_the_step_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = random_groups(SIZES)
    policy = small_policy()
    for group, old in zip(groups, perturbed(policy, groups, 0.3, 1), strict=True):
        group.old_logprobs = old
    updater = Updater(policy, METHODS["grpo"], settings(beta=0.0, token_budget=64))
    updater.gradient(groups, tokens_of(groups))
    expected = gradients(policy.model)
    hidden = policy.hidden

    def small_memory(inputs: dict[str, Any]) -> Tensor:
        if inputs["input_ids"].numel() > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(inputs)

    monkeypatch.setattr(policy, "hidden", small_memory)
    updater.gradient(groups, tokens_of(groups))
    assert updater.token_budget == 16
    assert_close(gradients(policy.model), expected, 1e-5)


def test_sft_is_the_mean_of_each_demonstrations_mean() -> None:
    policy = small_policy()
    groups = random_groups([(5, [4]), (3, [9])])
    for group in groups:
        group.advantages = [torch.ones_like(a) for a in group.advantages]
    metrics = Updater(policy, METHODS["sft"], SFTConfig(bf16=False, use_cpu=True)).gradient(groups, 13.0)
    ours = gradients(policy.model)
    policy.model.zero_grad()
    loss = -sum(padded_logprobs(policy.model, group)[0].mean() for group in groups) / 2
    loss.backward()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_close(ours, gradients(policy.model), 1e-5)


@pytest.mark.parametrize("fast_paths", ["auto", "off"])
@pytest.mark.parametrize(("tied", "row"), [(False, "random"), (True, "random"), (False, "zero")])
def test_a_sampled_pad_token_has_the_gradient_that_transformers_gives_it(
    tied: bool, row: str, fast_paths: Literal["auto", "off"]
) -> None:
    """None through the input embedding; through a tied output layer that of any token. The norm of a row of zeros, as
    transformers initialises it, has derivatives of 1 / sqrt(eps), and would be nearly all of the gradient."""
    model = small_model(tie_word_embeddings=tied)
    if row == "random":
        torch.nn.init.normal_(model.get_input_embeddings().weight.data[0], std=0.3)
    groups = random_groups([(4, [6, 5])])
    groups[0].prompt_ids[1] = groups[0].completions[0].ids[2] = 0  # the pad token, inside prompt and completion
    groups[0].old_logprobs = [logp.detach() for logp in padded_logprobs(model, groups[0])]
    textbook_loss(model, groups, settings(beta=0.0)).backward()
    theirs = gradients(model)
    model.zero_grad()
    policy = make_policy(model, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True, fast_paths=fast_paths))
    Updater(policy, METHODS["grpo"], settings(beta=0.0)).gradient(groups, 11.0)
    ours = gradients(model)
    assert_close(ours, theirs, 1e-5)
    of_pad = float(ours["model.embed_tokens.weight"][0].norm())
    assert of_pad > 0 if tied else of_pad == 0
