"""`profile: true`: a trace that is valid JSON with the phases in it, and where the time went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity

from cohort import GRPOConfig, GRPOTrainer
from cohort.data.chains import build_tokenizer
from cohort.train import profile as module
from cohort.train.profile import phase_lines
from helpers import ROOT, small_model


def config(folder: Path, steps: int) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(folder),
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=4,
        max_steps=steps,
        beta=0.1,
        use_cpu=True,
        bf16=False,
        profile=True,
        reward_preflight=False,
    )


def digits(completions: list[str], **_: object) -> list[float]:
    return [float(sum(c.isdigit() for c in text)) for text in completions]


@pytest.mark.parametrize(("steps", "profiled"), [(1, "steps 1 to 1"), (2, "steps 2 to 2"), (5, "steps 2 to 3")])
def test_a_run_leaves_a_trace_and_says_where_time_went(
    steps: int, profiled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{i}+1="} for i in range(4)]
    GRPOTrainer(small_model(), digits, config(tmp_path, steps), rows, processing_class=build_tokenizer()).train()
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    count = 1 if steps < 3 else 2
    for phase in ("generate", "reward", "reference", "update"):
        # At the first step the reference is the policy that sampled, and scores nothing.
        expected = 0 if (phase, steps) == ("reference", 1) else count
        assert sum(e.get("name") == phase and e.get("cat") == "user_annotation" for e in events) == expected, phase
    assert any(e.get("name") == "aten::addmm" for e in events)
    text = (tmp_path / "profile.txt").read_text(encoding="utf-8")
    assert text.startswith(f"Profile of {profiled}\n")
    printed = capsys.readouterr().out
    assert text in printed and "ui.perfetto.dev" in printed
    phases = {line[:20].strip(): line.split()[-1] for line in text.split("\n\n")[1].splitlines()[1:]}
    scored = ["score (reference)"] if steps > 1 else []
    assert list(phases) == ["generate", "reward", *scored, "update", "other"]
    assert sum(float(share.rstrip("%")) for share in phases.values()) == pytest.approx(100, abs=0.3)
    assert "aten::" in text.split("\n\n")[2]


def test_shares_of_phases_are_of_the_whole_step() -> None:
    rows = [
        {"seconds/step": 10.0, "seconds/generate": 6.0, "seconds/update": 3.0},
        {"seconds/step": 10.0, "seconds/update": 9.0},
    ]
    assert [line.split() for line in phase_lines(rows)[1:]] == [
        ["generate", "6.000", "30.0%"],
        ["update", "12.000", "60.0%"],
        ["other", "2.000", "10.0%"],
    ]


@pytest.mark.slow
def test_kineto_has_room_for_the_gpus_records() -> None:
    """As PyTorch's profiler says itself in a process of its own: what it logs of its configuration."""
    code = (
        "from cohort.train.profile import make_room_for_records\n"
        "make_room_for_records()\n"
        "from torch.profiler import ProfilerActivity, profile\n"
        "with profile(activities=[ProfilerActivity.CPU]):\n    pass\n"
    )
    found = {}
    for name, own in (("ours", {}), ("the user's", {"KINETO_CONFIG": "/nowhere"})):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "KINETO_LOG_LEVEL": "0", **own}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found[name] = [line.split(":")[-1].strip() for line in run.stderr.splitlines() if "Max GPU buffer size" in line]
    assert found == {"ours": ["2047MB"], "the user's": ["128MB"]}


def test_a_trace_whose_records_had_no_room_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("cohort.train.profile.gpu_records_ended", lambda: True)
    rows = [{"prompt": f"{i}+1="} for i in range(4)]
    GRPOTrainer(small_model(), digits, config(tmp_path, 1), rows, processing_class=build_tokenizer()).train()
    told = "The GPU's part of the trace is not whole"
    assert told in (tmp_path / "profile.txt").read_text(encoding="utf-8") and told in capsys.readouterr().out
    assert told in caplog.text


def test_a_card_is_traced_after_it_has_finished_earlier_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PyTorch's profiler replaced: what it is asked for, and in which order."""
    events: list[str] = []

    class Recorded:
        def __init__(self, activities: list[ProfilerActivity]):
            events.append("+".join(activity.name for activity in activities))

        def start(self) -> None:
            events.append("start")

    monkeypatch.setattr(module, "profile", Recorded)
    monkeypatch.setattr(module, "make_room_for_records", lambda: events.append("room"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    profiler = module.Profiler(tmp_path)
    state = SimpleNamespace(max_steps=9, global_step=0, log_history=[{}])
    profiler.on_train_begin(None, state, None)
    assert events == []
    state.global_step = 1
    profiler.on_step_end(None, state, None)
    assert events == ["room", "wait", "CPU+CUDA", "start"]
