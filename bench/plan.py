"""Accuracy of `cohort plan`: peak resident memory of two GRPO updates, estimated and measured.

    python bench/plan.py [small medium large] [--variant LoRA]

Each run is a separate process. Memory is measured from after the imports to the end of the second update, so it
includes the optimiser's states; all completions have the maximal length. It is measured twice: with every block of the
C library mapped separately, so that freed memory is returned, and with its heap, which keeps holes between blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workloads import G, Workload, build, reward, rows, words_tokenizer

ROOT = Path(__file__).resolve().parents[1]

SIZES = {
    w.name: w
    for w in (
        Workload("small", 8_000, 256, 4, 8, 704, 64, 64, 4),
        Workload("medium", 16_000, 512, 8, 8, 1408, 128, 128, 2),
        Workload("large", 32_000, 1024, 12, 16, 2816, 128, 64, 1),
    )
}
NO_HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "10000000"}
TINY = Workload("tiny", 64, 16, 2, 8, 32, 4, 4, 1)
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"gradient_checkpointing": True},
    "full, budget of a group": {"token_budget": 0},
    "LoRA": {"finetuning_type": "lora"},
}


def settings(size: Workload, folder: str, variant: str) -> dict[str, Any]:
    keys = {
        "output_dir": folder + "/out",
        "per_device_train_batch_size": size.prompts * G,
        "num_generations": G,
        "max_completion_length": size.completion,
        "max_prompt_length": size.prompt,
        "beta": 0.04,
        "max_steps": 2,
        "num_iterations": 2,
        "use_cpu": True,
        "bf16": False,
        "log_completions": 0,
        **VARIANTS[variant],
    }
    if keys.get("token_budget") == 0:
        keys["token_budget"] = size.prompt + G * size.completion
    return keys


def measure(size: Workload, folder: str, tiny: str, variant: str) -> int:
    """Growth of the process's peak resident memory to the end of the last step, bytes."""
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

    train(TINY, tiny, [])  # imports and set-up at first use are not part of the run
    reset_peak(cpu)
    before = peak_bytes(cpu)
    train(size, folder, [Peak()])
    print([round(peak / 2**20) - round(before / 2**20) for peak in peaks], file=sys.stderr)
    return peaks[-1] - before


def estimate(size: Workload, folder: str, variant: str) -> float:
    """The peak that `cohort plan` estimates, bytes."""
    run = {"model": folder, "dataset": "none", "reward_funcs": "none", **settings(size, folder, variant)}
    path, output = Path(folder) / "run.yaml", Path(folder) / "plan.json"
    path.write_text(json.dumps(run), encoding="utf-8")
    rates = ["--flops", "5e10", "--bandwidth", "5e9"]
    command = [sys.executable, "-m", "cohort", "plan", str(path), *rates, "--json", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return float(json.loads(output.read_text(encoding="utf-8"))["bytes"]["peak"])


def compare(name: str, variant: str) -> tuple[float, float, float]:
    """Peak of the run in bytes: estimated, measured without the heap, measured with it."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as tiny:
        build(SIZES[name], folder)
        build(TINY, tiny)
        command = [sys.executable, str(Path(__file__).resolve()), "--child", name, folder, tiny, variant]
        measured = []
        for settings in (NO_HEAP, {}):
            environment = {**os.environ, **settings}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            measured.append(float(done.stdout.split()[-1]))
        return estimate(SIZES[name], folder, variant), measured[0], measured[1]


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--child"]:
        name, folder, tiny, variant = arguments[1:]
        print(measure(SIZES[name], folder, tiny, variant))
        return 0
    print(
        f"{'size':8} {'variant':24} {'estimated':>12} {'measured':>12} {'ratio':>6} {'with its heap':>14} {'ratio':>6}",
        flush=True,
    )
    variants = [arguments[arguments.index("--variant") + 1]] if "--variant" in arguments else list(VARIANTS)
    for name in [name for name in SIZES if name in arguments] or list(SIZES):
        for variant in variants:
            planned, measured, plain = compare(name, variant)
            print(f"{name:8} {variant:24} {planned / 2**20:8.0f} MiB {measured / 2**20:8.0f} MiB "
                  f"{planned / measured:6.2f} {plain / 2**20:10.0f} MiB {planned / plain:6.2f}",
                  flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
