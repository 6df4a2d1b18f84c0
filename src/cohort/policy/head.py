"""The vocabulary head: log-probabilities block by block, and the policy gradient for the logits in closed form.

No [tokens, vocabulary] tensor exists: the logits of some tokens for a part of the vocabulary are computed, used and
dropped. On a CPU such a block fits the cache. Where it does not hold the whole vocabulary, the logits are computed
twice, for their log-sum-exp and for the gradient: a quarter more arithmetic and a fraction of the memory traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import _disable_current_modes

from cohort.policy.fast.products import prepared
from cohort.types import UserError

BLOCK_BYTES = {"cpu": 8 * 2**20}
"""Bytes of one block of float32 logits, by kind of device."""
BLOCK_BYTES_OF_A_CARD = 256 * 2**20
FEW_TOKENS = 64
"""Where a block has room for the whole logits of fewer tokens than this, it holds a part of the vocabulary for
MANY_TOKENS tokens."""
MANY_TOKENS = 512
ADDED = 2**18
"""Entries of a product that are added at a time to a sum of another dtype on a CPU, so that the converted ones fit the
cache."""

Coefficient = Callable[[slice, Tensor], Tensor]
"""Function of (which tokens, their logprobs_n) -> d objective / d logprob times the token's weight, [n]."""


