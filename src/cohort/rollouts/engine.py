"""Engines: token ids in; token ids, log-probabilities and a weight version out. They know no trainer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from cohort.policy.fast.products import few_rows
from cohort.policy.memory import retry_smaller
from cohort.policy.model import Policy
from cohort.rollouts.decoding import Decoding
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Generation, OnGroup, OnTokens, Sampling
from cohort.types import UserError

if TYPE_CHECKING:
    from cohort.policy.sharded import ShardedPolicy


class EngineError(UserError):
    """An engine outside this process cannot be reached, or does not do what it is asked for."""


class Engine(Protocol):
    """Samples completions. `Trainer(engine=...)` takes any object with `generate`; one without `follow` samples the
    policy of this process as it is, and one without `check` is taken to be ready.

    An engine that can sample beside training has a third method, `present() -> Engine`: the engine of the weights that
    it followed last, also after it follows others. `staleness` needs it. One that holds processes or memory has a
    fourth, `release()`, called when a run ends: it gives them back, and takes them again when it is asked again."""

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ) -> Generation:
        """Sample `n` completions of each prompt, int64 [p] on the CPU. `seeds`: one of each prompt; its completions
        depend on it, and not on the other prompts of the call (`cohort.data.order.prompt_seeds` makes them). Texts of
        completions are those of `policy.text.texts_of`, which keeps tags that are special tokens.

        `on_tokens` and `on_group` may be called as tokens and groups are done; `on_group` must be where the run sets
        overlap_rewards. `keep_tokens`: the most tokens whose activations may be returned; an engine need not return
        any."""
        ...

    def follow(self, policy: Policy, version: int) -> None:
        """Sample the weights that the policy has now, from the next call of `generate` on; its completions have this
        `version`, the number of updates. Called before the first sample, also of a resumed run, and before the first
        one after the weights have changed, in the thread that trains. Of several ranks each makes the call, with its
        copy of the weights. Raises EngineError where the weights do not arrive."""
        ...

    def check(self) -> None:
        """Raise EngineError, with the name of what cannot be reached, where the engine cannot sample. Called when
        training begins."""
        ...


def local_engine(policy: Policy, max_rows: int) -> Engine:
    """The engine that samples a policy in this process."""
    return LocalEngine(policy, max_rows) if policy.packed else RowEngine(policy, max_rows)


class LocalEngine:
    """Prefills each prompt once for its group and decodes up to `max_rows` completions side by side. Finished ones
    leave the batch, waiting prompts take their place. Where memory runs out, `max_rows` is halved."""

    def __init__(self, policy: Policy, max_rows: int = 256):
        self.policy, self.max_rows = policy, max_rows

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ) -> Generation:
        model, was_training = self.policy.model, self.policy.model.training

        def decode(max_rows: int) -> Generation:
            # inference_mode saves a tenth over no_grad where a token costs many small operations.
            with self.policy.attending(), few_rows(model), torch.inference_mode():
                decoding = Decoding(
                    self.policy, prompts, n, sampling, seeds, max_rows, on_tokens, on_group, keep_tokens
                )
                decoding.run()
            groups = decoding.transcript.groups()
            if decoding.store is not None:
                decoding.store.completions = [completion for group in groups for completion in group]
            return Generation(groups, decoding.store)

        message = "out of memory while decoding: going on with max_rows=%d"
        model.eval()
        try:
            generation, self.max_rows = retry_smaller(decode, self.max_rows, lambda: 1, message)
        finally:
            model.train(was_training)
        return generation

    def follow(self, policy: Policy, version: int) -> None:
        """Nothing to send: it samples the policy itself."""

    def check(self) -> None:
        """It is always ready."""


class ShardedEngine:
    """Samples a policy whose weights are divided among ranks, by an engine of its `whole`. Its calls are made within
    `sampled_together`, in which the weights are gathered, so that ranks may make unequal numbers of calls."""

    def __init__(self, policy: ShardedPolicy, engine: Engine):
        self.policy, self.engine = policy, engine

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ) -> Generation:
        # The layers that train are not those that sample: activations cannot be used again.
        return self.engine.generate(prompts, n, sampling, seeds, on_tokens, on_group)

    def follow(self, policy: Policy, version: int) -> None:
        """Nothing to send: the weights are gathered for each call."""

    def check(self) -> None:
        if hasattr(self.engine, "check"):
            self.engine.check()

    def release(self) -> None:
        if hasattr(self.engine, "release"):
            self.engine.release()


@contextmanager
def in_use(engine: Engine) -> Iterator[None]:
    """Around a run that samples by the engine: it is checked at the start, and gives back at the end what it holds."""
    if hasattr(engine, "check"):
        engine.check()
    try:
        yield
    finally:
        if hasattr(engine, "release"):
            engine.release()


def sampled_together(engine: Engine) -> AbstractContextManager[object]:
    """Around an engine's calls, entered by every rank, also by one without prompts."""
    return engine.policy.gathered() if isinstance(engine, ShardedEngine) else nullcontext()
