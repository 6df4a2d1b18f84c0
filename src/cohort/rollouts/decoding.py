"""One generation of the local engine: waiting prompts are prefilled, live completions decoded side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cohort.policy.decoding import decoder_of
from cohort.policy.fast.activations import ActivationStore
from cohort.policy.fast.decoder import FusedDecoder
from cohort.policy.finite import why_no_logits
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache
from cohort.rollouts.sampling import OnGroup, OnTokens, Sampling, draw, uniform_numbers
from cohort.rollouts.stop_strings import StopStrings
from cohort.rollouts.transcript import Transcript
from cohort.types import NotFinite

PREFILL_TOKENS = 8192
"""Prompt tokens of one prefill pass."""
SHORT_PROMPT = 64
"""Up to this many tokens a copy of the prompt's keys for each row costs less than a second pair of products."""


class Piece(NamedTuple):
    """Some completions of one prompt; a group larger than `max_rows` is several pieces."""

    prompt: int
    first: int
    """The first completion's number in its group."""
    size: int


@dataclass(frozen=True)
class Decoded:
    """M completions that are being decoded, finished ones among them until they are dropped."""

    completion: Tensor
    """[M], number of each among all completions of the call."""
    live: Tensor
    """[M], bool: it goes on."""
    count: Tensor
    """[M], tokens so far."""
    limit: Tensor
    """[M], the most tokens it may have."""
    ended: Tensor
    """[M], bool: it sampled an end token or a stop string."""
    row: Tensor
    """[M], its row of the cache. Completions that are equal so far may share a row."""

    @classmethod
    def none(cls, device: torch.device) -> Decoded:
        numbers = torch.zeros(0, dtype=torch.long, device=device)
        flags = torch.zeros(0, dtype=torch.bool, device=device)
        return cls(numbers, flags, numbers, numbers, flags, numbers)

    def __len__(self) -> int:
        return len(self.completion)

    def select(self, index: Tensor, row: Tensor) -> Decoded:
        """Those at `index`, with new rows."""
        return Decoded(
            self.completion[index], self.live[index], self.count[index], self.limit[index], self.ended[index], row
        )

    def since(self, start: int) -> Decoded:
        """Those from `start` on, as views."""
        fields = (self.completion, self.live, self.count, self.limit, self.ended, self.row)
        return Decoded(*(field[start:] for field in fields))

    def append(self, completion: Tensor, limit: Tensor, row: Tensor) -> Decoded:
        """With completions that have no token yet."""
        device = self.row.device
        return Decoded(
            torch.cat([self.completion, completion.to(device)]),
            torch.cat([self.live, torch.ones_like(row, dtype=torch.bool, device=device)]),
            torch.cat([self.count, torch.zeros_like(row, device=device)]),
            torch.cat([self.limit, limit.to(device)]),
            torch.cat([self.ended, torch.zeros_like(row, dtype=torch.bool, device=device)]),
            torch.cat([self.row, row.to(device)]),
        )


