"""Preferences: the objective of DPO (arXiv 2305.18290) and its coefficient, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Preference(NamedTuple):
    """The objective of each of P pairs."""

    objective_P: Tensor
    coefficient_P: Tensor
    """d objective / d logprob of each token of the chosen completion; the rejected one's is its negative."""
    chosen_P: Tensor
    """beta log(pi / ref) of the chosen completion, DPO's implicit reward."""
    rejected_P: Tensor


def preference(
    logprobs_P2: Tensor, reference_logprobs_P2: Tensor, beta: float, label_smoothing: float = 0.0
) -> Preference:
    """(1 - s) log sigmoid(m) + s log sigmoid(-m), m = beta [log(pi/ref)(chosen) - log(pi/ref)(rejected)] (DPO Eq. 7;
    with smoothing s, its conservative form).

    Log-probabilities are of whole completions, chosen then rejected, [P, 2]. The coefficient is
    beta [(1 - s) sigmoid(-m) - s sigmoid(m)]. DeepSeekMath (appendix A.1) prints it without beta and with the ratios
    of single tokens; neither follows from the objective.
    """
    rewards_P2 = beta * (logprobs_P2 - reference_logprobs_P2)
    margins_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    log = torch.nn.functional.logsigmoid
    return Preference(
        objective_P=(1 - label_smoothing) * log(margins_P) + label_smoothing * log(-margins_P),
        coefficient_P=beta
        * ((1 - label_smoothing) * torch.sigmoid(-margins_P) - label_smoothing * torch.sigmoid(margins_P)),
        chosen_P=rewards_P2[:, 0],
        rejected_P=rewards_P2[:, 1],
    )
