"""The load-balancing loss of a mixture of experts, over one optimiser step's tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cohort.config import TrainingConfig
from cohort.formulas.balance import load_balance, routing
from cohort.policy import ranks
from cohort.policy.experts import balances_experts, hidden_and_router_logits
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Pack, Part
from cohort.types import UserError

log = logging.getLogger("cohort")


def balance_coef(policy: Policy, config: TrainingConfig) -> float:
    """The weight of the loss; 0: there is none. Raises UserError for a weight where the model has no such loss."""
    coef = config.router_aux_loss_coef
    if coef is None:
        asked = getattr(policy.model.config.get_text_config(), "output_router_logits", False)
        coef = float(policy.model.router_aux_loss_coef) if asked and balances_experts(policy) else 0.0
    if coef and not balances_experts(policy):
        raise UserError(
            f"router_aux_loss_coef is {coef:g}, and {type(policy.model).__name__} is no mixture of experts that "
            "transformers balances by a loss: leave it out"
        )
    if coef:
        log.info("the experts' load-balancing loss has the weight %g", coef)
    return coef


class Balance:
    """The loss of one step: each token counts once, however the step is split into micro-batches.

    The loss is the product of two means over tokens, of which the first has no gradient. Where there are several
    micro-batches or ranks, a forward pass over all of them computes it first.
    """

    def __init__(self, policy: Policy, coef: float):
        self.policy, self.coef = policy, coef
        self.top_k: int = policy.model.num_experts_per_tok
        self.weights: list[Tensor] = []
        self.tokens = 0.0
        self.counts_E: Tensor | None = None
        self.loss = 0.0
        """Of this rank's micro-batches so far."""

    def begin(self, micros: list[list[Part]]) -> None:
        """Count the tokens of all micro-batches of the step; `micros`: this rank's."""
        seen: set[tuple[int, bytes]] = set()
        self.weights = self._weights(micros, seen)
        if ranks.count() > 1:  # a prompt of which two ranks have completions counts once
            before = ranks.gather(seen, "counting experts")[: ranks.number()]
            self.weights = self._weights(micros, set().union(*before))
        tokens = sum(float(weights_T.sum()) for weights_T in self.weights)
        self.tokens = sum(ranks.gather(tokens, "counting experts"))
        if len(micros) > 1 or ranks.count() > 1:
            counts = ranks.gather(ranks.together(lambda: self._counts(micros), "counting experts"), "counting experts")
            self.counts_E = torch.stack([count for of_rank in counts for count in of_rank]).sum(0)
            self.counts_E = self.counts_E.to(self.policy.device)

    def _weights(self, micros: list[list[Part]], seen: set[tuple[int, bytes]]) -> list[Tensor]:
        return [new_tokens(micro, self.policy.packed, seen).to(self.policy.device) for micro in micros]

    @torch.no_grad()
    def _counts(self, micros: list[list[Part]]) -> list[Tensor]:
        totals: list[Tensor] = []
        for micro, weights_T in zip(micros, self.weights, strict=True):
            _, logits = hidden_and_router_logits(self.policy, self.policy.pack(micro).inputs)
            totals.append(routing(logits, weights_T, self.top_k)[0].cpu())
        return totals

    def forward(self, pack: Pack, micro: int) -> tuple[Tensor, Tensor]:
        """The hidden states [T, Dm] of a micro-batch, and its part of the weighted loss."""
        hidden, logits = hidden_and_router_logits(self.policy, pack.inputs)
        counts_E, probabilities_E = routing(logits, self.weights[micro], self.top_k)
        counts_E = counts_E if self.counts_E is None else self.counts_E
        loss = load_balance(counts_E, probabilities_E, self.tokens * len(logits))
        self.loss += float(loss.detach())
        return hidden, self.coef * loss


def new_tokens(parts: list[Part], packed: bool, seen: set[tuple[int, bytes]]) -> Tensor:
    """[T], in the order of the pack: 1 for tokens of prompts and completions that are not `seen` yet, 0 for repeated
    ones and padding. Adds them to `seen`."""

    def flags(group: int, key: bytes, length: int) -> Tensor:
        is_new = (group, key) not in seen
        seen.add((group, key))
        return torch.full((length,), float(is_new))

    def of_prompt(part: Part) -> Tensor:
        return flags(part.group, b"", len(part.prompt_ids))

    def of_completions(part: Part) -> Iterator[Tensor]:
        return (flags(part.group, ids.numpy().tobytes(), len(ids) - 1) for ids in part.distinct[0])

    if packed:
        return torch.cat([piece for part in parts for piece in (of_prompt(part), *of_completions(part))])
    # A row ends with the completion's last token, which is no token of a stream.
    rows = [torch.cat([of_prompt(part), own, torch.zeros(1)]) for part in parts for own in of_completions(part)]
    return pad_sequence(rows, batch_first=True).flatten()
