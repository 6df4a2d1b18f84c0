"""Engines: token ids in; token ids, log-probabilities and a weight version out. They hold no trainer object."""

from __future__ import annotations

import logging
from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from cohort.policy.decoding import decoder_of
from cohort.policy.fast.cuda_graph import GraphDecoder
from cohort.policy.fast.decoder import FusedDecoder
from cohort.policy.fast.products import few_rows
from cohort.policy.fast.reuse import Decoded
from cohort.policy.memory import free_cached_memory, is_out_of_memory
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.packed.pack import Part
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import OnGroup, OnTokens, Sampling, draw
from cohort.types import Completion

log = logging.getLogger("cohort")

PREFILL_TOKENS = 8192
"""Prompt tokens of one prefill pass."""
SHORT_PROMPT = 64
"""Up to this many tokens, reading a prompt's keys once per row costs less than the second pair of products, and the
rearrangements around it, that reading them once per group takes."""

FORKING = ("cpu",)
"""Devices on which completions that begin with the same tokens are one row until they part. On a GPU rows come and go
with a wait for it, and cost little."""


class Engine(Protocol):
    """Samples `n` completions of each prompt (int64 [p] on the CPU). The same seed gives the same completions."""

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seed: int,
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]: ...


def local_engine(policy: Policy, max_rows: int) -> Engine:
    """The engine for the policy in this process."""
    return LocalEngine(policy, max_rows) if policy.grouped else RowEngine(policy, max_rows)


