"""Helpers that several test files use: small models, groups and rows for them, reward models, the command line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, TrainerCallback

from cohort.config import GRPOConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.data.order import prompt_seeds
from cohort.policy.fast.layers import why_unsupported
from cohort.policy.load import make_policy
from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.policy.paths import OWN_LAYERS, possible_paths
from cohort.types import Completion, Group, Row

ROOT = Path(__file__).resolve().parents[1]

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 6},
    "Granite": {"logits_scaling": 2.0},
}


def small_model(architecture: str = "Qwen2", **overrides: Any) -> Any:
    settings = {**SHAPE, **ARCHITECTURES.get(architecture, {}), **overrides}
    config = getattr(transformers, f"{architecture}Config")(**settings)
    torch.manual_seed(0)
    return getattr(transformers, f"{architecture}ForCausalLM")(config)


def small_policy(architecture: str = "Qwen2", config: TrainingConfig | None = None, **overrides: Any) -> Policy:
    config = config or TrainingConfig(bf16=False, use_cpu=True)
    return make_policy(small_model(architecture, **overrides), build_tokenizer(), config)


def take_own_layers(policy: Policy, taken: bool) -> None:
    """Let the policy run the layers of fast/, or the model's own."""
    paths = possible_paths(policy.device, why_unsupported(policy.backbone))
    policy.paths = paths if taken else paths.without("test", *OWN_LAYERS)


def random_groups(sizes: list[tuple[int, list[int]]], seed: int = 0, vocabulary: int = 97) -> list[Group]:
    """Groups of random tokens with the given (prompt length, completion lengths), rewards and advantages."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for p, lengths in sizes:
        completions = [
            Completion(
                torch.randint(2, vocabulary, (n,), generator=generator),
                torch.zeros(n),
                text="x",
                truncated=bool(torch.rand(1, generator=generator) < 0.3),
                version=-1,
            )
            for n in lengths
        ]
        groups.append(
            Group(
                torch.randint(2, vocabulary, (p,), generator=generator),
                completions,
                Row("?"),
                rewards=torch.rand(len(lengths), generator=generator).tolist(),
                advantages=[torch.randn(1, generator=generator).expand(n) for n in lengths],
            )
        )
    return groups


SIZES = [(5, [4, 7, 1]), (9, [3, 8, 6]), (2, [11, 2, 5])]


def settings(**values: Any) -> GRPOConfig:
    return GRPOConfig(num_generations=3, max_completion_length=12, bf16=False, use_cpu=True, **values)


def padded_logprobs(model: Any, group: Group, temperature: float = 1.0) -> list[Tensor]:
    """Each completion's log-probabilities by the model's plain forward pass, row by row."""
    logprobs = []
    for completion in group.completions:
        row = torch.cat([group.prompt_ids, completion.ids])
        logits = model(input_ids=row[None], use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1)
        logprobs.append(logp.gather(1, completion.ids[:, None]).squeeze(1))
    return logprobs


def perturbed(policy: Policy, groups: list[Group], scale: float, seed: int) -> list[list[Tensor]]:
    """The policy's log-probabilities with noise, in place of an older policy's or a reference's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return [
            [logp + scale * torch.randn(logp.shape, generator=generator) for logp in padded_logprobs(policy.model, g)]
            for g in groups
        ]


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    scale = max(float(g.abs().max()) for g in theirs.values())
    for name, grad in ours.items():
        difference = float((grad - theirs[name]).norm()) / max(float(theirs[name].norm()), 1e-3 * scale)
        assert difference < tolerance, (name, difference)


def tokens_of(groups: list[Group]) -> float:
    return float(sum(len(c.ids) for group in groups for c in group.completions))


ENDS = list(range(1, 12))


def prompts_of(lengths: tuple[int, ...] = (5, 9, 2, 7, 11)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(2, 97, (n,), generator=generator) for n in lengths]


def largest_difference(
    policy: Policy, prompts: list[Tensor], sampled: list[list[Completion]], temperature: float
) -> float:
    """Between the sampler's log-probabilities and the policy's."""
    parts = [
        Part(i, p, range(len(row)), [c.ids for c in row])
        for i, (p, row) in enumerate(zip(prompts, sampled, strict=True))
    ]
    logprobs = policy.logprobs(iter([parts]), temperature)
    return max(
        float((logprobs[i, r] - c.logprobs).abs().max()) for i, row in enumerate(sampled) for r, c in enumerate(row)
    )


def digits(completions: list[Any], **_: Any) -> list[float]:
    """A reward that random text can get: the number of digits, over 10."""
    return [sum(c.isdigit() for c in completion[0]["content"]) / 10 for completion in completions]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the metrics that depend on the clock."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}{{ suffix or '' }}"


def byte_tokenizer(*, bert: bool = False, template: bool = True) -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<eos>", "<cls>", "<sep>"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "<eos>"}
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<cls> $A <sep>",
            pair="<cls> $A <sep> $B:1 <sep>:1",
            special_tokens=[("<cls>", vocabulary["<cls>"]), ("<sep>", vocabulary["<sep>"])],
        )
        names |= {"cls_token": "<cls>", "sep_token": "<sep>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if bert else [])],
        **names,
    )
    fast.chat_template = TEMPLATE if template else None
    return fast


def byte_fallback() -> Any:
    """SentencePiece's BPE, as of Llama 2 and Mistral: other characters are tokens of bytes, which are characters only
    where all of a run of them are, and the text's first space is dropped."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁answer", *"etahonswr.é日", "\n"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def classifier(kind: str, **overrides: Any) -> Any:
    settings = {**SHAPE, "vocab_size": 260, "num_labels": 1, **overrides}
    if kind == "Bert":
        settings = {key: value for key, value in settings.items() if key != "num_key_value_heads"}
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForSequenceClassification")(
        getattr(transformers, f"{kind}Config")(**settings)
    ).eval()


def saved(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def token_classifier(architecture: str) -> Any:
    settings = classifier(architecture).config
    torch.manual_seed(0)
    return getattr(transformers, f"{architecture}ForTokenClassification")(settings).eval()


QUICK_REWARD: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 3,
}


def digit_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Labelled completions of one digit; right is a digit above 4."""
    rng = random.Random(seed)
    pairs = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(count)]
    return [{"prompt": f"{a}>", "completion": str(b), "label": b > 4} for a, b in pairs]


def pair_rows(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    pairs = [(rng.randint(0, 9), sorted(rng.sample(range(10), 2))) for _ in range(count)]
    return [{"prompt": f"{a}>", "chosen": str(high), "rejected": str(low)} for a, (low, high) in pairs]


def step_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    steps = [[rng.randint(0, 9) for _ in range(rng.randint(1, 4))] for _ in range(count)]
    return [{"prompt": "go>", "completion": "\n".join(map(str, x)), "labels": [float(d > 4) for d in x]} for x in steps]


LORA: dict[str, Any] = {"finetuning_type": "lora", "lora_rank": 4}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [3.0, 4.0, 5.0, 6.0],
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", {}),
    "Mistral, window": ("Mistral", {}),
    "Llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama, scaled rope": ("Llama", {"rope_parameters": LLAMA3}),
}


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a separate process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    code = "from cohort.cli.app import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def seeds(prompts: Sequence[Any], seed: int = 0) -> list[int]:
    """A seed of each prompt."""
    return prompt_seeds(seed, len(prompts))
