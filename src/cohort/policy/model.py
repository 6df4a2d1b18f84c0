"""The policy: a causal language model of transformers, packed forward passes and its head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cohort.policy.fast.layers import fuses, hidden_states
from cohort.policy.fast.products import fast_float32
from cohort.policy.fast.reuse import Decoded
from cohort.policy.head import Head
from cohort.policy.packed.layout import NAME
from cohort.policy.packed.pack import Pack, Part, pack_groups, pack_rows
from cohort.types import UserError


class Policy:
    """Wraps `model` (a transformers causal LM, LoRA layers injected or not); `peft` is its PeftModel or None."""

    def __init__(self, model: Any, tokenizer: Any, *, peft: Any = None, bf16: bool = False):
        self.model, self.tokenizer, self.peft, self.bf16 = model, tokenizer, peft, bf16
        self.device: torch.device = next(model.parameters()).device
        self.head = Head(model)
        self.trunk = model.base_model
        self.grouped = True
        """False: the model has an attention of its own and takes padded rows."""
        self.fuses = fuses(self.trunk)
        """Whether its layers run by `trunk.py` and its decoding by `decoder.py`, or by the model's own code."""
        self.native_attention: str = model.config._attn_implementation
        self.version = 0
        """Counts updates, so that a completion can say which weights made it."""
        self.room_for_decoded = 0
        """Tokens of which the next generation may keep what its layers made."""
        self.decoded: Decoded | None = None
        """Of the last generation, for the update that follows it."""
        embeddings = model.get_input_embeddings()
        if isinstance(embeddings, nn.Embedding):
            embeddings.padding_idx = None  # a sampled pad token is a token like any other and earns its gradient

    def of_copy(self, model: Any) -> Policy:
        """A policy of a copy of the model, by the same code: what has been compared is not compared again."""
        found = Policy(model, self.tokenizer, bf16=self.bf16)
        found.grouped, found.fuses = self.grouped, self.fuses
        return found

    @property
    def name(self) -> str:
        """The name or path that the model was loaded from; of an object made from nothing, its class."""
        return getattr(self.model.config, "name_or_path", "") or type(self.model).__name__

    @property
    def parameters(self) -> list[nn.Parameter]:
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
        """Positions the model was made for; a large number where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a completion: the generation configuration's and the tokenizer's."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return sorted({int(i) for i in (*listed, self.tokenizer.eos_token_id) if i is not None})

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return torch.bfloat16 if self.bf16 else self.head.output.weight.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def pack(self, parts: list[Part]) -> Pack:
        return (pack_groups if self.grouped else pack_rows)(parts, self.device)

    def hidden(self, inputs: dict[str, Any], by_model: bool = False) -> Tensor:
        """Final hidden states of one forward pass, flattened to [T, D]. `by_model`: by the model's own code, in which a
        head's numbers stand in another order than in `trunk.py`."""
        with self.autocast(), self.attending():
            if self.fuses and self.grouped and not by_model:
                return hidden_states(self.trunk, inputs["input_ids"][0], inputs["position_ids"][0], inputs["grouped"])
            out = self.trunk(**inputs, use_cache=False)
        return out.last_hidden_state.flatten(0, 1)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Inside, the model runs the grouped attention; its own is back afterwards. Held open around a backward
        pass too (gradient checkpointing runs the layers again) and around a whole generation (switching is slow)."""
        if not self.grouped or self.model.config._attn_implementation == NAME:
            yield
            return
        self.model.set_attn_implementation(NAME)
        try:
            with fast_float32(self.device):
                yield
        finally:
            self.model.set_attn_implementation(self.native_attention)

    def logprobs(self, batches: Iterable[list[Part]], temperature: float) -> dict[tuple[int, int], Tensor]:
        """(group, row) -> float32 [n] log-probabilities of each completion, on the CPU."""
        return self._measured(batches, lambda hidden_N, pack: self.head.logprobs(hidden_N, pack.targets_N, temperature))

    def entropies(self, batches: Iterable[list[Part]], temperature: float) -> dict[tuple[int, int], Tensor]:
        """(group, row) -> float32 [n] entropies of what each token was drawn from, on the CPU."""
        return self._measured(batches, lambda hidden_N, pack: self.head.entropies(hidden_N, temperature))

    @torch.no_grad()
    def _measured(
        self, batches: Iterable[list[Part]], measure: Callable[[Tensor, Pack], Tensor]
    ) -> dict[tuple[int, int], Tensor]:
        found: dict[tuple[int, int], Tensor] = {}
        with self.autocast(), self.attending():
            for parts in batches:
                pack = self.pack(parts)
                values = measure(self.hidden(pack.inputs)[pack.sources_N], pack).cpu()
                keys = [(part.group, row) for part in parts for row in part.rows]
                lengths = [len(ids) for part in parts for ids in part.completion_ids]
                found.update(zip(keys, values.split(lengths), strict=True))
        return found
