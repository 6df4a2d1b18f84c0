"""How far `cohort plan` is from what a run takes: peak resident memory of two GRPO steps, estimated and measured.

    python bench/plan.py [small medium large] [--steps 2]

Each run is a process of its own. Its growth counts from after the imports to the end of the second step, so that the
optimiser's states are there; completions all run to their limit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speed import G, Workload, reward, rows, words_tokenizer

ROOT = Path(__file__).resolve().parents[1]

SIZES = {
    w.name: w
    for w in (
        Workload("small", 8_000, 256, 4, 8, 704, 64, 64, 4),
        Workload("medium", 16_000, 512, 8, 8, 1408, 128, 128, 2),
        Workload("large", 32_000, 1024, 12, 16, 2816, 128, 64, 2),
    )
}
TINY = Workload("tiny", 64, 16, 2, 8, 32, 4, 4, 1)
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"gradient_checkpointing": True},
    "full, budget of a group": {"token_budget": 0},
    "LoRA": {"finetuning_type": "lora"},
}


def settings(size: Workload, folder: str, variant: str) -> dict[str, Any]:
    found = {
        "output_dir": folder + "/out",
        "per_device_train_batch_size": size.prompts * G,
        "num_generations": G,
        "max_completion_length": size.completion,
        "max_prompt_length": size.prompt,
        "beta": 0.04,
        "max_steps": 2,
        "use_cpu": True,
        "bf16": False,
        "log_completions": 0,
        **VARIANTS[variant],
    }
    if found.get("token_budget") == 0:
        found["token_budget"] = size.prompt + G * size.completion
    return found


def measure(size: Workload, folder: str, tiny: str, variant: str) -> list[float]:
    """Growth of the process's peak resident memory at the end of each step, bytes."""
    import torch

    from cohort import GRPOConfig, GRPOTrainer
    from cohort.policy.memory import peak_bytes, reset_peak

    cpu = torch.device("cpu")
    peaks: list[int] = []

    class Peak:
        def on_step_end(self, *_: Any, **__: Any) -> None:
            peaks.append(peak_bytes(cpu))

    def train(workload: Workload, model: str, callbacks: list[Any]) -> None:
        config = GRPOConfig(**settings(workload, folder, variant))
        tokenizer = words_tokenizer(workload)
        GRPOTrainer(model, reward, config, rows(workload, 2), processing_class=tokenizer, callbacks=callbacks).train()

    train(TINY, tiny, [])  # what the first use of a thing imports and sets up is no part of a run
    reset_peak(cpu)
    before = peak_bytes(cpu)
    train(size, folder, [Peak()])
    return [peak - before for peak in peaks]
