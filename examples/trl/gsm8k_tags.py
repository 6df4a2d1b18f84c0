"""A TRL-style script: GSM8K with conversational prompts, rewards for the right number and for the tags.

python examples/trl/gsm8k_tags.py --model Qwen/Qwen2.5-0.5B-Instruct
python examples/trl/gsm8k_tags.py --data my_gsm8k.jsonl          # question, answer that ends in #### 72
"""

import argparse

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from cohort import GRPOConfig, GRPOTrainer

SYSTEM_PROMPT = """Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>"""
TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


def to_conversation(example):
    return {
        "prompt": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": example["question"]}],
        "answer": example["answer"].split("####")[-1].strip().replace(",", ""),
    }


def answer_of(text):
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def correctness_reward(prompts, completions, answer, **kwargs):
    answers = [answer_of(completion[0]["content"]) for completion in completions]
    return [2.0 if given == wanted else 0.0 for given, wanted in zip(answers, answer, strict=True)]


def tag_presence_reward(completions, **kwargs):
    return [sum(0.2 for tag in TAGS if tag in completion[0]["content"]) for completion in completions]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--data", help="A JSONL file in GSM8K's form; else openai/gsm8k from the hub.")
    parser.add_argument("--output_dir", default="output/gsm8k_tags")
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--max_completion_length", type=int, default=512)
    options = parser.parse_args()
    if options.data:
        dataset = load_dataset("json", data_files=options.data, split="train")
    else:
        dataset = load_dataset("openai/gsm8k", "main", split="train")
    dataset = dataset.map(to_conversation, remove_columns=["question"])

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    training_args = GRPOConfig(
        options.output_dir,
        run_name="gsm8k-tags",
        learning_rate=1e-6,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_generations=8,
        max_completion_length=options.max_completion_length,
        max_steps=options.max_steps,
        beta=0.0,
        loss_type="dapo",
        logging_steps=1,
        save_strategy="no",
        report_to="tensorboard",
        dataloader_num_workers=2,
    )
    trainer = GRPOTrainer(
        model=model,
        tokenizer=tokenizer,
        reward_funcs=[correctness_reward, tag_presence_reward],
        args=training_args,
        train_dataset=dataset,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
