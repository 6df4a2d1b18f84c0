"""A plan on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cohort.plan.make import Plan
from cohort.plan.needs import HOLES, SHARE_OF_PEAK

PARTS = {
    "weights": "weights",
    "reference": "reference",
    "reward models": "reward models",
    "critic": "critic",
    "optimiser": "optimiser",
    "critic's optimiser": "critic's optimiser",
    "unpacked": "the 4-bit layer in use, unpacked",
    "gradients": "gradients",
    "activations": "activations of a micro-batch",
    "head": "head: chunks of logits, their gradients",
    "decoder": "decoding's own layout of the weights",
    "KV cache": "KV cache",
    "sampling": "sampling: logits of the rows",
}


def size(count: float) -> str:
    """size(2**31) -> "2.00 GiB"."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= one:
            return f"{count / one:.{2 if count < 100 * one else 0}f} {unit}"
    return f"{count / 2**10:.0f} KiB" if count else "-"


def duration(seconds: float) -> str:
    """duration(90) -> "1.5 min"."""
    for unit, one in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= one:
            return f"{seconds / one:.1f} {unit}"
    return f"{seconds:.2g} s"


def count(number: float) -> str:
    """count(7.6e9) -> "7.6B"."""
    for unit, one in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= one:
            return f"{number / one:.3g}{unit}"
    return f"{number:g}"


def plan_table(plan: Plan) -> RenderableType:
    """Memory by part and phase, time, whether it fits, and what could be changed."""
    weights = plan.figures.weights
    kind = f"{count(weights.count)} parameters, {count(weights.trained)} trained"
    machine = f"{'GPU' if plan.machine.device == 'cuda' else 'CPU'} of {size(plan.machine.memory)}"
    title = f"{plan.method}: {plan.model}, {kind}; {machine}, {'bf16' if plan.machine.bf16 else 'float32'}"
    return Group(Text(title, style="bold"), _memory(plan), *(Text(line) for line in sentences(plan)))


def _memory(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("memory")
    columns = [plan.needs]
    table.add_column(plan.method, justify="right")
    if plan.other is not None:
        table.add_column(f"as {plan.other[0]}", justify="right", style="dim")
        columns.append(plan.other[1])
    for key, label in PARTS.items():
        cells = [size(needs.parts.get(key, 0.0)) for needs in columns]
        if any(cell != "-" for cell in cells) or key == "reference":
            table.add_row(label, *cells)
    table.add_row("logits of the completions", f"({size(plan.logits)}, not kept)", *["" for _ in columns[1:]])
    table.add_section()
    for phase in dict.fromkeys(phase for needs in columns for phase in needs.phases):
        cells = [size(needs.phases.get(phase, 0.0)) for needs in columns]
        table.add_row(f"most while: {phase}", *cells)
    table.add_row(Text("peak", style="bold"), *(Text(size(needs.peak), style="bold") for needs in columns))
    times = [needs.seconds for needs in columns]
    table.add_section()
    for phase in dict.fromkeys(phase for found in times for phase in found):
        table.add_row(f"time: {phase}", *(duration(found[phase]) if phase in found else "-" for found in times))
    table.add_row(Text("time of a step", style="bold"), *(duration(needs.step) for needs in columns))
    return table


def sentences(plan: Plan) -> list[str]:
    """What the table does not say."""
    batch, machine = plan.batch, plan.machine
    rows = sum(len(part.rows) for part in batch.micro[0])
    length = plan.lengths.prompt + plan.lengths.completion
    found = [
        f"A step: {batch.groups} prompts of {plan.lengths.prompt} tokens x {batch.rows} completions of "
        f"{plan.lengths.completion}, in {len(batch.micro)} micro-batches of up to {batch.first_tokens:,} tokens.",
        f"At {machine.flops:.3g} FLOP/s, of which {SHARE_OF_PEAK:.0%} is taken to be reached, and "
        f"{machine.bandwidth:.3g} B/s.",
    ]
    if plan.steps is not None:
        found.append(f"The run: {plan.steps:,} steps, {duration(plan.steps * plan.needs.step)}.")
    else:
        found.append("The run's steps are a matter of the data's rows: max_steps or max_samples would give its time.")
    found.append(
        f"The usual way (these {rows} completions as padded rows of {length:,} tokens, {rows * length:,} in all, "
        f"logits kept): {size(plan.naive)}."
    )
    if machine.device == "cpu":
        found.append(
            "On a CPU: tensors, beside some 0.6 GiB of the program itself. The C library's heap keeps holes between "
            f"them: up to {size(plan.needs.peak * (1 + HOLES))} may be resident. MALLOC_MMAP_THRESHOLD_=65536 in the "
            "environment leaves none, and takes longer; THP_MEM_ALLOC_ENABLE=1 leaves fewer."
        )
    if not plan.figures.grouped:
        found.append("This model does not run the grouped attention: it trains on padded rows, and decodes with them.")
    if plan.fits:
        left = machine.memory - plan.needs.peak
        found.append(f"It fits: {size(plan.needs.peak)} of {size(machine.memory)}, {size(left)} to spare.")
        return found
    found.append(f"It does not fit: {size(plan.needs.peak)} of {size(machine.memory)}. Each of these with those above:")
    for change in plan.changes:
        fits = "fits" if change.peak <= machine.memory else "does not fit"
        found.append(f"  {change.keys}: {size(change.peak)}, {duration(change.step)} a step; {fits}")
    return found