class Decoding:
    """The schedule of one generation: which prompts wait, which completions are decoded, what they sample next."""

    def __init__(
        self,
        policy: Policy,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        max_rows: int,
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ):
        self.policy, self.prompts, self.n, self.sampling, self.max_rows = policy, prompts, n, sampling, max_rows
        self.on_tokens, self.on_group = on_tokens, on_group
        device = policy.device
        self.waiting = deque(
            Piece(i, first, min(max_rows, n - first)) for i in range(len(prompts)) for first in range(0, n, max_rows)
        )
        self.limits = [min(sampling.max_tokens, policy.context_length - len(prompt)) for prompt in prompts]
        policy.check_length(max((len(p) + n for p, n in zip(prompts, self.limits, strict=True)), default=0))
        longest = max(self.limits, default=0)
        self.transcript = Transcript(policy, len(prompts), n, longest)
        self.uniform = None if sampling.temperature == 0 else uniform_numbers(seeds, n, longest).to(device)
        self.stops = StopStrings(policy.tokenizer, sampling.stop) if sampling.stop else None
        self.eos = torch.tensor(sampling.eos_ids, dtype=torch.long, device=device)
        self.logits = policy.head.reader(policy.dtype, policy.paths.onednn.taken)
        self.decoder = decoder_of(policy)
        self.store = self._store(keep_tokens)
        # The store's stream has each prompt's tokens apart.
        self.common = 0 if self.store is not None else common_beginning(prompts)
        self.forks = policy.paths.forks.taken
        self.decoded = Decoded.none(device)
        self.cache = self._empty_cache()
        self.reordered = False
        """Whether rows of the cache may be in another order than their completions."""
        self.tokens = torch.zeros(0, dtype=torch.long, device=device)
        """[N], the last token of each row of the cache."""
        self.logprob_sum = torch.zeros((), device=device)
        """Of all sampled tokens: NaN once the logits of one were not finite."""

    def _empty_cache(self) -> DecodeCache:
        share = max((len(prompt) for prompt in self.prompts), default=0) > SHORT_PROMPT
        return DecodeCache(share, fixed=self.policy.paths.cuda_graph.taken)

    def _store(self, keep_tokens: int) -> ActivationStore | None:
        """Where activations are kept: on a CPU, by a fused decoder without sliding windows, if any may be kept."""
        decoder = self.decoder
        if not (keep_tokens and self.policy.paths.reuse.taken and isinstance(decoder, FusedDecoder)):
            return None
        if decoder.has_window:
            return None
        prompt_tokens = sum(len(self.prompts[piece.prompt]) for piece in self.waiting)
        # An eighth of the batch may be finished before its rows are dropped.
        most = prompt_tokens + self.n * sum(self.limits) * 8 // 7
        return ActivationStore(decoder.scales, (decoder.H, decoder.K), min(keep_tokens, most))

    def run(self) -> None:
        while True:
            # The one wait for the device in each step.
            live_count, logprob_sum = torch.stack([self.decoded.live.sum(), self.logprob_sum]).tolist()
            if logprob_sum != logprob_sum:
                raise NotFinite(why_no_logits(self.policy.model))
            live = int(live_count)
            if not (self.waiting or live):
                self._note()
                self._hand_over_groups()
                return
            self._drop_finished(live)
            if self.waiting and len(self.decoded) + self.waiting[0].size <= self.max_rows:
                self._admit()
                continue  # completions that ended at their first token leave before the next pass
            self.cache.advance()
            self._give_up_store_unless_room_for(len(self.tokens))
            with self.policy.autocast():
                hidden = self.decoder(self.tokens, self.cache, self.store)
            if self.store is not None:
                decoded = self.decoded
                self.store.add_step(self.tokens, self.cache.positions, decoded.completion, decoded.row, decoded.live)
            self._sample(hidden, 0)

    def _drop_finished(self, live: int) -> None:
        """Drop finished completions once they are an eighth of the batch, or where a waiting prompt needs the place."""
        finished = len(self.decoded) - live
        if not (finished and (self.waiting or 8 * finished >= len(self.decoded))):
            return
        self._note()
        index = self.decoded.live.nonzero().squeeze(1)
        rows, row = torch.unique(self.decoded.row[index], return_inverse=True)
        if len(index):
            self.cache.keep(rows, len(index) - len(rows))
        else:
            self.cache = self._empty_cache()
        self.decoded = self.decoded.select(index, row)
        self.tokens = self.tokens[rows]
        self._hand_over_groups()

    def _hand_over_groups(self) -> None:
        """Call `on_group` for groups of which no completion is live or waiting."""
        if self.on_group is None:
            return
        live = (self.decoded.completion[self.decoded.live] // self.n).tolist()
        unfinished = {piece.prompt for piece in self.waiting} | set(live)
        for prompt in range(len(self.prompts)):
            if prompt not in unfinished and not self.transcript.is_told(prompt):
                self.on_group(prompt, self.transcript.group(prompt))

    def _admit(self) -> None:
        """Prefill as many waiting prompts as fit, and sample the first token of their completions."""
        pieces = self._next_pieces()
        pack = self.policy.pack_prompts([self.prompts[piece.prompt] for piece in pieces], self.common)
        self._give_up_store_unless_room_for(len(pack.inputs["grouped"].places))
        prefill = self.policy.prefill(pack, self.decoder.uses_model_code, self.store is not None)
        firsts = [piece.prompt * self.n + piece.first for piece in pieces]
        completions = [range(first, first + piece.size) for first, piece in zip(firsts, pieces, strict=True)]
        if self.store is not None:
            self.store.add_prefill(pack, prefill.activations, completions)
        device, before = self.policy.device, len(self.decoded)
        counts = torch.tensor([piece.size for piece in pieces])
        rows = torch.ones_like(counts) if self.forks else counts
        piece_of = torch.arange(len(pieces)).repeat_interleave(counts)
        row = (piece_of if self.forks else torch.arange(len(piece_of))) + len(self.cache)
        self.cache.extend(prefill.prompts, rows.tolist(), int(counts.sum() - rows.sum()))
        limit = torch.tensor([self.limits[piece.prompt] for piece in pieces])[piece_of]
        completion = torch.cat([torch.arange(numbers.start, numbers.stop) for numbers in completions])
        self.decoded = self.decoded.append(completion, limit, row)
        last = prefill.hidden[prefill.prompts.ends]
        self._sample(last if self.forks else last[piece_of.to(device)], before)

    def _next_pieces(self) -> list[Piece]:
        """The waiting pieces that fit into `max_rows` and one prefill pass, at least one."""
        pieces: list[Piece] = []
        completions, tokens = len(self.decoded), self.common
        while self.waiting:
            piece = self.waiting[0]
            tokens += len(self.prompts[piece.prompt]) - self.common
            if pieces and (completions + piece.size > self.max_rows or tokens > PREFILL_TOKENS):
                break
            pieces.append(self.waiting.popleft())
            completions += piece.size
        return pieces

    def _sample(self, hidden: Tensor, since: int) -> None:
        """Sample the next token of the completions from `since` on, from their rows' hidden states [N, Dm]; finish
        those that have come to their end; give rows of their own to completions that no longer agree with their row."""
        decoded = self.decoded.since(since)
        first_row = len(self.cache) - len(hidden)
        shared = len(hidden) < len(decoded)
        with self.policy.autocast():
            logits = self.logits(hidden)
        row = decoded.row - first_row if shared or self.reordered else None
        uniform = None if self.uniform is None else self.uniform[decoded.count, decoded.completion]
        tokens, logprobs = draw(logits, self.sampling, uniform, row)
        self.logprob_sum = self.logprob_sum + logprobs.sum()
        self.transcript.write(decoded.completion, decoded.count, decoded.live, tokens, logprobs)
        ended = (tokens.unsqueeze(1) == self.eos).any(1)
        if self.stops is not None:
            ended |= self._stopped(decoded, tokens, self.stops)
        if self.on_tokens is not None:
            self.on_tokens(decoded.completion[decoded.live].tolist(), tokens[decoded.live].tolist())
        decoded.count.add_(decoded.live)
        decoded.ended.logical_or_(decoded.live & ended)
        live = decoded.live & ~ended & (decoded.count < decoded.limit)
        self.decoded = replace(self.decoded, live=_appended(self.decoded.live[:since], live))
        if shared:
            tokens = self._fork(tokens, since, first_row)
        elif row is not None:
            tokens = torch.empty_like(tokens).scatter_(0, row, tokens)
        self.tokens = _appended(self.tokens[:first_row], tokens)

    def _stopped(self, decoded: Decoded, tokens: Tensor, stops: StopStrings) -> Tensor:
        """[M], whether a live completion contains a stop string with its new token."""
        completions, new, live = torch.stack((decoded.completion, tokens, decoded.live.long())).tolist()
        rows = [row for row, lives in enumerate(live) if lives]
        ended = stops.ended([completions[row] for row in rows], [new[row] for row in rows])
        stopped = [False] * len(live)
        for row, is_ended in zip(rows, ended, strict=True):
            stopped[row] = is_ended
        return torch.tensor(stopped, device=tokens.device)

    def _fork(self, tokens: Tensor, since: int, first_row: int) -> Tensor:
        """Give completions of one row that sampled different tokens rows of their own; a finished one stays with any.
        Returns the last token of each row from `first_row` on."""
        live, row = self.decoded.live[since:], self.decoded.row[since:]
        pairs = (row << 32 | tokens)[live].tolist()
        rows_of = dict.fromkeys(pairs, 0)
        """(row, token) as one number -> the row that continues it."""
        parents, continued, last = list[int](), set[int](), [0] * (len(self.cache) - first_row)
        for pair in rows_of:
            old, token = divmod(pair, 1 << 32)
            if old in continued:
                rows_of[pair] = len(self.cache) + len(parents)
                parents.append(old)
                last.append(token)
            else:
                continued.add(old)
                rows_of[pair] = old
                last[old - first_row] = token
        if parents:
            self.cache.fork(torch.tensor(parents))
            row[live] = torch.tensor([rows_of[pair] for pair in pairs])
            self.reordered = True
        return torch.tensor(last)

    def _note(self) -> None:
        self.transcript.note(self.decoded.completion, self.decoded.count, self.decoded.ended)

    def _give_up_store_unless_room_for(self, tokens: int) -> None:
        """Keep no activations of this generation where the store cannot take `tokens` more."""
        if self.store is not None and not self.store.has_room_for(tokens):
            self.store = None


def common_beginning(prompts: list[Tensor]) -> int:
    """The number of tokens that all prompts begin with, such as a chat template's, and after which each has more."""
    if len(prompts) < 2:
        return 0
    ids = [prompt.tolist() for prompt in prompts]
    most = max(0, min(map(len, ids)) - 1)
    first, last = min(ids), max(ids)  # in the order of sequences, so that all others begin with what both begin with
    agree = [a == b for a, b in zip(first[:most], last[:most], strict=True)]
    return agree.index(False) if False in agree else most


def _appended(before: Tensor, more: Tensor) -> Tensor:
    return torch.cat([before, more]) if len(before) else more
