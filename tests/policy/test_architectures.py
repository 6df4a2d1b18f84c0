"""Tiny random models of transformers against a padded forward pass and autograd that share no code with the package."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import helpers
from cohort.config import GRPOConfig
from cohort.data.chains import build_tokenizer
from cohort.methods.table import METHODS
from cohort.policy.load import make_policy
from cohort.policy.packed.pack import Part
from cohort.rollouts.engine import local_engine
from cohort.rollouts.sampling import Sampling
from cohort.train.step import Updater
from cohort.types import Completion, Group, Row
from helpers import seeds

DROPOUT = 0.3

SHAPE: dict[str, Any] = {**helpers.SHAPE, "initializer_range": 0.15, "attention_dropout": DROPOUT}
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 18}
"""Longer than what the start of a run compares, shorter than the sequences here."""
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
ROUTED = {
    **EXPERTS,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
RESIDUAL = {"resid_pdrop": DROPOUT, "embd_pdrop": DROPOUT, "hidden_dropout": DROPOUT, "attn_pdrop": DROPOUT}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 128, **RESIDUAL}
FUNCTION = {
    "dropout": DROPOUT,
    "hidden_dropout": DROPOUT,
    "hidden_dropout_prob": DROPOUT,
    "activation_dropout": DROPOUT,
    "attention_dropout": DROPOUT,
    "attention_probs_dropout_prob": DROPOUT,
    "residual_dropout": DROPOUT,
    "embedding_dropout": DROPOUT,
    "layerdrop": 0.0,
}

LAYERS, STREAM, ROWS = "layers", "stream", "rows"
"""The layers of fast/ over the packed stream; the model's own layers over it; padded rows."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": (LAYERS, {"attention_bias": True, "mlp_bias": True}),
    "Mistral": (LAYERS, WINDOW),
    "Qwen2": (LAYERS, {"tie_word_embeddings": True}),
    "Qwen3": (LAYERS, HEAD),
    "Qwen2Moe": (STREAM, {**EXPERTS, **WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    "Qwen3Moe": (STREAM, {**EXPERTS, **HEAD}),
    "Mixtral": (STREAM, EXPERTS),
    "Gemma": (STREAM, HEAD),
    "Gemma2": (STREAM, {**HEAD, **WINDOW}),
    "Gemma3": (STREAM, {**HEAD, **WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "Phi": (STREAM, {**RESIDUAL, "partial_rotary_factor": 0.5}),
    "Phi3": (STREAM, {**RESIDUAL, **WINDOW}),
    "SmolLM3": (STREAM, {}),
    "Olmo": (STREAM, {"clip_qkv": 0.5}),
    "Olmo2": (STREAM, {}),
    "Olmo3": (STREAM, WINDOW),
    "Granite": (STREAM, {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0}),
    "Cohere": (STREAM, {"logit_scale": 0.5, "use_qk_norm": True}),
    "Cohere2": (STREAM, {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "Glm4": (STREAM, HEAD),
    "Starcoder2": (STREAM, {**WINDOW, **FUNCTION}),
    "GPT2": (STREAM, GPT),
    "GPTNeoX": (STREAM, {**RESIDUAL, "rotary_pct": 0.5}),
    "OPT": (STREAM, {"ffn_dim": 48, "word_embed_proj_dim": 32, **FUNCTION}),
    "BioGpt": (STREAM, FUNCTION),
    "Helium": (STREAM, HEAD),
    "Exaone4": (STREAM, {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "DeepseekV3": (STREAM, {**ROUTED, **LATENT}),
    "GptOss": (STREAM, {**EXPERTS, **HEAD, **WINDOW}),
    "SeedOss": (STREAM, {**HEAD, **FUNCTION}),
    "GPTNeo": (
        ROWS,
        {
            "num_layers": 2,
            "num_heads": 4,
            "window_size": 18,
            "attention_types": [[["global", "local"], 1]],
            "embed_dropout": DROPOUT,
            "resid_dropout": DROPOUT,
        },
    ),
    "XGLM": (ROWS, {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, **FUNCTION}),
    "Bloom": (ROWS, {"n_layer": 2, "n_head": 4, **FUNCTION}),
    "Falcon": (ROWS, {"alibi": True, **FUNCTION}),
    "Mpt": (ROWS, {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, **RESIDUAL}),
    "StableLm": (ROWS, {**RESIDUAL, "partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "Nemotron": (ROWS, {**RESIDUAL, "partial_rotary_factor": 0.5}),
    "Llama4": (ROWS, {**EXPERTS, **HEAD, "intermediate_size_mlp": 32, "attention_chunk_size": 18}),
    "Mamba": (ROWS, {"state_size": 4}),
    "Qwen3Next": (
        ROWS,
        {
            **EXPERTS,
            **HEAD,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}
SEQUENCES = [(5, [4, 31, 1]), (23, [3, 8, 6]), (2, [11, 20, 5])]
"""(prompt, completions) in tokens."""
EPSILON, BETA = 0.2, 0.1


def small(name: str) -> Any:
    """A model whose biases are not zero, and the row of its pad token neither."""
    changes = MODELS[name][1]
    config = getattr(transformers, f"{name}Config" if name not in ("Gemma3", "Llama4") else f"{name}TextConfig")
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}{head}")(config(**{**SHAPE, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
        model.get_input_embeddings().weight[0] = 0.15 * torch.randn(model.get_input_embeddings().weight.shape[1])
    return model


def sampled(model: Any) -> list[Group]:
    """Random groups with pad tokens in a prompt and in a completion; old and reference log-probabilities near the
    model's."""
    noise = torch.Generator().manual_seed(0)

    def tokens(n: int) -> Tensor:
        return torch.randint(2, 97, (n,), generator=noise)

    groups = []
    for p, lengths in SEQUENCES:
        completions = [Completion(tokens(n), torch.zeros(n), text="", truncated=False, version=-1) for n in lengths]
        advantages = [torch.randn(1, generator=noise).expand(n) for n in lengths]
        groups.append(Group(tokens(p), completions, Row("?"), rewards=[0.0] * 3, advantages=advantages))
    groups[0].prompt_ids[1] = groups[1].completions[1].ids[3] = 0
    with torch.no_grad():
        own = iter(padded_logprobs(model, groups))
    for group in groups:
        near = [next(own) for _ in group.completions]
        group.old_logprobs, group.reference_logprobs = (
            [logp + 0.3 * torch.randn(logp.shape, generator=noise) for logp in near] for _ in range(2)
        )
    return groups


def padded_logprobs(model: Any, groups: list[Group]) -> list[Tensor]:
    """All completions' log-probabilities by one forward pass over rows padded on the right."""
    pairs = [(group.prompt_ids, completion.ids) for group in groups for completion in group.completions]
    rows = [torch.cat(pair) for pair in pairs]
    ids, mask = (pad_sequence(x, batch_first=True) for x in (rows, [torch.ones_like(row) for row in rows]))
    logp = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
    return [
        logp[i, len(prompt) - 1 : len(prompt) + len(completion) - 1].gather(1, completion[:, None]).squeeze(1)
        for i, (prompt, completion) in enumerate(pairs)
    ]


def textbook_gradient(model: Any, groups: list[Group]) -> tuple[float, dict[str, Tensor]]:
    """-J of DeepSeekMath's Eq. 3, with its KL estimator (Eq. 4), and autograd's gradient of it."""
    objective = torch.zeros(())
    rows = iter(padded_logprobs(model, groups))
    for group in groups:
        of_group = torch.zeros(())
        for A, old, reference in zip(
            group.advantages, group.old_logprobs or [], group.reference_logprobs or [], strict=True
        ):
            logp = next(rows)
            ratio = (logp - old).exp()
            clipped = torch.min(ratio * A, ratio.clamp(1 - EPSILON, 1 + EPSILON) * A)
            kl = (reference - logp).exp() - (reference - logp) - 1
            of_group = of_group + (clipped - BETA * kl).mean()
        objective = objective + of_group / len(group.completions) / len(groups)
    (-objective).backward()
    return -float(objective.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_padded_forward_pass_autograd_and_generate(name: str) -> None:
    path = MODELS[name][0]
    model = small(name)
    plain = copy.deepcopy(model).eval()
    model.train()
    config = GRPOConfig(
        num_generations=3, epsilon=EPSILON, beta=BETA, temperature=1.0, use_cpu=True, bf16=False, disable_dropout=True
    )
    policy = make_policy(model, build_tokenizer(), config)
    assert (LAYERS if policy.paths.layers.taken else STREAM if policy.packed else ROWS) == path

    groups = sampled(plain)
    expected = padded_logprobs(plain, groups)
    parts = [Part(g, x.prompt_ids, range(3), [c.ids for c in x.completions]) for g, x in enumerate(groups)]
    found = policy.logprobs(iter([parts]), 1.0)
    for i, theirs in enumerate(expected):
        torch.testing.assert_close(found[i // 3, i % 3], theirs.detach(), atol=1e-5, rtol=0)

    loss, textbook = textbook_gradient(plain, groups)
    size = float(torch.stack([grad.norm() for grad in textbook.values()]).norm())
    for token_budget in (30, 10_000):
        updater = Updater(policy, METHODS["grpo"], config.model_copy(update={"token_budget": token_budget}))
        assert updater.gradient(groups, 89.0)["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-6)
        ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert ours.keys() == textbook.keys()
        for parameter, theirs in textbook.items():
            # A bias of all keys changes no softmax: its gradient is rounding.
            bound = 1e-5 * float(theirs.norm()) + 1e-7 * size
            assert float((ours[parameter] - theirs).norm()) <= bound, parameter

    prompts = [group.prompt_ids for group in groups]
    sampling = Sampling(temperature=0.0, max_tokens=24, eos_ids=[1])
    for prompt, row in zip(
        prompts, local_engine(policy, 8).generate(prompts, 1, sampling, seeds(prompts)).completions, strict=True
    ):
        whole = plain.generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=1,
            pad_token_id=0,
        )[0]
        assert row[0].ids.tolist() == whole[len(prompt) :].tolist()
