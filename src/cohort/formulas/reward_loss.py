"""Losses of reward models: one value for each pair, text or step; the caller divides by their number."""

from __future__ import annotations

import torch
from torch import Tensor


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, centring: float = 0.0) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin) + centring (r_chosen + r_rejected)^2, [P].

    Scores of P pairs. The first term is Bradley and Terry's likelihood (Ouyang et al., arXiv 2203.02155, Eq. 1) with
    Llama 2's margin (arXiv 2307.09288, Eq. 2). A pair determines scores only up to a constant; the second term keeps
    them around 0 (Eisenstein et al., arXiv 2312.09244, section 2.1).
    """
    likelihood_P = torch.nn.functional.logsigmoid(chosen_P - rejected_P - margin_P)
    return centring * (chosen_P + rejected_P) ** 2 - likelihood_P


def squared_error(scores_B: Tensor, labels_B: Tensor) -> Tensor:
    """(r - y)^2, [B]."""
    return (scores_B - labels_B) ** 2


def cross_entropy(scores_B: Tensor, labels_B: Tensor) -> Tensor:
    """-y log sigmoid(r) - (1 - y) log sigmoid(-r), [B]; labels y are probabilities, 0 to 1.

    One score for each text (outcome reward) or step end (process reward: Math-Shepherd, arXiv 2312.08935, Eq. 2).
    """
    log = torch.nn.functional.logsigmoid
    return -labels_B * log(scores_B) - (1 - labels_B) * log(-scores_B)
