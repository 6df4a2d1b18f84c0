"""Preferences: DPO's objective (arXiv 2305.18290) and its variants, and their coefficients.

A loss is a function of the pair's log-ratios log(pi / ref), of whole completions, chosen and rejected; its slopes by
these two numbers are the coefficients of all their tokens. Names are those of TRL's `loss_type`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


class Pairs(NamedTuple):
    """What a preference loss is computed from: P pairs."""

    chosen_P: Tensor
    """log(pi / ref) of the chosen completion, summed over its tokens."""
    rejected_P: Tensor
    chosen_lengths_P: Tensor
    """Tokens of the chosen completion."""
    rejected_lengths_P: Tensor
    beta: float
    smoothing: float
    """Share of pairs assumed to be labelled the wrong way round."""

    @property
    def margins_P(self) -> Tensor:
        """beta (chosen - rejected), the difference of DPO's implicit rewards."""
        return self.beta * (self.chosen_P - self.rejected_P)

    @property
    def mean_margins_P(self) -> Tensor:
        """The difference of the log-ratios' means over tokens, without beta."""
        return self.chosen_P / self.chosen_lengths_P - self.rejected_P / self.rejected_lengths_P


def sigmoid(pairs: Pairs) -> Tensor:
    """-(1 - s) log sigmoid(m) - s log sigmoid(-m), m the margin (DPO Eq. 7; with smoothing s conservative DPO)."""
    m_P, s = pairs.margins_P, pairs.smoothing
    return -(1 - s) * logsigmoid(m_P) - s * logsigmoid(-m_P)


def sigmoid_norm(pairs: Pairs) -> Tensor:
    """-log sigmoid(beta m), m the difference of means over tokens (length-normalised DPO, Tulu 3, arXiv 2411.15124)."""
    return -logsigmoid(pairs.beta * pairs.mean_margins_P)


def hinge(pairs: Pairs) -> Tensor:
    """max(0, 1 - m) (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - pairs.margins_P)


def ipo(pairs: Pairs) -> Tensor:
    """(h - 1 / (2 beta))^2, h the difference of the log-ratios' means over tokens (IPO, arXiv 2310.12036, Eq. 17). The
    means are TRL's and LLaMA-Factory's form, the sums `ipo_sum`'s."""
    return (pairs.mean_margins_P - 1 / (2 * pairs.beta)) ** 2


def ipo_sum(pairs: Pairs) -> Tensor:
    """(h - 1 / (2 beta))^2, h the difference of the log-ratios (IPO, arXiv 2310.12036, Eq. 17)."""
    return (pairs.chosen_P - pairs.rejected_P - 1 / (2 * pairs.beta)) ** 2


def robust(pairs: Pairs) -> Tensor:
    """[-(1 - s) log sigmoid(m) + s log sigmoid(-m)] / (1 - 2 s): unbiased where a share s of the labels is flipped
    (robust DPO, arXiv 2403.00409, Eq. 12)."""
    m_P, s = pairs.margins_P, pairs.smoothing
    return (-(1 - s) * logsigmoid(m_P) + s * logsigmoid(-m_P)) / (1 - 2 * s)


def exo_pair(pairs: Pairs) -> Tensor:
    """KL(softmax of the implicit rewards || (1 - s, s)): the reverse KL to the smoothed label (EXO, arXiv 2402.00856,
    Eq. 16)."""
    m_P, s = pairs.margins_P, torch.tensor(pairs.smoothing, dtype=pairs.chosen_P.dtype)
    won_P, lost_P = logsigmoid(m_P), logsigmoid(-m_P)
    return won_P.exp() * (won_P - torch.log1p(-s)) + lost_P.exp() * (lost_P - s.log())


def nca_pair(pairs: Pairs) -> Tensor:
    """-log sigmoid(c) - (log sigmoid(-c) + log sigmoid(-r)) / 2, c and r the implicit rewards (NCA, arXiv
    2402.05369)."""
    c_P, r_P = pairs.beta * pairs.chosen_P, pairs.beta * pairs.rejected_P
    return -logsigmoid(c_P) - (logsigmoid(-c_P) + logsigmoid(-r_P)) / 2


def bco_pair(pairs: Pairs) -> Tensor:
    """-log sigmoid(c) - log sigmoid(-r), without BCO's moving reward shift (BCO, arXiv 2404.04656)."""
    return -logsigmoid(pairs.beta * pairs.chosen_P) - logsigmoid(-pairs.beta * pairs.rejected_P)


def sppo_hard(pairs: Pairs) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 of the log-ratios, the chosen one winning for sure (SPPO, arXiv
    2405.00675, Eq. 4.7)."""
    half = 0.5 / pairs.beta
    return (pairs.chosen_P - half) ** 2 + (pairs.rejected_P + half) ** 2


def apo_zero(pairs: Pairs) -> Tensor:
    """1 - sigmoid(c) + sigmoid(r): chosen up, rejected down (APO, arXiv 2408.06266, Eq. 7)."""
    return 1 - torch.sigmoid(pairs.beta * pairs.chosen_P) + torch.sigmoid(pairs.beta * pairs.rejected_P)


def apo_down(pairs: Pairs) -> Tensor:
    """sigmoid(c) + 1 - sigmoid(m): both down, the rejected one further (APO, arXiv 2408.06266, Eq. 8)."""
    return torch.sigmoid(pairs.beta * pairs.chosen_P) + 1 - torch.sigmoid(pairs.margins_P)


PREFERENCE_LOSSES: dict[str, Callable[[Pairs], Tensor]] = {
    loss.__name__: loss
    for loss in (
        sigmoid, sigmoid_norm, hinge, ipo, ipo_sum, robust, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down
    )
}  # fmt: skip
"""`loss_type` of DPO -> loss of each pair, [P]."""


class Preference(NamedTuple):
    """The objective of each of P pairs, the negative of its loss."""

    objective_P: Tensor
    strengths_P2: Tensor
    """By how much each token's log-probability raises the objective in the chosen completion, and lowers it in the
    rejected one: [P, 2]."""
    chosen_P: Tensor
    """beta log(pi / ref) of the chosen completion, DPO's implicit reward."""
    rejected_P: Tensor


def preference(
    logprobs_P2: Tensor,
    reference_logprobs_P2: Tensor,
    lengths_P2: Tensor,
    beta: float,
    smoothing: float = 0.0,
    loss: Callable[[Pairs], Tensor] = sigmoid,
) -> Preference:
    """Objective and slopes of pairs. Log-probabilities are of whole completions, chosen then rejected, [P, 2].

    For `sigmoid` both strengths are beta [(1 - s) sigmoid(-m) - s sigmoid(m)]. DeepSeekMath (appendix A.1) prints it
    without beta and with the ratios of single tokens; neither follows from the objective.
    """
    with torch.enable_grad():
        log_ratios_P2 = (logprobs_P2 - reference_logprobs_P2).detach().requires_grad_()
        (chosen_P, rejected_P), (chosen_lengths_P, rejected_lengths_P) = log_ratios_P2.unbind(1), lengths_P2.unbind(1)
        losses_P = loss(Pairs(chosen_P, rejected_P, chosen_lengths_P, rejected_lengths_P, beta, smoothing))
        (slopes_P2,) = torch.autograd.grad(losses_P.sum(), log_ratios_P2)
    rewards_P2 = beta * log_ratios_P2.detach()
    return Preference(
        objective_P=-losses_P.detach(),
        strengths_P2=slopes_P2 * slopes_P2.new_tensor([-1.0, 1.0]),
        chosen_P=rewards_P2[:, 0],
        rejected_P=rewards_P2[:, 1],
    )
