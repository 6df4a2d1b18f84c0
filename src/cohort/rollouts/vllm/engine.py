"""The engine of vLLM servers: weights are sent to them by files, prompts by HTTP."""

from __future__ import annotations

import logging
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import RLock
from typing import cast

import torch
from torch import Tensor

from cohort.config.engines import VLLMEngineConfig
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.policy.text import texts_of
from cohort.rollouts.engine import Engine, EngineError
from cohort.rollouts.sampling import Generation, OnGroup, OnTokens, Sampling
from cohort.rollouts.stop_strings import StopStrings
from cohort.rollouts.vllm.dealing import Dealing
from cohort.rollouts.vllm.member import Member, refusals_told, silence_told
from cohort.rollouts.vllm.server import Refused, Sampled, Server, Unanswered
from cohort.rollouts.vllm.weights import FixedSequences, Weights, is_tied, require_adapter, write_weights
from cohort.types import Completion, UserError

log = logging.getLogger("cohort")


class VLLMEngine:
    """Sends each server the weights, and deals it prompts, a request for each. A request without an answer is made
    again, of any server, once the one that failed is back and has the weights. Where all weights are trained, a server
    has one version of them at a time, and calls wait for each other; adapters of several versions are used at once."""

    def __init__(self, policy: Policy, config: VLLMEngineConfig, folder: str, max_rows: int):
        if ranks.count() > 1:
            raise UserError(
                f"engine: vllm samples for one process that trains, and this run has {ranks.count()}: start it without "
                "torchrun, or use engine: local, with which each rank samples its share"
            )
        self.adapter = require_adapter(policy)
        self.policy, self.config, self.max_rows = policy, config, max_rows
        self.parent = Path(config.folder or folder)
        self.members = [Member(url, config) for url in config.url]
        self.run = uuid.uuid4().hex[:8]
        self.serial = 0
        self.checked = False
        self.sequences: FixedSequences | None = None
        self.weights: Weights | None = None
        self.whole = RLock()
        """Held while servers have all weights of one version."""

    def check(self) -> None:
        for member in self.members:
            member.server.wait(self.config.start_timeout)
            with refusals_told(member.server), silence_told(member.server):
                self._require_able(member.server)
        if not self.checked:
            log.info("engine: vllm: completions are sampled by %s", ", ".join(self.config.url))
            self._clear()  # of a run that was killed
        self.checked = True

    def _require_able(self, server: Server) -> None:
        settings, policy = server.settings(), self.policy
        model, lora = settings["model_config"], settings["lora_config"]
        wrong = []
        if model.get("logprobs_mode") != "processed_logprobs":
            wrong.append("its log-probabilities are not those of the sampling temperature")
        if self.adapter is not None and lora is None:
            wrong.append("it takes no adapters, and this run trains one")
        elif self.adapter is not None and lora["max_lora_rank"] < self.adapter.r:
            wrong.append(f"it takes adapters up to rank {lora['max_lora_rank']}, and this run's is {self.adapter.r}")
        separate = (model.get("hf_overrides") or {}).get("tie_word_embeddings") is False
        if self.adapter is None and is_tied(policy.model) and not separate:
            wrong.append("it would go on with the first output layer, since that is the embedding of this model")
        if wrong:
            raise EngineError(
                f"engine: vllm: {server.url} was not started as this run needs it: {'; '.join(wrong)}. "
                "`cohort vllm` prints the right command"
            )

    def follow(self, policy: Policy, version: int) -> None:
        if not self.checked:
            self.check()
        if self.sequences is None:
            self.sequences = FixedSequences(policy)
        self.serial += 1
        name = f"cohort-{self.run}-{self.serial}"
        self.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.parent.resolve()))
        folder.chmod(0o755)  # the server may be another user's
        try:
            write_weights(policy, folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        scores = self.sequences.scores(policy)
        self.weights = Weights(name, version, folder, self.adapter is not None, scores)

    def release(self) -> None:
        """Adapters are unloaded, and files go; servers keep weights that they have in place of their own."""
        self.weights = None
        for member in self.members:
            member.unload(unused=False)
        self._clear()

    def _clear(self) -> None:
        """Remove the run's own folder of weights."""
        if self.config.folder is None:
            shutil.rmtree(self.parent, ignore_errors=True)

    def present(self) -> Engine:
        if self.weights is None:
            self.follow(self.policy, self.policy.version)
        assert self.weights is not None
        return _Present(self, self.weights)

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
        return self.present().generate(prompts, n, sampling, seeds, on_tokens, on_group)

    def sample(
        self,
        weights: Weights,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_group: OnGroup | None,
    ) -> Generation:
        """As `generate`, with these weights. Several threads may call it."""
        if sampling.truncates:
            raise UserError(
                "engine: vllm with top_p, top_k or min_p: its log-probabilities would be those of the tokens that are "
                "left, and not the policy's. Leave them out, or use engine: local"
            )

        def ask(member: Member, place: int) -> list[Completion]:
            prompt = prompts[place].tolist()
            most = min(sampling.max_tokens, self.policy.context_length - len(prompt))
            sampled = member.sample(weights, prompt, n, sampling, most, seeds[place])
            return self._completions(sampled, sampling, weights.version)

        sequences = cast(FixedSequences, self.sequences)
        prepare = lambda member, over: member.prepare(weights, sequences.ids, over)  # noqa: E731
        # No more than its share at a time: the server that is ready first would get all.
        slots = max(1, min(self.max_rows // n, -(-len(prompts) // len(self.members))))
        with nullcontext() if weights.is_adapter else self.whole, self._awake():
            groups: list[list[Completion]] = [[] for _ in prompts]
            dealing = Dealing(self.members, len(prompts), slots, prepare, ask, self.config.max_failures)
            for place, group in dealing.answers():
                groups[place] = group
                if on_group is not None:
                    on_group(place, group)
        difference = max(member.comparison.difference for member in self.members)
        return Generation(groups, logged={"sampling/logp_difference": difference})

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Around sampling: the servers have their cache and weights on the card."""
        if not self.config.sleep:
            yield
            return
        for member in self.members:
            with refusals_told(member.server), silence_told(member.server):
                member.server.call("POST", "/wake_up", timeout=self.config.timeout)
        try:
            yield
        finally:
            for member in self.members:
                with suppress(Unanswered, Refused):
                    member.server.call("POST", "/sleep", timeout=self.config.timeout, level=1)

    def _completions(self, sampled: list[Sampled], sampling: Sampling, version: int) -> list[Completion]:
        rows = [self._until_stop(each, sampling.stop) for each in sampled]
        self.policy.require_known([max(ids) for ids, *_ in rows], "engine: vllm")
        texts = texts_of(self.policy.tokenizer, [ids for ids, *_ in rows], self.policy.eos_ids)
        return [
            Completion(torch.tensor(ids), torch.tensor(logprobs), text, truncated, version)
            for (ids, logprobs, truncated), text in zip(rows, texts, strict=True)
        ]

    def _until_stop(self, sampled: Sampled, stop: list[str]) -> tuple[list[int], list[float], bool]:
        """Without what follows the token that completes a stop string: a server that guesses several tokens at once
        may have gone on."""
        end = StopStrings(self.policy.tokenizer, stop).end_across([], sampled.ids) if stop else None
        return sampled.ids[:end], sampled.logprobs[:end], sampled.truncated and end is None


class _Present:
    """The servers with the weights that the policy had at one moment."""

    def __init__(self, engine: VLLMEngine, weights: Weights):
        self.engine, self.weights = engine, weights

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
        return self.engine.sample(self.weights, prompts, n, sampling, seeds, on_group)

    def follow(self, policy: Policy, version: int) -> None:
        """It keeps its weights."""

    def check(self) -> None:
        self.engine.check()
