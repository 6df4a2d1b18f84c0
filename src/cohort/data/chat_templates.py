"""Chat templates under LLaMA-Factory's names, for tokenizers that have no chat template.

Each follows what its model family publishes: the text around a turn, and the place of the system text.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohort.types import UserError, did_you_mean

log = logging.getLogger("cohort")

Surround = tuple[str, str]
"""Text before and after a turn's content."""


@dataclass(frozen=True)
class Template:
    """Template(user=("<|user|>\\n", "</s>\\n"), assistant=("<|assistant|>\\n", "\\n"), begin=True)"""

    user: Surround
    assistant: Surround
    """The first part is also the generation prompt."""
    system: Surround | None = None
    """None: the system text opens the first user turn, followed by an empty line."""
    default_system: str = ""
    end: str | None = None
    """The token that ends an answer; None: the tokenizer's end token."""
    begin: bool = False
    """Whether the conversation starts with the tokenizer's begin token."""
    space: bool = False
    """Whether an answer starts with a space that the generation prompt lacks."""
    thinking: bool = False
    """Whether `enable_thinking: false` adds an empty thought to the generation prompt."""

    def jinja(self) -> str:
        """The template in Jinja, as transformers expects it."""
        system = "{% set system = SYSTEM %}{% set turns = messages %}" + (
            "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
            "{% set turns = messages[1:] %}{% endif %}"
        )
        begin = "{{ bos_token|default('', true) }}" if self.begin else ""
        lead = "(system + '\\n\\n' if loop.first and system else '')" if self.system is None else "''"
        head = (
            ""
            if self.system is None
            else f"{{% if system %}}{{{{ {_surrounded(self.system, 'system')} }}}}{{% endif %}}"
        )
        end = "eos_token|default('', true)" if self.end is None else "''"
        no_thinking = "enable_thinking is defined and enable_thinking is false"
        thought = f"{{% if {no_thinking} %}}{{{{ '<think>\\n\\n</think>\\n\\n' }}}}{{% endif %}}"
        # A demonstration's answer follows the same empty thought as a sampled one.
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


def _surrounded(parts: Surround, content: str) -> str:
    return f"{parts[0]!r} + {content} + {parts[1]!r}"


def _im_turn(name: str) -> Surround:
    return (f"<|im_start|>{name}\n", "<|im_end|>\n")


def _header_turn(name: str) -> Surround:
    return (f"<|start_header_id|>{name}<|end_header_id|>\n\n", "<|eot_id|>")


def _chatml(default_system: str = "", thinking: bool = False) -> Template:
    user, assistant, system = (_im_turn(role) for role in ("user", "assistant", "system"))
    return Template(user, assistant, system, default_system, end="<|im_end|>", thinking=thinking)


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
    "llama3": Template(
        _header_turn("user"), _header_turn("assistant"), _header_turn("system"), end="<|eot_id|>", begin=True
    ),
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
    """The template of that name. Raises UserError for an unknown name."""
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES, f"; there are {', '.join(TEMPLATES)}.")
        raise UserError(f"unknown template {name!r}{hint} Or set tokenizer.chat_template, and leave `template` out")
    return TEMPLATES[name]


def use_template(tokenizer: Any, name: str | None, replace: bool = False) -> None:
    """Set the named template, and its end token, on a tokenizer that has no chat template, or with `replace` on any.
    Raises UserError for an unknown name that is needed."""
    if name is None:
        return
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if has_one and not replace:
        unknown = "" if name in TEMPLATES else f" {name!r} is no template here."
        log.info(
            "template %s: the tokenizer's own chat template is used instead.%s replace_chat_template: true would take "
            "the named one",
            name,
            unknown,
        )
        return
    template = named_template(name)
    if has_one:
        log.info("template %s replaces the tokenizer's own chat template", name)
    tokenizer.chat_template = template.jinja()
    if template.end is None:
        return
    if template.end in tokenizer.get_vocab():
        tokenizer.eos_token = template.end
    else:
        log.warning(
            "template %s: %s is not a token of this tokenizer and becomes several tokens; answers end with %s",
            name,
            template.end,
            tokenizer.eos_token,
        )


def take_end(tokenizer: Any, token: str | None) -> None:
    """Make the token the one that ends answers. Raises UserError where the tokenizer does not have it."""
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise UserError(
            f"eos_token: the token {token!r} is not in the tokenizer's vocabulary: add it and resize the model first"
        )
    tokenizer.eos_token = token


def take_template(tokenizer: Any, path: str | None, trust_remote_code: bool = False) -> None:
    """Set the chat template of a .jinja file or of another tokenizer. Raises UserError where there is none."""
    if path is None:
        return
    if Path(path).suffix in (".jinja", ".j2"):
        if not Path(path).is_file():
            raise UserError(f"chat_template_path: {path}: no such file")
        tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        return
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"chat_template_path: {path!r} is no .jinja file and no tokenizer: {error}") from error
    if not other.chat_template:
        raise UserError(f"chat_template_path: the tokenizer {path!r} has no chat template")
    tokenizer.chat_template = other.chat_template
    unknown = sorted(set(other.all_special_tokens) - set(tokenizer.get_vocab()))
    unknown = [token for token in unknown if token in other.chat_template]
    if unknown:
        log.warning(
            "chat_template_path: %s are no tokens of this model's tokenizer, and become several", ", ".join(unknown)
        )