class LocalEngine:
    """Prefills a prompt once per group, decodes up to `max_rows` completions side by side against the shared cache;
    finished ones leave, waiting prompts take their place. On a CPU completions that begin with the same tokens are one
    row until they part."""

    def __init__(self, policy: Policy, max_rows: int = 256):
        self.policy, self.max_rows = policy, max_rows

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seed: int,
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
    ) -> list[list[Completion]]:
        model, was_training = self.policy.model, self.policy.model.training
        model.eval()
        try:
            while True:
                try:
                    # A tenth faster than no_grad where a token costs many small operations.
                    with self.policy.attending(), few_rows(model), torch.inference_mode():
                        decoding = _Decoding(self.policy, prompts, n, sampling, seed, self.max_rows)
                        decoding.on_tokens, decoding.on_group = on_tokens, on_group
                        decoding.run()
                    return decoding.end()
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self.max_rows == 1:
                        raise
                self.max_rows = max(1, self.max_rows // 2)
                free_cached_memory()
                log.warning("out of memory while decoding: going on with max_rows=%d", self.max_rows)
        finally:
            model.train(was_training)


class _Decoding:
    """One call of `generate`: what is waiting, what is alive, what is written."""

    def __init__(self, policy: Policy, prompts: list[Tensor], n: int, sampling: Sampling, seed: int, max_rows: int):
        self.policy, self.prompts, self.n, self.sampling, self.max_rows = (
            policy,
            prompts,
            n,
            sampling,
            max_rows,
        )
        self.on_tokens: OnTokens | None = None
        self.on_group: OnGroup | None = None
        self.groups: dict[int, list[Completion]] = {}
        """Those that have been asked for."""
        device = policy.device
        self.generator = torch.Generator(device).manual_seed(seed)
        # (prompt, first completion, completions): a group larger than max_rows comes in pieces.
        self.waiting = deque(
            (i, first, min(max_rows, n - first)) for i in range(len(prompts)) for first in range(0, n, max_rows)
        )
        total = len(prompts) * n
        self.limits = [min(sampling.max_tokens, policy.context_length - len(prompt)) for prompt in prompts]
        self.longest = max(self.limits, default=0)
        # The column behind the longest is for what those that have ended go on to draw. Tokens are written down as they
        # come: small tensors that stay between large ones that go leave holes in the heap.
        self.ids = torch.zeros(total, self.longest + 1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(total, self.longest + 1, device=device)
        self.counts = torch.zeros(total, dtype=torch.long, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)
        self.eos = torch.tensor(sampling.eos_ids, dtype=torch.long, device=device)
        self.share = max((len(prompt) for prompt in prompts), default=0) > SHORT_PROMPT
        self.logits = policy.head.reader(policy.dtype)
        decoder = decoder_of(policy)
        self.by_model = decoder.by_model
        self.fixed = device.type == "cuda" and isinstance(decoder, FusedDecoder)
        self.decoder = GraphDecoder(decoder) if isinstance(decoder, FusedDecoder) and self.fixed else decoder
        self.cache = DecodeCache(self.share, self.fixed)
        self.forks = device.type in FORKING
        self.decoded: Decoded | None = None
        if device.type == "cpu" and policy.room_for_decoded and isinstance(decoder, FusedDecoder) and decoder.plain:
            prompt_tokens = sum(len(prompts[i]) for i, _, _ in self.waiting)
            most = prompt_tokens + n * sum(self.limits) * 8 // 7  # those that have ended and are still there
            most = min(policy.room_for_decoded, most)
            self.decoded = decoder.decoded = Decoded(decoder.scales, (decoder.H, decoder.K), most)
        self.completion = torch.zeros(0, dtype=torch.long, device=device)
        """[M], those that are decoded, of `total`."""
        self.alive = torch.zeros(0, dtype=torch.bool, device=device)
        """[M]."""
        self.count, self.limit, self.done = self.completion, self.completion, self.alive
        """[M], tokens that each has, how many it may have, and whether it has come to its end."""
        self.row = torch.zeros(0, dtype=torch.long, device=device)
        """[M], each one's row of the cache."""
        self.parted = False
        """Whether rows may stand in another order than their completions."""
        self.tokens = torch.zeros(0, dtype=torch.long, device=device)
        """[N], the last token of each cached row."""

    def run(self) -> None:
        while True:
            # A device is waited for here, once a token.
            living = int(self.alive.sum())
            if not (self.waiting or living):
                self._note()
                self._tell_ended()
                return
            self._make_room(living)
            if self.waiting and len(self.completion) + self.waiting[0][2] <= self.max_rows:
                self._admit()
                continue  # those that ended at their first token leave before the next pass
            self.cache.advance()
            self._keep_within_room(len(self.tokens))
            with self.policy.autocast():
                hidden = self.decoder(self.tokens, self.cache)
            if self.decoded is not None:
                self.decoded.step(self.tokens, self.cache.positions, self.completion, self.row, self.alive)
            self._sample(hidden, 0)

    def _make_room(self, living: int) -> None:
        """Drop ended completions once an eighth of the batch has ended, or where somebody waits for the place."""
        dead = len(self.alive) - living
        if dead and (self.waiting or 8 * dead >= len(self.alive)):
            self._note()
            kept = self.alive.nonzero().squeeze(1)
            rows, row = torch.unique(self.row[kept], return_inverse=True)
            if len(kept):
                self.cache.keep(rows, len(kept) - len(rows))
            else:
                self.cache = DecodeCache(self.share, self.fixed)
            self.completion, self.alive, self.row = self.completion[kept], self.alive[kept], row
            self.count, self.limit, self.done = self.count[kept], self.limit[kept], self.done[kept]
            self.tokens = self.tokens[rows]
            self._tell_ended()

    def _tell_ended(self) -> None:
        """Hand over the groups of which no completion lives or waits."""
        if self.on_group is None:
            return
        unended = {prompt for prompt, _, _ in self.waiting} | set((self.completion[self.alive] // self.n).tolist())
        for i in range(len(self.prompts)):
            if i not in unended and i not in self.groups:
                self.on_group(i, self.group(i))

    def _admit(self) -> None:
        """Prefill waiting prompts, as many as fit, and draw each completion's first token."""
        pieces, completions, tokens = [], len(self.completion), 0
        while self.waiting:
            prompt, _, count = self.waiting[0]
            tokens += len(self.prompts[prompt])
            if pieces and (completions + count > self.max_rows or tokens > PREFILL_TOKENS):
                break
            pieces.append(self.waiting.popleft())
            completions += count
        pack = self.policy.pack([Part(i, self.prompts[prompt], [], []) for i, (prompt, _, _) in enumerate(pieces)])
        layout = pack.inputs["grouped"]
        layout.captured = {}
        self._keep_within_room(len(layout.places))
        layout.kept = None if self.decoded is None else []
        hidden = self.policy.hidden(pack.inputs, self.by_model)
        if self.decoded is not None:
            firsts = (i * self.n + first for i, first, _ in pieces)
            self.decoded.admit(pack, [range(a, a + piece[2]) for a, piece in zip(firsts, pieces, strict=True)])
        device, before = self.row.device, len(self.completion)
        counts = torch.tensor([count for _, _, count in pieces])
        rows = torch.ones_like(counts) if self.forks else counts
        completion = torch.cat([torch.arange(first, first + count) + i * self.n for i, first, count in pieces])
        of_piece = torch.arange(len(pieces)).repeat_interleave(counts)
        row = (of_piece if self.forks else torch.arange(len(completion))) + len(self.cache)
        self.cache.extend(layout, rows.tolist(), int(counts.sum() - rows.sum()))
        limit = torch.tensor([self.limits[prompt] for prompt, _, _ in pieces])[of_piece]
        self.completion = torch.cat([self.completion, completion.to(device)])
        self.row = torch.cat([self.row, row.to(device)])
        self.limit = torch.cat([self.limit, limit.to(device)])
        self.count = torch.cat([self.count, torch.zeros_like(row, device=device)])
        self.done = torch.cat([self.done, torch.zeros_like(row, dtype=torch.bool, device=device)])
        self.alive = torch.cat([self.alive, torch.ones_like(row, dtype=torch.bool, device=device)])
        last = hidden[layout.prompt_lengths.cumsum(0) - 1]
        self._sample(last if self.forks else last[of_piece.to(device)], before)

    def _sample(self, hidden: Tensor, since: int) -> None:
        """Draw the next token of each completion from the `since`-th on, whose rows' hidden states are given; write the
        living ones' down, end those that are done, and part those of a row that have drawn different ones."""
        completion, alive, count = self.completion[since:], self.alive[since:], self.count[since:]
        first = len(self.cache) - len(hidden)
        shared = len(hidden) < len(completion)
        with self.policy.autocast():
            logits = self.logits(hidden)
        row = self.row[since:] - first if shared or self.parted else None
        tokens, logprobs = draw(logits, self.sampling, self.generator, row)
        # Every one is written: taking the living ones out would wait for a device.
        at = torch.where(alive, count, self.longest)
        self.ids[completion, at] = tokens
        self.logprobs[completion, at] = logprobs
        done = (tokens.unsqueeze(1) == self.eos).any(1)
        if self.sampling.stop:
            drawn = zip(completion.tolist(), alive.tolist(), count.tolist(), strict=True)
            done |= torch.tensor([lives and self._stopped(c, n + 1) for c, lives, n in drawn], device=done.device)
        if self.on_tokens is not None:
            self.on_tokens(completion[alive].tolist(), tokens[alive].tolist())
        count += alive
        self.done[since:] |= alive & done
        self.alive = _behind(self.alive[:since], alive & ~done & (count < self.limit[since:]))
        if shared:
            tokens = self._part(tokens, since, first)
        elif row is not None:
            tokens = torch.empty_like(tokens).scatter_(0, row, tokens)
        self.tokens = _behind(self.tokens[:first], tokens)

    def _part(self, tokens: Tensor, since: int, first: int) -> Tensor:
        """Give living completions of a row that have drawn different tokens rows of their own; those that have ended
        follow any. Returns the last token of each row from the `first` on."""
        alive, row = self.alive[since:], self.row[since:]
        pairs = (row << 32 | tokens)[alive].tolist()
        heads = dict.fromkeys(pairs, 0)
        """Row and token -> the row from now on."""
        parents, started, last = [], set[int](), [0] * (len(self.cache) - first)
        for pair in heads:
            old, token = divmod(pair, 1 << 32)
            if old in started:
                heads[pair] = len(self.cache) + len(parents)
                parents.append(old)
                last.append(token)
            else:
                started.add(old)
                heads[pair] = old
                last[old - first] = token
        if parents:
            self.cache.fork(torch.tensor(parents))
            row[alive] = torch.tensor([heads[pair] for pair in pairs])
            self.parted = True
        return torch.tensor(last)

    def _stopped(self, completion: int, end: int) -> bool:
        """Whether the text of its first `end` tokens holds a stop string; a tail as long in tokens as the string is in
        characters does."""
        longest = max(map(len, self.sampling.stop))
        tail = self.policy.tokenizer.decode(self.ids[completion, max(0, end - longest - 8) : end].tolist())
        return any(stop in tail for stop in self.sampling.stop)

    def _note(self) -> None:
        """Write down how far those are that are decoded."""
        self.counts[self.completion], self.ended[self.completion] = self.count, self.done

    def _keep_within_room(self, more: int) -> None:
        """Keep nothing of this generation where there is no room for so many tokens more."""
        if self.decoded is not None and self.decoded.tokens + more > self.decoded.room:
            assert isinstance(self.decoder, FusedDecoder)
            self.decoded = self.decoder.decoded = None

    def end(self) -> list[list[Completion]]:
        """All groups; what was kept of them is the policy's."""
        found = [self.group(i) for i in range(len(self.prompts))]
        if self.decoded is not None:
            self.decoded.completions = [completion for group in found for completion in group]
        self.policy.decoded = self.decoded
        return found

    def group(self, i: int) -> list[Completion]:
        """A prompt's completions, as tensors of their own: autograd refuses those made in inference mode."""
        if i not in self.groups:
            own = slice(i * self.n, (i + 1) * self.n)
            counts, ended = self.counts[own].tolist(), self.ended[own].tolist()
            both = zip(self.ids[own].cpu().numpy(), self.logprobs[own].cpu().numpy(), counts, strict=True)
            with torch.inference_mode(False):
                found = [tuple(torch.from_numpy(row[:count].copy()) for row in rows) for *rows, count in both]
            rows = [tuple(ids.tolist()) for ids, _ in found]
            distinct = list(dict.fromkeys(rows))
            decoded = self.policy.tokenizer.batch_decode(distinct, skip_special_tokens=True)
            text_of = dict(zip(distinct, decoded, strict=True))
            self.groups[i] = [
                Completion(ids, logprobs, text_of[row], truncated=not done, version=self.policy.version)
                for (ids, logprobs), row, done in zip(found, rows, ended, strict=True)
            ]
        return self.groups[i]


def _behind(before: Tensor, more: Tensor) -> Tensor:
    return torch.cat([before, more]) if len(before) else more
