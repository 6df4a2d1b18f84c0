"""The scripts of bench/ on tiny workloads: they keep running as the library changes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser
from transformers import AutoTokenizer

from cohort.config import read_run
from cohort.data.rows import load_rows
from helpers import ROOT

BENCH = ROOT / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a script of bench/ by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_every_text_reward_has_a_time_on_hostile_texts(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = script("rewards")
    monkeypatch.setattr(rewards, "SIZE", 100)
    table = "\n".join(rewards.text_table())
    assert all(f"| `{name}` |" in table for name in rewards.TEXT_REWARDS)


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_of_ours_is_measured_by_phases(script: Any, tmp_path: Path, tied: bool) -> None:
    one_step, workloads = script("one_step"), script("workloads")
    workload = workloads.Workload("tiny", 50, 32, 2, 4, 48, 6, 5, 2, kv_heads=1, tied=tied, at_once=8)
    workloads.build(workload, str(tmp_path))
    found = one_step.measure_ours(workload, 3, str(tmp_path), str(tmp_path / "out"))
    assert [len(found[phase]) for phase in ("generate", "score", "update", "step")] == [1, 1, 1, 1]
    assert found["step"][0] >= found["generate"][0] + found["score"][0] + found["update"][0] > 0
    assert 1 <= found["tokens"] <= 5
    if not tied:  # the end token's probability is almost 0
        assert found["tokens"] == found["longest"] == 5


def test_each_record_of_a_step_is_timed(script: Any, tmp_path: Path) -> None:
    recording, workloads = script("recording"), script("workloads")
    workload = workloads.Workload("tiny", 50, 32, 2, 4, 48, 6, 5, 2, kv_heads=1, at_once=8)
    workloads.build(workload, str(tmp_path))
    wall, parts = recording.measure(workload, 4, str(tmp_path), str(tmp_path / "out"))
    assert len(wall) == 2 and {len(seconds) for seconds in parts.values()} == {2} and len(parts) == 5
    assert 0 < sum(seconds[0] for seconds in parts.values()) < wall[0]


def test_the_floor_counts_a_prompt_once_and_what_attention_sees(script: Any) -> None:
    workload = script("workloads").Workload("tiny", 10, 4, 1, 2, 6, 3, 2, 1, kv_heads=1)
    matrices = 3 * 4 * 6 + 2 * 4 * 4 + 2 * 4 * 2  # gate, up, down; queries and out; keys and values
    completions = 8 * 2
    seen = 3 * 3 / 2 + completions * (3 + 2 / 2)
    forward = 2 * (matrices * (3 + completions) + 4 * 10 * completions + 2 * 4 * seen)
    found = script("floor").floor(workload, 2, 2, 1.0, float("inf"), bf16=False)
    assert found == pytest.approx({"generate": forward, "score": forward, "update": 3 * forward})


def test_the_floor_of_decoding_reads_the_weights_for_each_token_of_the_longest(script: Any) -> None:
    workload = script("workloads").Workload("tiny", 10, 4, 1, 2, 6, 3, 2, 1, kv_heads=1)
    weights = 3 * 4 * 6 + 2 * 4 * 4 + 2 * 4 * 2 + 4 * 10
    for bf16, size in ((False, 4), (True, 2)):
        found = script("floor").floor(workload, 1.5, 2, float("inf"), 100.0, bf16)
        assert found == pytest.approx({"generate": size * weights * 2 / 100, "score": 0, "update": 0})


def test_the_real_models_workload_asks_for_sums(script: Any) -> None:
    workloads = script("workloads")
    real = workloads.WORKLOADS["R"]
    rows = workloads.rows(real, 2)
    assert len(rows) == 8 and len({str(row["prompt"]) for row in rows}) == 8
    for row in rows:
        a, b = map(int, re.findall(r"\d+", row["prompt"][0]["content"]))
        assert row["answer"] == str(a + b) and min(a, b) >= 2 and max(a, b) <= 49
    assert workloads.reward_of(real)([[{"content": "19 + 2"}], [{"content": ""}]]) == [3 / 6, 0]


def test_a_workload_that_cannot_run_here_says_why(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    speed, real_model = script("speed"), script("real_model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("cohort.demo.packaged_model.packaged_file", lambda: None)
    assert real_model.real_model() is None
    assert str(tmp_path) in speed.why_not(script("workloads").WORKLOADS["R"])
    assert speed.why_not(script("workloads").WORKLOADS["S"]) is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_batch_of_a_run_is_the_same_on_any_number_of_ranks(script: Any, tmp_path: Path, ranks: int) -> None:
    scaling, workloads = script("scaling_ranks"), script("workloads")
    workload = workloads.Workload("tiny", 50, 32, 2, 4, 48, 6, 5, 2)
    path = scaling.write_run(workload, 3, ranks, tmp_path)
    run, config = read_run(path)
    assert config.per_device_train_batch_size * ranks == 16
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 6
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert len(tokenizer(load_rows(run.dataset)[0].prompt).input_ids) == 6


def test_a_run_on_ranks_starts_by_torchrun(script: Any) -> None:
    scaling = script("scaling_ranks")
    alone, two = (scaling.command(Path("run.yaml"), ranks)[1:] for ranks in (None, 2))
    assert alone == ["-m", "cohort", "train", "run.yaml"]
    parsed = get_args_parser().parse_args(two[2:])
    assert (parsed.nproc_per_node, parsed.training_script_args) == ("2", ["train", "run.yaml"])


@pytest.mark.parametrize("name", ["SmallDemo", "RealModel"])
def test_a_task_to_learn_has_problems_and_settings(script: Any, tmp_path: Path, name: str) -> None:
    task = getattr(script("learning_tasks"), name)()
    train, held_out = task.train(0), task.held_out(0)
    assert len(held_out) == 300 and not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in held_out}
    config = task.config(tmp_path, 1, 7)
    assert (config.seed, config.max_steps, config.beta, config.adam_beta2) == (1, 7, 0, 0.99)
    assert len(task.rewards("ours")) == len(task.rewards("TRL"))


def test_the_goal_is_reached_between_two_measurements(script: Any) -> None:
    reached = script("time_to_accuracy").reached
    assert reached([(0, 0, 0.2), (10, 64, 0.4), (30, 128, 0.8)], 0.6) == pytest.approx((20, 96))
    assert reached([(0, 0, 0.2), (10, 64, 0.4)], 0.6) is None


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py")))
def test_a_script_imports(script: Any, name: str) -> None:
    script(name)


def test_sampling_beside_training_is_compared_under_one_configuration(script: Any, tmp_path: Path) -> None:
    asynchronous = script("asynchronous")
    configs = {name: asynchronous.configured(case, 0, tmp_path, 9) for name, case in asynchronous.CASES.items()}
    assert [configs[name].staleness for name in ("local", "ray-0", "ray-1", "ray-2")] == [0, 0, 1, 2]
    assert [configs[name].corrects_sampler for name in ("ray-0", "ray-1", "ray-1-uncorrected")] == [False, True, False]
    assert len({(config.max_steps, config.learning_rate, config.batch_size) for config in configs.values()}) == 1
    runs = [{"step": s, "wait": 0.5, "mismatch": 0.1, "accuracy": [0.2, 0.4, a]} for s, a in ((1.0, 0.5), (2.0, 0.7))]
    words = asynchronous.line("ray-1", runs).split()
    assert " ".join(words) == "ray-1 1.500 0.500 0.1000 20.0% 40.0% 60.0% 50.0% to 70.0%"


def test_a_simulated_pool_answers_every_prompt_once(script: Any) -> None:
    simulate = script("simulate")
    pool = simulate.Pool(8, steps=8, tokens=100)
    in_turn, ahead = (simulate.simulate(simulate.replace(pool, staleness=k)) for k in (0, 1))
    # In turn with training a step takes both; ahead, the longer of them and the first batch.
    sampling = in_turn.seconds - pool.train
    assert in_turn.waiting == pytest.approx(sampling / in_turn.seconds)
    assert ahead.seconds == pytest.approx(max(sampling, pool.train), rel=0.25)
    assert [outcome.staleness for outcome in (in_turn, ahead)] == [0, 7 / 8]
    failing = simulate.simulate(simulate.replace(pool, failures=60.0))
    assert failing.repeated > 0 and failing.answered == in_turn.answered == 8 * 8 * 16
    assert failing.seconds > in_turn.seconds
    assert simulate.simulate(simulate.replace(pool, slow=0.5)).seconds > in_turn.seconds


def test_simulated_segments_save_what_the_longest_completions_cost(script: Any, monkeypatch: Any) -> None:
    segments = script("segments")
    assert segments.in_parallel([3, 1, 1, 1], 2) == 3
    assert segments.seconds_of([(0, 100), (0, 10)], 1, 1) == pytest.approx(110 * (segments.POSITION + segments.ROW))
    monkeypatch.setitem(segments.CASES, "equal", (lambda chance: 400, 400))
    whole, halves, thirds = (segments.sampling("equal", 1, 2, length) for length in (None, 200, 150))
    # Each call has both halves of 128 completions, in two requests; thirds leave a rest of 100 for a call of its own.
    prefill = segments.PREFILL * 128 * (512 + 712 - 512 / 16)
    assert halves == pytest.approx(whole / 2 + 128 * 200 * segments.ROW + prefill)
    assert thirds > halves
