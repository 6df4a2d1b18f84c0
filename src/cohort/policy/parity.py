"""Whether the packed path and the fused decoder give what the model's own forward gives: tried before a run."""

from __future__ import annotations

import logging

import torch

from cohort.policy.decoding import decoder_of
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.packed.pack import Part
from cohort.types import UserError

log = logging.getLogger("cohort")

PARITY = 2e-3
"""Largest difference of log-probabilities that counts as equal, float32; packed models show 1e-6, wrong ones 1e-1."""
PARITY_BF16 = 0.15


def choose_path(policy: Policy) -> None:
    """Keep the packed path where it equals the model's own forward on a small batch; else take rows, and say so.

    Raises UserError where the head itself does not give the model's logits.
    """
    was_training = policy.model.training
    policy.model.eval()
    try:
        difference, why = _parity(policy)
        if difference is not None and difference > _tolerance(policy):
            policy.fuses = False
            difference, why = _parity(policy)
        if difference is None or difference > _tolerance(policy):
            why = why or f"packed log-probabilities differ from its own by {difference:.1e}"
            policy.grouped = False
            difference, _ = _parity(policy)
            if difference is None or difference > _tolerance(policy):
                raise UserError(
                    f"{type(policy.model).__name__}: this model's logits are not its output layer's applied to its "
                    "last hidden states, so it cannot be trained here"
                )
            log.warning("%s takes the row path: %s. Slower, equally right.", type(policy.model).__name__, why)
    finally:
        policy.model.train(was_training)


def _tolerance(policy: Policy) -> float:
    """Quantised weights are multiplied in bfloat16 whatever the rest is."""
    return PARITY_BF16 if policy.bf16 or getattr(policy.model, "is_quantized", False) else PARITY


@torch.no_grad()
def _parity(policy: Policy) -> tuple[float | None, str]:
    """Largest |log-probability difference| to the model's plain forward, over two small groups of unequal lengths,
    training layout and decoding both."""
    vocabulary = policy.head.output.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    sizes = [(5, [4, 2]), (9, [3, 6])]
    parts = []
    for g, (p, lengths) in enumerate(sizes):
        prompt, *rows = (torch.randint(vocabulary, (n,), generator=generator) for n in (p, *lengths))
        parts.append(Part(g, prompt, range(len(rows)), rows))
    plain = []
    for part in parts:
        for ids in part.completion_ids:
            row = torch.cat([part.prompt_ids, ids]).unsqueeze(0).to(policy.device)
            with policy.autocast():
                logits = policy.model(input_ids=row, use_cache=False).logits[0].float()
            logp = torch.log_softmax(logits[len(part.prompt_ids) - 1 : -1], -1)
            plain.append(logp.gather(1, ids.to(policy.device)[:, None]).squeeze(1).cpu())
    try:
        found = policy.logprobs(iter([parts]), 1.0)
        packed = [found[g, r] for g, part in enumerate(parts) for r in part.rows]
        if policy.grouped:
            packed += _decode(policy, parts)
            plain += plain
    except (TypeError, AssertionError, KeyError, IndexError, RuntimeError) as error:
        if not policy.grouped:
            raise
        reason = " ".join(str(error).split())[:300]
        return None, f"it does not run the grouped attention ({type(error).__name__}: {reason})"
    return max(float((a - b).abs().max()) for a, b in zip(packed, plain, strict=True)), ""


def _decode(policy: Policy, parts: list[Part]) -> list[torch.Tensor]:
    """Log-probabilities of the given completions, one token at a time through the decoding cache."""
    prompts = policy.pack([Part(part.group, part.prompt_ids, [], []) for part in parts])
    layout = prompts.inputs["grouped"]
    layout.captured = {}
    cache, decoder = DecodeCache(share=True), decoder_of(policy)
    hidden = policy.hidden(prompts.inputs, decoder.by_model)
    cache.extend(layout, [len(part.rows) for part in parts])
    rows = [ids for part in parts for ids in part.completion_ids]
    last = hidden[layout.prompt_lengths.cumsum(0) - 1][cache.group]
    found = []
    for t in range(max(len(ids) for ids in rows)):
        tokens = torch.tensor([int(ids[min(t, len(ids) - 1)]) for ids in rows], device=policy.device)
        found.append(policy.head.logprobs(last, tokens).cpu())
        cache.advance()
        with policy.autocast():
            last = decoder(tokens, cache)
    return [torch.stack(found, 1)[i, : len(ids)] for i, ids in enumerate(rows)]
