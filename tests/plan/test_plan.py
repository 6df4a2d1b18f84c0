"""`cohort plan`: counted bytes against what autograd keeps, known sizes of a 7B model, and the command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from cohort.cli.app import app
from cohort.config import DistillConfig, GRPOConfig, PPOConfig, RunConfig, SFTConfig, TrainingConfig
from cohort.data.chains import build_tokenizer
from cohort.methods.table import METHODS
from cohort.plan import blank, costs, make
from cohort.plan.blank import BlankPolicy, Weights, blank_model, model_config
from cohort.plan.costs import Lengths, make_batch
from cohort.plan.machine import Machine, find_machine, parse_rate, parse_size
from cohort.plan.make import alternatives, make_plan
from cohort.plan.meter import Meter
from cohort.plan.needs import optimizer_state_bytes
from cohort.plan.passes import update
from cohort.policy.load import fast_bf16, make_policy
from cohort.policy.packed.pack import Part
from cohort.rewards.models.mlp_head import MLPHeadConfig, MLPHeadModel
from cohort.types import UserError
from helpers import LONGROPE, ROOT, SHAPE, byte_tokenizer, classifier, saved, small_model, token_classifier

GPU = Machine("cuda", True, 80 * 2.0**30, 400e12, 2e12)
CPU = Machine("cpu", False, 16 * 2.0**30, 50e9, 5e9)
SMALL = {"model_type": "qwen2", **SHAPE}
SEVEN_B = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


def of_sizes(**sizes: Any) -> RunConfig:
    return RunConfig(model="sizes", dataset="none", model_sizes=sizes)


def part(prompt: int, lengths: list[int]) -> Part:
    zeros = [torch.zeros(n, dtype=torch.long) for n in (prompt, *lengths)]
    return Part(0, zeros[0], range(len(lengths)), zeros[1:])


def test_the_meter_counts_storages_once_and_products() -> None:
    with Meter() as meter:
        a = torch.zeros(20, 30)
        view = a.t()
        assert meter.live == 2400
        b = view @ a
        assert meter.live == 2400 + 3600 and meter.flops == 2 * 30 * 20 * 30
        del b
        assert meter.live == 2400 and meter.peak == 6000
        del a
        assert meter.live == 2400  # its view is still alive
        del view
        assert meter.live == 0


@pytest.mark.parametrize("changes", [{}, {"finetuning_type": "lora"}, {"gradient_checkpointing": True}])
def test_activations_are_what_autograd_saves(changes: dict[str, Any]) -> None:
    """The count equals the bytes of the real model's saved tensors, each storage once, without weights."""
    config = TrainingConfig(bf16=False, use_cpu=True, **changes)
    parts = [part(9, [7, 5, 3])]
    policy = make_policy(small_model(), build_tokenizer(), config)
    policy.model.train()
    own = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with policy.attending(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pack = policy.pack(parts)
        hidden = policy.hidden(pack.inputs)
        kept[hidden.untyped_storage().data_ptr()] = hidden.untyped_storage().nbytes()
    blank = BlankPolicy(model_config(of_sizes(**SMALL), config), config, "cpu", bf16=False)
    found = update(blank, parts, accumulates=False)
    # The estimate also has the layout's indices and masks.
    assert sum(kept.values()) <= found.activations <= sum(kept.values()) + 10_000
    assert found.peak >= found.activations + found.head
    again = update(blank, parts, accumulates=True)
    trained = sum(p.nbytes for p in policy.parameters)
    assert again.activations == found.activations and found.peak <= again.peak <= found.peak + trained


@pytest.mark.parametrize(
    ("architecture", "changes", "packed"),
    [
        ("Gemma2", {"head_dim": 8, "sliding_window": 6}, True),
        ("Llama", {"rope_parameters": LONGROPE}, False),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, False),
    ],
)
def test_the_planned_path_is_the_runs(architecture: str, changes: dict[str, Any], packed: bool) -> None:
    config = GRPOConfig(num_generations=2, use_cpu=True, bf16=False)
    model_shape = getattr(transformers, f"{architecture}Config")(**SHAPE, **changes)
    blank = BlankPolicy(model_shape, config, "cpu", bf16=False)
    assert blank.policy.packed == packed
    assert make_policy(small_model(architecture, **changes), build_tokenizer(), config).packed == packed
    found = update(blank, [Part(0, torch.arange(2, 9), range(2), [torch.arange(2, 6), torch.arange(3, 9)])], False)
    assert found.activations > 0