class Head:
    """Computes log-probabilities of target tokens from final hidden states [N, D], and the gradient back."""

    def __init__(self, model: Any):
        self.layer = model.get_output_embeddings()
        if not isinstance(self.output, nn.Linear):
            kind = f"{type(self.layer).__module__}.{type(self.layer).__name__}"
            raise UserError(
                f"the output layer of {type(model).__name__} is a {kind}. Its weight is read in blocks, so that no "
                "tensor of tokens by vocabulary is held, and an adapter on it would have no effect: leave it out of "
                "lora_target (target_modules), or train all of it: modules_to_save: [lm_head]"
            )
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        # Granite divides its logits by logits_scaling, Cohere multiplies them by logit_scale.
        self.scale: float = getattr(config, "logit_scale", None) or 1.0
        self.scale /= getattr(config, "logits_scaling", None) or 1.0

    @property
    def output(self) -> Any:
        """The output layer in use. One that is trained in full beside an adapter is peft's wrapper of two layers: the
        trained one, and, while the adapter is off, the original."""
        trained = getattr(self.layer, "modules_to_save", None)
        if trained is None:
            return self.layer
        return self.layer.original_module if self.layer.disable_adapters else trained[self.layer.active_adapters[0]]

    def reader(self, dtype: torch.dtype, onednn: bool) -> Callable[[Tensor], Tensor]:
        """A function from hidden states [N, D] to float32 logits [N, V] with the current weights: the output layer is
        converted once. `onednn`: as in `prepared`."""
        bias = None if self.output.bias is None else self.output.bias.to(dtype)
        product = prepared(self.output.weight.to(dtype), bias, onednn)
        return lambda hidden_N: self.finished(product(hidden_N.to(dtype)).float())

    def finished(self, products: Tensor) -> Tensor:
        """Scale and cap the output layer's float32 result to the model's logits, in place."""
        if self.scale != 1.0:
            products.mul_(self.scale)
        return products if self.softcap is None else products.div_(self.softcap).tanh_().mul_(self.softcap)

    @torch.no_grad()
    def logprobs(self, hidden_N: Tensor, targets_N: Tensor, temperature: float = 1.0) -> Tensor:
        """log softmax(logits / temperature) at the targets, float32 [N]."""
        read = _Reading(self, hidden_N, targets_N, temperature)
        parts = [read.survey(span, with_entropies=False).logprobs for span in read.spans]
        return torch.cat(parts) if parts else hidden_N.new_zeros(0, dtype=torch.float32)

    @torch.no_grad()
    def entropies(self, hidden_N: Tensor, temperature: float = 1.0) -> Tensor:
        """-sum p log p of softmax(logits / temperature), float32 [N]."""
        nowhere = torch.zeros(len(hidden_N), dtype=torch.long, device=hidden_N.device)
        read = _Reading(self, hidden_N, nowhere, temperature)
        parts = [read.survey(span, with_entropies=True).entropies for span in read.spans]
        return torch.cat(parts) if parts else hidden_N.new_zeros(0, dtype=torch.float32)

    @torch.no_grad()
    def collisions(self, hidden_N: Tensor, temperature: float = 1.0) -> Tensor:
        """log sum_v p_v^2 of softmax(logits / temperature), float32 [N]: how likely two draws are equal."""
        nowhere = torch.zeros(len(hidden_N), dtype=torch.long, device=hidden_N.device)
        read = _Reading(self, hidden_N, nowhere, temperature)
        parts = [read.collisions(span) for span in read.spans]
        return torch.cat(parts) if parts else hidden_N.new_zeros(0, dtype=torch.float32)

    @torch.no_grad()
    def backward(
        self,
        hidden_N: Tensor,
        targets_N: Tensor,
        temperature: float,
        coefficient: Coefficient,
        entropy_weights_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradient of -objective for the hidden states, [N, D], and the entropies, [N]; the weight's gradient is added
        to its `.grad`.

        With c = d objective / d logprob, b = d objective / d entropy and p = softmax(logits / T):
        d(-objective)/d logits = [-c (onehot - p) + b p (log p + entropy)] / T.
        """
        read = _Reading(self, hidden_N, targets_N, temperature)
        grad_hidden = torch.zeros_like(hidden_N, dtype=_sum_dtype(hidden_N))
        totals = [(p, _total_of(p)) for p in self.output.parameters() if p.requires_grad]
        entropies_N = hidden_N.new_zeros(len(hidden_N), dtype=torch.float32)
        for span in read.spans:
            seen = read.survey(span, with_entropies=entropy_weights_N is not None)
            c_n1 = (coefficient(span, seen.logprobs) / temperature).unsqueeze(1)
            for block in read.blocks:
                logp, capped = seen.block(block)
                p = _exp(logp)
                if entropy_weights_N is None:
                    entropies_N[span] -= logp.mul_(p).sum(-1)
                    grad = p.mul_(c_n1)
                else:
                    bonus = logp.add_(seen.entropies.unsqueeze(1)).mul_(entropy_weights_N[span, None] / temperature)
                    grad = p.mul_(bonus.add_(c_n1))
                index, inside = read.targets(span, block)
                grad.scatter_add_(1, index, torch.where(inside, -c_n1, 0.0))
                if capped is not None and self.softcap is not None:
                    grad.mul_(1 - (capped / self.softcap) ** 2)
                if self.scale != 1.0:
                    grad.mul_(self.scale)
                grad = grad.to(read.dtype)
                _add_product(grad_hidden[span], grad, read.weight[block])
                for parameter, total in totals:
                    if parameter.dim() == 2:
                        _add_product(total[block], grad.t(), read.hidden_N[span])
                    else:
                        total[block] += grad.sum(0, dtype=total.dtype)
            if entropy_weights_N is not None:
                entropies_N[span] = seen.entropies
        for parameter, total in totals:
            _hand_over(total, parameter)
        return grad_hidden.to(hidden_N.dtype), entropies_N


class _Reading:
    """One pass over hidden states: the blocks it is cut into, and the output layer in the dtype of products."""

    def __init__(self, head: Head, hidden_N: Tensor, targets_N: Tensor, temperature: float):
        self.head, self.targets_N, self.temperature = head, targets_N, temperature
        output, device = head.output, hidden_N.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else output.weight.dtype
        self.weight = output.weight.to(self.dtype)
        self.bias = None if output.bias is None else output.bias.to(self.dtype)
        self.hidden_N = hidden_N.to(self.dtype)
        V, bytes_ = len(self.weight), BLOCK_BYTES.get(device, BLOCK_BYTES_OF_A_CARD)
        tokens, width = bytes_ // (4 * V), V
        if tokens < FEW_TOKENS:
            tokens, width = MANY_TOKENS, bytes_ // (4 * MANY_TOKENS)
        N = len(targets_N)
        self.spans = [slice(start, min(N, start + tokens)) for start in range(0, N, tokens)]
        self.blocks = [slice(start, min(V, start + width)) for start in range(0, V, width)]

    def scores(self, span: slice, block: slice) -> Tensor:
        """logits / temperature of a block, float32."""
        bias = None if self.bias is None else self.bias[block]
        scores = self.head.finished(linear(self.hidden_N[span], self.weight[block], bias).float())
        return scores if self.temperature == 1.0 else scores.div_(self.temperature)

    def targets(self, span: slice, block: slice) -> tuple[Tensor, Tensor]:
        """[n, 1], the index of the target in the block, and whether the target is in this block; if not, the index is
        any."""
        index = self.targets_N[span, None] - block.start
        width = block.stop - block.start
        return index.clamp(0, width - 1), (index >= 0) & (index < width)

    def collisions(self, span: slice) -> Tensor:
        """log sum p^2 of some tokens from all blocks."""
        sums: Any = None
        for block in self.blocks:
            scores = self.scores(span, block)
            here = torch.stack([scores.logsumexp(-1), (2 * scores).logsumexp(-1)])
            sums = here if sums is None else torch.logaddexp(sums, here)
        result: Tensor = sums[1] - 2 * sums[0]
        return result

    def survey(self, span: slice, with_entropies: bool) -> _Survey:
        """Compute log-sum-exp, target log-probabilities and entropies of some tokens from all blocks."""
        lse: Any = None
        target: Any = None
        entropies: Any = None
        last_scores: Any = None
        for block in self.blocks:
            scores = self.scores(span, block)
            logp = torch.log_softmax(scores, -1)
            here = scores[:, 0] - logp[:, 0]
            whole = here if lse is None else torch.logaddexp(lse, here)
            index, inside = self.targets(span, block)
            of_target = torch.where(inside, scores.gather(1, index), 0.0).squeeze(1)
            target = of_target if target is None else target + of_target
            if with_entropies:
                # Of two blocks with shares w of the probability: sum w (entropy - log w).
                of_block = (here - whole).exp() * (whole - here - _exp(logp).mul_(logp).sum(-1))
                if entropies is not None:
                    of_block += (lse - whole).exp() * (whole - lse + entropies)
                entropies = of_block
            lse, last_scores = whole, scores
        return _Survey(self, span, lse, target - lse, entropies, last_scores if len(self.blocks) == 1 else None)


class _Survey:
    """Log-sum-exp, log-probabilities and, if asked for, entropies, each [n]; the logits too where they are one
    block."""

    def __init__(
        self, read: _Reading, span: slice, lse: Tensor, logprobs: Tensor, entropies: Tensor | None, kept: Tensor | None
    ):
        self.read, self.span, self.lse, self.logprobs, self.kept = read, span, lse, logprobs, kept
        self.entropies: Any = entropies

    def block(self, block: slice) -> tuple[Tensor, Tensor | None]:
        """The log-probabilities of a block, and the logits where the model caps them. May be called once for a
        block."""
        scores = self.read.scores(self.span, block) if self.kept is None else self.kept
        capped = None if self.read.head.softcap is None else scores * self.read.temperature
        return scores.sub_(self.lse.unsqueeze(1)), capped


def _exp(values: Tensor) -> Tensor:
    """exp(values). PyTorch's own exp on the CPU, from MKL, takes three times as long on AMD's processors."""
    return (values * (1 / math.log(2))).exp2_()


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b. A product in half precision is added to a float32 total: as it is where PyTorch can, otherwise
    rounded once."""
    if total.dtype is a.dtype:
        total.addmm_(a, b)
    elif _adds_in_float32(total.device.type):
        with torch.autocast(total.device.type, enabled=False):
            torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        product = a @ b
        rows = max(1, ADDED // product.shape[1]) if product.device.type == "cpu" else len(product) or 1
        for part, more in zip(total.split(rows), product.split(rows), strict=True):
            part += more


@cache
def _adds_in_float32(device: str) -> bool:
    """Whether PyTorch adds products in half precision to a float32 tensor in one operation, as it does on CUDA from 2.9
    on; tried on a small product that bfloat16 would round."""
    if device != "cuda" or not torch.cuda.is_available():
        return False
    with _disable_current_modes():
        factor = torch.full((16, 16), 1 + 2**-7, dtype=torch.bfloat16, device=device)
        total = torch.ones(16, 16, device=device)
        try:
            torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
        except (NotImplementedError, RuntimeError, TypeError):
            return False
        return bool((total == 1 + 16 * (1 + 2**-7) ** 2).all())


def _sum_dtype(values: Tensor) -> torch.dtype:
    """The dtype of a sum of many: in half precision it would lose small terms."""
    return torch.promote_types(values.dtype, torch.float32)


def _total_of(parameter: Any) -> Tensor:
    """Where a parameter's gradient is summed: in its `.grad`, or where that is in half precision, in another tensor."""
    if parameter.dtype is not _sum_dtype(parameter):
        return torch.zeros_like(parameter, dtype=_sum_dtype(parameter))
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    grad: Tensor = parameter.grad
    return grad


def _hand_over(total: Tensor, parameter: Any) -> None:
    """Add the sum to the parameter's `.grad`, if it is not that."""
    if parameter.grad is None:
        parameter.grad = total.to(parameter.dtype)
    elif parameter.grad is not total:
        parameter.grad += total
