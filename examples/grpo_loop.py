"""GRPO on one page: sample groups, reward them, compare siblings, follow the gradient. Seconds on a CPU.

    python examples/grpo_loop.py

An untrained model of half a million parameters learns to write digits. The package trains with the same formulas and
the same sampling engine. It adds speed and memory (packed groups, a head that never holds a [tokens x vocabulary]
tensor, micro-batches), checkpoints, records and the other methods.

Sizes: P prompts in a batch, G completions of each prompt, N completion tokens of one group.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cohort.config import GRPOConfig
from cohort.data.chains import build_model, build_tokenizer, make_chains
from cohort.data.order import prompt_seeds
from cohort.data.templates import encode_prompt
from cohort.formulas.coefficient import clipped
from cohort.formulas.credit import scale_by_group
from cohort.formulas.divergence import k3
from cohort.policy.load import make_policy
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from cohort.types import Completion, Row

STEPS, P, G, UPDATES = 20, 4, 8, 2
LEARNING_RATE, EPSILON, BETA, LENGTH = 1e-3, 0.2, 0.04, 16


def reward(text: str) -> float:
    """The share of digits among the characters."""
    return sum(character.isdigit() for character in text) / max(1, len(text))


def logprobs(model: Any, prompt_ids: Tensor, completions: list[Completion]) -> Tensor:
    """log pi(token | prompt, tokens before it) of each completion token, completion after completion: [N]."""
    rows = [torch.cat([prompt_ids, completion.ids]) for completion in completions]
    # Padding is on the right, where causal attention cannot see it from a completion's tokens.
    logits = model(input_ids=pad_sequence(rows, batch_first=True)).logits.log_softmax(-1)
    start = len(prompt_ids)
    # The logits at position t - 1 predict the token at position t.
    of_rows = [logits[i, start - 1 : len(row) - 1].gather(1, row[start:, None]) for i, row in enumerate(rows)]
    return torch.cat(of_rows).squeeze(1)


def train(seed: int = 0) -> list[float]:
    """Train and print one line for each step; returns the mean reward of each step's samples."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    policy = make_policy(model, tokenizer, GRPOConfig(use_cpu=True, bf16=False))
    engine = local_engine(policy, max_rows=P * G)
    sampling = Sampling(temperature=1.0, max_tokens=LENGTH, eos_ids=policy.eos_ids)
    _, problems, _ = make_chains(2, STEPS * P, 0, seed)
    prompts = [torch.tensor(encode_prompt(tokenizer, Row(problem["prompt"]))) for problem in problems]

    mean_rewards = []
    for step in range(STEPS):
        # 1. Sample a group of G completions for each of P prompts.
        batch = prompts[step * P : (step + 1) * P]
        groups = engine.generate(batch, G, sampling, prompt_seeds(step, len(batch))).completions

        # 2. Reward them, and judge each completion against its siblings.
        rewards_PG = torch.tensor([[reward(completion.text) for completion in group] for group in groups])
        advantages_PG = scale_by_group(rewards_PG)

        # 3. Update the policy on the batch. From the second update on the ratio pi / pi_old differs from 1.
        for _ in range(UPDATES):
            optimizer.zero_grad()
            for prompt_ids, group, advantages_G in zip(batch, groups, advantages_PG, strict=True):
                lengths_G = torch.tensor([len(completion.ids) for completion in group])
                advantages_N = advantages_G.repeat_interleave(lengths_G)
                weights_N = (1 / (lengths_G * P * G)).repeat_interleave(lengths_G)
                old_logprobs_N = torch.cat([completion.logprobs for completion in group])
                with torch.no_grad():
                    reference_logprobs_N = logprobs(reference, prompt_ids, group)
                logprobs_N = logprobs(model, prompt_ids, group)

                # 4. The gradient is sum_t weight_t * coefficient_t * grad logprob_t: the coefficient is a constant.
                seen_N = logprobs_N.detach()
                surrogate = clipped(seen_N, old_logprobs_N, advantages_N, EPSILON, EPSILON)
                coefficient_N = surrogate.coefficient_N - BETA * k3(seen_N, reference_logprobs_N).slope_N
                (-(weights_N * coefficient_N * logprobs_N).sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        mean_rewards.append(float(rewards_PG.mean()))
        print(f"step {step + 1:2}  reward {mean_rewards[-1]:.3f}  {groups[0][0].text!r}")
    return mean_rewards


if __name__ == "__main__":
    train()
