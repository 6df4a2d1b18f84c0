"""Seeded runs of every kind, and a checksum of what each leaves: what a change that should change nothing is held to.

    python bench/seeded_runs.py OUT                 # runs the demo, SFT, LoRA, PPO, DPO, process and iterative GRPO
    python bench/seeded_runs.py OUT --against OTHER # and compares with what another checkout's runs left

A checksum covers every row of metrics.jsonl, seconds left out, and every weight that was saved. Runs are equal to the
bit only on the same machine, with the same versions of the packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file

from cohort import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer, SFTConfig, SFTTrainer, Trainer
from cohort.config import GRPOProcessConfig, RFTConfig
from cohort.data.chains import Teacher, build_model, build_tokenizer, make_chains
from cohort.demo.small import run_demo

RESULT = "checksums.json"
TIMES = ("seconds", "tokens_per_second")
SHAPE = {"vocab_size": 36, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0,
         "num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 1, "initializer_range": 0.3}  # fmt: skip
DEMONSTRATIONS, TRAIN, HELD_OUT = make_chains(3, 64, 16, 0, Teacher(0))
SAMPLED: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 16, "max_completion_length": 24}
QUICK: dict[str, Any] = {"learning_rate": 1e-2, "max_steps": 6, "seed": 7, "use_cpu": True}


def digits(completions: list[Any], **_: Any) -> list[float]:
    """The share of digits in the text."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.isdigit() for c in text) / (1 + len(text)) for text in texts]


def even(completions: list[Any], **_: Any) -> list[float]:
    """1 where the number of digits is even: what random text often is."""
    return [float(sum(c.isdigit() for c in completion[0]["content"]) % 2 == 0) for completion in completions]


def first_digits(steps: list[list[str]], **_: Any) -> list[list[float]]:
    """A score for each step: 1 where it begins with a digit."""
    return [[float(text[:1].isdigit()) for text in texts] for texts in steps]


def model() -> Any:
    return build_model(build_tokenizer(), 0)


def reward_model(folder: Path) -> str:
    torch.manual_seed(1)
    config = transformers.Qwen2Config(**{**SHAPE, "num_labels": 1, "vocab_size": len(build_tokenizer())})
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def demo(folder: Path) -> None:
    run_demo(0, folder, Console(quiet=True))


def sft(folder: Path) -> None:
    config = SFTConfig(output_dir=str(folder), eval_strategy="steps", eval_steps=3, **QUICK)
    SFTTrainer(model(), config, DEMONSTRATIONS, DEMONSTRATIONS[:8], processing_class=build_tokenizer()).train()


def grpo_lora(folder: Path) -> None:
    config = GRPOConfig(output_dir=str(folder), finetuning_type="lora", num_iterations=2, **QUICK, **SAMPLED)
    GRPOTrainer(model(), digits, config, TRAIN, processing_class=build_tokenizer()).train()


def grpo_variants(folder: Path) -> None:
    """Keys that take other paths through a step: dynamic sampling, an entropy bonus, a share of the tokens."""
    keys = {"dynamic_sampling": True, "entropy_coef": 0.01, "top_entropy_quantile": 0.5, "loss_type": "dapo"}
    config = GRPOConfig(output_dir=str(folder), eval_strategy="steps", eval_steps=3, **keys, **QUICK, **SAMPLED)
    GRPOTrainer(model(), [digits, "accuracy"], config, TRAIN, HELD_OUT, processing_class=build_tokenizer()).train()


def rft(folder: Path) -> None:
    config = RFTConfig(output_dir=str(folder), reward_threshold=0.3, **{**QUICK, **SAMPLED})
    Trainer(model(), digits, config, TRAIN, processing_class=build_tokenizer(), method="rft").train()


def ppo(folder: Path) -> None:
    config = PPOConfig(output_dir=str(folder), num_mini_batches=2, num_ppo_epochs=2, **{**QUICK, **SAMPLED})
    PPOTrainer(model(), digits, config, TRAIN, processing_class=build_tokenizer()).train()


def dpo(folder: Path) -> None:
    config = DPOConfig(output_dir=str(folder), dpo_pairs="best-worst", **{**QUICK, **SAMPLED})
    DPOTrainer(model(), config, TRAIN, processing_class=build_tokenizer(), reward_funcs=digits).train()


def grpo_process(folder: Path) -> None:
    config = GRPOProcessConfig(output_dir=str(folder), step_pattern="[+=-]", **{**QUICK, **SAMPLED})
    rewards = [first_digits, digits]
    Trainer(model(), rewards, config, TRAIN, processing_class=build_tokenizer(), method="grpo_process").train()


def iterative(folder: Path) -> None:
    settings = {key: value for key, value in QUICK.items() if key != "max_steps"}
    refit = {"rule": f"{__file__}:even", "learning_rate": 1e-3, "replay_share": 0.25}
    config = GRPOConfig(
        output_dir=str(folder),
        iterations=3,
        steps_per_iteration=2,
        reward_model_refit=refit,
        gold_reward=f"{__file__}:even",
        reward_clip=None,
        **settings,
        **SAMPLED,
    )
    rewards = [{"model": reward_model(folder.with_name("reward_model"))}]
    GRPOTrainer(model(), rewards, config, TRAIN, processing_class=build_tokenizer()).train()


RUNS = (demo, sft, rft, grpo_lora, grpo_variants, ppo, dpo, grpo_process, iterative)


def checksum(folder: Path) -> dict[str, str]:
    """Of the metrics and of the weights under the folder, a digest each."""
    digests = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]
        digests[str(path.relative_to(folder))] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
    for path in sorted(folder.rglob("*.safetensors")):
        weights = hashlib.sha256()
        for name, tensor in sorted(load_file(path).items()):
            weights.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
        digests[str(path.relative_to(folder))] = weights.hexdigest()
    return digests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path, help="what another checkout's runs left")
    parser.add_argument("--only", nargs="*", default=[run.__name__ for run in RUNS])
    options = parser.parse_args()
    digests_of = {}
    for run in RUNS:
        if run.__name__ in options.only:
            run(options.output / run.__name__)
            digests_of[run.__name__] = checksum(options.output / run.__name__)
    (options.output / RESULT).write_text(json.dumps(digests_of, indent=1), encoding="utf-8")
    if options.against is None:
        return 0
    expected = json.loads((options.against / RESULT).read_text(encoding="utf-8"))
    for name, digests in digests_of.items():
        same = digests == expected[name]
        print(f"{name:<16}{'equal to the bit' if same else 'DIFFERENT'}  ({len(digests)} files)")
    return int(any(digests != expected[name] for name, digests in digests_of.items()))


if __name__ == "__main__":
    sys.exit(main())
