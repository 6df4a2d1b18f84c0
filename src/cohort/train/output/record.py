"""A run's records and the folder they are in. docs/run-folder.md describes the files."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from sys import intern
from typing import Any, ParamSpec

from safetensors import SafetensorError

from cohort.config import OnlineConfig, TrainingConfig
from cohort.evaluation.evaluate import Evaluation
from cohort.rewards.component import column_of
from cohort.rollouts.notable import notable
from cohort.texts import without_secrets
from cohort.train.output import lines
from cohort.train.output.group_record import About, group_line, last_turn, row_line
from cohort.types import Group, UserError

log = logging.getLogger("cohort")

P = ParamSpec("P")

METRICS = "metrics.jsonl"
COMPLETIONS = "completions.jsonl"
HELD_OUT = "held_out.jsonl"
"""The completions of each evaluation, HELD_OUT_ROWS at most."""
HELD_OUT_ROWS = 1000
"""Rows that an evaluation adds to held_out.jsonl, so that a long run's file does not fill the disk."""
GROUPS = "groups.jsonl"
"""Whole groups, a few of each batch."""
ROWS = "rows.jsonl"
"""Each visit of a row of the training data, and how many completions were right."""
WARNINGS = "warnings.jsonl"
SETTINGS = "settings.json"
"""The configuration with all defaults."""
ENDED = "ended.json"
"""At which step the run ended, of how many, and by what."""
SAMPLES = "samples.jsonl"
"""Samples of the starting model, for methods that sample once."""
APPENDED = (METRICS, COMPLETIONS, HELD_OUT, GROUPS, ROWS, WARNINGS)
THINNED = (COMPLETIONS, HELD_OUT, GROUPS, ROWS)
"""Files that lose older steps where they grow beyond a limit."""
RECORDS = (*APPENDED, SETTINGS, ENDED, "environment.json", "best.json", "nonfinite")
MODEL = ("model*.safetensors*", "adapter_model*.safetensors*", "adapter_config.json")
"""A model's weights. They are moved aside with an earlier run, since with an adapter beside a whole model it would be
unclear which is meant."""


