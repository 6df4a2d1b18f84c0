"""PPO's critic in training: the values of a sampled batch, and the critic's optimiser step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from cohort.config import PPOConfig
from cohort.formulas.gae import ValueLoss, value_loss
from cohort.formulas.spread import all_equal
from cohort.methods.credits import critic_lambda, gae_advantages
from cohort.methods.method import Method
from cohort.policy import ranks
from cohort.policy.critic import Critic
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Pack, Part, micro_batches
from cohort.train.optimizer import descend, make_optimizer, skipped
from cohort.train.sums import read
from cohort.train.weights import active_lengths, token_weights
from cohort.types import Group

Rows = list[tuple[int, int]]
"""(group, completion) of each completion of a micro-batch, in order."""


class SharedCritic(Protocol):
    """A critic on the policy's own hidden states, whose gradient for them is added to the policy's."""

    def zero_grad(self) -> None: ...

    def backward(self, hidden_N: Tensor, groups: list[Group], rows: list[tuple[int, int]], weights_N: Tensor) -> Tensor:
        """The gradient of the critic's weighted loss for the hidden states, [N, D]. The head's gradient is added to its
        `.grad`."""
        ...


class CriticUpdater:
    """Fits the critic to the returns of the batches that the policy is trained on, one critic step for each policy
    step."""

    name = "critic"

    def __init__(self, policy: Policy, method: Method, config: PPOConfig):
        self.method, self.config = method, config
        self.critic = Critic(policy, own_backbone=config.critic == "own")
        self.optimizer = make_optimizer(self.parameters, config)
        self.token_budget = config.token_budget
        rate = config.critic_learning_rate
        self.learning_rate = config.learning_rate if rate is None else rate
        self._parts: dict[str, list[Tensor]] = defaultdict(list)
        """Parts of `sums`, on the device until they are read."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return self.critic.parameters

    @property
    def sums(self) -> dict[str, float]:
        """The weighted loss, and the numbers of clipped values and of tokens, since `zero_grad`."""
        return defaultdict(float, {name: sum(read(parts)) for name, parts in self._parts.items()})

    @torch.no_grad()
    def attach(self, groups: list[Group]) -> dict[str, float]:
        """Set the `values` of every completion; returns metrics of the batch."""
        started = time.perf_counter()
        values = ranks.scored(_parts(groups, None), self._values, self.token_budget, "the critic scores")
        for g, group in enumerate(groups):
            group.values = [values[g, r] for r in range(len(group.completions))]
        metrics = {"seconds/values": time.perf_counter() - started}
        gaps = [
            float((c.logprobs - reference).sum())
            for group in groups
            for c, reference in zip(group.completions, group.reference_logprobs or [], strict=False)
        ]
        return metrics | ({"objective/kl": sum(gaps) / len(gaps)} if gaps else {})

    def _values(self, batches: Iterable[list[Part]]) -> dict[tuple[int, int], Tensor]:
        """By (group, completion), [n] estimates."""
        model = self.critic.model
        training = model.model.training
        model.model.eval()
        values: dict[tuple[int, int], Tensor] = {}
        with model.attending():
            for micro in batches:
                pack = model.pack(micro)
                values_N = self.critic.values(model.hidden(pack.inputs)[pack.sources_N]).cpu()
                values.update(zip(_rows(micro), values_N.split(_lengths(micro)), strict=True))
        model.model.train(training)
        return values

    def step(self, groups: list[Group], generation_tokens: float, share: float) -> dict[str, float]:
        """Take one critic step at `share` of its highest learning rate. A shared backbone's gradient is added to the
        policy's before; then only the head is updated here."""
        if self.critic.own_backbone:
            self._gradient(groups, token_weights(groups, generation_tokens, self.method, self.config))
        every = ranks.gather(dict(self.sums), "the critic's step")
        sums = {name: sum(of_rank.get(name, 0.0) for of_rank in every) for name in ("loss", "clipped", "tokens")}
        self._parts = defaultdict(list)
        ranks.sum_gradients(self.parameters)
        critic, rate = self.critic, share * self.learning_rate
        modules = nn.ModuleDict({"critic": critic.model.model, "critic_head": critic.head})
        norm = descend(self.optimizer, critic.parameters, rate, self.config, modules)
        return {
            **{f"critic/{name}": value for name, value in skipped(norm, self.config).items()},
            "critic/loss": sums["loss"],
            "critic/clip_fraction": sums["clipped"] / max(1.0, sums["tokens"]),
            "critic/explained_variance": explained_variance(groups, self.config),
            "critic/grad_norm": norm,
        }

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._parts = defaultdict(list)

    def backward(self, hidden_N: Tensor, groups: list[Group], rows: Rows, weights_N: Tensor) -> Tensor:
        """Run the backward pass of the critic's weighted loss on hidden states [N, D]. Returns the gradient for them,
        [N, D]; the head's gradient is in its `.grad`."""
        advantages = {
            g: gae_advantages([groups[g]], self.config, critic_lambda)[0] for g in dict.fromkeys(g for g, _ in rows)
        }
        old = [(groups[g].values or [])[r] for g, r in rows]
        returns = [value + advantages[g][r] for value, (g, r) in zip(old, rows, strict=True)]
        old_N, returns_N = (torch.cat(pieces).to(hidden_N.device) for pieces in (old, returns))
        loss: ValueLoss = value_loss(self.critic.values(hidden_N), old_N, returns_N, self.config.cliprange_value)
        self._parts["loss"].append((weights_N * loss.value_N).sum())
        self._parts["clipped"].append(loss.clipped_N.sum())
        self._parts["tokens"].append(torch.tensor(len(loss.clipped_N)))
        return self.critic.backward(hidden_N, self.config.vf_coef * weights_N * loss.slope_N)

    def _gradient(self, groups: list[Group], weights: list[list[float]]) -> None:
        """Leave the gradient in the critic's parameters; halve the token budget when memory runs out."""
        self.critic.model.model.train()  # gradient checkpointing acts in training mode only

        own = ranks.dealt(_parts(groups, weights))

        def accumulate(token_budget: int) -> None:
            self.zero_grad()
            with self.critic.model.attending():
                for micro in micro_batches(own, token_budget):
                    self._micro_gradient(micro, groups, weights)

        def longest() -> int:
            return max(len(g.prompt_ids) + max(len(c.ids) for c in g.completions) for g in groups)

        message = "out of memory: the critic's step starts again with token_budget=%d"
        budget, step = self.token_budget, "the critic's step"
        _, self.token_budget = ranks.retry_together(accumulate, budget, longest, message, step)

    def _micro_gradient(self, parts: list[Part], groups: list[Group], weights: list[list[float]]) -> None:
        model = self.critic.model
        pack: Pack = model.pack(parts)
        rows = _rows(parts)
        weights_B = torch.tensor([weights[g][r] for g, r in rows])
        weights_N = weights_B.repeat_interleave(torch.tensor(_lengths(parts))).to(model.device)
        hidden = model.hidden(pack.inputs)
        grad_N = self.backward(hidden.detach()[pack.sources_N], groups, rows, weights_N)
        hidden.backward(torch.zeros_like(hidden).index_add_(0, pack.sources_N, grad_N.to(hidden.dtype)))


