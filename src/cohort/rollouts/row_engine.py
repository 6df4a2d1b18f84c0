"""The engine for models with an attention or a state of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from cohort.policy.finite import why_no_logits
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.text import texts_of
from cohort.rollouts.sampling import Generation, OnGroup, OnTokens, Sampling
from cohort.rollouts.stop_strings import StopStrings
from cohort.types import Completion, NotFinite


class _Streamer(BaseStreamer):
    """Passes tokens on to `on_tokens`; transformers calls `put` with the prompt first, then with each token."""

    def __init__(self, row: int, on_tokens: OnTokens):
        self.row, self.on_tokens, self.begun = row, on_tokens, False

    def put(self, value: Tensor) -> None:
        if self.begun:
            self.on_tokens([self.row], value.tolist())
        self.begun = True

    def end(self) -> None:
        pass


class _RequireFinite(LogitsProcessor):
    """Raises NotFinite for a row from which no token can be sampled."""

    def __init__(self, model: Any):
        self.model = model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # The maximum is NaN where one is NaN, and minus infinity where all are.
        if not bool(scores.amax(-1).isfinite().all()):
            raise NotFinite(why_no_logits(self.model))
        return scores


def _generation_config(sampling: Sampling, max_new_tokens: int) -> GenerationConfig:
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p or None,
        }
    return GenerationConfig(
        **options,
        max_new_tokens=max_new_tokens,
        eos_token_id=sampling.eos_ids or None,
        pad_token_id=0,
        stop_strings=sampling.stop or None,
    )


@contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """`generate` takes from the model's generation_config whatever a call leaves open: penalties, beams, suppressed
    tokens. The recorded log-probabilities would know nothing of them, and the packed engine does not have them."""
    configured, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = configured


class RowEngine:
    """transformers' `generate`, then one pass that scores the completions. `on_tokens` is called where n is 1, since
    transformers' streamers take one row. No activations are kept."""

    def __init__(self, policy: Policy, max_rows: int = 256):
        self.policy, self.max_rows = policy, max_rows

    @torch.no_grad()
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
        model.eval()
        try:
            # Each prompt alone: rows of one length need no padding, which some models with a state do not ignore.
            with torch.random.fork_rng(devices=[self.policy.device] if self.policy.device.type == "cuda" else []):
                groups = []
                for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                    torch.manual_seed(seed)
                    streamer = _Streamer(i, on_tokens) if on_tokens and n == 1 else None
                    groups.append(self._group(prompt, n, sampling, streamer))
                    if on_group is not None:
                        on_group(i, groups[-1])
                return Generation(groups)
        finally:
            model.train(was_training)

    def follow(self, policy: Policy, version: int) -> None:
        """Nothing to send: it samples the policy itself."""

    def check(self) -> None:
        """It is always ready."""

    def _group(self, prompt: Tensor, n: int, sampling: Sampling, streamer: _Streamer | None) -> list[Completion]:
        group: list[Completion] = []
        while len(group) < n:
            group += self._rows(prompt, min(self.max_rows, n - len(group)), sampling, streamer)
        return group

    def _rows(self, prompt: Tensor, count: int, sampling: Sampling, streamer: _Streamer | None) -> list[Completion]:
        batch = prompt.to(self.policy.device).expand(count, -1)
        config = _generation_config(sampling, min(sampling.max_tokens, self.policy.context_length - len(prompt)))
        if self.policy.length_dependence is not None:
            self.policy.length_dependence.forget()
        with self.policy.autocast(), _without_generation_config(self.policy.model):
            out = self.policy.model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                generation_config=config,
                tokenizer=self.policy.tokenizer if sampling.stop else None,
                streamer=streamer,
                logits_processor=[_RequireFinite(self.policy.model)],
            )
        rows = [self._cut(row[len(prompt) :].cpu(), sampling) for row in out]
        part = Part(0, prompt, range(count), [ids for ids, _ in rows])
        logprobs = self.policy.logprobs(iter([[part]]), sampling.temperature or 1.0)
        texts = texts_of(self.policy.tokenizer, [ids.tolist() for ids, _ in rows], sampling.eos_ids)
        return [
            Completion(ids, logprobs[0, i], texts[i], truncated=not ended, version=self.policy.version)
            for i, (ids, ended) in enumerate(rows)
        ]

    def _cut(self, ids: Tensor, sampling: Sampling) -> tuple[Tensor, bool]:
        """The tokens up to the end token or stop string, without padding, and whether there was one."""
        ends = torch.isin(ids, torch.tensor(sampling.eos_ids, dtype=torch.long)).nonzero()
        ids = ids[: int(ends[0]) + 1] if len(ends) else ids
        if sampling.stop:
            stops = StopStrings(self.policy.tokenizer, sampling.stop)
            for count, token in enumerate(ids.tolist(), 1):
                if stops.ended([0], [token])[0]:
                    return ids[:count], True
        return ids, len(ends) > 0
