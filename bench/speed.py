"""Seconds and memory of one GRPO step, here and in TRL, on the same work, and the machine's lower bound.

    python bench/speed.py [S M L V R G] [--steps 5] [--only TRL] [--without continuous]

Runs are separate processes in `.venv-trl`, one after the other, with the same weights, prompts and number of
completions: 8 for each prompt, beta 0.04, AdamW, float32 unless the line names another precision. TRL runs in the
paper's mode; "medium" is torch's matmul precision, with which float32 products use the faster library on some
processors; "bf16 weights" holds TRL's weights in bfloat16 too, where small updates are lost. The first two steps (for G
one) warm up; the figures are medians of the rest. A setting of TRL whose first two steps are slower than the best so
far at its precision stops after two ("steps"). The floor is the least work of the step, each prompt once and no
padding, at the best rate of a large matrix product in that precision; for decoding, at the memory bandwidth if reading
the weights is slower. LoRA's lines are compared with the floor of training all weights. On a processor without bfloat16
instructions its lines are left out; `--only bf16` runs them.

Weights and prompts are random, but for R: SmolLM2-135M-Instruct, asked for sums. G is Qwen2.5-1.5B's configuration, if
there is a GPU, in bfloat16 with float32 weights. TRL runs 8 completions at a time, because it keeps all activations;
memory is the peak of the CUDA allocator.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from typing import Any

import trl_environment
from floor import floor, rates
from one_step import measure_ours, measure_trl
from real_model import real_model, why_no_real_model
from trl_environment import outside, quiet, run_inside
from workloads import WORKLOADS, G, Workload, model_of

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
    "TRL, bf16 weights": {"bf16": True, "half": True},
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
    if workload.device != "cpu":
        return PEERS_ON_A_GPU
    # With R, a step of TRL's continuous batching on a CPU takes a quarter of an hour.
    return {peer: options for peer, options in PEERS.items() if not (workload.real and options.get("continuous"))}


def why_not(workload: Workload) -> str | None:
    """Why the workload cannot run here; None if it can."""
    import torch

    if workload.device == "cuda" and not torch.cuda.is_available():
        return "it needs a GPU, and PyTorch sees none"
    return why_no_real_model() if workload.real and real_model() is None else None


def has_bf16() -> bool:
    import torch

    from cohort.policy.load import fast_bf16

    return fast_bf16(torch.device("cpu"))


def child(peer: str, name: str, steps: int) -> None:
    quiet()
    workload = WORKLOADS[name]
    options = peers_of(workload)[peer]
    measure = measure_ours if peer.startswith("ours") else measure_trl
    with tempfile.TemporaryDirectory() as random_model, tempfile.TemporaryDirectory() as output:
        model = model_of(workload, random_model)
        figures = measure(workload, steps + workload.warm_up, model, output, **options)
    bf16 = options.get("bf16", False)
    figures["floor"] = floor(workload, figures["tokens"], figures["longest"], *rates(bf16, workload.device), bf16)
    trl_environment.give(figures)


def run(peer: str, name: str, steps: int) -> dict[str, Any] | None:
    figures: dict[str, Any] | None
    figures, errors = trl_environment.child(__file__, peer, name, steps)
    if figures is None:
        print(f"{name}  {peer:26} failed: {(errors.strip().splitlines() or ['no output'])[-1][:120]}", flush=True)
    return figures


def kind(peer: str, options: Options) -> tuple[bool, ...]:
    """(library, precision, with LoRA or not): peers that agree in these differ only in settings."""
    return peer.startswith("ours"), options.get("bf16", False), options.get("lora", False)


def table(lines: dict[str, dict[str, Options]], steps: int) -> None:
    """The peers of each workload, and the floor in each precision at the lengths of its first peer."""
    print(f"{'':2} {'':26} {'steps':>5} {'generate':>9} {'score':>8} {'update':>8} {'step':>8} {'tokens':>7} "
          f"{'tok/s':>7} {'MiB':>7} {'/ ours':>7} {'memory':>7} {'/ floor':>7}")  # fmt: skip
    for name, peers in lines.items():
        ours: dict[str, Any] | None = None
        best: dict[tuple[bool, ...], float] = {}
        floors: dict[str, dict[str, float]] = {}
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
            least = sum(figures["floor"].values())
            floors.setdefault("floor, bf16" if options.get("bf16") else "floor", figures["floor"])
            made = figures["tokens"] * WORKLOADS[name].prompts * G
            print(f"{name:2} {peer:26} {len(figures['step']):5} {phase['generate']:9.3f} {phase['score']:8.3f} "
                  f"{phase['update']:8.3f} {phase['step']:8.3f} {figures['tokens']:7.1f} {made / phase['step']:7.0f} "
                  f"{figures['memory']:7.0f} {ratio:7.2f} {memory:7.2f} {phase['step'] / least:7.2f}",
                  flush=True)  # fmt: skip
        for precision, of in floors.items():
            print(f"{name:2} {precision:26} {'':5} {of['generate']:9.3f} {of['score']:8.3f} {of['update']:8.3f} "
                  f"{sum(of.values()):8.3f}", flush=True)  # fmt: skip


def main() -> int:
    if outside():
        return run_inside(__file__)
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
    missing = {name: why for name, workload in WORKLOADS.items() if (why := why_not(workload))}
    for name in given.workloads or missing:
        if name in missing:
            print(f"{name} is left out: {missing[name]}.", flush=True)
    with_bf16 = "bf16" in given.only or has_bf16()
    if not with_bf16:
        print("This processor has no bfloat16: its lines are left out.")

    def has_line(workload: Workload, peer: str) -> bool:
        named = given.only in peer and (given.without is None or given.without not in peer)
        return named and (with_bf16 or workload.device != "cpu" or not PEERS[peer].get("bf16"))

    workloads = [WORKLOADS[name] for name in given.workloads or WORKLOADS if name not in missing]
    table({w.name: {p: o for p, o in peers_of(w).items() if has_line(w, p)} for w in workloads}, given.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
