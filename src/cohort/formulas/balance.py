"""The load-balancing loss of a mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def routing(logits: Sequence[Tensor], weights_T: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """(how often each expert is among a token's top k, the sum of its probabilities), each [E], over tokens and layers.

    `logits`: of each layer's router, [T, E]. `weights_T`: 1 for tokens that count, else 0.
    """
    counts_E = probabilities_E = logits[0].new_zeros(logits[0].shape[-1], dtype=torch.float32)
    for logits_TE in logits:
        probabilities_TE = logits_TE.float().softmax(-1)
        chosen_TK = probabilities_TE.topk(top_k, -1).indices
        counts_E = counts_E.index_add(0, chosen_TK.flatten(), weights_T.repeat_interleave(top_k))
        probabilities_E = probabilities_E + weights_T @ probabilities_TE
    return counts_E, probabilities_E


def load_balance(counts_E: Tensor, probabilities_E: Tensor, routed: float) -> Tensor:
    """E * sum_e f_e P_e, f_e the share of tokens routed to expert e and P_e its mean probability (Switch Transformer,
    arXiv 2101.03961, Eq. 4-6), over all layers together as in transformers.

    `routed`: tokens times layers. f has no gradient. So the loss is a sum over tokens once f is known: that of a part
    of the tokens is obtained from their probabilities, with counts and `routed` of all.
    """
    return len(counts_E) * (counts_E / routed) @ (probabilities_E / routed)
