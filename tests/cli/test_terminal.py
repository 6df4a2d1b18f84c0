"""Untrusted text on its way to a terminal: names, cells, completions, errors of users' code."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.logging import RichHandler
from rich.panel import Panel
from rich.table import Table
from typer.main import get_command
from typer.testing import CliRunner

from cohort.cli.app import _Commands, app
from cohort.cli.console import echo, write_data
from cohort.report.console import SafeConsole
from cohort.report.judgement import judgement_table
from cohort.report.live import LiveDisplay
from cohort.report.metrics import read_metrics
from cohort.report.rewards import as_csv, as_json, audit_table, trial_table
from cohort.report.tables import before_after_table, evaluation_table, examples_panel, safe_text
from cohort.rewards import RewardFunctionError
from cohort.train.output.record import Recorder
from cohort.types import NotFinite, TrainerState, UserError, printable
from helpers import ROOT

HOSTILE = "a\x1b[2J\x1b]0;t\x07\x9b31m\r\x08\x7f\x85\u2028\u202egnp\u2066[red]x[/red][link=x]"
SHOWN = "a\\x1b[2J\\x1b]0;t\\x07\\x9b31m\\r\\x08\\x7f\\x85\\u2028\\u202egnp\\u2066[red]x[/red][link=x]"
FORGED = "\nwrong: row 9"


def drives(text: str) -> list[str]:
    """The characters of a text that a terminal would obey, or that turn or hide what it shows."""
    return [
        c for c in text if c not in "\n\t\u200c\u200d" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]


def test_printable_shows_what_drives_and_keeps_scripts() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\n\tb") == "a\n\tb" and printable("a\n\tb", lines=False) == "a\\n\\tb"
    assert printable("\ud800\U000e0001") == "\\ud800\\U000e0001"
    plain = "数\u3000👩\u200d💻\u00a0é ا\u200cب [x] \\x1b"
    assert printable(plain) == plain


def output_of(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not drives(done.stdout + done.stderr), (done.stdout, done.stderr)
    return done.exit_code, done.stdout + done.stderr


def test_an_unknown_key_and_a_value(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for key, value in ((HOSTILE, "x"), ("method", HOSTILE), ("learning_rate", HOSTILE)):
        path.write_text(json.dumps({"model": "m", "dataset": "d", "reward_funcs": ["format"], key: value}))
        code, said = output_of("train", path)
        assert code == 2 and "\\x1b[2J" in said
    code, said = output_of("train", path, f"{HOSTILE}=1")
    assert code == 2 and "\\x1b[2J" in said
    code, said = output_of("train", HOSTILE)
    assert code == 2 and f"error: {SHOWN}: no such file" in said


def test_a_checked_file(tmp_path: Path) -> None:
    path = tmp_path / "rows\x1b[2J.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": HOSTILE, HOSTILE + FORGED: HOSTILE}] * 2 + [{HOSTILE: 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = output_of("data", "check", path)
    assert code == 2 and "rows\\x1b[2J.jsonl: 3 rows" in said
    assert f"column {SHOWN}\\nwrong: row 9: in 2 of 2 rows" in said


def test_shown_data(model: str, tmp_path: Path) -> None:
    data = tmp_path / "rows\x1b[2J.jsonl"
    data.write_text(json.dumps({"prompt": HOSTILE, "answer": HOSTILE, HOSTILE + FORGED: HOSTILE}) + "\n")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"model": model, "dataset": str(data), "reward_funcs": ["accuracy"], "use_cpu": True}))
    code, said = output_of("data", "show", path)
    assert code == 0, said
    assert "\\x1b|[|2|J|" in said.replace("\n", "") and "rows\\x1b[2J.jsonl row 1" in said.replace("\n", "")
    assert f"column {SHOWN}\\nwrong: row 9: " in said.replace("\n", "")


REWARDS = """
import sys
def mine(completions, **_):
    if "raise" in completions[0]:
        raise ValueError(completions[0])
    return [1.0] * len(completions)
