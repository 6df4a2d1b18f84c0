"""Trackers by their real packages, offline: what a run sends is read back. `make test-trackers` installs them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from cohort import GRPOConfig, GRPOTrainer, UserError
from cohort.compat.trl import TRACKERS
from cohort.data.chains import build_tokenizer
from cohort.train.output.trackers import trackers
from helpers import small_model

# Sockets and runs that the packages themselves leave open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROWS = [{"prompt": f"{i}+{i}=", "answer": str(2 * i % 10)} for i in range(5)]
OFFLINE = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "SWANLAB_MODE": "offline",
    "COMET_START_ONLINE": "0",
    "COMET_API_KEY": "none",
    "CLEARML_OFFLINE_MODE": "1",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "DVC_NO_ANALYTICS": "1",
}
"""Variables that keep each package on this machine."""


def lengths(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def settings(**changes: Any) -> GRPOConfig:
    values: dict[str, Any] = {
        "output_dir": "run", "learning_rate": 0.1, "per_device_train_batch_size": 3, "num_generations": 3,
        "max_completion_length": 8, "max_steps": 2, "bf16": False, "use_cpu": True, "reward_clip": None,
        "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2,
    }  # fmt: skip
    return GRPOConfig(**{**values, **changes})


def needs(name: str) -> Any:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: make test-trackers")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains with a tracker in a folder of its own; returns the trainer."""
    monkeypatch.chdir(tmp_path)
    for variable, value in OFFLINE.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def train(name: str, **changes: Any) -> GRPOTrainer:
        args = settings(report_to=name, run_name="first", project="ours", log_completions=True, **changes)
        trainer = GRPOTrainer(small_model(), lengths, args, ROWS, ROWS[:2], tokenizer=build_tokenizer())
        trainer.train()
        return trainer

    return train


def rewards(trainer: GRPOTrainer) -> list[float]:
    return [row["reward"] for row in trainer.state.log_history if "reward" in row]


def test_tensorboards_files_have_transformers_names(trained: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trained("tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "runs")).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/reward")]
    expected = [(row["step"], pytest.approx(row["reward"])) for row in trainer.state.log_history if "reward" in row]
    assert scalars == expected
    assert [event.step for event in events.Scalars("eval/reward")] == [2]
    assert "train/step" not in events.Tags()["scalars"]
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"run_name": "first"' in text
    assert trainer.pop_callback(TensorBoardCallback) is not None


def test_tensorboard_writes_where_logging_dir_says(trained: Any, tmp_path: Path) -> None:
    trained("tensorboard", logging_dir="logs")
    assert list((tmp_path / "logs").glob("events*")) and not (tmp_path / "run" / "runs").exists()


