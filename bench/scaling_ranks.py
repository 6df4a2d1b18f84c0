"""Seconds of a GRPO step on several ranks of this machine, and the bytes that they send each other.

    python bench/scaling_ranks.py [S M R] [--ranks 1 2] [--steps 5]

`torchrun --nproc-per-node N -m cohort train` on gloo with one thread a rank, against one process with as many threads
as the largest number of ranks, in float32, on the workloads of workloads.py. Two steps warm up; seconds are medians of
the rest. "sent" is what all ranks together sent in a step: the loopback interface's counter, so nothing else may talk
on it. "gradients" is what a ring all-reduce of the float32 gradients sends, for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cost_model import ring_bytes
from real_model import real_model, why_no_real_model
from workloads import WORKLOADS, G, Workload, model_of, reward_of, rows, tokenizer_of

BENCH = Path(__file__).resolve().parent
WARM_UP = 2
PHASES = ("generate", "reference", "update", "step")
ARCHITECTURE = "Mistral"
"""Of the random models: beside a Qwen2, transformers loads any saved tokenizer as Qwen2's, which has no words."""
COUNTER = Path("/proc/net/dev")


def write_run(workload: Workload, steps: int, ranks: int, folder: Path) -> Path:
    """The model, the prompts and the configuration of a run, in the folder; returns the configuration's path."""
    model = model_of(workload, str(folder / "model"), ARCHITECTURE)
    tokenizer = tokenizer_of(workload)
    if tokenizer is not None:
        tokenizer.save_pretrained(model)
    prompts = [json.dumps(row) + "\n" for row in rows(workload, steps)]
    (folder / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
    settings = {
        "model": model,
        "dataset": str(folder / "prompts.jsonl"),
        "reward_funcs": f"{BENCH / 'workloads.py'}:{reward_of(workload).__name__}",
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": workload.prompts * G // ranks,
        "num_generations": G,
        "max_completion_length": workload.completion,
        "beta": 0.04,
        "max_steps": steps,
        "shuffle_dataset": False,
        "use_cpu": True,
        "bf16": False,
        "log_completions": 0,
        "reward_preflight": False,
        "save_strategy": "no",
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return path


def command(config: Path, ranks: int | None) -> list[str]:
    """The command of a run on so many ranks; None: of one process without a launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    return [sys.executable, *launcher, "-m", "cohort", "train", str(config)]


def sent_so_far() -> int | None:
    """Bytes that the loopback interface has sent; None where the system does not count them so."""
    lines = COUNTER.read_text().splitlines() if COUNTER.is_file() else []
    counts = next((line.split(":")[1].split() for line in lines if line.strip().startswith("lo:")), None)
    return None if counts is None else int(counts[8])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in found if "seconds/step" in row]


def measure(workload: Workload, steps: int, ranks: int | None, threads: int) -> dict[str, float]:
    """Medians of each phase's seconds, and the bytes sent in a step."""
    before = [str(BENCH), str(BENCH.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(before)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_run(workload, steps + WARM_UP, ranks or 1, folder)
        with open(folder / "log.txt", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(command(config, ranks), stdout=log, stderr=log, env=environment)
            sent: list[int | None] = []  # the counter when each step was first seen as done
            while process.poll() is None:
                sent += [sent_so_far()] * (len(rows_of(folder)) - len(sent))
                time.sleep(0.02)
            if process.returncode:
                log.seek(0)
                raise SystemExit(f"{workload.name} on {ranks} ranks failed:\n{log.read()[-2000:]}")
        lines = rows_of(folder)[WARM_UP:]
    figures = {phase: statistics.median(line[f"seconds/{phase}"] for line in lines) for phase in PHASES}
    if len(sent) > WARM_UP and sent[-1] is not None and sent[WARM_UP - 1] is not None:
        figures["sent"] = (sent[-1] - sent[WARM_UP - 1]) / (len(sent) - WARM_UP)
    return figures


def parameters(workload: Workload) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder, torch.device("cpu"):
        model = model_of(workload, folder, ARCHITECTURE)
        with torch.device("meta"):
            return sum(
                p.numel() for p in AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).parameters()
            )


def table(workloads: list[Workload], ranks: list[int], steps: int) -> None:
    print(f"{'':2} {'':20} {'generate':>9} {'score':>8} {'update':>8} {'step':>8} {'speed-up':>9} {'sent MiB':>9} "
          f"{'gradients':>9}", flush=True)  # fmt: skip
    threads = max(ranks)
    for workload in workloads:
        gradients = 4 * parameters(workload)
        alone: float | None = None
        for count in (None, *ranks):
            s = measure(workload, steps, count, 1 if count else threads)
            alone = alone or s["step"]
            name = f"{count} rank{'s' if count > 1 else ''}" if count else f"1 process, {threads} threads"
            reduced = (count or 1) * ring_bytes(gradients, count or 1) / 2**20
            print(f"{workload.name:2} {name:20} {s['generate']:9.3f} {s['reference']:8.3f} {s['update']:8.3f} "
                  f"{s['step']:8.3f} {alone / s['step']:9.2f} {s.get('sent', float('nan')) / 2**20:9.1f} "
                  f"{reduced:9.1f}", flush=True)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="S, M and R without one")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    names = given.workloads or ["S", "M", "R"]
    unknown = [name for name in names if name not in WORKLOADS or WORKLOADS[name].device != "cpu"]
    if unknown:
        on_cpu = ", ".join(name for name, workload in WORKLOADS.items() if workload.device == "cpu")
        parser.error(f"unknown workload {unknown[0]!r}: take of {on_cpu}")
    if "R" in names and real_model() is None:
        print(f"R is left out: {why_no_real_model()}.", flush=True)
        names.remove("R")
    table([WORKLOADS[name] for name in names], given.ranks, given.steps)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
