"""One optimiser step: the policy's only backward pass. Where a gradient leaves."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cohort.config import TrainingConfig
from cohort.formulas.aggregation import Denominators
from cohort.methods import Method, Tokens
from cohort.policy.memory import free_cached_memory, is_out_of_memory
from cohort.policy.model import Policy
from cohort.policy.pack import Part, micro_batches
from cohort.types import Group

log = logging.getLogger("cohort")


def active_lengths(groups: list[Group], config: TrainingConfig) -> Tensor:
    """[B], tokens of each completion that carry loss: none where a truncated completion is masked."""
    masked = getattr(config, "mask_truncated_completions", False)
    return torch.tensor([0 if masked and c.truncated else len(c.ids) for group in groups for c in group.completions])


def make_optimizer(policy: Policy, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW; biases and norms (one-dimensional parameters) are not decayed, as in transformers."""
    matrices = [p for p in policy.parameters if p.dim() >= 2]
    vectors = [p for p in policy.parameters if p.dim() < 2]
    kind = adamw_of(config.optim, policy.device)
    return kind(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def adamw_of(optim: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """bitsandbytes' AdamW of that name on CUDA where it is installed; else torch's, with a notice."""
    fused = partial(torch.optim.AdamW, fused=device.type in ("cpu", "cuda"))
    if optim not in BITSANDBYTES:
        return fused
    if device.type != "cuda":
        log.warning("optim=%s needs CUDA: torch's AdamW takes its place", optim)
        return fused
    try:
        import bitsandbytes
    except ImportError:
        log.warning("optim=%s needs bitsandbytes (pip install bitsandbytes): torch's AdamW takes its place", optim)
        return fused
    return getattr(bitsandbytes.optim, BITSANDBYTES[optim])


BITSANDBYTES = {
    "adamw_bnb_8bit": "AdamW8bit",
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW",
}
"""transformers' name -> bitsandbytes' class."""


class Updater:
    """Takes groups with advantages, makes one optimiser step. Micro-batches are a matter of memory: the weights'
    denominators are counts of the whole step, so any split gives the same gradient."""

    def __init__(self, policy: Policy, method: Method, config: TrainingConfig):
        self.policy, self.method, self.config = policy, method, config
        self.optimizer = make_optimizer(policy, config)
        self.token_budget = config.token_budget

    def step(self, groups: list[Group], generation_tokens: float, learning_rate: float) -> dict[str, float]:
        """Update the policy once. `generation_tokens`: active tokens of the sampled batch, by the number of steps
        that share it. Records `old_logprobs` in groups that the current policy sampled."""
        metrics = self.gradient(groups, generation_tokens)
        parameters = self.policy.parameters
        for parameter in parameters:
            if parameter.grad is None:  # no signal is a zero gradient: momentum and decay go on
                parameter.grad = torch.zeros_like(parameter)
        limit = self.config.max_grad_norm or float("inf")
        metrics["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if metrics["grad_norm"] != metrics["grad_norm"]:
            raise FloatingPointError("the gradient is NaN: the policy's weights or its log-probabilities are broken")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.version += 1
        return metrics

    def gradient(self, groups: list[Group], generation_tokens: float) -> dict[str, float]:
        """Leave the gradient of -J in the parameters' `.grad`; halve the token budget when memory runs out."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                with self.policy.attending():
                    return _Pass(self, groups, generation_tokens).run()
            except RuntimeError as error:
                longest = max(len(g.prompt_ids) + max(len(c.ids) for c in g.completions) for g in groups)
                if not is_out_of_memory(error) or self.token_budget <= longest:
                    raise
            self.token_budget //= 2
            free_cached_memory()
            log.warning("out of memory: this step starts again with token_budget=%d", self.token_budget)


class _Pass:
    """One accumulation of the step's gradient over micro-batches."""

    def __init__(self, updater: Updater, groups: list[Group], generation_tokens: float):
        self.policy, self.method, self.config = updater.policy, updater.method, updater.config
        self.token_budget = updater.token_budget
        self.groups = groups
        self.temperature: float = getattr(self.config, "temperature", 1.0)
        lengths_B = active_lengths(groups, self.config)
        denominators = Denominators(
            sequences=len(lengths_B),
            tokens=int(lengths_B.sum()),
            generation_tokens=generation_tokens,
            max_completion_length=self.config.max_completion_length,
        )
        weights = self.method.weight(lengths_B, denominators, self.config).split([len(g.completions) for g in groups])
        self.weights = [w.tolist() for w in weights]
        # The policy that samples and the one that is trained are the same until the first update on the batch.
        self.on_policy = [
            g.old_logprobs is None and all(c.version == self.policy.version for c in g.completions) for g in groups
        ]
        self.sums: dict[str, float] = defaultdict(float)
        self.tokens, self.objective = 0, 0.0
        self.ratio = (1.0, 1.0)

    def run(self) -> dict[str, float]:
        parts = [part for g in range(len(self.groups)) if (part := self._part(g)).rows]
        recorded: dict[tuple[int, int], Tensor] = {}
        for micro in micro_batches(parts, self.token_budget):
            recorded.update(self._backward(micro))
        for g, group in enumerate(self.groups):
            if self.on_policy[g]:
                group.old_logprobs = [recorded.get((g, r), c.logprobs) for r, c in enumerate(group.completions)]
        means = {name: total / max(1, self.tokens) for name, total in self.sums.items() if name != "ratio"}
        if "ratio" in self.sums:
            means |= {"ratio/min": self.ratio[0], "ratio/max": self.ratio[1]}
        return {"loss": -self.objective, **means}

    def _part(self, g: int) -> Part:
        """The group's completions that have a gradient: a zero advantage without a KL term has none."""
        group = self.groups[g]
        rows = [
            r
            for r in range(len(group.completions))
            if self.weights[g][r] and (group.reference_logprobs is not None or bool(group.advantages[r].any()))
        ]
        return Part(g, group.prompt_ids, rows, [group.completions[r].ids for r in rows])

    def _backward(self, parts: list[Part]) -> dict[tuple[int, int], Tensor]:
        """Forward, closed-form head, backward. Returns the log-probabilities by (group, row)."""
        policy = self.policy
        pack = policy.pack(parts)
        rows = [(part.group, r) for part in parts for r in part.rows]
        lengths = [len(ids) for part in parts for ids in part.completion_ids]
        advantages_N = self._gather([self.groups[g].advantages[r] for g, r in rows])
        weights_B = torch.tensor([self.weights[g][r] for g, r in rows])
        weights_N = weights_B.repeat_interleave(torch.tensor(lengths)).to(policy.device)
        fresh = all(self.on_policy[g] for g, _ in rows)
        old_N = None if fresh else self._gather([self._old(g, r) for g, r in rows])
        reference = [self.groups[g].reference_logprobs for g, _ in rows]
        reference_N = (
            self._gather([found[r] for found, (_, r) in zip(reference, rows, strict=True) if found is not None])
            if all(found is not None for found in reference)
            else None
        )
        logprobs_N = torch.empty(len(pack.targets_N), device=policy.device)

        def coefficient(span: slice, logprobs: Tensor, entropies: Tensor) -> Tensor:
            logprobs_N[span] = logprobs
            terms = self.method.coefficient(
                Tokens(
                    logprobs,
                    advantages_N[span],
                    None if old_N is None else old_N[span],
                    None if reference_N is None else reference_N[span],
                ),
                self.config,
            )
            self._log(terms.objective * weights_N[span], {"entropy": entropies, **terms.logged})
            return terms.coefficient * weights_N[span]

        hidden = policy.hidden(pack.inputs)
        with policy.autocast():
            grad_N = policy.head.backward(
                hidden.detach()[pack.sources_N], pack.targets_N, self.temperature, coefficient
            )
        hidden.backward(torch.zeros_like(hidden).index_add_(0, pack.sources_N, grad_N.to(hidden.dtype)))
        return dict(zip(rows, logprobs_N.cpu().split(lengths), strict=True))

    def _old(self, g: int, r: int) -> Tensor:
        """Recorded at the batch's first update, else the sampler's own."""
        group = self.groups[g]
        return group.completions[r].logprobs if group.old_logprobs is None else group.old_logprobs[r]

    def _gather(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces).to(self.policy.device)

    def _log(self, objective: Tensor, logged: dict[str, Tensor]) -> None:
        self.objective += float(objective.sum())
        self.tokens += len(objective)
        for name, values in logged.items():
            self.sums[name] += float(values.sum())
        if "ratio" in logged:
            low, high = logged["ratio"].aminmax()
            self.ratio = (min(self.ratio[0], float(low)), max(self.ratio[1], float(high)))
