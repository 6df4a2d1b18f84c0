"""The vocabulary head: log-probabilities chunk by chunk, and the policy gradient's logits in closed form.

No tensor of size [tokens, vocabulary] ever exists: a chunk of logits is made, used and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cohort.types import UserError

CHUNK_BYTES = 32 * 2**20
"""Size of one chunk of float32 logits."""

Coefficient = Callable[[slice, Tensor, Tensor], Tensor]
"""(which tokens, their logprobs_n, their entropies_n) -> d objective / d logprob, weight included, [n]."""


class Head:
    """Final hidden states [N, D] to log-probabilities of target tokens, and back."""

    def __init__(self, model: Any):
        output = model.get_output_embeddings()
        if not isinstance(output, nn.Linear):
            raise UserError(
                f"the output layer of {type(model).__name__} is a {type(output).__name__}, not a plain linear layer: "
                "leave it out of lora_target and modules_to_save"
            )
        config = model.config.get_text_config()
        self.output = output
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Granite divides its logits by logits_scaling, Cohere multiplies them by logit_scale.
        self.scale: float = getattr(config, "logit_scale", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> float32 [..., V], as the model itself would give them."""
        logits = self.output(hidden.to(self.output.weight.dtype)).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @torch.no_grad()
    def logprobs(self, hidden_N: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
        """log softmax(logits / temperature) at the targets, float32 [N]."""
        parts = [
            torch.log_softmax(self.logits(hidden_N[span]) / temperature, -1).gather(1, targets_N[span, None]).squeeze(1)
            for span in self._spans(len(targets_N))
        ]
        return torch.cat(parts) if parts else hidden_N.new_zeros(0, dtype=torch.float32)

    @torch.no_grad()
    def entropies(self, hidden_N: Tensor, temperature: float = 1.0) -> Tensor:
        """-sum p log p of softmax(logits / temperature), float32 [N]."""
        parts = []
        for span in self._spans(len(hidden_N)):
            logp = torch.log_softmax(self.logits(hidden_N[span]) / temperature, -1)
            parts.append(-(logp.exp() * logp).sum(-1))
        return torch.cat(parts) if parts else hidden_N.new_zeros(0, dtype=torch.float32)

    @torch.no_grad()
    def backward(
        self,
        hidden_N: Tensor,
        targets_N: Tensor,
        temperature: float,
        coefficient: Coefficient,
        entropy_weights_N: Tensor | None = None,
    ) -> Tensor:
        """Gradient of -objective for the hidden states, [N, D]; the weight's is added to its `.grad`.

        With c = d objective / d logprob, b = d objective / d entropy and p = softmax(logits / T):
        d(-objective)/d logits = [-c (onehot - p) + b p (log p + entropy)] / T.
        """
        weight, bias = self.output.weight, self.output.bias
        grad_hidden = torch.empty_like(hidden_N)
        for span in self._spans(len(targets_N)):
            hidden, targets = hidden_N[span], targets_N[span, None]
            raw = self.logits(hidden)
            logp = torch.log_softmax(raw / temperature, -1)
            probabilities = logp.exp()
            logprobs = logp.gather(1, targets).squeeze(1)
            entropies = -(probabilities * logp).sum(-1)
            c = coefficient(span, logprobs, entropies)
            scale = c.unsqueeze(1)
            if entropy_weights_N is not None:
                scale = scale + entropy_weights_N[span, None] * (logp + entropies.unsqueeze(1))
            grad = probabilities.mul_(scale / temperature)
            grad.scatter_add_(1, targets, (-c / temperature).unsqueeze(1))
            if self.softcap is not None:
                grad.mul_(1 - (raw / self.softcap) ** 2)
            grad = (grad * self.scale).to(hidden.dtype)
            grad_hidden[span] = (grad @ weight.to(hidden.dtype)).to(hidden.dtype)
            if weight.requires_grad:
                _add_grad(weight, grad.T @ hidden)
            if bias is not None and bias.requires_grad:
                _add_grad(bias, grad.sum(0))
        return grad_hidden

    def _spans(self, n: int) -> list[slice]:
        size = max(16, CHUNK_BYTES // (4 * self.output.weight.shape[0]))
        return [slice(start, min(n, start + size)) for start in range(0, n, size)]


def _add_grad(parameter: nn.Parameter, grad: Tensor) -> None:
    grad = grad.to(parameter.dtype)
    if parameter.grad is None:
        parameter.grad = grad
    else:
        parameter.grad += grad
