"""Which fast paths are right for a model: each is compared with the model's own forward pass before a run."""

from __future__ import annotations

import logging

import torch

from cohort.policy.decoding import decoder_of, why_no_fused_decoder
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.packed.pack import Part
from cohort.policy.paths import NAMES, OWN_LAYERS
from cohort.types import UserError

log = logging.getLogger("cohort")

PARITY = 2e-3
"""Largest difference of log-probabilities that counts as equal in float32. Measured: 1e-6 where the packed path is
right for a model, 1e-1 where it is not."""
PARITY_BF16 = 0.15


def choose_paths(policy: Policy, fast_paths: str = "auto", longest: int | None = None) -> None:
    """Set `policy.paths`: those that equal the model's own forward pass on two small groups; none of them where
    `fast_paths` is "off". Raises UserError where the head does not give the model's logits. `longest`: tokens of the
    longest sequence; None: not known."""
    was_training = policy.model.training
    policy.model.eval()
    reason = _why_rows(policy, longest)
    try:
        if fast_paths == "off":
            policy.paths = policy.paths.without("fast_paths: off", *NAMES)
        elif reason:
            _take_rows(policy, reason)
        else:
            _drop_wrong_paths(policy)
        if not policy.packed:
            _check_head(policy)
    finally:
        policy.model.train(was_training)
    log.debug("fast paths: %s", policy.paths.summary())


def _drop_wrong_paths(policy: Policy) -> None:
    if policy.paths.decoder.taken and (reason := why_no_fused_decoder(policy)):
        policy.paths = policy.paths.without(reason, "decoder", "reuse", "cuda_graph")
    difference, error = _difference(policy)
    if policy.paths.layers.taken and difference is not None and difference > _tolerance(policy):
        policy.paths = policy.paths.without(f"log-probabilities differ by {difference:.1e}", *OWN_LAYERS)
        difference, error = _difference(policy)
    if difference is None or difference > _tolerance(policy):
        reason = error or f"packed log-probabilities differ from its own by {difference:.1e}"
        _take_rows(policy, reason)


def _take_rows(policy: Policy, reason: str) -> None:
    policy.paths = policy.paths.without(reason, *NAMES)
    log.warning("%s takes the row path: %s. Slower, equally right.", type(policy.model).__name__, reason)


def _why_rows(policy: Policy, longest: int | None) -> str:
    dependence = policy.length_dependence
    reason = "" if dependence is None else dependence.why_rows(longest)
    if reason and dependence is not None and policy.context_length > dependence.limit:
        log.warning(
            "%s: where prompt and completion have more than %d tokens together, the completion's first ones are "
            "sampled with other angles of the %s rotary embedding than they are scored and trained with",
            type(policy.model).__name__,
            dependence.limit,
            dependence.kind,
        )
    return reason


def _check_head(policy: Policy) -> None:
    difference, _ = _difference(policy)
    if difference is None or difference > _tolerance(policy):
        raise UserError(
            f"{type(policy.model).__name__}: this model's logits are not its output layer's applied to its "
            "last hidden states, so it cannot be trained here"
        )


def _tolerance(policy: Policy) -> float:
    """Quantised weights are multiplied in bfloat16 whatever the dtype of the rest."""
    return PARITY_BF16 if policy.bf16 or getattr(policy.model, "is_quantized", False) else PARITY


@torch.no_grad()
def _difference(policy: Policy) -> tuple[float | None, str]:
    """The largest difference of log-probabilities to the model's plain forward pass, in training and in decoding, over
    two small groups of unequal lengths; or None and the error of a model that does not run the grouped attention."""
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
            if policy.length_dependence is not None:
                policy.length_dependence.forget()
            with policy.autocast():
                logits = policy.model(input_ids=row, use_cache=False).logits[0].float()
            logp = torch.log_softmax(logits[len(part.prompt_ids) - 1 : -1], -1)
            plain.append(logp.gather(1, ids.to(policy.device)[:, None]).squeeze(1).cpu())
    try:
        logprobs = policy.logprobs(iter([parts]), 1.0)
        ours = [logprobs[g, r] for g, part in enumerate(parts) for r in part.rows]
        if policy.packed:
            ours += _decode(policy, parts)
            plain += plain
    except (TypeError, AssertionError, KeyError, IndexError, RuntimeError) as error:
        if not policy.packed:
            raise
        reason = " ".join(str(error).split())[:300]
        return None, f"it does not run the grouped attention ({type(error).__name__}: {reason})"
    return max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)), ""


def _decode(policy: Policy, parts: list[Part]) -> list[torch.Tensor]:
    """Log-probabilities of the given completions, computed one token at a time with a decoding cache."""
    decoder = decoder_of(policy)
    pack = policy.pack([Part(part.group, part.prompt_ids, [], []) for part in parts])
    prefill = policy.prefill(pack, decoder.uses_model_code)
    cache = DecodeCache(share=True)
    cache.extend(prefill.prompts, [len(part.rows) for part in parts])
    rows = [ids for part in parts for ids in part.completion_ids]
    last = prefill.hidden[prefill.prompts.layout.prompt_lengths.cumsum(0) - 1][cache.group]
    logprobs = []
    for t in range(max(len(ids) for ids in rows)):
        tokens = torch.tensor([int(ids[min(t, len(ids) - 1)]) for ids in rows], device=policy.device)
        logprobs.append(policy.head.logprobs(last, tokens).cpu())
        cache.advance()
        with policy.autocast():
            last = decoder(tokens, cache)
    return [torch.stack(logprobs, 1)[i, : len(ids)] for i, ids in enumerate(rows)]
