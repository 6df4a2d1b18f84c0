"""Metrics to trackers, beside metrics.jsonl: transformers' callbacks, and the completions as a table.

A subclass of each callback passes what our runs have: numbers alone, the run's name, no secrets.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cohort.config import TrainingConfig
from cohort.types import UserError

log = logging.getLogger("cohort")

PACKAGES = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Trackers whose package has another name on PyPI."""
MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}
"""Trackers whose module has another name."""
PROJECTS = {
    "wandb": "WANDB_PROJECT",
    "comet_ml": "COMET_PROJECT_NAME",
    "mlflow": "MLFLOW_EXPERIMENT_NAME",
    "clearml": "CLEARML_PROJECT",
}
"""The variable that each reads its project from; trackio and swanlab have an argument."""
COLUMNS = ("step", "prompt", "completion", "reward", "advantage")
"""Columns that a table of completions has, with one for each reward function between them."""
NOT_SCORES = {*COLUMNS, "row", "group", "index", "why", "tokens", "truncated", "columns", "extra", "step_rewards"}
"""Keys of completions.jsonl that are no reward function."""


def trackers(config: TrainingConfig) -> list[Any]:
    """Callbacks for `report_to`. Raises UserError for a tracker that is not installed."""
    if config.logging_dir is not None and not {"tensorboard", "all"} & {*config.report_to}:
        log.warning("logging_dir has no effect without report_to: tensorboard; metrics.jsonl is in output_dir")
    if not config.report_to:
        return []
    from transformers.integrations import integration_utils

    names = list(dict.fromkeys(config.report_to))
    if "all" in names:
        names = integration_utils.get_available_reporting_integrations()
        log.info("report_to: all: %s", ", ".join(names) or "no tracker is installed")
    callbacks = [_tracker(name, integration_utils.INTEGRATION_TO_CALLBACK[name], config) for name in names]
    tables = [name for name in names if name in TABLES]
    if tables and "log_completions" in config.model_fields_set and config.logged_completions:
        callbacks.append(Tables(tables, Path(config.output_dir) / "completions.jsonl"))
    return callbacks


def _tracker(name: str, kind: type[Any], config: TrainingConfig) -> Any:
    """A callback of transformers that gets our runs' settings and rows."""

    class Tracker(kind):  # type: ignore[misc]
        """Has the callback's class, so that remove_callback finds it."""

        def setup(self, args: Any, *rest: Any, **details: Any) -> Any:
            settings = _settings(name, args)
            with _variables(name, config.project, settings.run_name):
                return super().setup(settings, *rest, **details)

        def on_train_begin(self, args: Any, *rest: Any, **details: Any) -> Any:
            return super().on_train_begin(_settings(name, args), *rest, **details)

        def on_log(self, args: Any, *rest: Any, logs: dict[str, Any] | None = None, **details: Any) -> Any:
            row = {key: value for key, value in (logs or {}).items() if key != "step" and _is_number(value)}
            if name == "dvclive":  # to it a name is a place in a tree, and `reward` is not one with `reward/...` in it
                row = {key.replace("/", "."): value for key, value in row.items()}
            return super().on_log(args, *rest, logs=row, **details)

    Tracker.__name__ = Tracker.__qualname__ = kind.__name__
    if find_spec(MODULES.get(name, name)) is None:
        raise UserError(f"report_to: {name} needs its package: pip install {PACKAGES.get(name, name)}")
    try:
        tracker = Tracker()
    except (RuntimeError, ImportError, ValueError) as error:
        raise UserError(f"report_to: {name} does not start: {error}") from None
    if name == "swanlab":
        tracker._swanlab = _SwanLab(tracker._swanlab, config.project)
    if name == "tensorboard" and tracker.logging_dir is None:
        tracker.logging_dir = config.logging_dir or str(Path(config.output_dir) / "runs")
    return tracker


