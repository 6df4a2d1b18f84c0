"""The engine of vLLM on a stub of its routes, with the faults that real servers have had, and on a real server."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from cohort.config.engines import VLLMEngineConfig
from cohort.policy.model import Policy
from cohort.rollouts.engine import EngineError, LocalEngine
from cohort.rollouts.sampling import Sampling
from cohort.rollouts.vllm.engine import VLLMEngine
from cohort.rollouts.vllm.server import Server
from cohort.types import Completion, UserError
from helpers import ENDS, largest_difference, prompts_of, seeds
from vllm_servers import needs_vllm, servable_policy, served, stop_all
from vllm_stub import Stub, stub_of

PROMPTS = prompts_of()
SAMPLING = Sampling(max_tokens=12, eos_ids=ENDS)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}


def policy_of(kind: str) -> Policy:
    return servable_policy(LoraConfig(**LORA) if kind == "adapter" else None)  # type: ignore[arg-type]


def engine_of(policy: Policy, folder: Path, *urls: str, **settings: Any) -> VLLMEngine:
    config = VLLMEngineConfig(url=list(urls), folder=str(folder), **{"start_timeout": 5, **settings})
    return VLLMEngine(policy, config, "", 256)


def change(policy: Policy, seed: int, by: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters:
            parameter += by * torch.randn(parameter.shape, generator=generator)
    policy.version += 1


def sample(engine: VLLMEngine, n: int = 3, follow: bool = True, **options: Any) -> list[list[Completion]]:
    if follow:
        engine.follow(engine.policy, engine.policy.version)
    return engine.generate(PROMPTS, n, SAMPLING, seeds(PROMPTS), **options).completions


def ids(groups: list[list[Completion]]) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in group] for group in groups]


def expected(policy: Policy, n: int = 3) -> list[list[list[int]]]:
    """What the stub samples, which is what the local engine does."""
    return [ids(LocalEngine(policy).generate([p], n, SAMPLING, [s]).completions)[0]
            for p, s in zip(PROMPTS, seeds(PROMPTS), strict=True)]  # fmt: skip


@pytest.fixture(params=["weights", "adapter"])
def policy(request: pytest.FixtureRequest) -> Policy:
    return policy_of(request.param)


@pytest.fixture
def stub(policy: Policy) -> Iterator[Stub]:
    with stub_of(policy) as started:
        yield started


def test_versions_follow_each_other_and_old_ones_go(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    engine = engine_of(policy, tmp_path, stub.url)
    for step in range(4):
        assert ids(sample(engine)) == expected(policy)
        assert engine.members[0].comparison.difference < 1e-5
        change(policy, step)
    assert len(list(tmp_path.iterdir())) == 1 and len(stub.adapters) <= 2
    assert {path for path, _ in stub.requests if "completions" not in path} >= (
        {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"} if policy.peft
        else {"/pause", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume"}
    )  # fmt: skip
    del engine
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_present_engine_keeps_its_weights(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    engine = engine_of(policy, tmp_path, stub.url)
    engine.follow(policy, 0)
    before, first = engine.present(), expected(policy)
    change(policy, 0)
    assert ids(sample(engine)) == expected(policy) != first
    groups = before.generate(PROMPTS, 3, SAMPLING, seeds(PROMPTS)).completions
    assert ids(groups) == first and {c.version for group in groups for c in group} == {0}
    assert ids(sample(engine, follow=False)) == expected(policy)


def test_aborted_requests_are_made_again(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    stub.aborts = 4
    told: list[int] = []
    groups = sample(engine_of(policy, tmp_path, stub.url), on_group=lambda i, _: told.append(i))
    assert sorted(told) == list(range(len(PROMPTS))) and ids(groups) == expected(policy)


def test_a_server_that_restarts_gets_the_weights_again(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    engine = engine_of(policy, tmp_path, stub.url)
    sample(engine)
    change(policy, 0)
    stub.delay = 0.2

    def restart() -> None:
        time.sleep(0.3)
        stub.stop()
        time.sleep(1)
        stub.begin()

    thread = threading.Thread(target=restart)
    thread.start()
    assert ids(sample(engine)) == expected(policy)
    thread.join()
    # Between two calls too, where no request fails.
    stub.delay = 0.0
    stub.stop()
    stub.begin()
    assert ids(sample(engine, follow=False)) == expected(policy)


def test_another_server_takes_the_prompts_of_one_that_is_gone(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    with stub_of(policy) as other:
        engine = engine_of(policy, tmp_path, stub.url, other.url, start_timeout=0.5)
        change(policy, 0)
        assert ids(sample(engine)) == expected(policy)
        asked = [path == "/v1/completions" and "n" in body for s in (stub, other) for path, body in s.requests]
        assert sum(asked) == len(PROMPTS)
        other.stop()
        told: list[int] = []
        assert ids(sample(engine, on_group=lambda i, _: told.append(i))) == expected(policy)
        assert sorted(told) == list(range(len(PROMPTS)))
        stub.stop()
        with pytest.raises(EngineError, match="there is no server at"):
            sample(engine)
        stub.begin()
        other.begin()
        assert ids(sample(engine)) == expected(policy)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("deaf", "the weights do not arrive at"), ("scale", r"differ by 1 in the mean \(max_logp_difference is 0.1\)")],
)
def test_weights_that_do_not_arrive_end_the_run(policy: Policy, tmp_path: Path, fault: str, message: str) -> None:
    with stub_of(policy, {fault}) as stub:
        engine = engine_of(policy, tmp_path, stub.url)
        with pytest.raises(EngineError, match=message):
            for step in range(12):
                sample(engine)
                change(policy, step, 0.002)
        assert step < 11


def test_what_a_server_leaves_out_ends_the_run(tmp_path: Path) -> None:
    policy = policy_of("weights")
    with stub_of(policy, {"head"}) as stub:
        engine = engine_of(policy, tmp_path, stub.url)
        sample(engine)
        change(policy, 0)
        with pytest.raises(EngineError, match=r"does not have the policy's weights|do not arrive"):
            sample(engine)
    with stub_of(policy, {"cache"}) as stub, pytest.raises(EngineError, match="does not drop its prefix cache"):
        sample(engine_of(policy, tmp_path, stub.url))
    assert not stub.paused


def test_a_tied_model_needs_a_server_with_two_matrices(tmp_path: Path) -> None:
    policy = servable_policy(None, "Llama", tie_word_embeddings=True)
    with stub_of(policy, untied=False) as stub, pytest.raises(EngineError, match="the first output layer"):
        sample(engine_of(policy, tmp_path, stub.url))
    with stub_of(policy) as stub:
        engine = engine_of(policy, tmp_path, stub.url)
        change(policy, 0)
        assert ids(sample(engine)) == expected(policy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "not those of the sampling temperature"),
        ({"lora": None}, "it takes no adapters, and this run trains one"),
        ({"lora": {"max_lora_rank": 2}}, "adapters up to rank 2, and this run's is 4"),
    ],
)
def test_a_server_with_other_settings_is_told(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    policy = policy_of("adapter")
    with stub_of(policy, **settings) as stub, pytest.raises(EngineError, match=message):
        engine_of(policy, tmp_path, stub.url).check()


def test_what_is_no_server_is_told(tmp_path: Path) -> None:
    policy = policy_of("weights")
    with pytest.raises(EngineError, match=r"there is no server at http://127.0.0.1:1, for 0.1 s"):
        engine_of(policy, tmp_path, "http://127.0.0.1:1", start_timeout=0.1).check()
    with stub_of(policy) as stub:
        engine = engine_of(policy, tmp_path, f"{stub.url}/v2")
        with pytest.raises(EngineError, match=r"refuses /health: Not Found"):
            engine.check()
        stub.answer = lambda *_: (200, {})  # type: ignore[method-assign]
        with pytest.raises(EngineError, match="does not tell its settings at /server_info"):
            engine_of(policy, tmp_path, stub.url).check()


def test_a_folder_that_a_server_does_not_see_is_told(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    stub.reload = lambda _: (500, {"error": {"message": "no such file"}})  # type: ignore[method-assign]
    stub.load_adapter = lambda *_: (404, {"error": {"message": "no such file"}})  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"cannot load the weights in .*no such file.*under the same path"):
        sample(engine_of(policy, tmp_path, stub.url))


def test_a_server_that_hangs_is_asked_again_and_then_the_run_ends(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    stub.delay = 5
    engine = engine_of(policy, tmp_path, stub.url, timeout=0.3, max_failures=2)
    with pytest.raises(EngineError, match=r"a prompt was sent 2 times without an answer.*has not answered for 0.3 s"):
        sample(engine)


def test_a_prompt_that_is_refused_ends_the_run(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    engine = engine_of(policy, tmp_path, stub.url)
    engine.follow(policy, 0)
    real = stub.completions
    stub.completions = lambda body: real(body) if "n" not in body else (400, {"error": {"message": "max_model_len"}})  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"refuses a prompt of . tokens: max_model_len"):
        sample(engine, follow=False)


def test_servers_sleep_while_the_policy_is_trained(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    engine = engine_of(policy, tmp_path, stub.url, sleep=True)
    sample(engine)
    paths = [path for path, _ in stub.requests]
    assert paths.index("/wake_up") < paths.index("/v1/completions") and paths[-1] == "/sleep"


def test_a_server_that_wants_a_key_or_answers_strangely_is_told(policy: Policy, stub: Stub, tmp_path: Path) -> None:
    real = stub.answer
    wanted = {"status": 401, "path": "/v1/models", "answer": {"error": "Unauthorized"}}
    stub.answer = lambda path, *rest: (
        (wanted["status"], wanted["answer"]) if path == wanted["path"] else real(path, *rest)
    )  # type: ignore[method-assign]
    with pytest.raises(EngineError, match=r"refuses a request \(401\).*set VLLM_API_KEY"):
        sample(engine_of(policy, tmp_path, stub.url))
    for answer in ("<html>", {}, {"data": []}, {"data": [1]}, None):
        wanted |= {"status": 200, "answer": answer}
        with pytest.raises(EngineError, match="an answer that is none of vLLM's"):
            sample(engine_of(policy, tmp_path, stub.url))
    wanted |= {"path": "/v1/completions"}
    for answer in (None, {"choices": []}, {"choices": [{"index": 0, "prompt_logprobs": [None, {}]}]}):
        wanted["answer"] = answer
        with pytest.raises(EngineError, match="an answer that is none of vLLM's"):
            sample(engine_of(policy, tmp_path, stub.url))
    wanted |= {"status": 503, "answer": "busy"}
    with pytest.raises(EngineError, match="the weights were sent 3 times without an answer"):
        sample(engine_of(policy, tmp_path, stub.url, max_failures=3))
    wanted |= {"path": "/wake_up", "status": 500, "answer": {}}
    with pytest.raises(EngineError, match="does not answer"):
        sample(engine_of(policy, tmp_path, stub.url, sleep=True))


def test_a_key_is_sent(policy: Policy, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    handler = stub.server.RequestHandlerClass
    original = handler.do_GET  # type: ignore[attr-defined]
    monkeypatch.setattr(handler, "do_GET", lambda self: (seen.append(self.headers["Authorization"]), original(self)))
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    Server(stub.url).call("GET", "/health")
    assert seen == ["Bearer secret"]


def test_what_vllm_cannot_do_is_refused(tmp_path: Path) -> None:
    with stub_of(policy_of("weights")) as stub:
        engine = engine_of(policy_of("weights"), tmp_path, stub.url)
        with pytest.raises(UserError, match="top_p, top_k or min_p"):
            engine.generate(PROMPTS, 2, Sampling(top_p=0.9), seeds(PROMPTS))
    dora = servable_policy(LoraConfig(**LORA, use_dora=True))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot load this adapter: it is a DoRA"):
        engine_of(dora, tmp_path, "http://localhost:1")
    heads = servable_policy(LoraConfig(**LORA, modules_to_save=["lm_head"]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"trains copies of modules \(lm_head\)"):
        engine_of(heads, tmp_path, "http://localhost:1")


@pytest.fixture(scope="module", params=["weights", "tied", "adapter"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Policy, Any]]:
    tied = request.param == "tied"
    policy = servable_policy(None, "Llama", tie_word_embeddings=True) if tied else policy_of(request.param)
    server = served(policy, tmp_path_factory.mktemp("served"))
    server.wait()
    yield policy, server
    stop_all()


@needs_vllm
@pytest.mark.slow
def test_a_real_server_samples_each_version(real: tuple[Policy, Any], tmp_path: Path) -> None:
    policy, server = real
    engine = engine_of(policy, tmp_path, server.url)
    for step in range(6):
        groups = sample(engine)
        assert largest_difference(policy, PROMPTS, groups, 1.0) < 1e-4
        assert {c.version for group in groups for c in group} == {policy.version}
        change(policy, step)


@needs_vllm
@pytest.mark.slow
def test_a_real_servers_prefix_cache_is_of_the_new_weights(real: tuple[Policy, Any], tmp_path: Path) -> None:
    policy, server = real
    engine = engine_of(policy, tmp_path, server.url)
    long = [torch.arange(600) * 7 % 90 + 3, torch.arange(700) * 5 % 90 + 3]
    for step in range(3):
        engine.follow(policy, policy.version)
        for _ in range(2):  # the second time the prompts are in the cache
            groups = engine.generate(long, 2, SAMPLING, seeds(long)).completions
            assert largest_difference(policy, long, groups, 1.0) < 1e-3
        change(policy, step)


@needs_vllm
@pytest.mark.slow
def test_what_a_real_server_aborts_is_asked_again(real: tuple[Policy, Any], tmp_path: Path) -> None:
    policy, server = real
    engine = engine_of(policy, tmp_path, server.url)
    engine.follow(policy, policy.version)
    long = Sampling(max_tokens=500)
    whole = ids(engine.generate(PROMPTS, 2, long, seeds(PROMPTS)).completions)

    def abort() -> None:
        for _ in range(3):
            time.sleep(0.3)
            Server(server.url).call("POST", "/pause", mode="abort")
            Server(server.url).call("POST", "/resume")

    thread = threading.Thread(target=abort)
    thread.start()
    again = engine.generate(PROMPTS, 2, long, seeds(PROMPTS)).completions
    thread.join()
    # Batches of other sizes are summed in another order: a token may fall to the other side of a random number.
    assert [len(c.ids) for group in again for c in group] == [500] * 2 * len(PROMPTS)
    same = [a == b for of, other in zip(whole, ids(again), strict=True) for a, b in zip(of, other, strict=True)]
    assert sum(same) >= len(same) - 2


@needs_vllm
@pytest.mark.slow
def test_a_real_server_that_is_killed_gets_the_weights_again(real: tuple[Policy, Any], tmp_path: Path) -> None:
    policy, server = real
    engine = engine_of(policy, tmp_path, server.url, start_timeout=180)
    change(policy, 11)
    engine.follow(policy, policy.version)
    long = Sampling(max_tokens=500)
    engine.generate(PROMPTS, 1, Sampling(max_tokens=2), seeds(PROMPTS))

    def restart() -> None:
        time.sleep(0.5)
        server.stop()
        time.sleep(2)
        server.begin()

    thread = threading.Thread(target=restart)
    thread.start()
    told: list[int] = []
    groups = engine.generate(PROMPTS, 2, long, seeds(PROMPTS), on_group=lambda i, _: told.append(i)).completions
    thread.join()
    assert sorted(told) == list(range(len(PROMPTS)))
    assert largest_difference(policy, PROMPTS, groups, 1.0) < 1e-3
