"""What every engine does: token ids in; ids, log-probabilities, texts and a weight version out. An engine is added to
ENGINES; one that needs a server or a package skips where it has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from cohort.config.engines import RayEngineConfig, VLLMEngineConfig
from cohort.policy.model import Policy
from cohort.policy.text import texts_of
from cohort.rollouts.engine import Engine, LocalEngine
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Sampling
from cohort.rollouts.vllm.engine import VLLMEngine
from cohort.types import Completion
from helpers import ENDS, largest_difference, prompts_of, seeds
from vllm_servers import EXECUTABLE, servable_policy, served, stop_all
from vllm_stub import Stub


def ray_pool(policy: Policy, _: Path) -> Engine:
    pytest.importorskip("ray", reason="needs ray: make test-ray")
    from cohort.rollouts.ray_pool import RayPool

    return RayPool(policy, RayEngineConfig(workers=2), 256)


def vllm(url: str, policy: Policy, folder: Path) -> Engine:
    return VLLMEngine(policy, VLLMEngineConfig(url=[url], folder=str(folder)), "", 256)


def stub(policy: Policy, folder: Path) -> Engine:
    return vllm(Stub(policy).url, policy, folder)


def real(policy: Policy, folder: Path) -> Engine:
    if not EXECUTABLE:
        pytest.skip("needs a server of vLLM: make test-vllm")
    server = served(policy, folder)
    server.wait()
    return vllm(server.url, policy, folder)


ENGINES: dict[str, Callable[[Policy, Path], Engine]] = {
    "local": lambda policy, _: LocalEngine(policy),
    "rows": lambda policy, _: RowEngine(policy),
    "stub of vllm": stub,
    "stub of vllm, adapter": stub,
    "ray": ray_pool,
    "vllm": real,
    "vllm, adapter": real,
}
SLOW = ("ray", "vllm", "vllm, adapter")


@pytest.fixture(
    params=[pytest.param(name, id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ENGINES],
    scope="module",
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Policy, Engine]]:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    policy = servable_policy(adapter if request.param.endswith("adapter") else None)
    engine: Any = ENGINES[request.param](policy, tmp_path_factory.mktemp("served"))
    yield policy, engine
    if hasattr(engine, "release"):
        engine.release()
    stop_all()


def sampled(
    both: tuple[Policy, Engine], prompts: list[Tensor], n: int = 3, given: list[int] | None = None, **values: Any
) -> list[list[Completion]]:
    policy, engine = both
    engine.follow(policy, policy.version)
    sampling = Sampling(**{"max_tokens": 12, "eos_ids": ENDS, **values})
    return engine.generate(prompts, n, sampling, given or seeds(prompts)).completions


def test_it_is_ready(both: tuple[Policy, Engine]) -> None:
    assert both[1].check() is None


def test_log_probabilities_and_texts_are_the_policys(both: tuple[Policy, Engine]) -> None:
    policy, prompts = both[0], prompts_of()
    for temperature in (1.0, 0.7):
        groups = sampled(both, prompts, temperature=temperature, eos_ids=[1])
        assert [len(group) for group in groups] == [3] * len(prompts)
        assert largest_difference(policy, prompts, groups, temperature) < 1e-4
    for completion in (c for group in groups for c in group):
        assert completion.ids.dtype == torch.int64 and completion.logprobs.dtype == torch.float32
        assert completion.ids.device.type == completion.logprobs.device.type == "cpu"
        assert [completion.text] == texts_of(policy.tokenizer, [completion.ids.tolist()], [1])


def test_a_prompts_completions_depend_on_its_seed_and_not_on_the_batch(both: tuple[Policy, Engine]) -> None:
    prompts = prompts_of()
    together = sampled(both, prompts)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds(prompts), strict=True)):
        (alone,) = sampled(both, [prompt], given=[seed])
        assert [c.ids.tolist() for c in alone] == [c.ids.tolist() for c in together[i]]
    other = sampled(both, prompts, given=seeds(prompts, 1))
    assert [c.ids.tolist() for g in other for c in g] != [c.ids.tolist() for g in together for c in g]


def test_a_completion_ends_with_an_end_token_or_at_the_limit(both: tuple[Policy, Engine]) -> None:
    for group in sampled(both, prompts_of(), max_tokens=8):
        for completion in group:
            ids = completion.ids.tolist()
            assert not set(ids[:-1]) & set(ENDS)
            assert completion.truncated == (ids[-1] not in ENDS)
            assert len(ids) == 8 if completion.truncated else len(ids) <= 8


def test_a_stop_string_ends_a_completion(both: tuple[Policy, Engine]) -> None:
    prompts, tokenizer = prompts_of(), both[0].tokenizer
    plain = sampled(both, prompts, eos_ids=[])
    stop = max((c.text for group in plain for c in group), key=len)[1:3]
    stopped = sampled(both, prompts, eos_ids=[], stop=[stop])
    for before, after in zip(plain, stopped, strict=True):
        for whole, cut in zip(before, after, strict=True):
            assert whole.ids.tolist()[: len(cut.ids)] == cut.ids.tolist()
            assert (stop in cut.text) == (stop in whole.text) == (not cut.truncated)
            assert stop not in tokenizer.decode(cut.ids[:-1].tolist())


def test_completions_have_the_version_of_the_weights_and_change_with_them(both: tuple[Policy, Engine]) -> None:
    policy, prompts = both[0], prompts_of()
    before = sampled(both, prompts)
    assert {c.version for group in before for c in group} == {policy.version}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter += 0.05 * torch.randn_like(parameter)
    policy.version += 1
    after = sampled(both, prompts)
    assert {c.version for group in after for c in group} == {policy.version}
    assert [c.ids.tolist() for g in after for c in g] != [c.ids.tolist() for g in before for c in g]
    assert largest_difference(policy, prompts, after, 1.0) < 1e-4


def test_groups_are_told_as_they_end(both: tuple[Policy, Engine]) -> None:
    policy, engine = both
    prompts, told = prompts_of(), dict[int, list[Completion]]()
    engine.follow(policy, policy.version)
    sampling = Sampling(max_tokens=6, eos_ids=ENDS)
    groups = engine.generate(prompts, 2, sampling, seeds(prompts), on_group=told.__setitem__).completions
    assert [told[i] for i in range(len(prompts))] == groups
