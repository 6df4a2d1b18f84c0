"""The policy: a causal language model of transformers, its packed forward passes and its head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from cohort.policy.fast.activations import ReusedLayout
from cohort.policy.fast.functions import LayerActivations
from cohort.policy.fast.layers import (
    hidden_states,
    hidden_states_and_activations,
    hidden_states_of_known,
    why_unsupported,
)
from cohort.policy.fast.products import fast_float32
from cohort.policy.head import Head
from cohort.policy.packed.layout import NAME
from cohort.policy.packed.pack import Pack, Part, pack_groups, pack_prompts, pack_rows
from cohort.policy.packed.prompts import CapturingLayout
from cohort.policy.paths import possible_paths
from cohort.policy.rotary import length_dependence
from cohort.types import UserError


class Prefill(NamedTuple):
    """One forward pass over prompts."""

    hidden: Tensor
    """[T, Dm], final hidden states."""
    prompts: CapturingLayout
    """Holds the keys and values, for a cache."""
    activations: list[LayerActivations]
    """What each layer computed; empty unless asked for."""


class Policy:
    """Wraps `model`, a transformers causal LM with or without injected LoRA layers; `peft` is its PeftModel or None.

    `paths` says which fast paths the policy takes. It is set once, by `choose_paths` before a run.
    """

    keeps_config = False
    """A checkpoint has no need of the configuration beside an adapter."""
    is_sharded = False
    """Whether the weights are divided among ranks."""

    def __init__(self, model: Any, tokenizer: Any, *, peft: Any = None, bf16: bool = False):
        self.model, self.tokenizer, self.peft, self.bf16 = model, tokenizer, peft, bf16
        self.device: torch.device = next(model.parameters()).device
        self.head = Head(model)
        self.backbone = _backbone(model)
        """The model without its output layer."""
        self.paths = possible_paths(self.device, why_unsupported(self.backbone))
        self.length_dependence = length_dependence(self.backbone)
        """Where the model's rotary embedding depends on the length of a sequence; None: nowhere."""
        self.native_attention: str = model.config._attn_implementation
        self.version = 0
        """Counts updates; a completion records the version that sampled it."""

    def of_copy(self, model: Any) -> Policy:
        """A policy of a copy of the model that takes the same paths, without comparing them again."""
        policy = Policy(model, self.tokenizer, bf16=self.bf16)
        policy.paths = self.paths
        return policy

    def copy(self) -> Policy:
        """A policy with a copy of the weights."""
        return self.of_copy(copy.deepcopy(self.model))

    @property
    def packed(self) -> bool:
        """Whether groups are packed into one stream; else each completion is a padded row."""
        return self.paths.packed.taken

    @property
    def name(self) -> str:
        """The name or path that the model was loaded from; the class of a model that was made from nothing."""
        return getattr(self.model.config, "name_or_path", "") or type(self.model).__name__

    def even_passes(self, own: int) -> AbstractContextManager[None]:
        """Around the `own` training passes of this rank. Every rank of a sharded policy enters it."""
        return nullcontext()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def require_trainable(self) -> None:
        """Raise UserError where every weight is frozen."""
        if not self.parameters:
            raise UserError(
                f"there is nothing to train: every weight of {self.name!r} is frozen. An adapter by name is loaded for "
                "use: merge it first (cohort export ADAPTER --merge --output DIR) and train DIR; a PeftModel is loaded "
                "with is_trainable=True"
            )

    @property
    def context_length(self) -> int:
        """The model's number of positions; a large number where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    def require_known(self, ids: Sequence[int], where: str) -> None:
        """Raise UserError if a token has no row in the model's embedding. `where` begins the message."""
        known, largest = self.model.get_input_embeddings().num_embeddings, max(ids, default=0)
        if largest >= known:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"{where}: the tokenizer's token {token!r} is number {largest}, and the model's embedding has {known} "
                "rows: give the model's own tokenizer, or make room: model.resize_token_embeddings(len(tokenizer))"
            )

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a completion: the generation configuration's and the tokenizer's."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return sorted({int(i) for i in (*listed, self.tokenizer.eos_token_id) if i is not None})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        weight: Tensor = self.head.output.weight
        return torch.bfloat16 if self.bf16 else weight.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def pack(self, parts: list[Part]) -> Pack:
        self.check_length(max(len(part.prompt_ids) + max(map(len, part.completion_ids), default=0) for part in parts))
        if not self.packed:
            return pack_rows(parts, self.device)
        return pack_groups(parts, self.device, self.paths.flex_attention.taken)

    def pack_prompts(self, prompts: list[Tensor], common: int = 0) -> Pack:
        """Prompts for `prefill`. They begin with the same `common` tokens, which are computed once."""
        self.check_length(max(map(len, prompts)))
        return pack_prompts(prompts, common, self.device, self.paths.flex_attention.taken)

    def check_length(self, tokens: int) -> None:
        """Raise UserError for a sequence that the packed stream would give wrong angles."""
        if self.packed and self.length_dependence is not None and tokens > self.length_dependence.limit:
            raise UserError(
                f"a sequence of up to {tokens} tokens is longer than the run's settings allow, and the packed stream "
                f"is right up to {self.length_dependence.limit}: beyond, the {self.length_dependence.kind} rotary "
                f"embedding of {self.name!r} depends on the length. Set max_prompt_length, max_completion_length and "
                "max_length to what the sequences have, or fast_paths: off"
            )

    def hidden(self, inputs: dict[str, Any], by_model_code: bool = False) -> Tensor:
        """Final hidden states of one forward pass, flattened to [T, Dm]. `by_model_code`: by the model's own layers
        even where they can be replaced; the two order the features of keys differently."""
        if self.length_dependence is not None:
            self.length_dependence.forget()
        with self.autocast(), self.attending():
            if self.packed and self.paths.layers.taken and not by_model_code:
                forward = hidden_states_of_known if isinstance(inputs["grouped"], ReusedLayout) else hidden_states
                return forward(self.backbone, inputs["input_ids"][0], inputs["position_ids"][0], inputs["grouped"])
            if self.packed:
                hidden: Tensor = self.backbone(**inputs, use_cache=False).last_hidden_state
            else:
                hidden = self._hidden_of_rows(**inputs)
        return hidden.flatten(0, 1)

    def _hidden_of_rows(self, input_ids: Tensor, attention_mask: Tensor, lengths: list[int]) -> Tensor:
        """Final hidden states [rows, T, Dm] of padded rows; those with other angles in calls of their own."""

        def run(ids: Tensor, mask: Tensor) -> Tensor:
            out: Tensor = self.backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return out

        dependence = self.length_dependence
        if dependence is None:
            return run(input_ids, attention_mask)
        calls, pieces = dependence.same_angles(lengths), []
        for rows in calls:
            longest = max(lengths[row] for row in rows)
            out = run(input_ids[rows, :longest], attention_mask[rows, :longest])
            pieces.append(pad(out, (0, 0, 0, input_ids.shape[1] - longest)))
            dependence.forget()
        order = torch.tensor([row for rows in calls for row in rows], device=self.device)
        return torch.cat(pieces)[order.argsort()]

    def prefill(self, pack: Pack, by_model_code: bool = False, keep_activations: bool = False) -> Prefill:
        """A forward pass over packed prompts, with what a decoding cache needs."""
        prompts = CapturingLayout(pack.inputs["grouped"])
        inputs = {**pack.inputs, "grouped": prompts}
        if not keep_activations:
            return Prefill(self.hidden(inputs, by_model_code), prompts, [])
        with self.autocast(), self.attending():
            ids, positions = inputs["input_ids"][0], inputs["position_ids"][0]
            hidden, activations = hidden_states_and_activations(self.backbone, ids, positions, prompts)
        return Prefill(hidden, prompts, activations)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Within the context the model runs the grouped attention; its own is restored afterwards. Held around a
        backward pass too, since gradient checkpointing runs the layers again, and around a generation, since switching
        is slow."""
        if not self.packed or self.model.config._attn_implementation == NAME:
            yield
            return
        self.model.set_attn_implementation(NAME)
        try:
            with fast_float32(self.device) if self.paths.onednn.taken else nullcontext():
                yield
        finally:
            self.model.set_attn_implementation(self.native_attention)

    def logprobs(self, batches: Iterable[list[Part]], temperature: float) -> dict[tuple[int, int], Tensor]:
        """(group, completion) -> float32 [n], log-probabilities of its tokens, on the CPU."""
        return self._measured(batches, lambda hidden_N, pack: self.head.logprobs(hidden_N, pack.targets_N, temperature))

    def entropies(self, batches: Iterable[list[Part]], temperature: float) -> dict[tuple[int, int], Tensor]:
        """(group, completion) -> float32 [n], entropy of the distribution of each token, on the CPU."""
        return self._measured(batches, lambda hidden_N, pack: self.head.entropies(hidden_N, temperature))

    def collisions(self, batches: Iterable[list[Part]], temperature: float) -> dict[tuple[int, int], Tensor]:
        """(group, completion) -> float32 [n], log sum_v p_v^2 of the distribution of each token, on the CPU."""
        return self._measured(batches, lambda hidden_N, pack: self.head.collisions(hidden_N, temperature))

    @torch.no_grad()
    def _measured(
        self, batches: Iterable[list[Part]], measure: Callable[[Tensor, Pack], Tensor]
    ) -> dict[tuple[int, int], Tensor]:
        """Without dropout, as the completions were sampled, whether or not the model is in training mode."""
        results: dict[tuple[int, int], Tensor] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            with self.autocast(), self.attending():
                for parts in batches:
                    pack = self.pack(parts)
                    values = measure(self.hidden(pack.inputs)[pack.sources_N], pack).cpu()
                    keys = [(part.group, row) for part in parts for row in part.rows]
                    lengths = [len(ids) for part in parts for ids in part.completion_ids]
                    results.update(zip(keys, values.split(lengths), strict=True))
        finally:
            self.model.train(was_training)
        return results


def _backbone(model: Any) -> Any:
    """transformers' base model, or where it takes the whole model for it (Llama4ForCausalLM), the model inside."""
    inside = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    return inside[0] if model.base_model is model and len(inside) == 1 else model.base_model
