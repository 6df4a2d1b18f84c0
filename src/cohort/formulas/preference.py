"""Preferences: DPO's objective (arXiv 2305.18290) and its variants, and their coefficients.

A loss is a function of the pair's log-ratios log(pi / ref), of whole completions, chosen and rejected; its slopes by
these two numbers are the coefficients of all their tokens. Names are those of TRL's `loss_type`, `f_divergence_type`
and other keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Score = Callable[[Tensor], Tensor]
"""log(pi / ref) -> f'(pi / ref), up to a constant, for an f-divergence (f-DPO, arXiv 2309.16240)."""

LARGEST_EXPONENT = 80.0
"""exp of it is a float32; log-ratios of whole completions can be larger."""


def reverse_kl(log_ratios_P: Tensor) -> Tensor:
    """log u: DPO's own."""
    return log_ratios_P


def forward_kl(log_ratios_P: Tensor) -> Tensor:
    """1 - 1 / u."""
    return 1 - _exp(-log_ratios_P)


def js_divergence(log_ratios_P: Tensor) -> Tensor:
    """log(2 u / (1 + u))."""
    return math.log(2) + logsigmoid(log_ratios_P)


def alpha_divergence(log_ratios_P: Tensor, alpha: float) -> Tensor:
    """(u^(a - 1) - 1) / (a - 1); log u at a = 1. The paper's alpha is 1 - a."""
    if abs(alpha - 1) < 1e-6:
        return log_ratios_P
    return (_exp((alpha - 1) * log_ratios_P) - 1) / (alpha - 1)


def _exp(values: Tensor) -> Tensor:
    return values.clamp(max=LARGEST_EXPONENT).exp()


def score_of(divergence: str, alpha: float) -> Score:
    """`f_divergence_type` with its `f_alpha_divergence_coef` -> the function of log-ratios."""
    if divergence == "alpha_divergence":
        return lambda log_ratios_P: alpha_divergence(log_ratios_P, alpha)
    return {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "js_divergence": js_divergence}[divergence]


class Settings(NamedTuple):
    """The numbers that losses of pairs read."""

    beta: float
    smoothing: float = 0.0
    """Share of pairs assumed to be labelled the wrong way round."""
    tau: float = 0.05
    """DiscoPOP's temperature."""
    score: Score = reverse_kl


class Pairs(NamedTuple):
    """What a preference loss is computed from: P pairs."""

    chosen_P: Tensor
    """log(pi / ref) of the chosen completion, summed over its tokens."""
    rejected_P: Tensor
    chosen_lengths_P: Tensor
    """Tokens of the chosen completion."""
    rejected_lengths_P: Tensor
    chosen_reference_P: Tensor
    """log ref of the chosen completion."""
    rejected_reference_P: Tensor
    settings: Settings

    @property
    def beta(self) -> float:
        return self.settings.beta

    @property
    def smoothing(self) -> float:
        return self.settings.smoothing

    @property
    def gaps_P(self) -> Tensor:
        """The difference of the log-ratios, or of their scores under another divergence."""
        return self.settings.score(self.chosen_P) - self.settings.score(self.rejected_P)

    @property
    def margins_P(self) -> Tensor:
        """beta times the gap: the difference of DPO's implicit rewards."""
        return self.beta * self.gaps_P

    @property
    def mean_gaps_P(self) -> Tensor:
        """The difference of the log-ratios' (or scores') means over tokens, without beta."""
        score = self.settings.score
        return score(self.chosen_P) / self.chosen_lengths_P - score(self.rejected_P) / self.rejected_lengths_P