def test_longer_models_are_extrapolated_from_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GRPOConfig(num_generations=4, per_device_train_batch_size=4, use_cpu=True, bf16=False)
    found = model_config(of_sizes(**{**SMALL, "num_hidden_layers": 7}), config)
    batch = make_batch(METHODS["grpo"], config, Lengths(20, 10))
    followed = costs.count_costs(found, config, CPU, batch, padded=True)
    monkeypatch.setattr(costs, "MAX_WHOLE_LAYERS", 7)
    whole = costs.count_costs(found, config, CPU, batch, padded=True)
    assert followed.weights == whole.weights
    for name in costs.PASSES:
        assert getattr(followed, name) == pytest.approx(getattr(whole, name), rel=0.02), name
    assert followed.kv_per_token == whole.kv_per_token == 7 * 2 * 2 * 8 * 4


@pytest.fixture(scope="module")
def seven() -> make.Plan:
    """7B, LoRA, G = 8, prompts of 512 tokens and completions of 1,024."""
    if not fast_bf16(torch.device("cpu")):
        pytest.skip("this processor emulates bfloat16, and the measurement would take two minutes")
    config = GRPOConfig(
        finetuning_type="lora",
        lora_rank=16,
        num_generations=8,
        per_device_train_batch_size=8,
        max_completion_length=1024,
        max_steps=500,
        gradient_checkpointing=True,
        model_init_kwargs={"dtype": "bfloat16"},
    )
    return make_plan(of_sizes(**SEVEN_B), config, GPU, Lengths(512, 1024))


def test_seven_billion_with_lora_takes_half_of_the_usual_way(seven: make.Plan) -> None:
    # Linear layers 2 d² + 2 d kv + 3 d m a layer, biases of q, k, v, two norms; embeddings twice and the last norm.
    d, m, kv, V = 3584, 18944, 512, 152064
    layer = 2 * d * d + 2 * d * kv + 3 * d * m + d + 2 * kv + 2 * d
    lora = 28 * 16 * (2 * (d + d) + 2 * (d + kv) + 3 * (d + m))
    assert seven.costs.weights.count == 28 * layer + 2 * d * V + d + lora
    assert seven.costs.weights.trained == lora
    assert seven.needs.parts["gradients"] == 4 * lora and seven.needs.parts["optimiser"] == 8 * lora
    assert seven.needs.parts["reference"] == 0  # the model without its adapter
    assert 40e9 < seven.naive < 60e9
    assert seven.needs.peak < 0.6 * seven.naive
    assert seven.logits == 8 * 1024 * V * 4
    # A checkpoint of each layer's input: the packed tokens, in bfloat16, and little else.
    tokens = 512 + 8 * 1024
    assert seven.batch.first_tokens == tokens
    assert 28 * tokens * d * 2 < seven.needs.parts["activations"] < 1.3 * 28 * tokens * d * 2
    # Decoding 1,024 tokens reads the weights once each: 14.3 GB (no embeddings), 2 TB/s.
    assert seven.needs.seconds["generate"] == pytest.approx(1024 * 14.3e9 / 2e12, rel=0.1)
    # Forward twice (checkpointing), gradients of activations once; none of weights but the adapter's.
    products = 2 * 28 * (layer - d - 2 * kv - 2 * d) * tokens
    assert seven.costs.update.flops == pytest.approx(3 * products, rel=0.25)
    assert seven.fits and seven.changes == [] and seven.steps == 500


