"""One optimiser step of the policy: its only backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cohort.config import OnlineConfig, TrainingConfig
from cohort.methods.coefficients import Objective, TokenBatch
from cohort.methods.method import Method
from cohort.policy import ranks
from cohort.policy.fast.activations import ActivationStore
from cohort.policy.memory import retry_smaller
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Pack, Part, micro_batches
from cohort.train import measured
from cohort.train.chosen_tokens import ByCompletion, most_uncertain, selected
from cohort.train.critic import SharedCritic
from cohort.train.entropy import EntropyWeight
from cohort.train.experts import Balance, balance_coef
from cohort.train.optimizer import descend, make_optimizer, skipped
from cohort.train.ranks import own_parts
from cohort.train.sums import Sums, added
from cohort.train.weights import active_lengths, imitation, token_weights
from cohort.train.whole_step import foresee, reads_collisions
from cohort.types import Completion, Group


class Updater:
    """Takes optimiser steps on groups with advantages. Micro-batches only bound memory: the denominators of the weights
    count the whole step, so any split gives the same gradient."""

    def __init__(
        self, policy: Policy, method: Method, config: TrainingConfig, shared_critic: SharedCritic | None = None
    ):
        self.policy, self.method, self.config, self.shared_critic = policy, method, config, shared_critic
        self.optimizer = make_optimizer(policy.parameters, config)
        self.token_budget = config.token_budget
        self.entropy = EntropyWeight(config)
        self.state = self.entropy.state
        self.balance_coef = balance_coef(policy, config)
        self.told_far = False

    def step(
        self,
        groups: list[Group],
        generation_tokens: float,
        learning_rate: float,
        activations: ActivationStore | None = None,
    ) -> dict[str, float]:
        """Take one step. `generation_tokens`: tokens with loss in the sampled batch, divided by the number of steps
        that share it. Sets `old_logprobs` of groups that the current policy sampled."""
        metrics = self.gradient(groups, generation_tokens, activations)
        policy, config, entropy = self.policy, self.config, metrics.pop("entropy/trained", 0.0)
        metrics |= self.entropy.logged(metrics["loss"], entropy)
        norm = descend(self.optimizer, policy.parameters, learning_rate, config, policy.model)
        if math.isfinite(norm):
            policy.version += 1
            metrics |= self.entropy.adapt(entropy)
        return metrics | {"grad_norm": norm} | skipped(norm, config)

    def gradient(
        self, groups: list[Group], generation_tokens: float, activations: ActivationStore | None = None
    ) -> dict[str, float]:
        """Compute the gradient of -J into the parameters' `.grad`. Where memory runs out, start again with half of the
        token budget.

        `activations`: of sampling these groups with the current weights; they can be used once.
        """
        first_try = [activations]

        def accumulate(token_budget: int) -> dict[str, float]:
            self.optimizer.zero_grad(set_to_none=True)
            if self.shared_critic is not None:
                self.shared_critic.zero_grad()
            store = first_try.pop() if first_try else None
            if store is None and activations is not None:
                activations.clear()
            with self.policy.attending():
                return _Pass(self, groups, generation_tokens, token_budget, store).run()

        message = "out of memory: this step starts again with token_budget=%d"
        budget, smallest = self.token_budget, lambda: max(map(self._smallest, groups))
        if self.policy.is_sharded:  # FSDP sums gradients, and a rank cannot leave a pass that the others are in
            metrics = accumulate(budget)
        else:
            metrics, self.token_budget = retry_smaller(accumulate, budget, smallest, message)
            ranks.sum_gradients(self.policy.parameters)
        self.told_far = measured.tell_far(metrics, self.told_far)
        return metrics

    def _smallest(self, group: Group) -> int:
        """Tokens of the smallest micro-batch that the group can be split into."""
        ids = [c.ids for c in group.completions]
        ids = ids if self.method.sees(self.config) == "group" else [max(ids, key=len)]
        return Part(0, group.prompt_ids, range(len(ids)), ids).tokens


class _Pass:
    """One accumulation of the step's gradient over micro-batches."""

    def __init__(
        self,
        updater: Updater,
        groups: list[Group],
        generation_tokens: float,
        token_budget: int,
        activations: ActivationStore | None,
    ):
        self.policy, self.method, self.config = updater.policy, updater.method, updater.config
        self.token_budget, self.groups, self.activations = token_budget, groups, activations
        self.temperature = self.config.training_temperature
        self.unit = self.method.sees(self.config)
        self.weights = token_weights(groups, generation_tokens, self.method, self.config)
        self.shared_critic = updater.shared_critic
        self.entropy = updater.entropy
        self.balance_coef = updater.balance_coef
        self.balance: Balance | None = None
        """Of a mixture of experts with a load-balancing loss."""
        self.corrects_sampler = self.config.corrects_sampler
        # The policy that samples and the one that is trained are the same until the first update on the batch. Where
        # the sampler's difference is corrected for, the old policy is the one that first trains on the batch.
        self.on_policy = [
            g.old_logprobs is None
            and (self.corrects_sampler or all(c.version == self.policy.version for c in g.completions))
            for g in groups
        ]
        self.kept: ByCompletion | None = None
        """Where only the most uncertain tokens are trained: those."""
        self.selected: ByCompletion | None = None
        """The tokens that the row selects for its coefficient; None: it selects none."""
        self.foreseen: ByCompletion | None = None
        """The coefficients of a row that sees the whole step."""
        self.imitated = imitation(groups, self.weights, self.config)
        self.learning = float(active_lengths(groups, self.config).sum())
        """The number of tokens that are trained in the step."""
        self.sums = Sums()
        self.entropies: dict[tuple[int, int], Tensor] = {}
        """Of the completions that this rank has passed."""

    def run(self) -> dict[str, float]:
        self._choose_tokens()
        if self.kept is not None:
            self.learning = float(sum(kept.sum() for kept in self.kept.values()))
        parts = [part for g in range(len(self.groups)) if (part := self._part(g)).rows]
        if self.unit == "step":
            self.foreseen, terms, weights_N = foresee(
                parts, self.policy, self.method, self.config, self._tokens, self.weights
            )
            if ranks.is_main():  # the sums of all ranks are added
                self._log(terms, weights_N)
        own = own_parts(parts, self._completions, self.activations, whole=self.unit == "group")
        if self.balance_coef and parts:
            self.balance = Balance(self.policy, self.balance_coef)
        recorded = self._run(own) if self.policy.is_sharded else ranks.together(lambda: self._run(own), "the update")
        recorded = ranks.joined(recorded, "the update")
        for g, group in enumerate(self.groups):
            if self.on_policy[g]:
                group.old_logprobs = [recorded.get((g, r), c.logprobs) for r, c in enumerate(group.completions)]
        measured.note(self.groups, recorded, self.entropies)
        left_out = measured.left_out(self.groups, parts) if isinstance(self.config, OnlineConfig) else []
        if left_out and ranks.is_main():
            self.sums.log({"entropy": -self._gather(left_out)})
        totals = added(ranks.gather(self.sums.totals(), "the update's metrics"))
        metrics, objective = totals.metrics(), totals.objective
        if self.balance is not None:
            metrics["aux_loss"] = sum(ranks.gather(self.balance.loss, "the update's metrics"))
            objective -= self.balance_coef * metrics["aux_loss"]
        return {"loss": -objective, **metrics}

    def _completions(self, part: Part) -> list[Completion]:
        return [self.groups[part.group].completions[r] for r in part.rows]

    def _run(self, parts: list[Part]) -> dict[tuple[int, int], Tensor]:
        """The gradient of some parts; returns their log-probabilities by (group, completion)."""
        recorded: dict[tuple[int, int], Tensor] = {}
        micros = list(micro_batches(parts, self.token_budget, whole=self.unit == "group"))
        if self.balance is not None:
            self.balance.begin(micros)
        with self.policy.even_passes(len(micros)):
            for i, micro in enumerate(micros):
                known = self._known(micro) if len(micros) == 1 else None
                recorded.update(self._backward(micro, i, known))
        return recorded

    def _choose_tokens(self) -> None:
        share, select = self.config.trained_fraction, self.method.selects(self.config)
        if share == 1 and select is None:
            return
        parts = [part for g in range(len(self.groups)) if (part := self._part(g, every=True)).rows]

        def of_all(measure: Callable[[Iterable[list[Part]], float], ByCompletion]) -> ByCompletion:
            return ranks.scored(parts, lambda own: measure(own, self.temperature), self.token_budget, "choosing tokens")

        if share < 1:
            self.kept = most_uncertain(of_all(self.policy.entropies), share)
        if select is not None:
            seed = self.config.seed + self.policy.version
            self.selected = selected(of_all(self.policy.logprobs), self.groups, select, seed)

    def _part(self, g: int, every: bool = False) -> Part:
        """The group's completions with a gradient, or with `every` all that carry loss. Without a KL term, an entropy
        bonus, a selected token or a load-balancing loss, an advantage of 0 gives no gradient."""
        group = self.groups[g]
        always = every or group.reference_logprobs is not None or self.entropy.is_used or self.selected is not None
        always = always or self.balance_coef > 0
        rows = [
            r
            for r in range(len(group.completions))
            if self.weights[g][r] and (always or (g, r) in self.imitated or bool(group.advantages[r].any()))
        ]
        return Part(g, group.prompt_ids, rows, [group.completions[r].ids for r in rows])

    def _known(self, parts: list[Part]) -> Pack | None:
        """The micro-batch with the activations of its sampling, where they were kept and the policy is unchanged."""
        if self.activations is None:
            return None
        completions = [completion for part in parts for completion in self._completions(part)]
        moved = any(completion.version != self.policy.version for completion in completions)
        return None if moved else self.activations.pack(parts, completions)

    def _backward(self, parts: list[Part], micro: int, pack: Pack | None = None) -> dict[tuple[int, int], Tensor]:
        """Forward pass (with known activations: none), the head's closed-form gradient, backward pass. Returns the
        log-probabilities by (group, completion)."""
        policy = self.policy
        pack = pack or policy.pack(parts)
        rows = [(part.group, r) for part in parts for r in part.rows]
        lengths = [len(ids) for part in parts for ids in part.completion_ids]
        weights_B = torch.tensor([self.weights[g][r] for g, r in rows])
        weights_N = weights_B.repeat_interleave(torch.tensor(lengths)).to(policy.device)
        hidden, penalty = self.balance.forward(pack, micro) if self.balance else (policy.hidden(pack.inputs), None)
        hidden_N = hidden.detach()[pack.sources_N]
        tokens = self._tokens(rows, lengths)
        bonus_N = self._entropy_weights(rows, lengths)
        imitation_N = self._imitation_weights(rows, lengths)
        seen_N: Tensor | None = None
        if self.foreseen is not None:
            seen_N = self._gather([self.foreseen[row] for row in rows])
        elif self.unit != "token":
            with policy.autocast():
                tokens = tokens._replace(logprobs=policy.head.logprobs(hidden_N, pack.targets_N, self.temperature))
                if reads_collisions(self.config):
                    tokens = tokens._replace(collisions=policy.head.collisions(hidden_N, self.temperature))
            seen_N = self._terms(tokens, weights_N).coefficient

        def coefficient(span: slice, logprobs: Tensor) -> Tensor:
            if seen_N is None or self.foreseen is not None:
                tokens.logprobs[span] = logprobs
            if seen_N is None:
                terms = self._terms(tokens.cut(span), weights_N[span]).coefficient * weights_N[span]
            else:
                terms = seen_N[span] * weights_N[span]
            return terms if imitation_N is None else terms + imitation_N[span]

        with policy.autocast():
            grad_N, entropies_N = policy.head.backward(hidden_N, pack.targets_N, self.temperature, coefficient, bonus_N)
        self.sums.log({"entropy": entropies_N})
        self.entropies.update(zip(rows, entropies_N.split(lengths), strict=True))
        if self.entropy.is_used:
            kept_N = None if self.kept is None else self._gather([self.kept[row] for row in rows]).bool()
            self.sums.log({"entropy/trained": entropies_N if kept_N is None else entropies_N[kept_N]})
        if bonus_N is not None:
            self.sums.add((entropies_N * bonus_N).sum().view(1))
        if imitation_N is not None:
            self.sums.add((tokens.logprobs * imitation_N).sum().view(1))
        if self.shared_critic is not None:
            grad_N += self.shared_critic.backward(hidden_N, self.groups, rows, weights_N)
        of_hidden = torch.zeros_like(hidden).index_add_(0, pack.sources_N, grad_N.to(hidden.dtype))
        penalties = [] if penalty is None or not penalty.requires_grad else [penalty]
        torch.autograd.backward([hidden, *penalties], [of_hidden, *[None for _ in penalties]])
        return dict(zip(rows, tokens.logprobs.cpu().split(lengths), strict=True))

    def _tokens(self, rows: list[tuple[int, int]], lengths: list[int]) -> TokenBatch:
        """The micro-batch's tokens before its forward pass; their log-probabilities are filled in later."""
        fresh = all(self.on_policy[g] for g, _ in rows)
        reference = [self.groups[g].reference_logprobs for g, _ in rows]
        known = [row[r] for row, (_, r) in zip(reference, rows, strict=True) if row is not None]
        return TokenBatch(
            logprobs=torch.empty(sum(lengths), device=self.policy.device),
            advantages=self._gather([self._advantages(g, r) for g, r in rows]),
            old_logprobs=None if fresh else self._gather([self._old(g, r) for g, r in rows]),
            reference_logprobs=self._gather(known) if len(known) == len(rows) else None,
            sampler_logprobs=self._gather([self.groups[g].completions[r].logprobs for g, r in rows])
            if self.corrects_sampler
            else None,
            lengths=lengths if self.unit != "token" else None,
            selected=None if self.selected is None else self._gather([self.selected[row] for row in rows]),
        )

    def _advantages(self, g: int, r: int) -> Tensor:
        advantages = self.groups[g].advantages[r]
        return advantages if self.kept is None else advantages * self.kept[g, r]

    def _entropy_weights(self, rows: list[tuple[int, int]], lengths: list[int]) -> Tensor | None:
        """[N], the weight of each token's entropy: the bonus's divided by the number of trained tokens of the step,
        for every loss type."""
        coef = self.entropy.current
        if not coef:
            return None
        kept = [torch.ones(n) if self.kept is None else self.kept[row] for row, n in zip(rows, lengths, strict=True)]
        return self._gather(kept) * (coef / max(self.learning, 1.0))

    def _imitation_weights(self, rows: list[tuple[int, int]], lengths: list[int]) -> Tensor | None:
        """[N], the weight of each token's log-likelihood; None where nothing is imitated."""
        if not self.imitated:
            return None
        return self._gather(
            [torch.full((n,), self.imitated.get(row, 0.0)) for row, n in zip(rows, lengths, strict=True)]
        )

    def _terms(self, tokens: TokenBatch, weights: Tensor) -> Objective:
        terms = self.method.coefficient(tokens, self.config)
        self._log(terms, weights)
        return terms

    def _log(self, terms: Objective, weights: Tensor) -> None:
        self.sums.add(terms.value * weights)
        self.sums.log(terms.logged)

    def _old(self, g: int, r: int) -> Tensor:
        """The old log-probabilities: recorded at the batch's first update, or else the sampler's."""
        group = self.groups[g]
        return group.completions[r].logprobs if group.old_logprobs is None else group.old_logprobs[r]

    def _gather(self, pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces).to(self.policy.device)
