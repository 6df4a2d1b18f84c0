"""The cases of TRL's tests/test_sft_trainer.py that hold here, and what its keys change."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from cohort import SFTConfig, SFTTrainer, UserError
from cohort.data.chains import build_tokenizer
from helpers import rows_of, small_model

CHAT = [
    {"messages": [{"role": "user", "content": f"{i}+1"}, {"role": "assistant", "content": str(i + 1)}]}
    for i in range(6)
]
PAIRS = [{"prompt": f"{i}+1=", "completion": str(i + 1)} for i in range(6)]
TEXTS = [{"text": f"{i}+1={i + 1}"} for i in range(6)]


def sft(folder: Path, rows: Any, tokenizer: Any = None, **values: Any) -> SFTTrainer:
    given = {name: values.pop(name) for name in ("eval_dataset", "formatting_func", "peft_config") if name in values}
    args = SFTConfig(str(folder), max_steps=1, use_cpu=True, bf16=False, learning_rate=1e-2, **values)
    tokenizer = tokenizer or build_tokenizer()
    model = small_model("Llama", vocab_size=len(tokenizer), tie_word_embeddings=False)
    return SFTTrainer(model, args, rows, processing_class=tokenizer, **given)


def learned(trainer: SFTTrainer) -> str:
    """The text of the first example's tokens that are trained on."""
    labels = trainer.train_dataset[0]["labels"]
    return trainer.processing_class.decode([i for i in labels if i != -100])


def test_which_tokens_are_trained_on(tmp_path: Path) -> None:
    end = "<|im_end|>"
    assert learned(sft(tmp_path, CHAT)) == f"1{end}"
    assert learned(sft(tmp_path, CHAT, assistant_only_loss=False)).endswith(f"0+1{end}<|assistant|>1{end}")
    assert learned(sft(tmp_path, PAIRS)) == learned(sft(tmp_path, PAIRS, completion_only_loss=True)) == f"1{end}"
    assert learned(sft(tmp_path, PAIRS, completion_only_loss=False)) == f"+1=1{end}"  # nothing predicts the first
    assert learned(sft(tmp_path, TEXTS)) == f"0+1=1{end}"
    with pytest.raises(UserError, match="row 1: it is a text without a prompt, and completion_only_loss is true"):
        sft(tmp_path, TEXTS, completion_only_loss=True)
    with pytest.raises(UserError, match="mask_history trains on the last answer only, and assistant_only_loss: false"):
        SFTConfig(mask_history=True, assistant_only_loss=False)


def test_rows_of_token_ids(tmp_path: Path) -> None:
    ids = [[5, 6, 7, 8], [5, 6, 9]]
    trainer = sft(tmp_path, [{"input_ids": each} for each in ids], dataset_kwargs={"skip_prepare_dataset": True})
    assert trainer.train_dataset["input_ids"] == ids and trainer.train_dataset[0]["labels"] == ids[0]
    rows = [{"input_ids": ids[0], "labels": [-100, -100, 7, -100]}, {"input_ids": ids[1], "assistant_masks": [0, 1, 0]}]
    trainer = sft(tmp_path, rows)
    assert [row["labels"] for row in trainer.train_dataset] == [[-100, -100, 7, -100], [-100, 6, -100]]
    both = {"input_ids": ids[0], "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}
    assert sft(tmp_path, [both]).train_dataset[0]["labels"] == [-100, 6, -100, 8]
    trainer.train()
    nothing = {"input_ids": ids[0], "labels": [-100] * 4}
    assert len(sft(tmp_path, [nothing, both]).train_dataset) == 1
    for row, message in (
        ({"input_ids": ids[0], "labels": [1]}, "`labels` has 1 values, and `input_ids` 4"),
        ({"input_ids": "5 6"}, "`input_ids` holds '5 6': it must be a list of token ids"),
    ):
        with pytest.raises(UserError, match=message):
            sft(tmp_path, [row])


def test_a_formatting_function_and_another_text_column(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"q": "2+2=", "a": "4"}])
    trainer = sft(tmp_path, rows, formatting_func=lambda row: row["q"] + row["a"], eval_dataset={"same": rows})
    assert learned(trainer) == "2+2=4<|im_end|>" and trainer.eval_dataset["same"][0] == trainer.train_dataset[0]
    assert learned(sft(tmp_path, [{"body": "3+3=6"}], dataset_text_field="body")) == "3+3=6<|im_end|>"
    with pytest.raises(UserError, match="row 1: formatting_func returned a list: it must return the row's text"):
        sft(tmp_path, rows, formatting_func=lambda row: [row["q"]])


