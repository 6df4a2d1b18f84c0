"""One step of the optimiser, and its state in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cohort.data.chains import build_tokenizer, make_chains
from cohort.train.optimizer import BITSANDBYTES
from cohort.train.output.optimizer_state import nested, state_of
from cohort.types import Row
from helpers import StopAfter, digits, numbers, rows_of, small_model

_, TRAIN, _ = make_chains(2, 4, 8, seed=0)


def run(folder: Path, **values: Any) -> Any:
    from cohort import GRPOConfig, GRPOTrainer

    callbacks, resume = values.pop("callbacks", None), values.pop("resume", False)
    rewards, model = values.pop("rewards", digits), values.pop("model", None)
    settings = {"learning_rate": 1e-2, "num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 4}
    settings |= {"max_completion_length": 6, "beta": 0.04, "use_cpu": True, "bf16": False, "output_dir": str(folder)}
    rows: list[Row] = TRAIN
    trainer = GRPOTrainer(
        small_model(vocab_size=22, hidden_size=64) if model is None else model,
        rewards,
        GRPOConfig(**{**settings, **values}),
        rows,
        processing_class=build_tokenizer(),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Nesting(torch.optim.SGD):
    """Has a state like bitsandbytes': a number, a text, tensors one level down, of which two share memory."""

    def state_dict(self) -> dict[str, Any]:
        table = torch.arange(4.0)
        inner = {"state1": torch.tensor([1, 255], dtype=torch.uint8), "qmap1": table}
        first = {"step": 3, "kind": "dynamic", "rate": 0.1, "on": True, "quant": inner}
        return {"state": {0: first, 1: {"step": 3, "quant": {"qmap1": table}}}, "param_groups": []}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else type(a) is type(b) and a == b


def test_a_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    optimizer = Nesting([nn.Parameter(torch.zeros(2))], lr=0.1)
    tensors, metadata = state_of(optimizer)
    save_file(tensors, tmp_path / "state.safetensors", metadata)
    found = nested(load_file(tmp_path / "state.safetensors"), tmp_path / "state.safetensors")
    assert same(found, optimizer.state_dict()["state"])


@pytest.mark.parametrize("optim", BITSANDBYTES)
def test_a_run_with_bitsandbytes_resumes_to_the_bit_on_a_cpu(tmp_path: Path, optim: str) -> None:
    pytest.importorskip("bitsandbytes", reason="cohort-rl[quantization] is not installed")
    whole = run(tmp_path / "whole", optim=optim)
    optimizer = whole.loop.updater.optimizer
    assert type(optimizer).__name__ == BITSANDBYTES[optim].removeprefix("Paged")
    types = {state["state1"].dtype for state in optimizer.state.values()}
    assert types == ({torch.float32, torch.uint8} if "8bit" in optim else {torch.float32})
    run(tmp_path / "cut", optim=optim, save_steps=2, callbacks=[StopAfter(2)])
    again = run(tmp_path / "cut", optim=optim, resume=True)
    assert numbers(rows_of(tmp_path / "cut")) == numbers(rows_of(tmp_path / "whole"))
    for a, b in zip(again.policy.parameters, whole.policy.parameters, strict=True):
        assert torch.equal(a, b)
    resumed = [again.loop.updater.optimizer.state[p] for p in again.policy.parameters]
    assert all(same(a, optimizer.state[p]) for a, p in zip(resumed, whole.policy.parameters, strict=True))