mine.explain = lambda text, row: __import__("cohort.rewards.functions.matched").rewards.functions.matched.Matched(text)
"""


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_tried_rewards(tmp_path: Path, form: str) -> None:
    own = tmp_path / "own.py"
    own.write_text(REWARDS)
    path = tmp_path / "rows\x1b.jsonl"
    path.write_text(json.dumps({"prompt": "p", "completion": HOSTILE, "answer": HOSTILE}) + "\n")
    arguments = ["reward", "try", f"{own}:mine,format", "--data", str(path), "--output-format", form]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    if form == "csv":
        # Data for a pipe: exact.
        assert "a\x1b[2J" in done.stdout
        return
    assert not drives(done.output)
    if form == "json":
        assert json.loads(done.stdout)[0]["found"] == HOSTILE


def test_data_is_exact_in_a_pipe_and_visible_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((io.StringIO(), HOSTILE), (Terminal(), SHOWN)):
        monkeypatch.setattr(sys, "stdout", stream)
        write_data(HOSTILE)
        assert stream.getvalue() == expected


def test_csv_of_a_cell_like_a_formula() -> None:
    records = [{"a": "=cmd()", "b": HOSTILE, "c": -1.5}]
    text = as_csv(records)
    assert text == f'"a","b","c"\n"\'=cmd()","{HOSTILE}",-1.5\n'
    assert list(csv.DictReader(io.StringIO(text, newline=""))) == [{"a": "'=cmd()", "b": HOSTILE, "c": "-1.5"}]
    assert as_csv([{"a": "=1", "c": -1.5}]) == "a,c\n'=1,-1.5\n"


def test_tracebacks_warnings_and_log_lines_of_a_command(tmp_path: Path) -> None:
    """A reward that raises is told with its own frames, which quote the completion."""
    own, data = tmp_path / "own.py", tmp_path / "rows.jsonl"
    own.write_text(
        "import logging, warnings, threading\n"
        "def mine(completions, **_):\n"
        "    warnings.warn(completions[0])\n"
        "    logging.getLogger('mine').warning(completions[0])\n"
        "    def run(): raise KeyError(completions[0])\n"
        "    thread = threading.Thread(target=run); thread.start(); thread.join()\n"
        "    raise ValueError(completions[0])\n"
    )
    data.write_text(json.dumps({"prompt": "p", "completion": HOSTILE}) + "\n")
    code = "from cohort.cli.app import main; main()"
    command = [sys.executable, "-c", code, "reward", "try", f"{own}:mine", "--data", str(data)]
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONPATH": paths})
    errors = done.stderr.decode()
    assert done.returncode == 2 and not drives(errors), errors
    assert f"UserWarning: {SHOWN}" in errors and f"\n{SHOWN}\n" in errors
    assert f"ValueError: {SHOWN}" in errors and "\nException in thread Thread-" in errors


def test_a_live_display(tmp_path: Path) -> None:
    for terminal in (True, False):
        file = io.StringIO()
        console = SafeConsole(file=file, force_terminal=terminal, width=200, color_system=None)
        state = TrainerState(global_step=1, max_steps=1)
        with LiveDisplay(HOSTILE, console, HOSTILE) as display:
            display.on_train_begin(None, state, None)
            display.on_log(None, state, None, logs={"reward": 1.0})
            display.on_evaluate(None, state, None, row={f"eval/{HOSTILE}": 0.5})
            display.on_train_end(None, state, None)
        shown = file.getvalue()
        assert SHOWN in shown and "\x1b[2J" not in shown and "\x9b" not in shown and "\u202e" not in shown


def test_names_of_metrics_do_not_break_the_lines_of_a_record(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    rows = [{"step": i, f"rewards/{HOSTILE}{FORGED}/mean": 0.5} for i in (1, 2)]
    for row in rows:
        recorder.metrics(row)
    assert read_metrics(tmp_path) == rows


def test_an_error_in_a_script_and_a_record_that_is_forged(caplog: pytest.LogCaptureFixture) -> None:
    for kind in (UserError, RewardFunctionError, NotFinite):
        assert str(kind(HOSTILE + FORGED)) == SHOWN + FORGED
    logging.getLogger("cohort").warning("%s: 100%%", HOSTILE + FORGED)
    assert caplog.messages == [f"{SHOWN}\n  wrong: row 9: 100%"]


# Every exit, for any text.


def _evaluated(text: str) -> dict[str, Any]:
    metrics = {f"eval/{text}": 0.5}
    base = {"problems": 1, "samples": 1, "accuracy": 0.5, "interval": (0.1, 0.9), "metrics": metrics}
    return {**base, "pass@k": {"1": 0.5}, "maj@k": {}}


def _tables(text: str) -> list[Any]:
    trial = {"row": 1, "reward": text, "score": 1.0, "counted": 1.0, "found": text, "reference": text, "total": 1.0}
    attack = {"attack": text, "hole": True, "paid": {text: 1.0}, "total": 1.0, "honest": 0.0, "more": 1, "rows": 1}
    return [
        before_after_table(text, [(text, text, text)]),
        examples_panel([(text, text, text)], text),
        evaluation_table(text, _evaluated(text)),
        trial_table(text, [trial]),
        audit_table(text, [attack]),
    ]


def _printed(console_type: type[Console], renderables: list[Any]) -> str:
    file = io.StringIO()
    console = console_type(file=file, width=100)
    for each in renderables:
        console.print(each)
    return file.getvalue()


FAILING = typer.Typer(cls=_Commands, pretty_exceptions_enable=False)


@FAILING.command()
def fail(text: str) -> None:
    echo(text)
    raise UserError(text)


@FAILING.command()
def other() -> None: ...


COMMAND = get_command(FAILING)


def _told(text: str) -> str:
    file = io.StringIO()
    with redirect_stdout(file), redirect_stderr(file):
        assert COMMAND.main(["fail", "--", text], standalone_mode=False) == 2
    return file.getvalue()


def _logged(text: str) -> str:
    log, file = logging.getLogger("cohort"), io.StringIO()
    handlers = [logging.StreamHandler(file), RichHandler(console=SafeConsole(file=file), show_path=False)]
    before, log.handlers, log.propagate = log.handlers, handlers, False
    try:
        log.warning(text)
        log.warning("%s and %r: 100%%", text, text)
    finally:
        log.handlers, log.propagate = before, True
    return file.getvalue()


def nothing_drives(text: str) -> None:
    table = Table(text, title=text)
    table.add_row(text)
    outputs = [
        _told(text),
        _logged(text),
        _printed(Console, [*_tables(text)]),
        _printed(SafeConsole, [*_tables(text), text, table, Panel(text, title=safe_text(text))]),
        as_json({text: [text]}),
    ]
    assert [drives(output) for output in outputs] == [[]] * len(outputs)
    with_surrogates = json.loads(as_json({text: [text]}))
    assert with_surrogates == json.loads(json.dumps({text: [text]}))


DRIVING = st.sampled_from(
    ["\x1b[2J", "\x1b]8;;x\x07", "\x9b1m", "\r", "\u202e", "\u2066", "\n", "[red]", "[/]", "[link=x]", ":+1:"]
)
ANY_TEXT = given(st.lists(st.one_of(DRIVING, st.text(max_size=20)), max_size=4).map("".join))


@settings(max_examples=200, deadline=None)
@ANY_TEXT
def test_nothing_drives_a_terminal(text: str) -> None:
    nothing_drives(text)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@ANY_TEXT
def test_nothing_drives_a_terminal_often(text: str) -> None:
    nothing_drives(text)


def test_the_commands_print_by_the_safe_exits() -> None:
    """A command that printed past them would hand on what it prints."""
    for path in sorted((ROOT / "src/cohort/cli").glob("*.py")):
        source = path.read_text()
        assert path.name == "console.py" or "typer.echo(" not in source, f"{path.name}: echo of cli/console.py"
    for path in (ROOT / "src/cohort").rglob("*.py"):
        # Of the package's own classes, SafeConsole alone may be made.
        assert " Console(" not in path.read_text(), f"{path}: SafeConsole of report/console.py"


def test_a_judgement_names_its_files() -> None:
    result = {
        "kind": "texts", "texts": 1, "prompts": 1, "ranking_accuracy": None, "length": {}, "truncated": 0,
        "position": {"largest_change_by_order": 0.0},
    }  # fmt: skip
    assert not drives(_printed(Console, [judgement_table(HOSTILE, result)]))
