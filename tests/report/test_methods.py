"""`cohort methods` prints the table that the trainers use."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.config import METHOD_CONFIGS
from cohort.formulas.loss_types import LOSS_TYPES
from cohort.formulas.preference import PREFERENCE_LOSSES
from cohort.methods.table import METHODS
from cohort.report.methods import methods_tables


def printed(width: int = 140) -> list[str]:
    result = CliRunner().invoke(app, ["methods"], env={"COLUMNS": str(width)})
    assert result.exit_code == 0
    return [" | ".join(re.split(r"\s{2,}", line.strip())) for line in result.output.splitlines()]


def test_every_row_is_printed_in_the_tables_own_words() -> None:
    lines = printed()
    rows = [line.split(" | ")[0] for line in lines]
    assert [name for name in rows if name in METHODS][: len(METHODS)] == list(METHODS)
    assert set(METHOD_CONFIGS) <= set(METHODS)  # the names that are known without torch
    assert "sft | demonstrations | none | ones | imitate demonstrations | sequence mean" in lines
    assert "rft | starting model, once | rule | is correct | imitate | sequence mean" in lines
    assert "grpo_process | current policy | each step | group process | clip with kl | chosen loss type" in lines
    assert any(line.startswith("leave one out | A_i = R_i - mean of the others, R = r - beta * sum") for line in lines)


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_cuts_no_methods_name(width: int) -> None:
    assert {name for line in printed(width) for name in line.split(" | ")[:1]} >= set(METHODS)


def test_the_table_follows_the_code() -> None:
    def halved(rewards: object, config: object) -> None:
        """A = r / 2. More is said below.

        Nothing of this is printed."""

    console = Console(width=140, record=True)
    for table in methods_tables([replace(METHODS["grpo"], name="mine", credit=halved)]):  # type: ignore[arg-type]
        console.print(table)
    text = console.export_text()
    assert "mine" in text and "A = r / 2. More is said below." in text and "Nothing of this" not in text


def test_every_loss_is_printed() -> None:
    lines = printed()
    names = [line.split(" | ")[0] for line in lines]
    assert set(LOSS_TYPES) | set(PREFERENCE_LOSSES) <= set(names)
    assert "dapo | min(ratio A, clip(ratio) A). | 1 / generation_tokens" in lines
    assert "hinge | max(0, 1 - m) (SLiC, arXiv 2305.10425)." in lines
