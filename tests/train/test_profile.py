"""`profile: true`: a trace that is valid JSON with the phases in it, and where the time went."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cohort import GRPOConfig, GRPOTrainer
from cohort.data.chains import build_tokenizer
from cohort.train.profile import phase_lines
from helpers import small_model


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
        assert sum(e.get("name") == phase and e.get("cat") == "user_annotation" for e in events) == count, phase
    assert any(e.get("name") == "aten::addmm" for e in events)
    text = (tmp_path / "profile.txt").read_text(encoding="utf-8")
    assert text.startswith(f"Profile of {profiled}\n")
    printed = capsys.readouterr().out
    assert text in printed and "ui.perfetto.dev" in printed
    phases = {line[:20].strip(): line.split()[-1] for line in text.split("\n\n")[1].splitlines()[1:]}
    assert list(phases) == ["generate", "reward", "score (reference)", "update", "other"]
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
