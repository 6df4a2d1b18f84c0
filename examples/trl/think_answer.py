"""A TRL-style script with LoRA: rewards for the right answer, compared with `references`, and for think/answer tags.

python examples/trl/think_answer.py --model Qwen/Qwen2.5-0.5B-Instruct
"""

import argparse
import random
import re

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from cohort import GRPOConfig, GRPOTrainer

FORMAT = re.compile(r"<think>[^<]*</think>\s*<answer>[^<]*</answer>")


def make_sums(count, seed):
    rng = random.Random(seed)
    pairs = [(rng.randrange(10, 100), rng.randrange(10, 100)) for _ in range(count)]
    return Dataset.from_list(
        [
            {
                "prompt": f"Think inside <think></think>, answer inside <answer></answer>. What is {a} + {b}?\n",
                "output": str(a + b),
            }
            for a, b in pairs
        ]
    )


def accuracy_reward(completions, references, **kwargs):
    """`references` are the column `output`."""
    found = [re.findall(r"<answer>([^<]*)</answer>", completion) for completion in completions]
    return [
        1.0 if answers and answers[-1].strip() == reference else 0.0
        for answers, reference in zip(found, references, strict=True)
    ]


def format_reward(completions, completion_ids, trainer_state, log_extra, **kwargs):
    """Half a point for the tags, and half for not running on."""
    log_extra("tokens", [len(ids) for ids in completion_ids])
    return [0.5 * bool(FORMAT.match(c)) + 0.5 * bool(FORMAT.fullmatch(c.strip())) for c in completions]


class Progress(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:  # rows of evaluations have eval_reward
            print(f"step {state.global_step} of {state.max_steps}: reward {logs['reward']:.3f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--output_dir", default="output/think_answer")
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--max_completion_length", type=int, default=200)
    options = parser.parse_args()
    trainer = GRPOTrainer(
        model=options.model,
        reward_funcs=[accuracy_reward, format_reward],
        args=GRPOConfig(
            output_dir=options.output_dir,
            learning_rate=1e-5,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_generations=4,
            generation_batch_size=32,
            num_iterations=2,
            max_completion_length=options.max_completion_length,
            max_steps=options.max_steps,
            epsilon=0.2,
            epsilon_high=0.28,
            scale_rewards=False,
            log_completions=True,
            generation_kwargs={"top_k": 50, "do_sample": True},
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=0.5,
            save_steps=50,
        ),
        train_dataset=make_sums(500, seed=0),
        eval_dataset=make_sums(16, seed=1),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        callbacks=[Progress],
    )
    trainer.train()


if __name__ == "__main__":
    main()
