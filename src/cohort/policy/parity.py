"""Which fast paths are right for a model: each is compared with the model's own forward pass before a run, over the
first layers of each kind."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cohort.policy.decoding import decoder_of, why_no_fused_decoder
from cohort.policy.dropout import adapter_parts, zero_dropout_of_config
from cohort.policy.first_layers import ERRORS, on_first_layers
from cohort.policy.memory import is_out_of_memory
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.packed.layout import AttentionDropout
from cohort.policy.packed.pack import Part
from cohort.policy.paths import NAMES, OWN_LAYERS
from cohort.policy.precision import HALF
from cohort.types import UserError

log = logging.getLogger("cohort")

PARITY = 2e-3
"""Largest difference of log-probabilities that counts as equal in float32. Measured: 1e-6 where the packed path is
right for a model, 1e-1 where it is not."""
PARITY_BF16 = 0.15
ROUNDINGS = 8
"""How many times the rounding of the model's own pass in bfloat16 a difference may be where float32 agrees. Measured on
an AMD EPYC of family 26: 2.4 and 4.2 times, 0.18 and 0.17, of paths that differ by 3e-5 in float32."""
RANDOM, RANDOM_BF16 = 1e-4, 3e-2
"""Largest relative difference of two training passes that is rounding: sums of a GPU have no fixed order. Dropout of
0.01 makes 1e-1."""

OUT_OF_MEMORY = (
    "out of memory on {} before the run, in a pass over a few tokens: the model's weights leave no room ({}). Free the "
    "device's memory, or take a smaller model, or quantization_config in model_init_kwargs with finetuning_type: lora"
)


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


def check_repeatable(policy: Policy) -> None:
    """Warn where two training passes of the policy over the same tokens differ, although dropout is off."""

    def logits(ids: Tensor) -> Tensor:
        with policy.autocast():
            result: Tensor = policy.model(input_ids=ids, use_cache=False).logits
        return result

    part = _small_groups(policy)[0]
    ids = torch.cat([part.prompt_ids, *part.completion_ids]).unsqueeze(0).to(policy.device)
    tell_unrepeatable(policy.model, lambda: logits(ids), half=_tolerance(policy) != PARITY)


def tell_unrepeatable(model: Any, forward: Callable[[], Tensor], half: bool) -> None:
    """Warn where `forward`, a pass of the model, gives something else the second time in training; an adapter's dropout
    does not count. Where the model reads dropout from its configuration in each pass, set it to 0 there. `half`:
    whether products are in half precision."""
    bound = RANDOM_BF16 if half else RANDOM
    name = type(model).__name__
    if (difference := _training_difference(model, forward)) > bound and (keys := zero_dropout_of_config(model.config)):
        log.info("%s reads %s from its configuration: 0 there, in the saved one too", name, ", ".join(keys))
        difference = _training_difference(model, forward)
    if difference > bound:
        log.warning(
            "two training passes of %s over the same tokens differ by %.1g of their size: something random is left on "
            "that disable_dropout does not know, such as noise in a router. What is sampled and what is trained then "
            "differ too",
            name,
            difference,
        )


def _training_difference(model: Any, forward: Callable[[], Tensor]) -> float:
    """The difference of the results of two training passes by the model's own code, over their size."""

    def result(seed: int) -> Tensor:
        with _training(model, seed):
            return forward().float()

    first, second = on_first_layers(model, lambda: (result(0), result(1)))
    return float((first - second).norm() / second.norm().clamp(min=1e-12))


@contextmanager
def _training(model: Any, seed: int) -> Iterator[None]:
    """Training mode but for adapters, without gradients, with random numbers of its own."""
    was_training, device = model.training, next(model.parameters()).device
    model.train()
    for part in adapter_parts(model):
        part.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        model.train(was_training)


def _attention_dropout(policy: Policy) -> str:
    """Why a model that is trained needs padded rows: its attention drops weights. Empty where it does not."""

    def forward() -> None:
        with _training(policy.model, 0):
            policy.hidden(policy.pack(_small_groups(policy)).inputs, by_model_code=True)

    try:
        on_first_layers(policy.backbone, forward)
    except AttentionDropout as error:
        return str(error)
    except ERRORS:
        pass  # the comparison of log-probabilities says what they mean, or that memory ran out
    return ""


def _drop_wrong_paths(policy: Policy) -> None:
    if policy.parameters and (reason := _attention_dropout(policy)):
        _take_rows(policy, reason)
        return
    if policy.paths.decoder.taken and (reason := why_no_fused_decoder(policy)):
        policy.paths = policy.paths.without(reason, "decoder", "reuse", "cuda_graph")
    difference, error = _difference(policy)
    if policy.paths.layers.taken and difference is not None and not _is_rounding(policy, difference):
        policy.paths = policy.paths.without(f"log-probabilities differ by {difference:.1e}", *OWN_LAYERS)
        difference, error = _difference(policy)
    if difference is None or not _is_rounding(policy, difference):
        reason = error or f"packed log-probabilities differ from its own by {difference:.1e}"
        _take_rows(policy, reason)