class _SwanLab:
    """swanlab as transformers' callback expects it: from 0.8 on, `get_run` raises where there is no run."""

    def __init__(self, module: Any, project: str | None):
        self.module, self.project = module, project

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def init(self, **given: Any) -> Any:
        return self.module.init(**{**given, "project": given.get("project") or self.project})

    def get_run(self) -> Any:
        try:
            return self.module.get_run()
        except RuntimeError:
            return None


def _settings(name: str, args: Any) -> Any:
    """The configuration as the tracker reads it: with a name of the run; for clearml, which asks for them, as the
    fields of a dataclass."""
    if not isinstance(args, TrainingConfig):
        return args
    values = {
        "run_name": args.run_name or Path(args.output_dir).resolve().name,
        "project": args.project or "huggingface",  # transformers' default
    }
    if name != "clearml":
        return args.model_copy(update=values)
    sanitized = args.to_sanitized_dict() | values
    fields = [(key, type(value), dataclasses.field(default=value)) for key, value in sanitized.items()]
    return dataclasses.make_dataclass("Settings", fields)()


@contextmanager
def _variables(name: str, project: str | None, run_name: str) -> Iterator[None]:
    """In the block, the tracker's variables name the project and the run, unless they are set already."""
    wanted = {PROJECTS.get(name): project, "CLEARML_TASK" if name == "clearml" else None: run_name}
    added = {key: value for key, value in wanted.items() if key and value is not None and key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class Tables:
    """Sends the completions that are new in completions.jsonl as a table, whenever metrics are logged."""

    def __init__(self, names: list[str], path: Path):
        self.names, self.path, self.step, self.place = names, path, -1, 0

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        rows = list(self._new())
        if not rows:
            return
        scores = [key for key in rows[0] if key not in NOT_SCORES]
        heads = [*COLUMNS[:-1], *scores, COLUMNS[-1]]
        cells = [[_cell(row.get(head)) for head in heads] for row in rows]
        for name in self.names:
            TABLES[name](import_module(name), heads, cells, state.global_step)

    def _new(self) -> Iterator[dict[str, Any]]:
        """The rows of later steps than have been read."""
        if not self.path.is_file():
            return
        if self.path.stat().st_size < self.place:  # the file was thinned, or another run has begun
            self.place = 0
        with open(self.path, encoding="utf-8") as file:
            file.seek(self.place)
            lines = file.read()
            self.place = file.tell()
        newest = self.step
        for line in filter(None, lines.split("\n")):  # not splitlines: texts may hold U+2028 and its like
            row = json.loads(line)
            if row["step"] > self.step:
                newest = max(newest, row["step"])
                yield row
        self.step = newest


def _cell(value: Any) -> Any:
    """A number or a text; messages become JSON."""
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value, ensure_ascii=False)


def _with_pandas(module: Any, heads: list[str], cells: list[list[Any]], step: int) -> None:
    pandas = import_module("pandas")
    module.log({"completions": module.Table(dataframe=pandas.DataFrame(cells, columns=heads))})


def _with_wandb(module: Any, heads: list[str], cells: list[list[Any]], step: int) -> None:
    if module.run is not None:
        module.log({"completions": module.Table(columns=heads, data=cells)})


def _with_mlflow(module: Any, heads: list[str], cells: list[list[Any]], step: int) -> None:
    columns = {head: [row[i] for row in cells] for i, head in enumerate(heads)}
    module.log_table(data=columns, artifact_file="completions.json")


def _with_swanlab(module: Any, heads: list[str], cells: list[list[Any]], step: int) -> None:
    table = module.echarts.Table()
    table.add(heads, [[str(cell) for cell in row] for row in cells])
    module.log({"completions": table}, step=step)


TABLES = {"wandb": _with_wandb, "trackio": _with_pandas, "mlflow": _with_mlflow, "swanlab": _with_swanlab}
"""How each tracker that has tables gets one."""
