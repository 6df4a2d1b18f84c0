"""Seconds of a GRPO step as one dimension grows: completions of a prompt, prompt tokens, completion tokens,
prompts. Random weights, float32; medians of three steps after one to warm up.

    python bench/scaling.py [PLOT.png]

The last column is the growth of the step's seconds over the growth of its tokens (each prompt once, and all
completions): 1 if it is linear.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from workloads import Workload, build, reward, words_tokenizer
from workloads import rows as prompts_of

BASE = Workload("scaling", 2_000, 256, 4, 8, 704, 128, 64, 4)
BASE_G = 8
STEPS = 4
SWEEPS: dict[str, list[int]] = {
    "completions a prompt (G)": [2, 4, 8, 16, 32, 64],
    "prompt tokens": [64, 128, 256, 512, 1024, 2048],
    "completion tokens": [16, 32, 64, 128, 256],
    "prompts": [1, 2, 4, 8, 16],
}
PHASES = ("generate", "reference", "update", "step")


def point(sweep: str, value: int) -> tuple[Workload, int]:
    if sweep.startswith("completions"):
        return BASE, value
    field = {"prompt tokens": "prompt", "completion tokens": "completion", "prompts": "prompts"}[sweep]
    return replace(BASE, **{field: value}), BASE_G


def seconds(workload: Workload, G: int, model: str) -> dict[str, float]:
    from cohort import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=workload.prompts * G,
            num_generations=G,
            max_completion_length=workload.completion,
            beta=0.04,
            max_steps=STEPS,
            bf16=False,
            use_cpu=True,
            log_completions=0,
            reward_preflight=False,
        )
        trainer = GRPOTrainer(
            model, reward, config, prompts_of(workload, STEPS), processing_class=words_tokenizer(workload)
        )
        trainer.train()
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "seconds/step" in line][1:]
    return {phase: statistics.median(line[f"seconds/{phase}"] for line in lines) for phase in PHASES}


def work(workload: Workload, G: int) -> int:
    return workload.prompts * (workload.prompt + G * workload.completion)


def draw(found: dict[str, list[tuple[int, dict[str, float]]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(15, 3.6), constrained_layout=True)
    for axis, (sweep, points) in zip(axes, found.items(), strict=True):
        values = [value for value, _ in points]
        for phase in PHASES:
            name = {"reference": "score"}.get(phase, phase)
            axis.plot(values, [s[phase] for _, s in points], marker="o", markersize=3, label=name)
        tokens = [work(*point(sweep, value)) for value in values]
        linear = [points[-1][1]["step"] * n / tokens[-1] for n in tokens]
        axis.plot(values, linear, color="grey", linestyle=":", label="as the tokens")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(values, [str(value) for value in values])
        axis.set_xlabel(sweep)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds a step")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> int:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    figures: dict[str, list[tuple[int, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as model:
        build(BASE, model)
        for sweep, values in SWEEPS.items():
            print(f"{sweep:>26} {'generate':>9} {'score':>8} {'update':>8} {'step':>8} {'tokens':>8} {'growth':>7}")
            figures[sweep] = []
            last: tuple[float, int] | None = None
            for value in values:
                workload, G = point(sweep, value)
                s = seconds(workload, G, model)
                figures[sweep].append((value, s))
                tokens = work(workload, G)
                growth = (s["step"] / last[0]) / (tokens / last[1]) if last else float("nan")
                last = (s["step"], tokens)
                print(f"{value:26} {s['generate']:9.3f} {s['reference']:8.3f} {s['update']:8.3f} {s['step']:8.3f} "
                      f"{tokens:8} {growth:7.2f}", flush=True)  # fmt: skip
    if len(sys.argv) > 1:
        draw(figures, sys.argv[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