def _smoothed(margins_P: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(margins_P) - smoothing * logsigmoid(-margins_P)


def sigmoid(pairs: Pairs) -> Tensor:
    """-(1 - s) log sigmoid(m) - s log sigmoid(-m), m the margin (DPO Eq. 7; with smoothing s conservative DPO)."""
    return _smoothed(pairs.margins_P, pairs.smoothing)


def sigmoid_norm(pairs: Pairs) -> Tensor:
    """-log sigmoid(beta m), m the difference of means over tokens (length-normalised DPO, Tulu 3, arXiv 2411.15124)."""
    return -logsigmoid(pairs.beta * pairs.mean_gaps_P)


def hinge(pairs: Pairs) -> Tensor:
    """max(0, 1 - m) (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - pairs.margins_P)


def ipo(pairs: Pairs) -> Tensor:
    """(h - 1 / (2 beta))^2, h the difference of the log-ratios' means over tokens (IPO, arXiv 2310.12036, Eq. 17). The
    means are TRL's and LLaMA-Factory's form, the sums `ipo_sum`'s."""
    return (pairs.mean_gaps_P - 1 / (2 * pairs.beta)) ** 2


def ipo_sum(pairs: Pairs) -> Tensor:
    """(h - 1 / (2 beta))^2, h the difference of the log-ratios (IPO, arXiv 2310.12036, Eq. 17)."""
    return (pairs.gaps_P - 1 / (2 * pairs.beta)) ** 2


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


def aot(pairs: Pairs) -> Tensor:
    """-(1 - s) log sigmoid(beta d) - s log sigmoid(-beta d), d the difference of quantiles over the step's pairs: the
    sorted log pi(chosen) - log pi(rejected) less the sorted same of the reference (AOT, arXiv 2406.05882)."""
    reference_P = pairs.chosen_reference_P - pairs.rejected_reference_P
    policy_P = pairs.chosen_P - pairs.rejected_P + reference_P
    gaps_P = policy_P.sort().values - reference_P.sort().values
    return _smoothed(pairs.beta * gaps_P, pairs.smoothing)


def aot_unpaired(pairs: Pairs) -> Tensor:
    """As `aot`, d the sorted log-ratios of the chosen completions less those of the rejected ones (AOT, arXiv
    2406.05882)."""
    gaps_P = pairs.chosen_P.sort().values - pairs.rejected_P.sort().values
    return _smoothed(pairs.beta * gaps_P, pairs.smoothing)


def discopop(pairs: Pairs) -> Tensor:
    """-(1 - g) log sigmoid(m) + g exp(-m), g = sigmoid(m / tau), m the margin (DiscoPOP, arXiv 2406.08414, Eq. 5)."""
    m_P = pairs.margins_P
    gate_P = torch.sigmoid(m_P / pairs.settings.tau)
    return -(1 - gate_P) * logsigmoid(m_P) + gate_P * _exp(-m_P)


def sft(pairs: Pairs) -> Tensor:
    """-log pi(chosen) / its tokens, without the reference (MPO, arXiv 2411.10442). TRL's mean is over the chosen
    tokens of the batch."""
    return -(pairs.chosen_P + pairs.chosen_reference_P) / pairs.chosen_lengths_P


PREFERENCE_LOSSES: dict[str, Callable[[Pairs], Tensor]] = {
    loss.__name__: loss
    for loss in (
        sigmoid, sigmoid_norm, hinge, ipo, ipo_sum, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired,
        apo_zero, apo_down, discopop, sft,
    )
}  # fmt: skip
"""`loss_type` of DPO -> loss of each pair, [P]."""
OF_STEP = ("aot", "aot_unpaired")
"""Losses of all pairs of a step together, whose values are of quantiles and not of single pairs."""


def weighted(losses: Sequence[tuple[str, float]]) -> Callable[[Pairs], Tensor]:
    """The sum of several losses, each with its weight."""
    return lambda pairs: sum(
        (weight * PREFERENCE_LOSSES[name](pairs) for name, weight in losses), torch.zeros_like(pairs.chosen_P)
    )


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
    settings: Settings,
    loss: Callable[[Pairs], Tensor] = sigmoid,
    weights_P: Tensor | None = None,
) -> Preference:
    """Objective and slopes of pairs. Log-probabilities are of whole completions, chosen then rejected, [P, 2].
    `weights_P`: factors of the losses, which have no gradient.

    For `sigmoid` both strengths are beta [(1 - s) sigmoid(-m) - s sigmoid(m)]. DeepSeekMath (appendix A.1) prints it
    without beta and with the ratios of single tokens; neither follows from the objective.
    """
    with torch.enable_grad():
        log_ratios_P2 = (logprobs_P2 - reference_logprobs_P2).detach().requires_grad_()
        (chosen_P, rejected_P), (chosen_lengths_P, rejected_lengths_P) = log_ratios_P2.unbind(1), lengths_P2.unbind(1)
        lengths = chosen_lengths_P, rejected_lengths_P
        references = reference_logprobs_P2[:, 0], reference_logprobs_P2[:, 1]
        losses_P = loss(Pairs(chosen_P, rejected_P, *lengths, *references, settings))
        losses_P = losses_P if weights_P is None else losses_P * weights_P
        (slopes_P2,) = torch.autograd.grad(losses_P.sum(), log_ratios_P2)
    rewards_P2 = settings.beta * log_ratios_P2.detach()
    return Preference(
        objective_P=-losses_P.detach(),
        strengths_P2=slopes_P2 * slopes_P2.new_tensor([-1.0, 1.0]),
        chosen_P=rewards_P2[:, 0],
        rejected_P=rewards_P2[:, 1],
    )


def certainties(logprobs_N: Tensor, collisions_N: Tensor, lengths: list[int]) -> Tensor:
    """exp of the mean over a completion's tokens of log pi(o_t) - log sum_v pi(v)^2, [B]: how likely the policy is to
    write it, against its own spread (WPO, arXiv 2406.11827)."""
    aligned = (logprobs_N - collisions_N).split_with_sizes(lengths)
    return torch.stack([tokens.mean() for tokens in aligned]).exp()