def test_ppo_beside_grpo_has_a_critic_to_train(seven: make.Plan) -> None:
    assert seven.other is not None
    name, other = seven.other
    lora = seven.needs.parts["gradients"]
    assert name == "ppo"
    assert other.persistent - seven.needs.persistent == lora + 2 * lora  # with LoRA its adapter alone
    full = make_plan(
        of_sizes(**SMALL), GRPOConfig(num_generations=2, per_device_train_batch_size=2), CPU, Lengths(8, 8)
    )
    assert full.other is not None
    trunk = full.costs.weights.backbone_trained_size
    assert trunk == full.costs.weights.trained_size - 97 * 32 * 4  # all but the output layer
    assert full.other[1].persistent - full.needs.persistent == 3 * trunk
    assert full.needs.parts["reference"] == full.costs.weights.size
    assert "critic" in full.other[1].phases and full.other[1].step > full.needs.step


def test_a_teacher_takes_its_weights_and_its_pass(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_generations": 2, "per_device_train_batch_size": 2}
    run, lengths = of_sizes(**SMALL).model_copy(update={"method": "distill"}), Lengths(8, 8)
    alone = make_plan(of_sizes(**SMALL), GRPOConfig(beta=0.0, **options), CPU, lengths)
    sizes: list[float] = []
    for name, layers in (("same", 2), ("deep", 8)):
        model = small_model(num_hidden_layers=layers)
        model.save_pretrained(tmp_path / name)
        plan = make_plan(run, DistillConfig(teacher=str(tmp_path / name), **options), CPU, lengths)
        size = sum(p.nbytes for p in [*model.parameters(), *model.buffers()])
        assert plan.needs.parts["teacher"] == size and plan.needs.persistent == alone.needs.persistent + size
        assert plan.other is not None and plan.other[1].parts["teacher"] == 0
        sizes.append(plan.needs.seconds["score"])
        if name == "same":
            assert plan.costs.teacher is not None and plan.costs.teacher.score == plan.costs.score
            half = DistillConfig(
                teacher=str(tmp_path / name), teacher_model_init_kwargs={"dtype": "bfloat16"}, **options
            )
            assert make_plan(run, half, CPU, lengths).needs.parts["teacher"] == pytest.approx(size / 2, rel=0.01)
    assert 2 < sizes[1] / sizes[0] < 4  # the head is not deeper
    with pytest.raises(UserError, match="distill learns from a teacher and there is none"):
        make_plan(run, DistillConfig(**options), CPU, lengths)


def test_four_bit_weights_take_half_a_byte_and_their_scales() -> None:
    quantized = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "quant_method": "bitsandbytes"}
    options = {"finetuning_type": "lora", "bf16": True}
    plain = GRPOConfig(model_init_kwargs={"dtype": "bfloat16"}, **options)
    four = GRPOConfig(model_init_kwargs={"dtype": "bfloat16", "quantization_config": quantized}, **options)
    found = model_config(of_sizes(**SMALL), plain)
    before, after = (BlankPolicy(found, config, "cuda", True).weights for config in (plain, four))
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert before.size - after.size == round(linear * (2 - 0.5 - (1 + 4 / 256) / 64))
    assert before.trained_size == after.trained_size
    assert (before.unpacked, after.unpacked) == (0, 32 * 48 * 2)


