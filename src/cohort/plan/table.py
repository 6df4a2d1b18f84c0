"""A plan as a table and sentences for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cohort.plan.make import Plan
from cohort.plan.needs import HEAP_HOLES, SHARE_OF_PEAK
from cohort.report.tables import safe_text

PARTS = {
    "weights": "weights",
    "reference": "reference",
    "teacher": "teacher",
    "reward models": "reward models",
    "critic": "critic",
    "optimiser": "optimiser",
    "critic's optimiser": "critic's optimiser",
    "unpacked": "largest 4-bit layer, dequantised",
    "gradients": "gradients",
    "activations": "activations of a micro-batch",
    "head": "head: chunks of logits and gradients",
    "decoder": "weights copied for decoding",
    "KV cache": "KV cache",
    "sampling": "sampling: logits of the rows",
}


def format_bytes(count: float) -> str:
    """format_bytes(2**31) -> "2.00 GiB"."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= one:
            return f"{count / one:.{2 if count < 100 * one else 0}f} {unit}"
    return f"{count / 2**10:.0f} KiB" if count else "-"


def format_seconds(seconds: float) -> str:
    """format_seconds(90) -> "1.5 min"."""
    for unit, one in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= one:
            return f"{seconds / one:.1f} {unit}"
    return f"{seconds:.2g} s"


def format_count(number: float) -> str:
    """format_count(7.6e9) -> "7.6B"."""
    for unit, one in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= one:
            return f"{number / one:.3g}{unit}"
    return f"{number:g}"


def plan_table(plan: Plan) -> RenderableType:
    """Memory by part and phase, seconds, and sentences: whether the run fits, and what would make it fit."""
    weights = plan.costs.weights
    kind = f"{format_count(weights.count)} parameters, {format_count(weights.trained)} trained"
    machine = f"{'GPU' if plan.machine.device == 'cuda' else 'CPU'} of {format_bytes(plan.machine.memory)}"
    title = f"{plan.method}: {plan.model}, {kind}; {machine}, {'bf16' if plan.machine.bf16 else 'float32'}"
    return Group(safe_text(title, "bold"), _memory(plan), *map(safe_text, sentences(plan)))


def _memory(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("memory")
    columns = [plan.needs]
    table.add_column(safe_text(plan.method), justify="right")
    if plan.other is not None:
        table.add_column(f"as {plan.other[0]}", justify="right", style="dim")
        columns.append(plan.other[1])
    for key, label in PARTS.items():
        cells = [format_bytes(needs.parts.get(key, 0.0)) for needs in columns]
        if any(cell != "-" for cell in cells) or key == "reference":
            table.add_row(label, *cells)
    table.add_row("logits of the completions", f"({format_bytes(plan.logits)}, not held)", *["" for _ in columns[1:]])
    table.add_section()
    for phase in dict.fromkeys(phase for needs in columns for phase in needs.phases):
        cells = [format_bytes(needs.phases.get(phase, 0.0)) for needs in columns]
        table.add_row(f"peak of: {phase}", *cells)
    table.add_row(Text("peak", style="bold"), *(Text(format_bytes(needs.peak), style="bold") for needs in columns))
    times = [needs.seconds for needs in columns]
    table.add_section()
    for phase in dict.fromkeys(phase for seconds in times for phase in seconds):
        cells = [format_seconds(seconds[phase]) if phase in seconds else "-" for seconds in times]
        table.add_row(f"time: {phase}", *cells)
    table.add_row(Text("time of a step", style="bold"), *(format_seconds(needs.step) for needs in columns))
    return table


def sentences(plan: Plan) -> list[str]:
    """Lines under the table: the batch, the rates, the run's time, padded rows, whether it fits, changes that help."""
    batch, machine = plan.batch, plan.machine
    rows = sum(len(part.rows) for part in batch.micro[0])
    length = plan.lengths.prompt + plan.lengths.completion
    lines = [
        f"A step: {batch.groups} prompts of {plan.lengths.prompt} tokens x {batch.rows} completions of "
        f"{plan.lengths.completion}, in {len(batch.micro)} micro-batches of up to {batch.first_tokens:,} tokens.",
        f"At {machine.flops:.3g} FLOP/s, of which passes are taken to reach {SHARE_OF_PEAK:.0%}, and "
        f"{machine.bandwidth:.3g} B/s.",
    ]
    if plan.steps is not None:
        lines.append(f"The run: {plan.steps:,} steps, {format_seconds(plan.steps * plan.needs.step)}.")
    else:
        lines.append(
            "The number of steps depends on the data's rows: set max_steps or max_samples to see the run's time."
        )
    lines.append(
        f"The usual way (these {rows} completions as padded rows of {length:,} tokens, {rows * length:,} in all, "
        f"logits in memory): {format_bytes(plan.naive)}."
    )
    if machine.device == "cpu":
        lines.append(
            "On a CPU these are the tensors; the program itself takes some 0.6 GiB. Holes in the C library's heap can "
            f"raise resident memory to {format_bytes(plan.needs.peak * (1 + HEAP_HOLES))}. "
            "MALLOC_MMAP_THRESHOLD_=65536 in the environment avoids them, and is slower; THP_MEM_ALLOC_ENABLE=1 "
            "reduces them."
        )
    if not plan.costs.grouped:
        lines.append("This model does not run the grouped attention: it trains and decodes with padded rows.")
    peak_of_memory = f"{format_bytes(plan.needs.peak)} of {format_bytes(machine.memory)}"
    if plan.fits:
        lines.append(f"It fits: {peak_of_memory}, {format_bytes(machine.memory - plan.needs.peak)} to spare.")
        return lines
    lines.append(f"It does not fit: {peak_of_memory}. Changes that help, each added to those above it:")
    for change in plan.changes:
        fits = "fits" if change.peak <= machine.memory else "does not fit"
        lines.append(f"  {change.keys}: {format_bytes(change.peak)}, {format_seconds(change.step)} a step; {fits}")
    return lines
