"""The live display: lines without a terminal, a panel with one, and the terminal restored."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl

from cohort.config import SFTConfig
from cohort.report.live import LiveDisplay, sparkline
from cohort.types import TrainerState


def console(terminal: bool, width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, legacy_windows=False, _environ={})


def play(display: LiveDisplay, steps: int, every: int = 0, start: int = 0, args: Any = None, **metrics: Any) -> None:
    """The calls of a training of that many steps, in the loop's order: log, step end, evaluation."""
    state, control = TrainerState(global_step=start, max_steps=steps), TrainerControl()
    display.on_train_begin(args, state, control)
    for step in range(start + 1, steps + 1):
        state.global_step = step
        display.on_log(None, state, control, logs={"step": step, **metrics, "reward": step / steps})
        display.on_step_end(None, state, control)
        if every and step % every == 0:
            scores = {"eval/reward": 2.0, "eval/format": 1.0, "eval/accuracy": step / steps / 2}
            display.on_evaluate(None, state, control, row={"step": step, **scores})
    display.on_train_end(None, state, control)


def test_sparkline_worked_values() -> None:
    assert sparkline([0, 1, 2]) == "▁▅█"
    assert sparkline([5.0, 5.0]) == "▄▄"
    assert sparkline([]) == ""
    assert sparkline([0, 0, 7, 7], width=2) == "▁█"
    assert sparkline([1.0, float("nan"), 2.0]) == "▁█"


def test_without_a_terminal_every_tenth_of_the_steps_is_a_line() -> None:
    out = console(terminal=False)
    with LiveDisplay("GRPO [x]", out, stage="2 of 2") as display:
        play(display, 40, every=20, reward_std=0.25, tokens_per_second=1234.4)
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "GRPO [x] (2 of 2): 40 steps"
    assert [line.split("step ")[1].split(":")[0] for line in lines[1:]] == [f"{n}/40" for n in range(4, 41, 4)]
    assert lines[1].endswith("step 4/40: reward 0.100, spread within groups 0.250, speed 1,234 tokens/s")
    assert "held-out accuracy 50.0% (first 25.0%, best 50.0%)" in lines[-1]
    assert "\x1b" not in out.file.getvalue()


def test_fewer_steps_than_lines_print_each_once() -> None:
    out = console(terminal=False)
    with LiveDisplay("GRPO", out) as display:
        play(display, 3)
    assert [line.split(":")[1] for line in out.file.getvalue().splitlines()] == [
        " 3 steps",
        " step 1/3",
        " step 2/3",
        " step 3/3",
    ]


def test_a_run_that_sets_logging_steps_prints_every_row() -> None:
    for args, printed in ((SFTConfig(), 10), (SFTConfig(logging_steps=1), 40), (SFTConfig(disable_tqdm=True), 40)):
        out = console(terminal=args.disable_tqdm)
        with LiveDisplay("SFT", out) as display:
            play(display, 40, args=args)
        assert out.file.getvalue().count(": step ") == printed
        assert "\x1b[?25l" not in out.file.getvalue()


def test_a_terminal_shows_a_panel_with_the_numbers() -> None:
    out = console(terminal=True)
    with LiveDisplay("GRPO [x]", out) as display:
        play(display, 4, every=2, kl=0.0123, learning_rate=3e-4, **{"completions/mean_length": 29.04})
    text = out.file.getvalue()
    last = text[text.rindex("GRPO [x]") :]
    assert "4/4" in last and "▁▃▆█" in last
    assert "50.0% (first 25.0%, best 50.0%)" in last
    assert "0.0123" in last and "29.0 tokens" in last and "3.00e-04" in last


def test_a_narrow_terminal_has_no_sparkline() -> None:
    out = console(terminal=True, width=60)
    with LiveDisplay("GRPO", out) as display:
        play(display, 4)
    assert not set("▁▂▃▅▆▇█") & set(out.file.getvalue())


def test_a_resumed_run_starts_where_it_was() -> None:
    out = console(terminal=False)
    with LiveDisplay("GRPO", out) as display:
        play(display, 40, start=30)
        assert display.progress.tasks[0].completed == 40
    steps = [line.split("step ")[1].split(":")[0] for line in out.file.getvalue().splitlines()[1:]]
    assert steps == ["31/40", "32/40", "36/40", "40/40"]


def test_supervised_training_shows_its_loss() -> None:
    out = console(terminal=False)
    state = TrainerState(max_steps=1)
    with LiveDisplay("SFT", out) as display:
        display.on_train_begin(None, state, None)
        state.global_step = 1
        display.on_log(None, state, None, logs={"step": 1, "loss": 1.5})
        display.on_evaluate(None, state, None, row={"step": 1, "eval/loss": 2.0})
        display.on_train_end(None, state, None)
    assert out.file.getvalue().splitlines()[-1] == "SFT: step 1/1: loss 1.5000, held-out loss 2.000"


def test_the_terminal_comes_back_when_training_raises() -> None:
    out = console(terminal=True)
    display = LiveDisplay("GRPO", out)
    with pytest.raises(ZeroDivisionError), display:
        display.on_train_begin(None, TrainerState(max_steps=5), None)
        assert display.live is not None and display.live.is_started
        raise ZeroDivisionError
    text = out.file.getvalue()
    assert display.live is None
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    display.close()


def test_trainings_one_after_another_each_have_a_display() -> None:
    out = console(terminal=True)
    for title in ("first", "second"):
        with LiveDisplay(title, out) as display:
            play(display, 2)
    text = out.file.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 2
    assert text.index("first") < text.index("second")
