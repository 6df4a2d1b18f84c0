"""Printing of what `cohort data show` finds: rows token by token, lengths, and what becomes of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cohort.types import printable

if TYPE_CHECKING:
    from rich.console import Console

    from cohort.data.inspect import InspectedRow, Inspection, Part
    from cohort.types import Row

PLACES = 5
"""Rows that a line names."""


def print_row(console: Console, i: int, row: InspectedRow, tokenizer: Any, ids: bool) -> None:
    """The parts of a row, one token after another, and its columns."""
    fate = "" if row.fate == "kept" else f", {row.fate}: {row.reason}"
    console.rule(f"row {i}: {row.row.source}{fate}", align="left", characters="-")
    for part in row.parts:
        _print_part(console, part, tokenizer, ids)
    for note in row.notes:
        console.print(note, markup=False)
    for name, value in row.row.columns.items():
        if value is not None:
            console.print(f"column {printable(name, lines=False)}: {str(value)[:200]!r}", markup=False)


def _print_part(console: Console, part: Part, tokenizer: Any, ids: bool) -> None:
    from rich.text import Text

    if not part.tokens:
        console.print(part.name if not part.use else f"{part.name}, 0 tokens, {part.use}", style="bold", markup=False)
        return
    count = f"{len(part.tokens)} token{'s' * (len(part.tokens) != 1)}"
    console.print(f"{part.name}, {count}, {part.use}", style="bold", markup=False, soft_wrap=True)
    style = "dim" if part.use.startswith("no loss") else "red" if part.use.startswith("cut off") else "green"
    line = Text()
    for i, token in enumerate(part.tokens):
        line.append(printable(tokenizer.decode([token]), lines=False), style)
        line.append(f"({token})|" if ids else "|", "yellow")
        if i in part.labels:
            line.append(f"[{part.labels[i]:g}]|", "bold magenta")
    console.print(line, soft_wrap=True)


def print_lengths(console: Console, inspection: Inspection) -> None:
    """Statistics of the rows' lengths, and a histogram of the last kind."""
    from rich.table import Table

    from cohort.data.inspect import histogram, quantiles

    parts = {name: [row.lengths[name] for row in inspection.rows] for name in inspection.rows[0].lengths}
    table = Table(title="Lengths in tokens", title_justify="left")
    columns = {name: quantiles(lengths) for name, lengths in parts.items()}
    for header in ("", *next(iter(columns.values()))):
        table.add_column(header, justify="left" if not header else "right")
    for name, values in columns.items():
        table.add_row(name, *(f"{value:.1f}" if key == "mean" else f"{value:g}" for key, value in values.items()))
    console.print(table)
    name, lengths = list(parts.items())[-1]
    bins = histogram(lengths)
    most, width = max(count for _, _, count in bins), len(str(bins[-1][1]))
    for first, last, count in bins:
        bar = "#" * round(40 * count / most)
        console.print(f"{name} {first:>{width}}-{last:<{width}} {count:>7} {bar}", markup=False)


def print_fates(console: Console, name: str, inspection: Inspection) -> None:
    """How many rows were read, are trained on, cut and dropped, with the reasons and the first places."""
    fates, what = inspection.fates(), inspection.what
    kept = "trained on" if name == "training data" else "evaluated on"
    lines = [("rows read", inspection.read, ""), (kept, inspection.trained, what)]
    for fate in ("cut", "dropped"):
        of_fate = [(reason, rows) for (each, reason), rows in fates.items() if each == fate]
        lines += [(fate, len(rows), f"{reason}: {_places(rows)}") for reason, rows in of_fate] or [(fate, 0, "")]
    console.print(name, style="bold")
    width = max(len(str(count)) for _, count, _ in lines)
    for label, count, note in lines:
        console.print(f"  {label:<12} {count:>{width}}  {note}".rstrip(), markup=False, soft_wrap=True)
    for note in inspection.notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)


def _places(rows: list[InspectedRow]) -> str:
    limited = rows[0].reason.startswith("over ")
    names = [row.place if limited else row.row.source for row in rows[:PLACES]]
    return ", ".join(names) + ", ..." * (len(rows) > PLACES)


def print_repeats(console: Console, repeats: list[tuple[Row, Row, bool]]) -> None:
    """The held-out rows whose prompt is also a training row's."""
    if not repeats:
        console.print("  no held-out row repeats the prompt of a training row", markup=False)
        return
    same = sum(whole for _, _, whole in repeats)
    places = ", ".join(f"{row.source} (as {other.source})" for row, other, _ in repeats[:PLACES])
    more = ", ..." * (len(repeats) > PLACES)
    console.print(
        f"  rows that repeat the prompt of a training row: {len(repeats)}, all columns too: {same}: {places}{more}",
        markup=False,
        soft_wrap=True,
    )
