"""The policy's weights on their way to servers of vLLM, and the test that they arrive."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cohort.config.hub import cache_without_hub
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.rollouts.engine import EngineError, local_engine
from cohort.rollouts.sampling import Sampling
from cohort.types import UserError

SEQUENCES, PROMPT, CONTINUED = 6, 8, 32
"""Fixed sequences that policy and servers score: their number, the random tokens that each begins with, and those that
the policy goes on with."""
SMALL = 1e-5
"""Mean change of log-probabilities, in nats, that float32 tells from its rounding."""
ARRIVED = 0.5
"""The least slope of the server's changes on the policy's. It is 1 where the weights arrive, 0 where they do not."""


def require_adapter(policy: Policy) -> Any:
    """The configuration of the adapter that is trained; None without one. Raises UserError for one that vLLM cannot
    load."""
    if policy.peft is None:
        return None
    config = policy.peft.peft_config[policy.peft.active_adapter]
    kind = getattr(config.peft_type, "value", str(config.peft_type))
    reasons = [
        *([f"it is of the kind {kind}"] if kind != "LORA" else []),
        *([f"it trains copies of modules ({', '.join(config.modules_to_save)})"] if config.modules_to_save else []),
        *(["it is a DoRA"] if getattr(config, "use_dora", False) else []),
        *(["it trains biases"] if getattr(config, "bias", "none") != "none" else []),
        *(["it trains rows of the embedding"] if getattr(config, "trainable_token_indices", None) else []),
    ]
    if reasons:
        raise UserError(
            f"engine: vllm cannot load this adapter: {', '.join(reasons)}. Use plain LoRA, train all weights, or "
            "engine: local"
        )
    return config


@dataclass(eq=False)
class Weights:
    """One version of the weights as files, and what the policy makes of the fixed sequences with them. The files go
    when nobody has a use for it any more."""

    name: str
    """On a server: of the adapter, or of all its weights."""
    version: int
    folder: Path
    is_adapter: bool
    scores: Tensor
    """[n], log-probabilities of the tokens of the fixed sequences."""

    @property
    def run(self) -> str:
        """How the names of this run's weights begin."""
        return self.name[: self.name.rindex("-") + 1]

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.folder, True)


def write_weights(policy: Policy, folder: Path) -> None:
    """Write what is trained as vLLM reads it: an adapter, or all weights as a transformers checkpoint."""
    if policy.peft is not None:
        # peft looks on the hub whether the base model has other embeddings.
        with cache_without_hub(policy.name):
            policy.peft.save_pretrained(str(folder))
        return
    model = policy.model
    state = {name: tensor.to(policy.dtype).contiguous() for name, tensor in model.state_dict().items()}
    if is_tied(model):
        # A server with two matrices, which `cohort vllm` makes of a tied model, gets both.
        head = f"{_name_of_head(model)}.weight"
        save_file({head: state.pop(head).clone()}, folder / "head.safetensors")
    # In one file: with an index, vLLM reads only what that names.
    model.save_pretrained(str(folder), state_dict=state, max_shard_size="1000GB")


def is_tied(model: Any) -> bool:
    """Whether the output layer's weights are the embedding's."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _name_of_head(model: Any) -> str:
    head = model.get_output_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is head)


class FixedSequences:
    """Some sequences of the policy's own, as it was when the run began."""

    def __init__(self, policy: Policy):
        known = min(policy.model.get_input_embeddings().num_embeddings, len(policy.tokenizer))
        generator = torch.Generator().manual_seed(0)
        begun = PROMPT if policy.context_length >= 2 * PROMPT else 1
        prompts = [torch.randint(known, (begun,), generator=generator) for _ in range(SEQUENCES)]
        most = max(1, min(CONTINUED, policy.context_length - begun - 1))
        sampling = Sampling(max_tokens=most)
        engine = local_engine(policy, SEQUENCES)
        sampled = engine.generate(prompts, 1, sampling, list(range(SEQUENCES))).completions
        self.ids = [torch.cat([p, group[0].ids]) for p, group in zip(prompts, sampled, strict=True)]

    def scores(self, policy: Policy) -> Tensor:
        """[n], the policy's log-probabilities of every token but each sequence's first."""
        parts = [Part(i, ids[:1], range(1), [ids[1:]]) for i, ids in enumerate(self.ids)]
        scored = policy.logprobs(iter([parts]), 1.0)
        return torch.cat([scored[i, 0] for i in range(len(self.ids))])


@dataclass
class Comparison:
    """What one server and the policy make of the fixed sequences, from one version of the weights to the next."""

    url: str
    limit: float
    difference: float = 0.0
    """Between the two, mean over tokens, in nats, as of the last comparison."""
    before: tuple[Tensor, Tensor, float] | None = field(default=None, repr=False)
    """The policy's scores, the server's, and their difference, from which changes are counted."""

    def compare(self, policy_n: Tensor, server_n: Tensor) -> None:
        """Raises EngineError where the server does not have the policy's weights: its scores differ too much, or have
        not gone the way of the policy's. The latter is looked at where the policy's have changed by more than they
        differ from the server's."""
        difference = float((server_n - policy_n).abs().mean())
        self.difference = difference
        if not difference <= self.limit:
            raise EngineError(
                f"engine: vllm: {self.url} does not have the policy's weights, or computes something else: their "
                f"log-probabilities of {len(policy_n)} tokens differ by {difference:.3g} in the mean "
                f"(max_logp_difference is {self.limit:g}). Is it the same model, in a dtype like the run's, without "
                "quantization? A model whose output layer is its embedding needs the command that `cohort vllm` prints"
            )
        if self.before is None:
            self.before = policy_n, server_n, difference
            return
        policy_before, server_before, was = self.before
        change_n, server_change_n = policy_n - policy_before, server_n - server_before
        if float(change_n.abs().mean()) <= max(SMALL, was):
            return
        slope = float((server_change_n * change_n).sum() / change_n.square().sum())
        if slope < ARRIVED:
            raise EngineError(
                f"engine: vllm: the weights do not arrive at {self.url}: since they last did, the policy's "
                f"log-probabilities of {len(policy_n)} tokens have changed by {float(change_n.abs().mean()):.3g} in "
                f"the mean, and the server's by {slope:.2f} of that in the same direction, where it should be all. "
                "Restart the server by the command that `cohort vllm` prints"
            )
        self.before = policy_n, server_n, difference