def test_a_model_that_reads_values_is_planned_or_refused() -> None:
    experts = {"model_type": "qwen3_moe", **SHAPE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
    experts["moe_intermediate_size"] = 16
    config = GRPOConfig(num_generations=2, per_device_train_batch_size=2)
    try:
        found = make_plan(of_sizes(**experts), config, CPU, Lengths(8, 8))
        assert found.needs.peak > found.costs.weights.size
    except UserError as error:
        assert "its passes depend on values" in str(error) or "set bf16: true" in str(error)


def test_a_model_with_a_state_is_planned_on_rows() -> None:
    sizes = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")}
    config = GRPOConfig(num_generations=2, per_device_train_batch_size=2)
    found = make_plan(of_sizes(model_type="mamba", state_size=4, **sizes), config, CPU, Lengths(8, 8))
    assert not found.costs.grouped and found.costs.kv_per_token == 0


def test_states_of_the_optimisers() -> None:
    assert optimizer_state_bytes(TrainingConfig(), GPU, 100, 400) == 800
    assert optimizer_state_bytes(TrainingConfig(optim="paged_adamw_8bit"), GPU, 100, 400) == pytest.approx(203.125)
    installed = importlib.util.find_spec("bitsandbytes") is not None  # else torch's AdamW takes its place
    on_cpu = optimizer_state_bytes(TrainingConfig(optim="adamw_8bit"), CPU, 100, 400)
    assert on_cpu == (pytest.approx(203.125) if installed else 800)


@pytest.mark.slow
def test_what_does_not_fit_is_told_with_what_would() -> None:
    config = GRPOConfig(num_generations=8, per_device_train_batch_size=16, max_completion_length=64)
    small = Machine("cpu", False, 1.0, 50e9, 5e9)
    run = of_sizes(**SMALL)
    found = make_plan(run, config, small, Lengths(32, 64))
    assert not found.fits
    keys = [change.keys for change in found.changes]
    assert keys[0] == "gradient_checkpointing=true" and "finetuning_type=lora" in keys
    assert any(key.startswith("token_budget=") for key in keys) and keys[-1] == "num_generations=4"
    peaks = [change.peak for change in found.changes]
    room = Machine("cpu", False, (peaks[1] + peaks[0]) / 2, 50e9, 5e9)
    enough = make_plan(run, config, room, Lengths(32, 64))
    assert [change.keys for change in enough.changes] == keys[:2]
    assert enough.changes[-1].peak <= room.memory < enough.changes[0].peak


def test_half_precision_is_for_weights_that_are_not_trained() -> None:
    half = {"model_init_kwargs": {"dtype": "bfloat16"}}
    found = model_config(of_sizes(**SMALL), TrainingConfig())

    def weights(**changes: Any) -> Weights:
        config = TrainingConfig(**changes)
        model, _, quantized = blank_model(found, config, bf16=True)
        return blank.weights(model, config, quantized, bf16=True)

    plain, full, lora = weights(), weights(**half), weights(finetuning_type="lora", **half)
    assert full.trained_size == plain.trained_size == 4 * full.trained and plain.size - full.size < 100  # buffers
    assert lora.trained_size == 4 * lora.trained and lora.size < plain.size
    frozen = lora.count - lora.trained
    assert lora.size - 2 * frozen - 4 * lora.trained < 100

    order = []
    for changes in ({}, {"finetuning_type": "lora"}, half):
        config = GRPOConfig(num_generations=2, per_device_train_batch_size=2, **changes)
        batch = make_batch(METHODS["grpo"], config, Lengths(8, 8))
        order.append([keys.split("=")[0] for keys, _ in alternatives(config, GPU, batch)])
    assert order[0].index("model_init_kwargs") == order[0].index("finetuning_type") + 1
    assert order[1][0] == "model_init_kwargs" and "model_init_kwargs" not in order[2]


def test_batches_of_the_methods() -> None:
    lengths = Lengths(10, 20)
    sft = make_batch(METHODS["sft"], SFTConfig(per_device_train_batch_size=4, token_budget=60), lengths)
    assert (sft.tokens, len(sft.micro), sft.first_tokens, sft.sampled) == (4 * 30, 2, 60, False)
    grpo = GRPOConfig(num_generations=4, per_device_train_batch_size=6, token_budget=95)
    online = make_batch(METHODS["grpo"], grpo, lengths)
    assert (online.groups, online.rows, online.sampled) == (2, 4, True)
    assert (online.first_tokens, len(online.micro)) == (90, 2)
    assert make.steps(of_sizes().model_copy(update={"max_samples": 10}), grpo) == 5
    assert make.steps(of_sizes(), PPOConfig()) is None


@pytest.mark.parametrize(
    ("text", "expected"), [("80GiB", 80 * 2**30), ("24 GB", 24e9), ("512MiB", 512 * 2**20), ("1e3", None), ("-1", None)]
)
def test_sizes(text: str, expected: float | None) -> None:
    if expected is not None:
        assert parse_size(text, "--memory") == expected
        return
    with pytest.raises(UserError, match="such as 80GiB"):
        parse_size(text, "--memory")


def test_a_machine_is_given_or_found() -> None:
    given = find_machine(False, None, 80e9, 4e14, 2e12)
    assert given == Machine("cuda", True, 80e9, 4e14, 2e12)
    here = find_machine(True, False, None, None, None)
    assert here.device == "cpu" and here.memory > 2**30 and here.flops > 1e8 and here.bandwidth > 1e7
    assert parse_rate("400e12", "--flops") == 4e14
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="give its rates with --flops and --bandwidth"):
            find_machine(False, None, 80e9, None, None)


