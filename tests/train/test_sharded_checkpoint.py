"""Checkpoints of ranks: one process writes, two ranks go on, one process and three ranks load what they wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers

from cohort.data.chains import build_tokenizer
from cohort.policy.load import make_policy
from cohort.train.output import sharded_checkpoint
from cohort.train.output.export import export
from cohort.types import UserError
from helpers import SIZES, random_groups, settings, small_model
from process_group import in_ranks
from sharded_work import CASES, continued, learner, reloaded, step, weights

KEPT = ("Llama, tied", "LoRA")

pytestmark = pytest.mark.slow  # each starts a group of processes


class Chain(NamedTuple):
    one: Path
    """Written by one process."""
    two: Path
    """By two ranks that went on from it."""
    whole: Path
    """By those two: the model by itself."""
    saved_by_one: dict[str, Any]
    ranks: list[dict[str, Any]]


def process(case: str, seed_of_adapter: int = 1) -> tuple[Any, Any, Any]:
    architecture, shape, values, _ = CASES[case]
    config = settings(learning_rate=1e-3, **values)
    torch.manual_seed(seed_of_adapter)
    model = small_model(architecture, **shape)
    policy = make_policy(model, build_tokenizer(), config)
    return policy, config, learner(policy, config)


@pytest.fixture(scope="module", params=KEPT)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    one, two, whole = folder / "one", folder / "two", folder / "whole"
    policy, config, updater = process(request.param)
    step(policy, updater, config, random_groups(SIZES))
    sharded_checkpoint.save(one, policy, updater.optimizer)
    ranks = in_ranks(2, continued, request.param, str(one), str(two), str(whole))
    return Chain(one, two, whole, weights(policy, updater.optimizer), ranks)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def case_of(chain: Chain) -> str:
    return "LoRA" if (chain.two / "adapter_config.json").is_file() else "Llama, tied"


def trained_or_optimizers(values: dict[str, Any], chain: Chain) -> dict[str, Any]:
    """Without the base weights, which an adapter's checkpoint does not hold."""
    return {name: v for name, v in values.items() if case_of(chain) != "LoRA" or "lora_" in name}


def test_two_ranks_load_what_one_process_saved(chain: Chain) -> None:
    for rank in chain.ranks:
        assert_same(trained_or_optimizers(rank["loaded"], chain), trained_or_optimizers(chain.saved_by_one, chain))


def test_one_process_loads_what_two_ranks_saved(chain: Chain) -> None:
    policy, _, updater = process(case_of(chain), seed_of_adapter=5)
    sharded_checkpoint.load(chain.two, policy, updater.optimizer)
    ours = weights(policy, updater.optimizer)
    assert_same(trained_or_optimizers(ours, chain), trained_or_optimizers(chain.ranks[0]["saved"], chain))
    assert any(name.endswith("exp_avg_sq") for name in ours)
    steps = {float(value) for name, value in ours.items() if name.endswith(" step")}
    assert steps == {2.0}


def test_three_ranks_load_what_two_saved(chain: Chain) -> None:
    for rank in in_ranks(3, reloaded, case_of(chain), str(chain.two)):
        assert_same(trained_or_optimizers(rank, chain), trained_or_optimizers(chain.ranks[0]["saved"], chain))


def test_no_file_is_a_pickle(chain: Chain) -> None:
    names = [path.name for path in chain.two.rglob("*") if path.is_file()]
    assert [name for name in names if not name.endswith((".safetensors", ".json", ".jinja"))] == []
    assert len([name for name in names if name.startswith("shard-")]) == 4


def test_a_folder_with_a_file_missing_is_told(chain: Chain, tmp_path: Path) -> None:
    policy, _, updater = process(case_of(chain))
    for number in (1, 2):
        folder = Path(shutil.copytree(chain.two, tmp_path / str(number)))
        next((folder / "weights").glob(f"shard-0000{number}-*")).unlink()
        with pytest.raises(UserError, match=r"files are missing: .* is \[.*\] in the model, and the files have"):
            sharded_checkpoint.load(folder, policy, updater.optimizer)


def test_a_folder_of_another_model_is_told(chain: Chain) -> None:
    policy = make_policy(small_model("Llama", num_hidden_layers=3), build_tokenizer(), settings())
    updater = learner(policy, settings())
    with pytest.raises(UserError, match=r"is of another model, or files are missing: .* is not in it"):
        sharded_checkpoint.load(chain.two, policy, updater.optimizer)


def logits(folder: Path, base: Any) -> torch.Tensor:
    ids = torch.arange(2, 20)[None]
    if base is not None:
        model: Any = peft.PeftModel.from_pretrained(base, folder)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=ids).logits
    return result


def test_the_export_and_the_final_model_are_ordinary_folders(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_adapter = case_of(chain) == "LoRA"
    policy, _, updater = process(case_of(chain), seed_of_adapter=5)
    sharded_checkpoint.load(chain.two, policy, updater.optimizer)
    with torch.no_grad():
        expected = policy.model.eval()(input_ids=torch.arange(2, 20)[None]).logits

    def base() -> Any:
        return small_model("Llama") if is_adapter else None

    assert torch.equal(logits(chain.whole, base()), expected)
    if is_adapter:
        small_model("Llama").save_pretrained(tmp_path / "base")
        monkeypatch.setattr(sharded_checkpoint, "base_of", lambda folder: str(tmp_path / "base"))
        with pytest.raises(UserError, match="export it without --merge, then merge the result"):
            export(str(chain.two), tmp_path / "merged", merge=True)
    export(str(chain.two), tmp_path / "export")
    assert torch.equal(logits(tmp_path / "export", base()), expected)
