"""DPO's losses: the gradient of each against autograd on the loss as its paper writes it, over the ordinary padded
forward; f-divergences, LD-DPO and WPO likewise; whatever the micro-batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cohort.config import DPOConfig
from cohort.formulas.preference import OF_STEP, PREFERENCE_LOSSES
from cohort.methods.table import METHODS
from cohort.train.step import Updater
from cohort.types import Group
from helpers import assert_close, gradients, padded_logprobs, perturbed, random_groups, small_policy, tokens_of

QUICK: dict[str, Any] = {"bf16": False, "use_cpu": True, "max_completion_length": 12}
PAIRS = [(5, [4, 7]), (9, [3, 8]), (2, [11, 5])]
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")


def log_sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x).log()


def scores(name: str, ratio: Tensor) -> Tensor:
    """f'(u) of u = pi / ref, up to a constant."""
    u = ratio.exp()
    return {
        "reverse_kl": u.log(),
        "forward_kl": -1 / u,
        "js_divergence": (2 * u / (1 + u)).log(),
        "alpha_divergence": (u ** (0.3 - 1)) / (0.3 - 1),
    }[name]


def oracle(
    name: str,
    policy: tuple[Tensor, Tensor],
    reference: tuple[Tensor, Tensor],
    lengths: tuple[Tensor, Tensor],
    beta: float,
    s: float,
    divergence: str = "reverse_kl",
) -> Tensor:
    """Losses [P] by their papers, from log-probabilities of chosen and rejected completions."""
    chosen, rejected = policy[0] - reference[0], policy[1] - reference[1]
    f_chosen, f_rejected = scores(divergence, chosen), scores(divergence, rejected)
    m = beta * (f_chosen - f_rejected)
    # A constant in f' cancels in the difference of scores, not in that of their means: the forms that TRL has.
    shift = {"forward_kl": 1.0, "alpha_divergence": -1 / (0.3 - 1)}.get(divergence, 0.0)
    mean_gap = (f_chosen + shift) / lengths[0] - (f_rejected + shift) / lengths[1]
    c, r = torch.sigmoid(beta * chosen), torch.sigmoid(beta * rejected)

    def smoothed(x: Tensor) -> Tensor:
        return -(1 - s) * log_sigmoid(x) - s * log_sigmoid(-x)

    gate = torch.sigmoid(m / 0.05)
    p, q = torch.sigmoid(m), torch.sigmoid(-m)
    policy_gap, reference_gap = policy[0] - policy[1], reference[0] - reference[1]
    losses = {
        "sigmoid": lambda: smoothed(m),
        "sigmoid_norm": lambda: -log_sigmoid(beta * mean_gap),
        "hinge": lambda: (1 - m).clamp(min=0),
        "ipo": lambda: (mean_gap - 1 / (2 * beta)) ** 2,
        "ipo_sum": lambda: (m / beta - 1 / (2 * beta)) ** 2,
        "robust": lambda: (-(1 - s) * log_sigmoid(m) + s * log_sigmoid(-m)) / (1 - 2 * s),
        "exo_pair": lambda: p * (p / (1 - s)).log() + q * (q / s).log(),
        "nca_pair": lambda: -c.log() - 0.5 * (1 - c).log() - 0.5 * (1 - r).log(),
        "bco_pair": lambda: -c.log() - (1 - r).log(),
        "sppo_hard": lambda: (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2,
        "apo_zero": lambda: (1 - c) + r,
        "apo_down": lambda: c + (1 - p),
        "discopop": lambda: -(1 - gate) * log_sigmoid(m) + gate * (-m).exp(),
        "sft": lambda: -policy[0] / lengths[0],
        "aot": lambda: smoothed(beta * (torch.sort(policy_gap).values - torch.sort(reference_gap).values)),
        "aot_unpaired": lambda: smoothed(beta * (torch.sort(chosen).values - torch.sort(rejected).values)),
    }
    return losses[name]()


def sums(logprobs: list[list[Tensor]], alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of chosen and rejected completions, [P] each; tokens behind the shorter one's length count alpha."""
    rows = []
    for pair in logprobs:
        shared = min(len(each) for each in pair)
        rows.append([each[:shared].sum() + alpha * each[shared:].sum() for each in pair])
    return torch.stack([chosen for chosen, _ in rows]), torch.stack([rejected for _, rejected in rows])


def compare(config: DPOConfig, loss_of: Any) -> dict[str, float]:
    """Our loss and gradient against autograd on `loss_of(policy's logprobs, reference's)`; returns our metrics."""
    policy, groups = small_policy(), random_groups(PAIRS)
    for group, advantages in zip(groups, METHODS["dpo"].credit(groups, config), strict=True):
        group.advantages = advantages
    for group, reference in zip(groups, perturbed(policy, groups, 0.5, 2), strict=True):
        group.reference_logprobs = reference
    metrics = Updater(policy, METHODS["dpo"], config).gradient(groups, tokens_of(groups))
    ours = gradients(policy.model)
    logprobs = [padded_logprobs(policy.model, group) for group in groups]
    loss = loss_of(logprobs, [group.reference_logprobs for group in groups], policy, groups)
    policy.model.zero_grad()
    loss.backward()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert_close(ours, gradients(policy.model), 1e-4)
    gaps = [[float((x.detach() - y).sum()) * config.beta for x, y in zip(own, g.reference_logprobs or [], strict=True)]
            for own, g in zip(logprobs, groups, strict=True)]  # fmt: skip
    if config.ld_alpha is None:
        assert metrics["rewards/chosen"] == pytest.approx(np.mean([c for c, _ in gaps]), abs=1e-5)
        assert metrics["rewards/margins"] == pytest.approx(np.mean([c - r for c, r in gaps]), abs=1e-5)
        assert metrics["rewards/accuracies"] == pytest.approx(np.mean([c > r for c, r in gaps]))
    return metrics


def lengths() -> tuple[Tensor, Tensor]:
    return torch.tensor([float(n[0]) for _, n in PAIRS]), torch.tensor([float(n[1]) for _, n in PAIRS])


@pytest.mark.parametrize("loss_type", PREFERENCE_LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("budget", [10_000, 1])
def test_dpo_equals_autograd_on_the_pairs_loss(loss_type: str, smoothing: float, budget: int) -> None:
    if (smoothing and loss_type not in SMOOTHED) or (not smoothing and loss_type == "exo_pair"):
        with pytest.raises(ValueError, match="label_smoothing"):
            DPOConfig(loss_type=loss_type, label_smoothing=smoothing)
        return
    config = DPOConfig(loss_type=loss_type, beta=0.3, label_smoothing=smoothing, token_budget=budget, **QUICK)
    assert METHODS["dpo"].sees(config) == ("step" if loss_type in OF_STEP else "group")

    def loss(own: Any, reference: Any, policy: Any, groups: Any) -> Tensor:
        return oracle(loss_type, sums(own), sums(reference), lengths(), 0.3, smoothing).mean()

    compare(config, loss)


def test_several_losses_are_added_with_their_weights() -> None:
    """MPO's three (arXiv 2411.10442)."""
    names, weights = ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]
    config = DPOConfig(loss_type=names, loss_weights=weights, beta=0.3, **QUICK)

    def loss(own: Any, reference: Any, policy: Any, groups: Any) -> Tensor:
        terms = [oracle(name, sums(own), sums(reference), lengths(), 0.3, 0.0) for name in names]
        return sum((w * term.mean() for w, term in zip(weights, terms, strict=True)), torch.zeros(()))

    compare(config, loss)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_other_divergences(divergence: str, loss_type: str) -> None:
    of_alpha = {"f_alpha_divergence_coef": 0.3} if divergence == "alpha_divergence" else {}
    config = DPOConfig(loss_type=loss_type, beta=0.3, f_divergence_type=divergence, **of_alpha, **QUICK)

    def loss(own: Any, reference: Any, policy: Any, groups: Any) -> Tensor:
        return oracle(loss_type, sums(own), sums(reference), lengths(), 0.3, 0.0, divergence).mean()

    compare(config, loss)


def test_tokens_behind_the_shorter_answer_count_less() -> None:
    config = DPOConfig(beta=0.3, ld_alpha=0.4, **QUICK)

    def loss(own: Any, reference: Any, policy: Any, groups: Any) -> Tensor:
        return oracle("sigmoid", sums(own, 0.4), sums(reference, 0.4), lengths(), 0.3, 0.0).mean()

    compare(config, loss)


@pytest.mark.parametrize("loss_type", ["sigmoid", "aot_unpaired"])
def test_pairs_are_weighted_by_how_likely_the_policy_is_to_write_them(loss_type: str) -> None:
    config = DPOConfig(beta=0.3, use_weighting=True, loss_type=loss_type, **QUICK)

    def certainty(policy: Any, group: Group) -> Tensor:
        factor = torch.ones(())
        for completion in group.completions:
            row = torch.cat([group.prompt_ids, completion.ids])
            p = policy.model(input_ids=row[None]).logits[0, len(group.prompt_ids) - 1 : -1].softmax(-1)
            own = p.gather(1, completion.ids[:, None])[:, 0]
            factor = factor * (own / p.square().sum(-1)).log().mean().exp()
        return factor.detach()

    def loss(own: Any, reference: Any, policy: Any, groups: list[Group]) -> Tensor:
        weights = torch.stack([certainty(policy, group) for group in groups])
        return (weights * oracle(loss_type, sums(own), sums(reference), lengths(), 0.3, 0.0)).mean()

    compare(config, loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "sigmoyd"}, "'sigmoyd' is no loss of pairs: did you mean 'sigmoid'?"),
        ({"loss_type": []}, "name a loss"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "must have the same length"),
        ({"f_divergence_type": "forward_kl", "loss_type": "nca_pair"}, "nca_pair has no form for it"),
        ({"f_alpha_divergence_coef": 0.7}, "f_alpha_divergence_coef is 0.7 and would do nothing"),
        ({"discopop_tau": 0.1}, "discopop_tau is 0.1 and would do nothing"),
        ({"ld_alpha": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_without_a_meaning(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        DPOConfig(**settings)
    assert message in str(error.value)


def test_a_list_of_one_loss_is_that_loss() -> None:
    assert DPOConfig(loss_type=["hinge"]).loss_type == "hinge"
    assert DPOConfig(loss_type=["sigmoid", "sft"]).losses == [("sigmoid", 1.0), ("sft", 1.0)]
