"""Seconds and memory of one GRPO step, here and in TRL, on the same work, and the machine's lower bound.

    python bench/speed.py [S M L V G] [--steps 5] [--only TRL] [--without continuous]

Runs are separate processes in `.venv-trl`, one after the other, with the same random weights, prompts and number of
completions: 8 for each prompt, beta 0.04, AdamW, float32 unless the line names another precision. TRL runs in the
paper's mode; "medium" is torch's matmul precision, with which float32 products use the faster library on some
processors. The first two steps (for G one) warm up; the figures are medians of the rest. A setting of TRL whose first
two steps are slower than the best so far at its precision stops after two ("steps"). The floor is the least work of
the step, each prompt once and no padding, at the best rate of a large matrix product in that precision; for decoding,
at the memory bandwidth if reading the weights is slower. LoRA's lines are compared with the floor of training all
weights. On a processor without bfloat16 instructions its lines are left out; `--only bf16` runs them.

G is Qwen2.5-1.5B's configuration, if there is a GPU, in bfloat16 with float32 weights. TRL runs 8 completions at a
time, because it keeps all activations; memory is the peak of the CUDA allocator.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from trl_parity import ROOT, VENV, prepare
from workloads import WORKLOADS, G, Workload, build, reward, rows, words_tokenizer

A_FEW = 2
"""Steps for settings that are not TRL's fastest."""


Options = dict[str, bool]

PEERS: dict[str, Options] = {
    "ours": {},
    "ours, bf16": {"bf16": True},
    "ours, LoRA": {"lora": True},
    "TRL": {},
    "TRL, eager, medium": {"eager": True},
    "TRL, LoRA": {"eager": True, "lora": True},
    "TRL, bf16": {"bf16": True},
    "TRL, bf16, eager": {"bf16": True, "eager": True},
    "TRL, continuous batching": {"continuous": True},
}
PEERS_ON_A_GPU: dict[str, Options] = {
    "ours, bf16": {"bf16": True},
    "ours, bf16, LoRA": {"bf16": True, "lora": True},
    "TRL, bf16": {"bf16": True},
    "TRL, bf16, LoRA": {"bf16": True, "lora": True},
    "TRL, bf16, continuous": {"bf16": True, "continuous": True},
}


def peers_of(workload: Workload) -> dict[str, Options]:
    return PEERS if workload.device == "cpu" else PEERS_ON_A_GPU


