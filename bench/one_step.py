"""The seconds and the memory of a GRPO step of a workload, in this project and in TRL."""

from __future__ import annotations

import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from workloads import G, Workload, reward_of, rows, tokenizer_of


def peak_memory(device: str = "cpu") -> float:
    """Peak of the process's resident memory, or of the CUDA allocator, MiB."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def common(workload: Workload, steps: int, folder: str) -> dict[str, Any]:
    batch = workload.prompts * G
    at_once = workload.at_once or batch
    return {
        "output_dir": folder,
        "learning_rate": 1e-6,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch // at_once,
        "num_generations": G,
        "max_completion_length": workload.completion,
        "beta": 0.04,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "max_steps": steps,
        "seed": 0,
        "use_cpu": workload.device == "cpu",
        "shuffle_dataset": False,
    }


def lora() -> Any:
    """A LoRA adapter of rank 16 on every linear layer but the output layer."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def measure_ours(workload: Workload, steps: int, model: str, folder: str, **options: bool) -> dict[str, Any]:
    from cohort import GRPOConfig, GRPOTrainer

    config = GRPOConfig(**common(workload, steps, folder), bf16=options.get("bf16", False), log_completions=0)
    before = peak_memory(workload.device)
    trainer = GRPOTrainer(
        model,
        reward_of(workload),
        config,
        rows(workload, steps),
        processing_class=tokenizer_of(workload),
        peft_config=lora() if options.get("lora") else None,
    )
    trainer.train()
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "seconds/step" in line][workload.warm_up :]
    return {
        "generate": [line["seconds/generate"] for line in lines],
        "score": [line["seconds/reference"] + line["seconds/reward"] for line in lines],
        "update": [line["seconds/update"] for line in lines],
        "step": [line["seconds/step"] for line in lines],
        "tokens": statistics.mean(line["completions/mean_length"] for line in lines),
        "longest": statistics.mean(line["completions/max_length"] for line in lines),
        "memory": peak_memory(workload.device) - before,
    }


def timed(owner: Any, name: str, seconds: list[float]) -> None:
    """Wrap the method so that each call records its seconds."""
    inner = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = inner(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        return result

    setattr(owner, name, call)


def trl_config(workload: Workload, steps: int, folder: str, options: dict[str, bool]) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        **common(workload, steps, folder),
        bf16=options.get("bf16", False),
        report_to="none",
        gradient_checkpointing=False,
        use_bias_correction_kl=False,
        save_strategy="no",
        logging_steps=1,
        use_transformers_continuous_batching=options.get("continuous", False),
        model_init_kwargs={
            "attn_implementation": "eager" if options.get("eager") else "sdpa",
            "dtype": "bfloat16" if options.get("half") else "float32",
        },
    )


def measure_trl(workload: Workload, steps: int, model: str, folder: str, **options: bool) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    if options.get("eager"):
        torch.set_float32_matmul_precision("medium")
    clock: dict[str, list[float]] = {"generate": [], "prepare": [], "step": []}
    lengths: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock["step"].append(time.perf_counter() - self.started)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "completions/mean_length" in logs:
                lengths.append((logs["completions/mean_length"], logs["completions/max_length"]))

    before = peak_memory(workload.device)
    trainer = GRPOTrainer(
        model,
        reward_of(workload),
        args=trl_config(workload, steps, folder, options),
        train_dataset=Dataset.from_list(rows(workload, steps)),
        callbacks=[Clock()],
        processing_class=tokenizer_of(workload),
        peft_config=lora() if options.get("lora") else None,
    )
    timed(trainer, "_generate", clock["generate"])
    timed(trainer, "_generate_and_score_completions", clock["prepare"])
    trainer.train()
    generate, prepared, step = (clock[name][workload.warm_up :] for name in ("generate", "prepare", "step"))
    # TRL prepares the batch before or after its step timer starts, depending on the version: add both.
    inside = statistics.median(step) > statistics.median(prepared)
    whole = step if inside else [a + b for a, b in zip(step, prepared, strict=True)]
    return {
        "generate": generate,
        "score": [p - g for p, g in zip(prepared, generate, strict=True)],
        "update": [w - p for w, p in zip(whole, prepared, strict=True)],
        "step": whole,
        "tokens": statistics.mean(mean for mean, _ in lengths[workload.warm_up :]),
        "longest": statistics.mean(longest for _, longest in lengths[workload.warm_up :]),
        "memory": peak_memory(workload.device) - before,
    }
