"""Chat templates under LLaMA-Factory's names, for tokenizers that have no chat template.

Each writes what LLaMA-Factory writes, except where the model family publishes another text:
docs/coming-from-llama-factory.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cohort.compat import llama_factory_keys
from cohort.types import UserError, did_you_mean

log = logging.getLogger("cohort")

Surround = tuple[str, str]
"""Text before and after a turn's content; END in it is the tokenizer's end token."""
END = "{end}"
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
_WITHOUT_THOUGHT = (
    "{% macro bare(text) %}{% if '<think>\\n' in text and '\\n</think>\\n\\n' in text %}"
    "{{ (text.split('<think>\\n')[0] + text.split('\\n</think>\\n\\n')[-1]).lstrip('\\n') }}"
    "{% else %}{{ text.lstrip('\\n') }}{% endif %}{% endmacro %}"
)
_OFF = "enable_thinking is defined and enable_thinking is false"
_KEPT = "preserve_thinking is defined and preserve_thinking"


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
    """The token that ends an answer; None: the tokenizer's end token; "": none is written."""
    begin: bool = False
    """Whether the conversation starts with the tokenizer's begin token."""
    space: bool = False
    """Whether an answer starts with a space that the generation prompt lacks."""
    thinking: bool = False
    """Whether answers have thoughts: a last answer without any gets an empty one, earlier ones lose theirs unless
    preserve_thinking, and with enable_thinking: false the empty thought belongs to the prompt."""

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
            else "{% if system %}{{ " + f"{_text(self.system[0])} + system + {_text(self.system[1])}" + " }}{% endif %}"
        )
        end = _text(END) if self.end is None else "''"  # a named end token is in the text after a turn
        thought = f"{{% if {_OFF} %}}{{{{ {_EMPTY_THOUGHT!r} }}}}{{% endif %}}" if self.thinking else ""
        return "".join(
            [
                _WITHOUT_THOUGHT if self.thinking else "",
                system.replace("SYSTEM", repr(self.default_system)),
                begin,
                head,
                "{% for turn in turns %}{% if turn['role'] == 'user' %}",
                f"{{{{ {_text(self.user[0])} + {lead} + turn['content'] + {_text(self.user[1])} }}}}",
                "{% elif turn['role'] == 'assistant' %}",
                f"{{{{ {_text(self.assistant[0] + ' ' * self.space)} }}}}",
                self._answer(),
                f"{{{{ {end} + {_text(self.assistant[1])} }}}}",
                "{% else %}{{ raise_exception('this template has no role ' + turn['role']) }}",
                "{% endif %}{% endfor %}{% if add_generation_prompt %}",
                f"{{{{ {_text(self.assistant[0])} }}}}" + thought,
                "{% endif %}",
            ]
        )

    def _answer(self) -> str:
        """An answer's text, with its thought or an empty one."""
        if not self.thinking:
            return "{{ turn['content'] }}"
        return (
            "{% set answer = turn['content'] %}"
            f"{{% if ({_OFF}) or not (loop.last or ({_KEPT})) %}}{{% set answer = bare(answer) %}}{{% endif %}}"
            "{% if loop.last and '<think>' not in answer and '</think>' not in answer %}"
            f"{{{{ {_EMPTY_THOUGHT!r} }}}}{{% endif %}}{{{{ answer }}}}"
        )


def _text(literal: str) -> str:
    """Literal text as a Jinja expression."""
    return " + eos_token|default('', true) + ".join(repr(part) for part in literal.split(END))


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
    "default": Template(("Human: ", f"{END}\n"), ("Assistant:", "\n"), ("System: ", f"{END}\n")),
    "empty": Template(("", ""), ("", ""), ("", ""), end=""),
    "alpaca": Template(
        ("### Instruction:\n", "\n\n"),
        ("### Response:\n", "\n\n"),
        ("", ""),
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n",
    ),
    "chatml": _chatml(),
    "deepseek": Template(("User: ", "\n\n"), ("Assistant:", ""), ("", "\n\n"), begin=True, space=True),
    "deepseek3": _DEEPSEEK3,
    "deepseekr1": replace(_DEEPSEEK3, thinking=True),
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
    "vicuna": Template(
        ("USER: ", " "),
        ("ASSISTANT:", ""),
        ("", " "),
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions.",
        space=True,
    ),
    "yi": _chatml(),
    "zephyr": Template(("<|user|>\n", f"{END}\n"), ("<|assistant|>\n", "\n"), ("<|system|>\n", f"{END}\n")),
}


THEIRS = frozenset(llama_factory_keys.TEMPLATES.split())
"""Names of LLaMA-Factory's templates."""


def named_template(name: str) -> Template:
    """The template of that name. Raises UserError for an unknown name."""
    if name not in TEMPLATES:
        there = f"; there are {', '.join(TEMPLATES)}."
        hint = there if name in THEIRS else did_you_mean(name, TEMPLATES, there)
        raise UserError(f"unknown template {name!r}{hint} Or set tokenizer.chat_template, and leave `template` out")
    return TEMPLATES[name]


def require_known(name: str, instead: bool) -> None:
    """Raise UserError for a name that is neither of a template here nor of one of LLaMA-Factory's, which may stay where
    the tokenizer's own template is used."""
    if instead or name not in THEIRS:
        named_template(name)


def use_template(tokenizer: Any, name: str | None, instead: bool = False) -> None:
    """Set the named template, and its end token, on a tokenizer that has no chat template, or `instead` of the one it
    has. Raises UserError for an unknown name that is needed."""
    if name is None:
        return
    require_known(name, instead)
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if has_one and not instead:
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
    if not template.end:
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
