"""What a program prints: notices on its console, warnings on standard error, progress as lines that move or do not."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from cohort import SFTConfig, progress
from cohort.report.console import show_in_script, show_on
from cohort.report.live import LiveDisplay, default_display
from cohort.types import TrainerState
from helpers import ROOT

log = logging.getLogger("cohort")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "displays", [])
    handlers, level = log.handlers, log.level
    log.handlers = []
    yield
    log.handlers = handlers
    log.setLevel(level)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=60, legacy_windows=False, _environ={})


def test_lines_are_whole_and_unpadded_and_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    out = console(terminal=False)
    show_on(out)
    log.info("a notice [red] %s", "of more than sixty characters " * 3)
    log.warning("a warning")
    assert out.file.getvalue() == "a notice [red] " + "of more than sixty characters " * 3 + "\n"
    assert capsys.readouterr().err == "a warning\n"


def test_on_a_terminal_tasks_are_lines_that_go_when_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.05)
    out = console(terminal=True)
    show_on(out)
    with progress.Task("loading the model"):
        time.sleep(0.2)
        print("in between")  # goes where it went: only a terminal is drawn over
    text = out.file.getvalue()
    assert "loading the model: 0 s" in text and "in between" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"


def test_the_panel_of_a_run_shows_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.05)
    out = console(terminal=True)
    show_on(out)
    with LiveDisplay("GRPO", out) as display:
        display.on_train_begin(None, TrainerState(max_steps=2), None)
        with progress.Task("evaluating", 8, "prompts"):
            time.sleep(0.15)
    text = out.file.getvalue()
    assert "evaluating: 0 of 8 prompts" in text
    assert text.count("\x1b[?25l") == 1, "the panel has the line: there is no second display"
    assert len(progress.displays) == 1


@pytest.mark.parametrize(("level", "expected"), [("passive", 20), ("error", 40), ("detail", 10), ("info", 20)])
def test_log_level(level: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "hasHandlers", lambda: bool(log.handlers))
    show_in_script(SFTConfig(log_level=level))
    assert log.level == expected and len(log.handlers) == 1


def test_logging_that_the_program_set_up_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    own = logging.StreamHandler(io.StringIO())
    log.addHandler(own)
    log.setLevel(logging.ERROR)
    show_in_script(SFTConfig())
    assert log.handlers == [own] and log.level == logging.ERROR
    show_in_script(SFTConfig(log_level="warning"))
    assert log.handlers == [own] and log.level == logging.WARNING


def test_a_run_has_one_display(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    given: list[object]
    for given in (
        [LiveDisplay("mine", console(False))],
        [transformers.PrinterCallback()],
        [type("My", (transformers.ProgressCallback,), {})()],
    ):
        callbacks = list(given)
        with default_display(callbacks, "SFT", str(tmp_path)):
            assert callbacks == given
    other = [object()]
    with default_display(callbacks := list(other), "SFT", str(tmp_path)):
        assert len(callbacks) == 2 and isinstance(callbacks[1], LiveDisplay)
    assert callbacks == other


SCRIPT = """
import sys
from cohort import SFTConfig, SFTTrainer
rows = [{"prompt": f"say {i}", "completion": str(i)} for i in range(8)]
for settings in ({"logging_steps": 5}, {"log_level": "error", "disable_tqdm": True, "logging_steps": 10}):
    config = SFTConfig(output_dir=sys.argv[2], max_steps=20, use_cpu=True, bf16=False, **settings)
    SFTTrainer(sys.argv[1], config, rows).train()
    print("---", flush=True)
    print("---", file=sys.stderr, flush=True)
"""


def test_a_script_prints_notices_and_rows_and_warnings_apart(model: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "60"}
    command = [sys.executable, "-c", SCRIPT, model, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    printed, quiet, _ = done.stdout.split("---\n")
    assert any(line.startswith("fast paths: ") for line in printed.splitlines())
    assert rows_of(printed, model) == ["20 steps", *(f"step {step}/20" for step in (5, 10, 15, 20))]
    warnings = done.stderr.split("---\n")
    assert warnings[0].startswith("WARNING: 8 of 8 prompts are plain text") and warnings[0].count("\n") == 1
    # log_level: error leaves the rows and the two lines of the verdict.
    assert rows_of(quiet, model) == ["20 steps", "step 10/20", "step 20/20"]
    assert quiet.count("\n") == 5 and warnings[1] == ""


def rows_of(printed: str, model: str) -> list[str]:
    title = f"sft: {model}: "
    rows = [line for line in printed.splitlines() if line.startswith(title)]
    return [row.removeprefix(title).split(": loss")[0] for row in rows]


REWARDS = """
import time


def loud(completions, **_):
    print("a line of the reward")
    time.sleep(0.4)
    return [float(len(str(c))) for c in completions]
"""
RUN = """
import sys
from cohort import GRPOConfig, GRPOTrainer
rows = [{"prompt": [{"role": "user", "content": f"say {i}"}]} for i in range(4)]
config = GRPOConfig(output_dir=sys.argv[2], max_steps=2, num_generations=2, per_device_train_batch_size=4,
                    max_completion_length=4, use_cpu=True, bf16=False, reward_clip=None, reward_preflight=False)
GRPOTrainer(sys.argv[1], [{"name": sys.argv[3], "processes": 1}, sys.argv[3]], config, rows).train()
"""


def on_a_terminal(command: list[str]) -> str:
    """What a command writes on a terminal of 100 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, env=environment, stdout=follower, stderr=follower, cwd=ROOT)
    os.close(follower)
    pieces = []
    with suppress(OSError):  # a terminal whose program has ended
        while piece := os.read(leader, 65536):
            pieces.append(piece)
    os.close(leader)
    assert process.wait() == 0, b"".join(pieces).decode()
    return b"".join(pieces).decode()


def test_what_a_reward_prints_is_above_the_panel(model: str, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS)
    text = on_a_terminal([sys.executable, "-c", RUN, model, str(tmp_path / "run"), f"{tmp_path}/rewards.py:loud"])
    parts = text.split("a line of the reward")
    assert len(parts) == 5, "two steps, in the worker process and in this one"
    for before in parts[:-1]:
        # The panel is gone from the line: the cursor has moved up over it and each line is cleared.
        assert before.endswith(("\x1b[2K", "\r", "\n")), repr(before[-60:])
    # Once for the panel, and for each start-up task that takes long enough to be shown.
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") >= 1