def common(workload: Workload, steps: int, folder: str) -> dict[str, Any]:
    batch = workload.prompts * G
    at_once = workload.at_once or batch
    return {
        "output_dir": folder + "/out",
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


def measure_ours(workload: Workload, steps: int, folder: str, **options: bool) -> dict[str, Any]:
    from cohort import GRPOConfig, GRPOTrainer

    config = GRPOConfig(**common(workload, steps, folder), bf16=options.get("bf16", False), log_completions=0)
    before = peak_memory(workload.device)
    trainer = GRPOTrainer(
        folder,
        reward,
        config,
        rows(workload, steps),
        processing_class=words_tokenizer(workload),
        peft_config=lora() if options.get("lora") else None,
    )
    trainer.train()
    lines = [json.loads(line) for line in (Path(folder) / "out/metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "seconds/step" in line][workload.warm_up :]
    return {
        "generate": [line["seconds/generate"] for line in lines],
        "score": [line["seconds/reference"] + line["seconds/reward"] for line in lines],
        "update": [line["seconds/update"] for line in lines],
        "step": [line["seconds/step"] for line in lines],
        "tokens": statistics.mean(line["completions/mean_length"] for line in lines),
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


def measure_trl(workload: Workload, steps: int, folder: str, **options: bool) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    if options.get("eager"):
        torch.set_float32_matmul_precision("medium")
    args = GRPOConfig(
        **common(workload, steps, folder),
        bf16=options.get("bf16", False),
        report_to="none",
        gradient_checkpointing=False,
        use_bias_correction_kl=False,
        save_strategy="no",
        logging_steps=1,
        use_transformers_continuous_batching=options.get("continuous", False),
        model_init_kwargs={"attn_implementation": "eager" if options.get("eager") else "sdpa", "dtype": "float32"},
    )
    clock: dict[str, list[float]] = {"generate": [], "prepare": [], "step": []}
    lengths: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock["step"].append(time.perf_counter() - self.started)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "completions/mean_length" in logs:
                lengths.append(logs["completions/mean_length"])

    before = peak_memory(workload.device)
    trainer = GRPOTrainer(
        folder,
        reward,
        args=args,
        train_dataset=Dataset.from_list(rows(workload, steps)),
        callbacks=[Clock()],
        processing_class=words_tokenizer(workload),
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
        "tokens": statistics.mean(lengths[workload.warm_up :]),
        "memory": peak_memory(workload.device) - before,
    }


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def has_bf16() -> bool:
    import torch

    from cohort.policy.load import fast_bf16

    return fast_bf16(torch.device("cpu"))


def peak_memory(device: str = "cpu") -> float:
    """Peak of the process's resident memory, or of the CUDA allocator, MiB."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rates(bf16: bool, device: str = "cpu") -> tuple[float, float]:
    """(FLOP/s of a large matrix product, the faster of two layouts; bytes read a second)."""
    import torch

    n, entries = (2048, 2**26) if device == "cpu" else (8192, 2**28)
    a = torch.randn(n, n, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
    big = torch.ones(entries, device=device)  # ones: unwritten memory would be one shared page of zeros

    def best(work: Any) -> float:
        seconds = []
        for _ in range(8):
            started = time.perf_counter()
            float(work().flatten()[0])  # waits for the GPU
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    products = []
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        products.append(2 * n**3 / best(lambda: a @ a))
    return max(products), big.nbytes / best(lambda: big.sum())


def floor(workload: Workload, tokens: float, flops: float, bandwidth: float, bf16: bool) -> float:
    """Lower bound of the seconds of a step with shared prompts and without padding: sampling, the reference's scores,
    forward and backward."""
    D = workload.hidden
    trunk = workload.layers * (3 * D * workload.mlp + 2 * D * D + 2 * D * D * workload.keys // workload.heads)
    head = D * workload.vocabulary
    P, L, B = workload.prompts, workload.prompt, workload.prompts * G
    completion = B * tokens
    # Attention scores and weighted values: a completion token attends to its prompt and on average half its completion.
    attention = workload.layers * 2 * D * (P * L * L / 2 + completion * (L + tokens / 2))
    forward = 2 * (trunk * (P * L + completion) + head * completion + attention)
    decode_bytes = (2 if bf16 else 4) * (trunk + head) * workload.completion
    return max(forward / flops, decode_bytes / bandwidth) + (1 + 3) * forward / flops


def child(peer: str, name: str, steps: int) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    workload = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        build(workload, folder)
        measure = measure_ours if peer.startswith("ours") else measure_trl
        options = peers_of(workload)[peer]
        figures = measure(workload, steps + workload.warm_up, folder, **options)
    bf16 = options.get("bf16", False)
    flops, bandwidth = rates(bf16, workload.device)
    figures["floor"] = floor(workload, figures["tokens"], flops, bandwidth, bf16)
    print("RESULT " + json.dumps(figures), flush=True)


def run(peer: str, name: str, steps: int) -> dict[str, Any] | None:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", peer, name, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        print(f"{name}  {peer:26} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1][:120]}", flush=True)
        return None
    figures: dict[str, Any] = json.loads(line[7:])
    return figures


def kind(peer: str, options: Options) -> tuple[bool, ...]:
    """(library, precision, with LoRA or not): peers that agree in these differ only in settings."""
    return peer.startswith("ours"), options.get("bf16", False), options.get("lora", False)


def table(lines: dict[str, dict[str, Options]], steps: int) -> None:
    """The peers of each workload."""
    print(f"{'':2} {'':26} {'steps':>5} {'generate':>9} {'score':>8} {'update':>8} {'step':>8} {'tokens':>7} "
          f"{'tok/s':>7} {'MiB':>7} {'/ ours':>7} {'memory':>7} {'/ floor':>7}")  # fmt: skip
    for name, peers in lines.items():
        ours: dict[str, Any] | None = None
        best: dict[tuple[bool, ...], float] = {}
        for peer, options in peers.items():
            fastest = best.get(kind(peer, options))
            figures = run(peer, name, steps if fastest is None else min(A_FEW, steps))
            if figures and fastest and steps > A_FEW and statistics.median(figures["step"]) < fastest:
                figures = run(peer, name, steps)
            if figures is None:
                continue
            if ours is None and peer.startswith("ours"):
                ours = figures
            phase = {key: statistics.median(figures[key]) for key in ("generate", "score", "update", "step")}
            best[kind(peer, options)] = min(fastest or phase["step"], phase["step"])
            ratio = phase["step"] / statistics.median(ours["step"]) if ours else float("nan")
            memory = figures["memory"] / ours["memory"] if ours else float("nan")
            made = figures["tokens"] * WORKLOADS[name].prompts * G
            print(f"{name:2} {peer:26} {len(figures['step']):5} {phase['generate']:9.3f} {phase['score']:8.3f} "
                  f"{phase['update']:8.3f} {phase['step']:8.3f} {figures['tokens']:7.1f} {made / phase['step']:7.0f} "
                  f"{figures['memory']:7.0f} {ratio:7.2f} {memory:7.2f} {phase['step'] / figures['floor']:7.2f}",
                  flush=True)  # fmt: skip


def main() -> int:
    if Path(sys.prefix).resolve() != VENV.resolve():
        return subprocess.call([str(prepare()), str(Path(__file__).resolve()), *sys.argv[1:]], cwd=ROOT)
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; all without one")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", default="", metavar="TEXT", help="run the lines whose name contains TEXT")
    parser.add_argument("--without", metavar="TEXT", help="run the lines whose name does not contain TEXT")
    given = parser.parse_args()
    unknown = [name for name in given.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workload {unknown[0]!r}: take of {', '.join(WORKLOADS)}")
    runs = [name for name, workload in WORKLOADS.items() if workload.device == "cpu" or has_gpu()]
    missing = [name for name in given.workloads if name not in runs]
    if missing:
        parser.error(f"workload {missing[0]!r} needs a GPU, and PyTorch sees none")
    with_bf16 = "bf16" in given.only or has_bf16()
    if not with_bf16:
        print("This processor has no bfloat16: its lines are left out.")

    def has_line(workload: Workload, peer: str) -> bool:
        named = given.only in peer and (given.without is None or given.without not in peer)
        return named and (with_bf16 or workload.device != "cpu" or not PEERS[peer].get("bf16"))

    workloads = [WORKLOADS[name] for name in given.workloads or runs]
    table({w.name: {p: o for p, o in peers_of(w).items() if has_line(w, p)} for w in workloads}, given.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