class Recorder:
    """Appends rows to the run's files. A row is written when the call returns. With `writes=False`, as on other ranks
    than 0, nothing is written. Without `about` there are no whole groups and no history of rows."""

    def __init__(self, output_dir: str | Path, writes: bool = True, about: About | None = None):
        self.folder, self.writes, self.about = Path(output_dir), writes, about
        self.held_out_cut = False
        """Whether it has been told that held_out.jsonl lacks some prompts."""
        self.thinned: set[str] = set()
        """Files of which it has been told that they are thinned."""
        self.early: list[dict[str, Any]] = []
        """Warnings from before the run."""
        self.seen: set[int | None] = set()
        """Rows whose prompt is in rows.jsonl."""

    def start(self, step: int) -> None:
        """Prepare the folder for a run that continues after `step`. At 0 the records of an earlier run are moved aside,
        later the rows behind `step` are removed, since the run writes them again. Raises UserError for a folder that
        cannot be made."""
        if not self.writes:
            return
        make_folder(self.folder)
        if step == 0:
            move_aside(self.folder, RECORDS)
            if self.early:
                self._append(WARNINGS, *self.early)
        else:
            (self.folder / ENDED).unlink(missing_ok=True)
            for name in APPENDED:
                lines.cut(self.folder / name, step)
            self._look_for_prompts()

    def metrics(self, row: dict[str, Any]) -> None:
        self._append(METRICS, row)

    def completions(self, step: int, groups: list[Group], count: int) -> None:
        """Write `count` completions of the batch with scores and advantage: the first ones, the most rewarded, the
        strangest."""
        rows = []
        for (g, i), why in notable(groups, count) if self.writes else ():
            group = groups[g]
            completion = group.completions[i]
            scores = {column_of(name): values[i] for name, values in group.components.items()}
            rows.append(
                {
                    "step": step,
                    "row": group.row.number,
                    "group": g,
                    "index": i,
                    "why": why,
                    "prompt": group.row.prompt,
                    "completion": completion.text,
                    "tokens": len(completion.ids),
                    "truncated": completion.truncated,
                    **({"reward": group.rewards[i]} if group.rewards else {}),
                    "advantage": float(group.advantages[i][0]) if len(group.advantages[i]) else 0.0,
                    **scores,
                    "columns": group.row.columns,
                    **({"extra": {name: values[i] for name, values in group.extra.items()}} if group.extra else {}),
                    **({} if group.steps is None else {"step_rewards": group.steps[i].rewards}),
                },
            )
        if rows:
            self._append(COMPLETIONS, *rows)

    def rows(self, step: int, groups: Sequence[Group], dropped: Sequence[Group]) -> None:
        """Write a line for each group that was sampled: of the batch, and `dropped`."""
        if not self.writes or self.about is None:
            return
        written, rules = [], self.about.rules()
        for g, group in [*enumerate(groups), *((None, group) for group in dropped)]:
            row = row_line(step, g, group, rules)
            if group.row.number not in self.seen or group.row.number is None:
                row["prompt"] = last_turn(group.row.prompt)
                self.seen.add(group.row.number)
            written.append(row)
        self._append(ROWS, *written)

    def groups(self, step: int, groups: Sequence[Group], config: TrainingConfig) -> None:
        """Write the groups that the update has measured, once."""
        sampled = isinstance(config, OnlineConfig)
        for g, group in enumerate(groups):
            if group.measured is not None and self.writes and self.about is not None:
                self._append(GROUPS, group_line(step, g, group, self.about, sampled))
            group.measured = None

    def settings(self, config: TrainingConfig) -> None:
        """Write the configuration with all defaults."""
        facts = {} if self.about is None else self.about.settings()
        if self.writes:
            settings = without_secrets({**facts, **config.model_dump(mode="json")})
            text = json.dumps(settings, ensure_ascii=False, indent=1, default=str)
            (self.folder / SETTINGS).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")

    def held_out(self, step: int, evaluation: Evaluation) -> None:
        """Write the completions of an evaluation's first prompts with their scores, of at most HELD_OUT_ROWS unless one
        prompt has more."""
        rows = []
        count = max(1, HELD_OUT_ROWS // evaluation.n)
        written = list(zip(evaluation.prompts, evaluation.sampled, strict=True))[:count]
        if len(evaluation.prompts) > count and not self.held_out_cut:
            self.held_out_cut = True
            prompts = len(evaluation.prompts)
            log.info("%s gets the completions of the first %d of %d held-out prompts", HELD_OUT, count, prompts)
        for p, (prompt, completions) in enumerate(written):
            for i, completion in enumerate(completions):
                at = p * evaluation.n + i
                rows.append(
                    {
                        "step": step,
                        "problem": p,
                        "sample": i,
                        "prompt": prompt.row.prompt,
                        "completion": completion.text,
                        "tokens": len(completion.ids),
                        "truncated": completion.truncated,
                        "reward": evaluation.totals[at],
                        **{column_of(name): values[at] for name, values in evaluation.components.items()},
                        "columns": prompt.row.columns,
                    }
                )
        self._append(HELD_OUT, *rows)

    @contextmanager
    def warnings(self, step: Callable[[], int]) -> Iterator[None]:
        """In the block, each warning of the logger "cohort" is a row of warnings.jsonl too. `step`: the step that is
        being made. `extra` of a warning may have its own `step`, and its name as `warning`; else the name is the module
        that gave it."""
        keeper = _Keeper(lambda row: self._append(WARNINGS, row), step)
        log.addHandler(keeper)
        try:
            yield
        finally:
            log.removeHandler(keeper)

    def failed(self, step: int, error: Exception) -> None:
        """Write what ended the run as a row of warnings.jsonl."""
        row = getattr(error, "row", None)
        rows = {} if row is None else {"rows": [row]}
        self._append(WARNINGS, {"step": step, "name": type(error).__name__, "message": str(error), **rows})

    def ended(self, step: int, max_steps: int, by: str) -> None:
        """Write how the run ended: by "max_steps", the key or class of what stopped it, or the name of an exception."""
        record = {"step": step, "max_steps": max_steps, "by": by}
        if self.writes:
            (self.folder / ENDED).write_text(json.dumps(record), encoding="utf-8")

    def _append(self, name: str, *rows: dict[str, Any]) -> None:
        if not self.writes:
            return
        path = self.folder / name
        if lines.append(path, rows, durable=name == METRICS) > lines.LIMIT and name in THINNED:
            if name not in self.thinned:
                self.thinned.add(name)
                log.info(
                    "%s has reached %d MiB: half of its older half's steps are dropped, now and each time that it "
                    "does; what stays is spread over the whole run",
                    name,
                    lines.LIMIT // 2**20,
                )
            lines.thin(path, _with_prompts if name == ROWS else lines.as_they_are)
            if name == ROWS:
                self._look_for_prompts()

    def _look_for_prompts(self) -> None:
        self.seen = {row.get("row") for row in lines.rows(self.folder / ROWS) if "prompt" in row}


def _with_prompts(dropped: list[str], kept: list[str]) -> list[str]:
    """The lines of rows.jsonl that stay. A row's prompt, which its first line has, goes to the first that stays."""
    prompts = {row["row"]: row["prompt"] for row in map(json.loads, dropped) if "prompt" in row}
    result = []
    for text in kept:
        row = json.loads(text) if prompts else {}
        prompt = prompts.pop(row["row"], None) if row.get("row") is not None else None
        result.append(text if prompt is None else lines.line({**row, "prompt": prompt}).rstrip("\n"))
    return result


def noted(init: Callable[P, None]) -> Callable[P, None]:
    """For a trainer's __init__: the warnings that it gives, of data and model, are rows of step 0 of its recorder's
    warnings.jsonl too. The run's folder is prepared later."""

    @wraps(init)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        early: list[dict[str, Any]] = []
        keeper = _Keeper(early.append, lambda: 0)

        def see(record: logging.LogRecord) -> bool:
            if record.levelno >= keeper.level:
                keeper.emit(record)
            return True

        # No handler: the trainer looks whether the logger has one, and prints the log where it has none.
        log.addFilter(see)
        try:
            init(*args, **kwargs)
        finally:
            log.removeFilter(see)
        trainer: Any = args[0]
        trainer.loop.recorder.early = early

    return wrapped


class _Keeper(logging.Handler):
    """Gives the rows of warnings to a function."""

    def __init__(self, keep: Callable[[dict[str, Any]], None], step: Callable[[], int]):
        super().__init__(logging.WARNING)
        self.keep, self.step = keep, step

    def emit(self, record: logging.LogRecord) -> None:
        step, name = getattr(record, "step", self.step()), getattr(record, "warning", record.module)
        rows = getattr(record, "rows", None)
        named = {"rows": list(rows)} if rows else {}
        self.keep({"step": step, "name": name, "message": record.getMessage(), **named})


def move_aside(folder: Path, names: Sequence[str]) -> None:
    """Move files that match the patterns, and all checkpoints, of an earlier run into a new folder `earlier-N`."""
    leftovers = [path for name in names for path in sorted(folder.glob(name))]
    leftovers += [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    if leftovers:
        number = 1 + max((int(p.name[8:]) for p in folder.glob("earlier-*") if p.name[8:].isdigit()), default=0)
        aside = folder / f"earlier-{number}"
        aside.mkdir()
        for path in leftovers:
            path.rename(aside / path.name)
        log.warning("%s holds an earlier run: what it left is now in %s", folder, aside)


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Eight significant digits: enough to compare runs, short enough to read. Rows, which a run keeps, share keys."""
    return {intern(k): float(f"{v:.8g}") if isinstance(v, float) and math.isfinite(v) else v for k, v in values.items()}


def make_folder(folder: Path) -> None:
    """Make output_dir. Raises UserError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(folder)!r} cannot be made: {error.strerror or error}") from None


@contextmanager
def told_when_full(output_dir: str) -> Iterator[None]:
    """Raises UserError where the block finds no space left to write on the disk."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has the number in the text alone.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
        if not full:
            raise
        free = shutil.disk_usage(output_dir).free / 2**20
        raise UserError(
            f"no space left on the disk of {output_dir} ({free:,.0f} MiB free): free some, or name another output_dir; "
            "save_total_limit and save_only_model make checkpoints fewer and smaller. Checkpoints that are there are "
            "whole, and resume_from_checkpoint goes on from the newest"
        ) from error


def require_folder(output_dir: str) -> None:
    """Raise UserError if output_dir cannot be made or written in. Nothing is made."""
    folder = Path(output_dir).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise UserError(f"output_dir {output_dir!r} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"output_dir {output_dir!r} cannot be written: no permission for {there}")