def explained_variance(groups: list[Group], config: PPOConfig) -> float:
    """1 - Var(returns - values) / Var(returns) over the tokens with loss: 1 for a perfect critic, 0 for one that
    predicts the same value everywhere; 0 where the returns are equal up to rounding."""
    active = active_lengths(groups, config).tolist()
    advantages = [a for row in gae_advantages(groups, config, critic_lambda) for a in row]
    values = [v for group in groups for v in group.values or []]
    kept = [(a, v) for a, v, n in zip(advantages, values, active, strict=True) if n]
    if not kept:
        return 0.0
    left, value = (torch.cat(pieces) for pieces in zip(*kept, strict=True))
    returns = left + value
    return 0.0 if all_equal(returns) else 1 - float(left.var(correction=0) / returns.var(correction=0))


def _parts(groups: list[Group], weights: list[list[float]] | None) -> list[Part]:
    """Parts with every completion, or, where weights are given, with those whose weight is not 0."""
    parts = []
    for g, group in enumerate(groups):
        rows = [r for r in range(len(group.completions)) if weights is None or weights[g][r]]
        if rows:
            parts.append(Part(g, group.prompt_ids, rows, [group.completions[r].ids for r in rows]))
    return parts


def _rows(parts: list[Part]) -> Rows:
    return [(part.group, r) for part in parts for r in part.rows]


def _lengths(parts: list[Part]) -> list[int]:
    return [len(ids) for part in parts for ids in part.completion_ids]
