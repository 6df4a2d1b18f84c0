"""The local engine against transformers' generate, against the policy, and against the distribution it samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import GenerationConfig

from cohort.config import TrainingConfig
from cohort.policy.model import Policy
from cohort.policy.packed.cache import DecodeCache
from cohort.policy.packed.pack import Pack
from cohort.policy.paths import OWN_LAYERS
from cohort.rollouts.decoding import common_beginning
from cohort.rollouts.engine import Engine, LocalEngine, local_engine
from cohort.rollouts.row_engine import RowEngine
from cohort.rollouts.sampling import Sampling, draw, truncate
from cohort.types import Completion
from helpers import ARCHITECTURES, ENDS, largest_difference, prompts_of, seeds, small_model, small_policy


@pytest.fixture(params=[True, False], ids=["one row until they part", "a row each"])
def forks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether completions that begin with the same tokens share a row, as on a CPU."""
    monkeypatch.setattr("cohort.policy.paths.FORKING", ("cpu",) if request.param else ())
    return bool(request.param)


@pytest.fixture(params=[0, 64], ids=["shared", "copied"])
def short_prompt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways a prompt's keys are kept: once for its rows, and in front of each row's own."""
    monkeypatch.setattr("cohort.rollouts.decoding.SHORT_PROMPT", request.param)


@pytest.mark.usefixtures("short_prompt", "layers")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_equals_transformers_generate(architecture: str) -> None:
    policy = small_policy(architecture)
    prompts = prompts_of()
    found = (
        LocalEngine(policy, max_rows=3)
        .generate(prompts, 2, Sampling(temperature=0, max_tokens=20, eos_ids=[1]), seeds(prompts))
        .completions
    )
    for prompt, row in zip(prompts, found, strict=True):
        expected = policy.model.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=1,
            pad_token_id=0,
        )[0, len(prompt) :]
        assert row[0].ids.tolist() == row[1].ids.tolist() == expected.tolist()


def beginning_alike(common: int) -> list[Tensor]:
    return [torch.cat([prompts_of((common,))[0], prompt]) for prompt in prompts_of()]


@pytest.mark.usefixtures("layers")
@pytest.mark.parametrize("common", [3, 12])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shared_prefill_equals_transformers_forward(architecture: str, common: int) -> None:
    """The common beginning is shorter and longer than a sliding window."""
    policy, prompts = small_policy(architecture), beginning_alike(common)
    policy.model.eval()
    pack = policy.pack_prompts(prompts, common)
    assert pack.inputs["input_ids"].shape[1] == common + sum(len(prompt) - common for prompt in prompts)
    with torch.no_grad():
        prefill = policy.prefill(pack)
        ours = policy.head.reader(torch.float32, onednn=False)(prefill.hidden[prefill.prompts.ends]).log_softmax(-1)
        apart = policy.prefill(policy.pack_prompts(prompts)).prompts.keys_values
        for prompt, logprobs in zip(prompts, ours, strict=True):
            expected = policy.model(prompt[None], use_cache=False).logits[0, -1].log_softmax(-1)
            torch.testing.assert_close(logprobs, expected, rtol=0, atol=2e-5)
    for layer, both in prefill.prompts.keys_values.items():
        for found, expected in zip(both, apart[layer], strict=True):
            for i, prompt in enumerate(prompts):
                torch.testing.assert_close(found[i, :, : len(prompt)], expected[i, :, : len(prompt)], rtol=0, atol=2e-5)


@pytest.mark.parametrize("max_rows", [256, 3])
@pytest.mark.parametrize("architecture", ["Qwen2", "Mistral", "Gemma2"])
def test_what_prompts_begin_with_is_prefilled_once(
    architecture: str, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, prompts, passes = small_policy(architecture), beginning_alike(12), list[int]()
    pack_prompts = Policy.pack_prompts

    def counting(self: Policy, *arguments: Any) -> Pack:
        pack = pack_prompts(self, *arguments)
        passes.append(pack.inputs["input_ids"].shape[1])
        return pack

    monkeypatch.setattr(Policy, "pack_prompts", counting)
    found = (
        LocalEngine(policy, max_rows)
        .generate(prompts, 2, Sampling(max_tokens=9, eos_ids=ENDS), seeds(prompts))
        .completions
    )
    assert sum(passes) == 12 * len(passes) + sum(len(piece) - 12 for piece in prompts)
    assert len(passes) == 1 or max_rows == 3
    assert largest_difference(policy, prompts, found, 1.0) < 1e-4


def test_the_common_beginning_leaves_each_prompt_a_token() -> None:
    def common(*prompts: list[int]) -> int:
        return common_beginning([torch.tensor(prompt) for prompt in prompts])

    assert common([1, 2, 3, 4], [1, 2, 9], [1, 2, 3, 5]) == 2
    assert common([1, 2, 3], [1, 2, 3, 4]) == 2
    assert common([1, 2, 3], [1, 2, 3]) == 2
    assert common([1, 2], [3, 4]) == common([1], [1, 2]) == common([1, 2, 3]) == common() == 0


@pytest.mark.usefixtures("short_prompt", "forks")
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.8])
@pytest.mark.parametrize("max_rows", [256, 6, 3])
def test_sampler_logprobs_equal_the_policys(temperature: float, max_rows: int) -> None:
    """Rows leave and enter at every size: ends are frequent and the queue is longer than the batch."""
    policy, prompts = small_policy(), prompts_of()
    sampling = Sampling(temperature=temperature, max_tokens=70, eos_ids=[1, 5, 7, 9])
    found = LocalEngine(policy, max_rows).generate(prompts, 4, sampling, seeds(prompts, 1)).completions
    assert {len(row) for row in found} == {4}
    assert largest_difference(policy, prompts, found, temperature) < 1e-4
    for completion in (c for row in found for c in row):
        ends = [i for i, token in enumerate(completion.ids.tolist()) if token in (1, 5, 7, 9)]
        assert ends == ([] if completion.truncated else [len(completion.ids) - 1])
        assert len(completion.ids) <= 70


@pytest.mark.usefixtures("short_prompt")
@pytest.mark.parametrize("max_rows", [256, 12, 5])
@pytest.mark.parametrize("architecture", ["Qwen2", "Gemma2"])
def test_completions_that_begin_alike_are_decoded_once(
    architecture: str, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tokens at each place many completions begin with the same ones, and many are the same."""
    policy, prompts = small_policy(architecture), prompts_of()
    rows: list[int] = []
    advance = DecodeCache.advance
    monkeypatch.setattr(DecodeCache, "advance", lambda cache: (rows.append(len(cache)), advance(cache)))
    sampling = Sampling(top_k=2, max_tokens=24, eos_ids=ENDS)
    found = LocalEngine(policy, max_rows).generate(prompts, 8, sampling, seeds(prompts, 1)).completions
    assert largest_difference(policy, prompts, found, 1.0) < 1e-4
    policy.paths = policy.paths.without("test", "forks")
    apart = LocalEngine(policy, max_rows).generate(prompts, 8, sampling, seeds(prompts, 1)).completions
    assert [[c.ids.tolist() for c in row] for row in found] == [[c.ids.tolist() for c in row] for row in apart]
    rows = rows[: len(rows) // 2]
    beginnings = {(i, *c.ids[:n].tolist()) for i, row in enumerate(found) for c in row for n in range(1, len(c.ids))}
    tokens = sum(len(c.ids) - 1 for row in found for c in row)
    distinct = {(i, *c.ids.tolist()) for i, row in enumerate(found) for c in row}
    assert len(distinct) < 38 and len({len(ids) for ids in distinct}) > 4
    assert max_rows < 256 or len(beginnings) <= sum(rows) < tokens  # those that have ended stay for a while


def test_a_greedy_group_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, rows = small_policy(), list[int]()
    advance = DecodeCache.advance
    monkeypatch.setattr(DecodeCache, "advance", lambda cache: (rows.append(len(cache)), advance(cache)))
    sampling = Sampling(temperature=0, max_tokens=9, eos_ids=[])
    found = LocalEngine(policy).generate(prompts_of(), 7, sampling, seeds(prompts_of())).completions
    assert rows == [5] * 8
    assert all(c.ids.tolist() == row[0].ids.tolist() for row in found for c in row)
    assert all((c.ids.data_ptr() != row[0].ids.data_ptr()) for row in found for c in row[1:])


def test_truncated_distributions_keep_the_untruncated_logprobs() -> None:
    policy, prompts = small_policy(), prompts_of()
    sampling = Sampling(temperature=0.8, top_k=5, top_p=0.9, min_p=0.05, max_tokens=20, eos_ids=[1])
    found = LocalEngine(policy).generate(prompts, 4, sampling, seeds(prompts, 1)).completions
    assert largest_difference(policy, prompts, found, 0.8) < 1e-4


@pytest.mark.parametrize("architecture", ["Qwen2", "Mistral", "Gemma2"])
def test_decoding_across_sliding_windows(architecture: str) -> None:
    policy, prompts = small_policy(architecture), prompts_of((3, 14))
    found = (
        LocalEngine(policy, 5)
        .generate(prompts, 3, Sampling(max_tokens=30, eos_ids=[1, 4]), seeds(prompts, 1))
        .completions
    )
    assert largest_difference(policy, prompts, found, 1.0) < 1e-4


@pytest.mark.parametrize("kind", [LocalEngine, RowEngine])
def test_completions_of_a_prompt_depend_on_its_own_seed_alone(kind: type) -> None:
    """Not on the prompts beside it, their order, the size of the batch, or the longest completion allowed."""
    policy, prompts = small_policy(), prompts_of()

    def sampled(chosen: list[int], max_rows: int = 64, tokens: int = 12) -> list[list[list[int]]]:
        sampling, of_prompts = Sampling(max_tokens=tokens, eos_ids=[1, 5]), seeds(prompts, 7)
        asked = [prompts[i] for i in chosen], 4, sampling, [of_prompts[i] for i in chosen]
        return [[c.ids.tolist() for c in group] for group in kind(policy, max_rows).generate(*asked).completions]

    every = sampled([0, 1, 2, 3, 4])
    assert len({tuple(ids) for group in every for ids in group}) > 15
    assert sampled([3, 1]) == [every[3], every[1]]
    assert sampled([2]) == [every[2]]
    if kind is LocalEngine:  # transformers draws one number for each row of a call
        assert sampled([0, 1, 2, 3, 4], max_rows=3) == every
        longer = sampled([4, 0], tokens=20)
        assert [[ids[:12] for ids in group] for group in longer] == [every[4], every[0]]


def test_the_seed_decides() -> None:
    policy, prompts = small_policy(), prompts_of()
    engine, sampling = LocalEngine(policy), Sampling(max_tokens=10, eos_ids=[1])
    texts = [
        [c.ids.tolist() for row in engine.generate(prompts, 2, sampling, seeds(prompts, seed)).completions for c in row]
        for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("kind", [LocalEngine, RowEngine])
def test_sampling_frequencies_match_the_distribution(kind: type) -> None:
    policy, prompt = small_policy(), prompts_of((6,))[0]
    draws = 4000
    engine: Engine = kind(policy, max_rows=1000)
    found = engine.generate(
        [prompt], draws, Sampling(temperature=0.7, max_tokens=2, eos_ids=[]), seeds([prompt], 5)
    ).completions[0]
    logits = policy.model(prompt[None], use_cache=False).logits[0, -1].detach()
    expected = (logits / 0.7).softmax(-1) * draws
    counts = torch.bincount(torch.tensor([int(c.ids[0]) for c in found]), minlength=97).double()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]).double()
    assert chisquare(observed.numpy(), (wanted * draws / wanted.sum()).numpy()).pvalue > 1e-3


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("kind", [LocalEngine, RowEngine])
@pytest.mark.parametrize("n", [1, 3])
def test_tokens_are_told_as_they_are_drawn(kind: type, n: int) -> None:
    engine: Engine = kind(small_policy(), max_rows=2)
    heard: dict[int, list[int]] = {}

    def hear(rows: list[int], tokens: list[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            heard.setdefault(row, []).append(token)

    sampling = Sampling(temperature=1.5, max_tokens=20, eos_ids=list(range(1, 20)))
    found = engine.generate(prompts_of(), n, sampling, seeds(prompts_of()), hear).completions
    said = {i * n + j: c.ids.tolist() for i, row in enumerate(found) for j, c in enumerate(row)}
    assert heard == (said if kind is LocalEngine or n == 1 else {})
    assert len({len(ids) for ids in said.values()}) > 2


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("kind", [LocalEngine, RowEngine])
def test_groups_are_told_when_they_have_ended(kind: type) -> None:
    told: list[tuple[int, list[Completion]]] = []
    engine: Engine = kind(small_policy(), max_rows=4)
    sampling = Sampling(max_tokens=12, eos_ids=list(range(1, 20)))
    found = engine.generate(
        prompts_of(), 2, sampling, seeds(prompts_of(), 3), on_group=lambda *group: told.append(group)
    ).completions
    plain = engine.generate(prompts_of(), 2, sampling, seeds(prompts_of(), 3)).completions
    assert sorted(group for group, _ in told) == list(range(5))
    for group, completions in told:
        assert [c.ids.tolist() for c in completions] == [c.ids.tolist() for c in found[group]]
        assert not completions[0].ids.is_inference()
    assert [[c.text for c in row] for row in plain] == [[c.text for c in row] for row in found]


def test_truncation_keeps_what_each_rule_says() -> None:
    logp = torch.tensor([[0.5, 0.25, 0.15, 0.07, 0.03]]).log()

    def kept(**rule: float) -> list[int]:
        return truncate(logp, Sampling(**rule)).isfinite()[0].nonzero().squeeze(1).tolist()  # type: ignore[arg-type]

    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.5) == [0]
    assert kept(top_p=0.76) == [0, 1, 2]
    assert kept(min_p=0.2) == [0, 1, 2]
    assert kept(top_k=3, top_p=0.8) == [0, 1]  # of the three left, 0.5/0.9 + 0.25/0.9 reaches 0.8
    assert kept() == [0, 1, 2, 3, 4]


def test_draw_reports_the_temperatures_logprob() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    tokens, logprobs = draw(logits, Sampling(temperature=0.0))
    assert tokens.tolist() == [0]
    assert float(logprobs) == pytest.approx(float(logits.log_softmax(-1)[0, 0]))
    tokens, logprobs = draw(logits, Sampling(temperature=0.5, top_k=1), torch.rand(len(logits)))
    assert float(logprobs) == pytest.approx(float((logits / 0.5).log_softmax(-1)[0, 0]))


@pytest.mark.parametrize("entries", [30, 3001])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0), Sampling(0.7, top_k=9)], ids=["plain", "greedy", "top k"]
)
def test_draws_from_few_rows_are_those_from_as_many(entries: int, sampling: Sampling) -> None:
    logits = 3 * torch.randn(4, entries, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    uniform = torch.rand(len(rows), generator=torch.Generator().manual_seed(1))
    tokens, logprobs = draw(logits, sampling, uniform, rows)
    expected = draw(logits[rows], sampling, uniform)
    assert tokens.tolist() == expected[0].tolist()
    torch.testing.assert_close(logprobs, expected[1])


def test_long_rows_are_drawn_by_their_weights() -> None:
    entries, draws = 3001, 40_000
    weights = torch.rand(entries, generator=torch.Generator().manual_seed(0))
    weights[1000:1600] = 0.0  # whole blocks, and parts of some, that must never come
    weights[-1] = 40.0
    logits = weights.log().expand(draws, -1)
    tokens, logprobs = draw(logits, Sampling(), torch.rand(draws, generator=torch.Generator().manual_seed(1)))
    expected = weights / weights.sum()
    torch.testing.assert_close(logprobs, expected[tokens].log(), rtol=0, atol=1e-4)
    assert bool((weights[tokens] > 0).all())
    cuts = [0, 256, 300, 1000, 2048, 3000, 3001]
    for low, high in pairwise(cuts):
        share = float(((tokens >= low) & (tokens < high)).float().mean())
        mass = float(expected[low:high].sum())
        assert share == pytest.approx(mass, abs=4 * (mass * (1 - mass) / draws) ** 0.5)


def test_stop_strings_end_a_completion() -> None:
    policy, prompts = small_policy(vocab_size=22), [torch.tensor([8, 9, 10])]
    for engine in (LocalEngine(policy), RowEngine(policy)):
        found = engine.generate(
            prompts, 60, Sampling(max_tokens=40, eos_ids=[], stop=["3", "55"]), seeds(prompts)
        ).completions[0]
        stopped = [c for c in found if not c.truncated]
        assert len(stopped) > 15
        for completion in stopped:
            text = policy.tokenizer.decode(completion.ids.tolist())
            assert text.endswith(("3", "55")) and "3" not in text[:-1] and "55" not in text[:-1]


def test_limit_is_what_the_models_positions_leave() -> None:
    policy = small_policy()
    found = (
        LocalEngine(policy)
        .generate(prompts_of((120,)), 2, Sampling(max_tokens=50, eos_ids=[]), seeds(prompts_of((120,))))
        .completions[0]
    )
    assert [len(c.ids) for c in found] == [8, 8] and all(c.truncated for c in found)


def test_row_engine_agrees_with_the_policy_of_a_model_with_a_state(caplog: pytest.LogCaptureFixture) -> None:
    from cohort.data.chains import build_tokenizer
    from cohort.policy.load import make_policy

    model = small_model(
        "Qwen3Next",
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    )
    policy = make_policy(model, build_tokenizer(), TrainingConfig(bf16=False, use_cpu=True))
    assert not policy.packed
    assert "takes the row path" in caplog.text
    prompts = prompts_of((4, 7))
    found = RowEngine(policy, 2).generate(prompts, 3, Sampling(max_tokens=8, eos_ids=[1]), seeds(prompts)).completions
    assert largest_difference(policy, prompts, found, 1.0) < 1e-4


FAST_PATHS: tuple[Literal["auto", "off"], ...] = ("auto", "off")
OWN_WAYS = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [*range(2, 60)],
    "begin_suppress_tokens": [*range(2, 60)],
    "bad_words_ids": [[i] for i in range(2, 60)],
    "sequence_bias": [[[7], 9.0]],
    "forced_eos_token_id": 1,
    "min_new_tokens": 12,
    "exponential_decay_length_penalty": [2, 3.0],
    "num_beams": 3,
    "num_return_sequences": 2,
    "typical_p": 0.2,
    "epsilon_cutoff": 0.05,
    "eta_cutoff": 0.05,
    "top_h": 0.2,
    "top_k": 3,
    "top_p": 0.3,
    "min_p": 0.5,
    "temperature": 0.2,
    "max_length": 3,
    "max_time": 1e-9,
    "prompt_lookup_num_tokens": 2,
    "stop_strings": ["1"],
    "return_dict_in_generate": True,
    "output_scores": True,
    "guidance_scale": 3.0,
    "watermarking_config": {"bias": 9.0},
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_are_sampled_as_asked_whatever_the_models_generation_config(temperature: float) -> None:
    policy = small_policy(config=TrainingConfig(bf16=False, use_cpu=True, fast_paths="off"))
    sampling = Sampling(temperature=temperature, max_tokens=5, eos_ids=[1])

    def sampled() -> list[list[int]]:
        groups = RowEngine(policy).generate(prompts_of((9, 5)), 2, sampling, seeds(prompts_of((9, 5)))).completions
        return [c.ids.tolist() for group in groups for c in group]

    expected = sampled()
    for name, value in OWN_WAYS.items():
        configured = policy.model.generation_config = GenerationConfig(eos_token_id=1)
        setattr(configured, name, value)
        assert sampled() == expected, name
        assert policy.model.generation_config is configured


def test_both_engines_sample_the_same_distribution() -> None:
    """The frequencies of the first token of each, by top-k, top-p and min-p, one after the other."""
    sampling = Sampling(temperature=1.3, top_k=9, top_p=0.85, min_p=0.08, max_tokens=1)
    counts = []
    for paths in FAST_PATHS:
        policy = small_policy(config=TrainingConfig(bf16=False, use_cpu=True, fast_paths=paths))
        policy.model.generation_config.repetition_penalty = 5.0
        group = (
            local_engine(policy, 1000)
            .generate(prompts_of((9,)), 2000, sampling, seeds(prompts_of((9,))))
            .completions[0]
        )
        counts.append(torch.bincount(torch.cat([c.ids for c in group]), minlength=97))
    assert bool((counts[0] > 0).eq(counts[1] > 0).all()) and int((counts[0] > 0).sum()) > 2
    seen = counts[0] > 0
    assert chisquare(counts[1][seen], counts[0][seen] + 0.0).pvalue > 1e-6


def test_out_of_memory_halves_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, prompts = small_policy(), prompts_of()
    hidden = policy.hidden

    def small_memory(inputs: dict[str, object], by_model_code: bool = False) -> Tensor:
        ids = inputs["input_ids"]
        assert isinstance(ids, Tensor)
        if ids.shape[1] in (16, 20):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden(inputs, by_model_code)

    monkeypatch.setattr(policy, "hidden", small_memory)
    policy.paths = policy.paths.without("test", *OWN_LAYERS)  # decode through what was patched
    engine = LocalEngine(policy, 20)
    found = engine.generate(prompts, 4, Sampling(max_tokens=5, eos_ids=[]), seeds(prompts)).completions
    assert engine.max_rows == 10
    assert [len(c.ids) for row in found for c in row] == [5] * 20