def leveldb_records(written: bytes) -> list[bytes]:
    """The records of a file of wandb's: blocks of LevelDB's log after a header of 7 bytes."""
    records, part, at = [], b"", 7
    while at + 7 <= len(written):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(written[at + 4 : at + 6], "little"), written[at + 6]
        part += written[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            records.append(part)
            part = b""
    return records


@needs("wandb")
def test_wandb(trained: Any, tmp_path: Path) -> None:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    trainer = trained("wandb")
    assert (wandb.run.name, wandb.run.project) == ("first", "ours")
    assert wandb.config["learning_rate"] == 0.1
    wandb.finish()
    rows: list[dict[str, Any]] = []
    for data in leveldb_records(next((tmp_path / "wandb").glob("offline-run-*/run-*.wandb")).read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert [row["train/reward"] for row in rows if "train/reward" in row] == pytest.approx(rewards(trainer))
    assert len([row for row in rows if "eval/reward" in row]) == 1
    table = json.loads(next((tmp_path / "wandb").rglob("completions_*.table.json")).read_text())
    assert table["columns"] == ["step", "prompt", "completion", "reward", "lengths", "advantage"]
    assert len(table["data"]) == 3


@needs("mlflow")
def test_mlflow(trained: Any) -> None:
    import mlflow

    trainer = trained("mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("ours")
    run = client.search_runs([experiment.experiment_id])[0]
    assert run.info.run_name == "first" and run.data.params["learning_rate"] == "0.1"
    history = client.get_metric_history(run.info.run_id, "reward")
    assert [point.value for point in sorted(history, key=lambda each: each.step)] == pytest.approx(rewards(trainer))
    assert len(client.get_metric_history(run.info.run_id, "eval_reward")) == 1
    table = mlflow.load_table("completions.json", run_ids=[run.info.run_id])
    assert list(table["step"]) == [1, 1, 1, 2, 2, 2]


@needs("trackio")
def test_trackio(trained: Any, tmp_path: Path) -> None:
    trainer = trained("trackio")
    with sqlite3.connect(next(tmp_path.rglob("ours.db"))) as database:
        rows = [json.loads(text) for (text,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
        names = {name for (name,) in database.execute("SELECT run_name FROM metrics")}
    assert names == {"first"}
    assert [row["train/reward"] for row in rows if "train/reward" in row] == pytest.approx(rewards(trainer))
    tables = [row["completions"] for row in rows if "completions" in row]
    assert len(tables) == 2 and tables[0]["_type"] == "trackio.table"


@needs("swanlab")
def test_swanlab(trained: Any, tmp_path: Path) -> None:
    import swanlab

    trained("swanlab")
    swanlab.finish()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "swanlog" in str(path))
    assert b"train/reward" in written and b"eval/reward" in written and b"completions" in written


@needs("comet_ml")
def test_comet(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comet_ml

    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))
    trainer = trained("comet_ml")
    comet_ml.get_running_experiment().end()
    with zipfile.ZipFile(next((tmp_path / "comet").glob("*.zip"))) as archive:
        lines = [json.loads(line) for line in archive.read("messages.json").decode().splitlines()]
    names = [line["payload"]["metric"]["metricName"] for line in lines if line["type"] == "metric_msg"]
    assert names.count("train/reward") == len(rewards(trainer)) and names.count("eval/reward") == 1


@needs("clearml")
def test_clearml(tmp_path: Path) -> None:
    # clearml handles signals and the end of the process: it gets one of its own.
    program = (
        "from test_trackers import *\n"
        "args = settings(report_to='clearml', run_name='first', project='ours')\n"
        "trainer = GRPOTrainer(small_model(), lengths, args, ROWS, ROWS[:2], tokenizer=build_tokenizer())\n"
        "print('made', trainer.train().global_step)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, **OFFLINE, "CLEARML_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "made 2" in done.stdout, done.stderr
    with zipfile.ZipFile(next((tmp_path / "cache").rglob("offline-*.zip"))) as archive:
        written = {name: archive.read(name).decode(errors="replace") for name in archive.namelist()}
    task = json.loads(written["task.json"])
    assert (task["name"], task["project_name"]) == ("first", "ours")
    assert any('"reward"' in text for text in written.values())
    assert "learning_rate" in written["task.json"]


@needs("dvclive")
def test_dvclive(trained: Any, tmp_path: Path) -> None:
    trainer = trained("dvclive")
    rows = (tmp_path / "dvclive" / "plots" / "metrics" / "reward.tsv").read_text().splitlines()
    assert [float(row.split("\t")[-1]) for row in rows[1:]] == pytest.approx(rewards(trainer))


def test_names_are_transformers_own() -> None:
    assert {*TRACKERS} == {*INTEGRATION_TO_CALLBACK}


def test_a_tracker_that_is_not_installed_is_refused_with_the_command() -> None:
    assert find_spec("neptune") is None
    with pytest.raises(UserError, match="report_to: neptune needs its package: pip install neptune"):
        trackers(settings(report_to=["neptune"]))
    assert trackers(settings(report_to="none")) == []
    assert "TensorBoardCallback" in [type(each).__name__ for each in trackers(settings(report_to="all"))]


def test_completions_go_nowhere_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from cohort.train.output import trackers as module

    monkeypatch.setattr(module, "_tracker", lambda name, *_: name)
    assert trackers(settings(report_to=["wandb"])) == ["wandb"]
    assert len(trackers(settings(report_to=["wandb"], log_completions=True))) == 2
    assert len(trackers(settings(report_to=["wandb"], log_completions=4))) == 2
    assert trackers(settings(report_to=["wandb"], log_completions=False)) == ["wandb"]