def test_the_command_prints_a_table_and_writes_json(model: str, tmp_path: Path) -> None:
    path, output = tmp_path / "run.yaml", tmp_path / "plan.json"
    path.write_text(f"model: {model}\ndataset: none.jsonl\nnum_generations: 4\nper_device_train_batch_size: 8\n"
                    "max_completion_length: 32\nuse_cpu: true\nmax_steps: 3\n")  # fmt: skip
    rates = ["--flops", "5e10", "--bandwidth", "5e9", "--json", str(output)]
    result = CliRunner().invoke(app, ["plan", str(path), "beta=0.1", *rates])
    assert result.exit_code == 0, result.output
    for text in ("grpo: ", "as ppo", "peak of: update", "not held", "The run: 3 steps", "It fits"):
        assert text in result.stdout, text
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["fits"] and written["bytes"]["peak"] == max(written["bytes"]["phases"].values())
    assert written["seconds"]["run"] == pytest.approx(3 * written["seconds"]["step"])
    assert written["tokens_per_step"] == 2 * (256 + 4 * 32)
    assert written["compared_with"]["method"] == "ppo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "much"], "--memory 'much': give a size"),
        (["--flops", "fast"], "--flops 'fast': give a number"),
        (["--json", "nowhere/plan.json"], "there is no folder nowhere"),
        (["model=nowhere/at/all", "use_cpu=true"], "nowhere/at/all"),
        (["model_sizes={model_type: kwen}", "use_cpu=true"], "model_sizes: "),
        (["model_init_kwargs={dtype: float3}", "model_sizes={model_type: qwen2}", "use_cpu=true"], "dtype 'float3'"),
    ],
)
def test_mistakes_are_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndataset: d\n")
    result = CliRunner().invoke(app, ["plan", str(path), *arguments])
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "medium", "large"])
def test_the_estimate_is_within_15_percent_of_the_measured_peak(name: str) -> None:
    bench = ROOT / "bench" / "plan.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(bench), name]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    ratios = [float(line.split()[-1]) for line in shown.splitlines()[1:]]
    assert len(ratios) == 4 and all(0.85 <= ratio <= 1.15 for ratio in ratios), shown


def test_reward_models_are_no_policies_and_are_counted_as_rewards(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    trunk = classifier("Qwen2").base_model
    folders = {
        "rm": (saved(tmp_path / "rm", classifier("Qwen2"), tokenizer), "Qwen2ForSequenceClassification"),
        "prm": (saved(tmp_path / "prm", token_classifier("Qwen2"), tokenizer), "Qwen2ForTokenClassification"),
        "mlp": (saved(tmp_path / "mlp", MLPHeadModel(MLPHeadConfig(trunk.config), trunk), tokenizer), "MLPHeadModel"),
    }
    config = GRPOConfig(num_generations=2, per_device_train_batch_size=2, max_completion_length=8, use_cpu=True)
    for folder, kind in folders.values():
        with pytest.raises(UserError, match=f"was saved as {kind}, which scores texts and writes none"):
            make_plan(RunConfig(model=folder, dataset="d", reward_funcs=["accuracy"]), config, CPU, Lengths(8, 8))
        run = of_sizes(**SMALL).model_copy(update={"reward_funcs": [{"model": folder}]})
        assert make_plan(run, config, CPU, Lengths(8, 8)).needs.parts["reward models"] > 0
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"task_type": "SEQ_CLS"}')
    with pytest.raises(UserError, match="is a reward model's adapter, not a policy's"):
        make_plan(RunConfig(model=str(tmp_path / "adapter"), dataset="d"), config, CPU, Lengths(8, 8))
    (tmp_path / "empty").mkdir()
    run = of_sizes(**SMALL).model_copy(update={"reward_funcs": [{"model": str(tmp_path / "empty")}]})
    with pytest.raises(UserError, match="empty' could not be loaded"):
        make_plan(run, config, CPU, Lengths(8, 8))
