"""The tokens of one generation while it runs, and the completions made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from cohort.policy.model import Policy
from cohort.policy.text import texts_of
from cohort.types import Completion


class Transcript:
    """Tokens and log-probabilities of `n` completions of each prompt, in tensors that are allocated once.

    Allocating a small tensor for each step, between large ones that are freed, would fragment the heap.
    """

    def __init__(self, policy: Policy, prompts: int, n: int, longest: int):
        self.policy, self.prompts, self.n = policy, prompts, n
        total, device = prompts * n, policy.device
        self.longest = longest
        # The column behind the longest completion takes the tokens that finished completions go on to sample.
        self.ids = torch.zeros(total, longest + 1, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(total, longest + 1, device=device)
        self.counts = torch.zeros(total, dtype=torch.long, device=device)
        self.ended = torch.zeros(total, dtype=torch.bool, device=device)
        self._groups: dict[int, list[Completion]] = {}

    def write(self, completions: Tensor, counts: Tensor, live: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """Write the next token of each of M completions, which have `counts` tokens so far."""
        # Selecting the live ones would wait for the device: all are written.
        column = torch.where(live, counts, self.longest)
        self.ids[completions, column] = tokens
        self.logprobs[completions, column] = logprobs

    def note(self, completions: Tensor, counts: Tensor, ended: Tensor) -> None:
        """Note the lengths of completions, and whether each has come to an end by itself."""
        self.counts[completions], self.ended[completions] = counts, ended

    def is_told(self, prompt: int) -> bool:
        """Whether the prompt's completions have been asked for."""
        return prompt in self._groups

    def group(self, prompt: int) -> list[Completion]:
        """The prompt's completions. They are copies: autograd refuses tensors made in inference mode."""
        if prompt not in self._groups:
            own = slice(prompt * self.n, (prompt + 1) * self.n)
            counts, ended = self.counts[own].tolist(), self.ended[own].tolist()
            both = zip(self.ids[own].cpu().numpy(), self.logprobs[own].cpu().numpy(), counts, strict=True)
            with torch.inference_mode(False):
                pairs = [tuple(torch.from_numpy(row[:count].copy()) for row in rows) for *rows, count in both]
            rows = [tuple(ids.tolist()) for ids, _ in pairs]
            distinct = list(dict.fromkeys(rows))
            texts = texts_of(self.policy.tokenizer, distinct, self.policy.eos_ids)
            text_of = dict(zip(distinct, texts, strict=True))
            self._groups[prompt] = [
                Completion(ids, logprobs, text_of[row], truncated=not done, version=self.policy.version)
                for (ids, logprobs), row, done in zip(pairs, rows, ended, strict=True)
            ]
        return self._groups[prompt]

    def groups(self) -> list[list[Completion]]:
        return [self.group(prompt) for prompt in range(self.prompts)]