def test_a_template_and_an_end_token_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    tokenizer = build_tokenizer()
    end = tokenizer.convert_ids_to_tokens(5)
    trainer = sft(tmp_path / "run", CHAT, tokenizer, chat_template_path=str(path), eos_token=end)
    assert trainer.processing_class.chat_template == path.read_text() and trainer.processing_class.eos_token == end
    with pytest.raises(UserError, match="eos_token: the token '<no>' is not in the tokenizer's vocabulary"):
        sft(tmp_path / "run", CHAT, eos_token="<no>")


def test_dynamic_fine_tuning_weights_tokens_by_their_probability(tmp_path: Path) -> None:
    """The gradient equals autograd's on -p log p with p held constant."""
    trainer = sft(tmp_path, PAIRS[:2], loss_type="dft", per_device_train_batch_size=2, max_grad_norm=0.0)
    model, batch = trainer.model, trainer.loop.source.batch(0, trainer.state).groups
    loss = torch.zeros(())
    for group in batch:
        ids = torch.cat([group.prompt_ids, group.completions[0].ids])[None]
        logits = model(ids).logits.log_softmax(-1)[0, len(group.prompt_ids) - 1 : -1]
        logp = logits.gather(1, group.completions[0].ids[:, None])[:, 0]
        loss = loss - (logp.exp().detach() * logp).mean() / len(batch)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    metrics = trainer.updater.gradient(batch, float(sum(len(g.completions[0].ids) for g in batch)))
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", [
    {"packing": True, "packing_strategy": "wrapped", "max_length": 8}, {"eval_packing": True}, {"padding_free": True},
    {"pad_to_multiple_of": 8}, {"dataset_num_proc": 2}, {"activation_offloading": True}, {"loss_type": "chunked_nll"},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
])  # fmt: skip
def test_the_same_keys_train(values: dict[str, Any], tmp_path: Path) -> None:
    trainer = sft(tmp_path, PAIRS, eval_dataset=PAIRS[:2], eval_strategy="epoch", **values)
    before = trainer.model.lm_head.weight.clone()
    trainer.train()
    assert not torch.equal(before, trainer.model.lm_head.weight)
    assert [row["eval/loss"] for row in rows_of(tmp_path) if "eval/loss" in row]


def test_what_is_too_long_is_cut_as_in_trl(tmp_path: Path) -> None:
    trainer = sft(tmp_path, [{"text": "1+2+3+4=0"}], max_length=4)
    assert [len(row["input_ids"]) for row in trainer.train_dataset] == [4]
    with pytest.raises(UserError, match="all 1 demonstrations are longer"):
        sft(tmp_path, [{"text": "1+2+3+4=0"}], max_length=4, truncation="drop")
    with pytest.raises(UserError, match="`truncation_mode` is 'keep_end', and is not supported"):
        sft(tmp_path, PAIRS, truncation_mode="keep_end")


def test_adapters_of_virtual_tokens_are_refused(tmp_path: Path) -> None:
    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(UserError, match="PromptTuningConfig is a prompt-learning method"):
        sft(tmp_path, PAIRS, peft_config=tuning)
    model = get_peft_model(small_model("Llama"), tuning)
    with pytest.raises(UserError, match="PromptTuningConfig is a prompt-learning method"):
        SFTTrainer(model, SFTConfig(str(tmp_path), use_cpu=True), PAIRS, processing_class=build_tokenizer())


def test_an_output_layer_that_is_trained_in_full_beside_an_adapter(tmp_path: Path) -> None:
    """The trained layer is read while the adapter is on, the original while it is off: as the PeftModel itself."""
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    trainer = sft(tmp_path, PAIRS, peft_config=lora)
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    changed = {
        name for name, p in trainer.model.named_parameters() if name in before and not torch.equal(before[name], p)
    }
    assert changed == {name for name in before if "lora_A" not in name}  # B is zero before the first step
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    policy = trainer.policy
    for adapter in (nullcontext(), trainer.model.disable_adapter()):
        with adapter, torch.no_grad():
            whole = trainer.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            states = trainer.model.get_base_model().model(ids).last_hidden_state[0, :-1]
            torch.testing.assert_close(policy.head.logprobs(states, ids[0, 1:]), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"lora.layer.Linear. Its weight is read in blocks.*or train all of it"):
        sft(tmp_path, PAIRS, peft_config=LoraConfig(target_modules=["q_proj", "lm_head"]))
