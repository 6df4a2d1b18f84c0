"""examples/grpo_loop.py fits one page, learns, and computes the log-probabilities that the engine reports."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch

from cohort.data.chains import build_tokenizer
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from helpers import ROOT, seeds, small_policy

SCRIPT = ROOT / "examples" / "grpo_loop.py"


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_loop", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_fits_one_page() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 100


def test_the_reward_rises(loop: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rewards = loop.train()
    assert len(rewards) == loop.STEPS == len(capsys.readouterr().out.splitlines())
    assert sum(rewards[:2]) / 2 < 0.5 and sum(rewards[-5:]) / 5 > 0.9


def test_its_logprobs_are_the_engines(loop: ModuleType) -> None:
    policy, prompt = small_policy(vocab_size=len(build_tokenizer())), torch.tensor([5, 6, 7])
    sampling = Sampling(max_tokens=9, eos_ids=policy.eos_ids)
    [group] = local_engine(policy, 8).generate([prompt], 8, sampling, seeds([prompt])).completions
    logprobs = loop.logprobs(policy.model, prompt, group)
    torch.testing.assert_close(logprobs, torch.cat([completion.logprobs for completion in group]), rtol=1e-4, atol=1e-4)
