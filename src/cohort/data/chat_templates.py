"""Chat templates by the names LLaMA-Factory's users know, for tokenizers that have none of their own.

Each writes what its model family publishes: which text opens and closes a turn, where the system text stands.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from typing import Any

from cohort.types import UserError

log = logging.getLogger("cohort")

Around = tuple[str, str]
"""Text before and after a turn's content."""


@dataclass(frozen=True)
class Template:
    """Template(user=("<|user|>\\n", "</s>\\n"), assistant=("<|assistant|>\\n", "\\n"), begin=True)"""

    user: Around
    assistant: Around
    """The first part is also what a completion is asked for with."""
    system: Around | None = None
    """None: the system text stands at the head of the first user turn, an empty line between."""
    default_system: str = ""
    end: str | None = None
    """The token that ends an answer; None: the tokenizer's own end token."""
    begin: bool = False
    """Whether the conversation starts with the tokenizer's begin token."""
    space: bool = False
    """Whether an answer starts with a space that it is not asked for with."""
    thinking: bool = False
    """Whether `enable_thinking: false` asks for the answer behind an empty thought."""

    def jinja(self) -> str:
        """The chat template in transformers' language."""
        system = "{% set system = SYSTEM %}{% set turns = messages %}" + (
            "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
            "{% set turns = messages[1:] %}{% endif %}"
        )
        begin = "{{ bos_token|default('', true) }}" if self.begin else ""
        lead = "(system + '\\n\\n' if loop.first and system else '')" if self.system is None else "''"
        head = (
            "" if self.system is None else f"{{% if system %}}{{{{ {_around(self.system, 'system')} }}}}{{% endif %}}"
        )
        end = "eos_token|default('', true)" if self.end is None else "''"
        unwanted = "enable_thinking is defined and enable_thinking is false"
        thought = f"{{% if {unwanted} %}}{{{{ '<think>\\n\\n</think>\\n\\n' }}}}{{% endif %}}"
        # An answer that is trained on stands behind the same empty thought as one that is asked for.
        last_thought = thought.replace("{% if", "{% if loop.last and", 1)
        return "".join(
            [
                system.replace("SYSTEM", repr(self.default_system)),
                begin,
                head,
                "{% for turn in turns %}{% if turn['role'] == 'user' %}",
                f"{{{{ {self.user[0]!r} + {lead} + turn['content'] + {self.user[1]!r} }}}}",
                "{% elif turn['role'] == 'assistant' %}",
                f"{{{{ {self.assistant[0] + ' ' * self.space!r} }}}}" + (last_thought if self.thinking else ""),
                f"{{{{ turn['content'] + {end} + {self.assistant[1]!r} }}}}",
                "{% else %}{{ raise_exception('this template has no role ' + turn['role']) }}",
                "{% endif %}{% endfor %}{% if add_generation_prompt %}",
                f"{{{{ {self.assistant[0]!r} }}}}" + (thought if self.thinking else ""),
                "{% endif %}",
            ]
        )


def _around(parts: Around, content: str) -> str:
    return f"{parts[0]!r} + {content} + {parts[1]!r}"


def _marked(name: str) -> Around:
    return (f"<|im_start|>{name}\n", "<|im_end|>\n")


def _headed(name: str) -> Around:
    return (f"<|start_header_id|>{name}<|end_header_id|>\n\n", "<|eot_id|>")


def _chatml(default_system: str = "", thinking: bool = False) -> Template:
    roles = [_marked(name) for name in ("user", "assistant", "system")]
    return Template(*roles, default_system=default_system, end="<|im_end|>", thinking=thinking)


_GEMMA = Template(
    ("<start_of_turn>user\n", "<end_of_turn>\n"),
    ("<start_of_turn>model\n", "<end_of_turn>\n"),
    end="<end_of_turn>",
    begin=True,
)
_DEEPSEEK3 = Template(("<｜User｜>", ""), ("<｜Assistant｜>", ""), ("", ""), begin=True)
TEMPLATES: dict[str, Template] = {
    "default": Template(("Human: ", "\n"), ("Assistant:", "\n"), ("System: ", "\n"), space=True),
    "empty": Template(("", ""), ("", ""), ("", "")),
    "alpaca": Template(
        ("### Instruction:\n", "\n\n"),
        ("### Response:\n", "\n\n"),
        ("", "\n\n"),
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    ),
    "chatml": _chatml(),
    "deepseek": Template(("User: ", "\n\n"), ("Assistant:", ""), ("", "\n\n"), begin=True, space=True),
    "deepseek3": _DEEPSEEK3,
    "deepseekr1": _DEEPSEEK3,
    "gemma": _GEMMA,
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "llama3": Template(_headed("user"), _headed("assistant"), _headed("system"), end="<|eot_id|>", begin=True),
    "mistral": Template(("[INST] ", "[/INST]"), ("", ""), begin=True, space=True),
    "phi4": Template(
        ("<|im_start|>user<|im_sep|>", "<|im_end|>"),
        ("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
        ("<|im_start|>system<|im_sep|>", "<|im_end|>"),
        end="<|im_end|>",
    ),
    "qwen": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen3": _chatml(thinking=True),
    "qwen3_nothink": _chatml(),
    "vicuna": Template(("USER: ", " "), ("ASSISTANT:", ""), ("", " "), space=True),
    "yi": _chatml(),
    "zephyr": Template(("<|user|>\n", "</s>\n"), ("<|assistant|>\n", "\n"), ("<|system|>\n", "</s>\n")),
}


def named_template(name: str) -> Template:
    """Raises UserError for a name that is not in the table."""
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, n=1)
        hint = f": did you mean {near[0]!r}?" if near else f"; there are {', '.join(TEMPLATES)}."
        raise UserError(f"unknown template {name!r}{hint} Or set tokenizer.chat_template, and leave `template` out")
    return TEMPLATES[name]


def use_template(tokenizer: Any, name: str | None) -> None:
    """Give the tokenizer the template of that name, and its end token, where it has no chat template of its own."""
    if name is None:
        return
    template = named_template(name)
    if getattr(tokenizer, "chat_template", None):
        log.info("template %s: the tokenizer has a chat template of its own, which is used", name)
        return
    tokenizer.chat_template = template.jinja()
    if template.end is None:
        return
    if template.end in tokenizer.get_vocab():
        tokenizer.eos_token = template.end
    else:
        log.warning(
            "template %s: %s is no token of this tokenizer, so it is spelled out; answers end with %s",
            name,
            template.end,
            tokenizer.eos_token,
        )