def _take_rows(policy: Policy, reason: str) -> None:
    policy.paths = policy.paths.without(reason, *NAMES)
    log.warning("%s takes the row path: %s. Slower, equally right.", type(policy.model).__name__, reason)


def _why_rows(policy: Policy, longest: int | None) -> str:
    """Why sequences of this length need padded rows; empty where they do not."""
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
    if difference is None or not _is_rounding(policy, difference):
        raise UserError(
            f"{type(policy.model).__name__}: this model's logits are not its output layer's applied to its "
            "last hidden states, so it cannot be trained here"
        )


def _tolerance(policy: Policy) -> float:
    return PARITY_BF16 if policy.bf16 or _has_half_weights(policy) else PARITY


def _has_half_weights(policy: Policy) -> bool:
    """Quantised weights are multiplied in bfloat16 whatever the dtype of the rest, and weights in half precision in
    their own."""
    half = any(parameter.dtype in HALF for parameter in policy.model.parameters())
    return half or bool(getattr(policy.model, "is_quantized", False))


def _is_rounding(policy: Policy, difference: float) -> bool:
    """Whether a difference of log-probabilities is one of rounding. Where autocast's is large, so is that of the
    model's own pass, and in float32 there is none."""
    if difference <= _tolerance(policy):
        return True
    if not policy.bf16 or _has_half_weights(policy) or not math.isfinite(difference):
        return False
    half = on_first_layers(policy.backbone, lambda: _plain(policy))
    policy.bf16 = False
    try:
        full = on_first_layers(policy.backbone, lambda: _plain(policy))
        exact, _ = _difference(policy)
    finally:
        policy.bf16 = True
    return exact is not None and exact <= PARITY and difference <= ROUNDINGS * _largest(half, full)


def _small_groups(policy: Policy) -> list[Part]:
    """Two groups of random tokens, of unequal lengths."""
    vocabulary = policy.head.output.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    parts = []
    for g, (p, lengths) in enumerate([(5, [4, 2]), (9, [3, 6])]):
        prompt, *rows = (torch.randint(vocabulary, (n,), generator=generator) for n in (p, *lengths))
        parts.append(Part(g, prompt, range(len(rows)), rows))
    return parts


def _difference(policy: Policy) -> tuple[float | None, str]:
    """The largest difference of log-probabilities to the model's plain forward pass, in training and in decoding, over
    two small groups of unequal lengths; or None and the error of a model that does not run the grouped attention."""
    try:
        return on_first_layers(policy.backbone, lambda: _largest_difference(policy)), ""
    except ERRORS as error:
        if is_out_of_memory(error):
            raise UserError(OUT_OF_MEMORY.format(policy.device, str(error).strip().split("\n")[0][:200])) from error
        if not policy.packed:
            raise
        reason = " ".join(str(error).split())[:300]
        return None, f"it does not run the grouped attention ({type(error).__name__}: {reason})"


@torch.no_grad()
def _plain(policy: Policy) -> list[Tensor]:
    """Log-probabilities of the small groups' completions by the model's plain forward pass."""
    plain = []
    for part in _small_groups(policy):
        for ids in part.completion_ids:
            row = torch.cat([part.prompt_ids, ids]).unsqueeze(0).to(policy.device)
            if policy.length_dependence is not None:
                policy.length_dependence.forget()
            with policy.autocast():
                logits = policy.model(input_ids=row, use_cache=False).logits[0].float()
            logp = torch.log_softmax(logits[len(part.prompt_ids) - 1 : -1], -1)
            plain.append(logp.gather(1, ids.to(policy.device)[:, None]).squeeze(1).cpu())
    return plain


def _largest(ours: list[Tensor], plain: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True))


@torch.no_grad()
def _largest_difference(policy: Policy) -> float:
    parts, plain = _small_groups(policy), _plain(policy)
    logprobs = policy.logprobs(iter([parts]), 1.0)
    ours = [logprobs[g, r] for g, part in enumerate(parts) for r in part.rows]
    if policy.packed:
        ours += _decode(policy, parts)
        plain += plain
    return _largest(ours, plain)


def _decode(policy: Policy, parts: list[Part]) -> list[Tensor]:
    """Log-probabilities of the given completions, computed one token at a time with a decoding cache."""
    decoder = decoder_of(policy)
    pack = policy.pack([Part(part.group, part.prompt_ids, [], []) for part in parts])
    prefill = policy.prefill(pack, decoder.uses_model_code)
    cache = DecodeCache(share=True)
    cache.extend(prefill.prompts, [len(part.rows) for part in parts])
    rows = [ids for part in parts for ids in part.completion_ids]
    last = prefill.hidden[prefill.prompts.ends][cache.group]
    logprobs = []
    for t in range(max(len(ids) for ids in rows)):
        tokens = torch.tensor([int(ids[min(t, len(ids) - 1)]) for ids in rows], device=policy.device)
        logprobs.append(policy.head.logprobs(last, tokens).cpu())
        cache.advance()
        with policy.autocast():
            last = decoder(tokens, cache)
    return [torch.stack(logprobs, 1)[i, : len(ids)] for i, ids in enumerate(rows)]
