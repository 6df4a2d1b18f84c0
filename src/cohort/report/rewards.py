"""Results of `cohort reward try` and `audit` as tables, JSON or CSV. Completions and names are untrusted text: control
characters in tables are visible escapes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from cohort.report.tables import safe_text
from cohort.types import printable

LONGEST = 60
"""Characters of a matched text that a table shows."""

Records = Sequence[Mapping[str, Any]]


def as_json(value: Any) -> str:
    """JSON that a terminal shows as it is: control characters are JSON's own escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    # Outside of strings JSON has none but line breaks.
    return "".join(c if c == "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in text)


def as_csv(records: Records) -> str:
    """Records that have the same keys; mappings and lists in them are written as JSON."""
    out = io.StringIO()
    rows = [{key: _cell(value) for key, value in record.items()} for record in records]
    # Before Python 3.13, csv leaves a cell with a carriage return without quotes, and readers end the row there.
    returns = any("\r" in value for row in rows for value in row.values() if isinstance(value, str))
    quoting: Any = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n", quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    """A CSV cell. A text that begins like a formula gets a quote before it, so that a spreadsheet does not run it."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def trial_table(title: str, records: Records) -> Table:
    """One line for each reward function of each row: score, matched text, reference."""
    table = _table(title)
    table.add_column("row", justify="right")
    table.add_column("reward")
    table.add_column("score", justify="right")
    table.add_column("matched")
    table.add_column("reference")
    table.add_column("total", justify="right", style="bold")
    previous = None
    for record in records:
        first = record["row"] != previous
        if first and previous is not None:
            table.add_section()
        previous = record["row"]
        table.add_row(
            str(record["row"]) if first else "",
            safe_text(record["reward"]),
            _score(record),
            _short(record["found"]),
            _short(record["reference"]),
            f"{record['total']:g}" if first else "",
        )
    return table


def _score(record: Mapping[str, Any]) -> str:
    score, counted = record["score"], record["counted"]
    if score is None:
        return "-"
    return f"{score:g}" if score == counted else f"{score:g} -> {counted:g}"


def audit_table(title: str, records: Records) -> Table:
    """One line for each attack: its mean reward and an honest wrong answer's; holes come first."""
    table = _table(title)
    table.add_column("")
    table.add_column("attack", no_wrap=True)
    table.add_column("reward", justify="right")
    table.add_column("wrong answer", justify="right")
    table.add_column("gets more on", justify="right")
    table.add_column("paid by", overflow="fold")
    for record in records:
        paid = ", ".join(f"{name} +{gain:.3g}" for name, gain in record["paid"].items()) if record["hole"] else ""
        table.add_row(
            Text("hole" if record["hole"] else "ok", style="bold red" if record["hole"] else "green"),
            safe_text(record["attack"]),
            f"{record['total']:.3g}",
            f"{record['honest']:.3g}",
            f"{record['more']} of {record['rows']} rows",
            safe_text(paid),
        )
    return table


def _table(title: str) -> Table:
    return Table(title=safe_text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _short(text: str | None) -> Text:
    """The text in one line; of a long one, its beginning and its end."""
    if text is None:
        return Text("-", style="dim")
    line = " ".join(printable(text).split())
    half = LONGEST // 2
    return Text(line if len(line) <= LONGEST else f"{line[: half - 1]} … {line[1 - half :]}")
