"""Models and tokenizers: loading, LoRA, device and precision."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cohort.compat.libraries import quiet
from cohort.config import TrainingConfig
from cohort.config.hub import cache_without_hub, not_loaded
from cohort.policy.adapter import about_tied_weights, base_of, is_adapter, is_tied, of_reward_model, put_on
from cohort.policy.device import device_of, one_device, release
from cohort.policy.dropout import zero_dropout
from cohort.policy.freeze import freeze
from cohort.policy.memory import keep_freed_memory
from cohort.policy.model import Policy
from cohort.policy.parity import check_repeatable, choose_paths
from cohort.policy.precision import widen
from cohort.progress import Task
from cohort.types import UserError

log = logging.getLogger("cohort")


def find_device(use_cpu: bool = False) -> torch.device:
    if use_cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are faster than float32 on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def load_model(name: str, *, trust_remote_code: bool = False, allow_pickle: bool = False, **kwargs: Any) -> Any:
    """Load a causal language model, in float32 and from safetensors by default; for an adapter, its base model with the
    adapter, for inference. Raises UserError for what cannot be loaded."""
    _must_be_model(name)
    with cache_without_hub(name):
        return _load_model(name, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, **kwargs)


def _load_model(name: str, *, trust_remote_code: bool, allow_pickle: bool, **kwargs: Any) -> Any:
    from transformers import AutoModelForCausalLM

    if is_adapter(name, kwargs.get("revision")):
        return _load_adapter(name, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, **kwargs)
    options = {
        "dtype": torch.float32,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": None if allow_pickle else True,
        **kwargs,
    }
    quiet()
    try:
        with Task(f"loading the model {name}"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, ImportError) as error:
        hint = _remote_code_hint(error)
        if not allow_pickle and "safetensors" in str(error):
            hint = ". Weights of another form are pickles, which can run code: allow_pickle loads them"
        raise UserError(f"model {name!r} could not be loaded: {not_loaded(name, error)}{hint}") from error
    model, loading = loaded
    _must_be_whole(name, model.config, loading)
    return model


def _must_be_whole(name: str, config: Any, loading: Mapping[str, Any]) -> None:
    """Raise UserError where transformers found no weights, or weights of another shape, and made random ones."""
    random = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if not random:
        return
    kind = ", ".join(config.architectures or []) or "none"
    reward_model = "; a reward model scores completions: name it in reward_funcs" if "Classification" in kind else ""
    raise UserError(
        f"model {name!r} has no weights for {len(random)} parameters of a causal language model, which would be "
        f"random: {', '.join(random[:3])}{', ...' if len(random) > 3 else ''}. It was saved as {kind} and "
        f"cannot be trained here{reward_model}"
    )


def _load_adapter(name: str, *, allow_pickle: bool, revision: str | None = None, **options: Any) -> Any:
    must_be_no_reward_model(name)
    base = base_of(name, revision)
    try:
        model = load_model(base, allow_pickle=allow_pickle, **options)
    except UserError as error:
        raise UserError(f"{name!r} is an adapter of {base!r}: {error}") from error
    return put_on(model, name, allow_pickle=allow_pickle, revision=revision)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in the model's directory; for an adapter without one, its base model's."""
    from transformers import AutoTokenizer

    _must_be_model(name)
    quiet()
    if Path(name).is_dir() and not (Path(name) / "tokenizer_config.json").is_file() and is_adapter(name):
        name = base_of(name)
    try:
        with cache_without_hub(name):
            return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        hint = _remote_code_hint(error)
        raise UserError(f"the tokenizer of {name!r} could not be loaded: {not_loaded(name, error)}{hint}") from error


def load_model_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of the named model. Raises UserError for an unknown name."""
    from transformers import AutoConfig

    name = base_of(name) if Path(name).is_dir() and is_adapter(name) else name
    _must_be_model(name)
    try:
        with cache_without_hub(name):
            return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"the configuration of {name!r} could not be read: {not_loaded(name, error)}") from error


def load_policy_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """As `load_model_config`, of a model that can be a policy or a teacher. Raises UserError for a reward model."""
    must_be_no_reward_model(name)
    config = load_model_config(name, trust_remote_code=trust_remote_code)
    _must_generate(name, config.architectures)
    return config


def must_be_no_reward_model(name: str) -> None:
    """Raise UserError for the directory of a reward model, or of its adapter."""
    if of_reward_model(name):
        raise UserError(f"{name!r} is a reward model's adapter, not a policy's: name it in reward_funcs")
    path = Path(name) / "config.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return  # transformers tells what is wrong with the file
    if isinstance(saved, dict):
        _must_generate(name, saved.get("architectures"))


def _must_generate(name: str, architectures: Any) -> None:
    kind = ", ".join(map(str, architectures)) if isinstance(architectures, list | tuple) else ""
    if "Classification" in kind or "MLPHeadModel" in kind:
        raise UserError(
            f"model {name!r} was saved as {kind}, which scores texts and writes none: it is no policy and no teacher. "
            "A reward model is named in reward_funcs"
        )


def context_length(name: str, *, trust_remote_code: bool = False) -> int:
    """The number of positions in the named model's configuration; a large number where it does not say."""
    config = load_model_config(name, trust_remote_code=trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31


def _must_be_model(name: str) -> None:
    path = Path(name)
    looks_local = name.startswith((".", "/", "~")) or path.exists()
    if looks_local and not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise UserError(f"model {name!r}: the directory {what}; give a transformers model directory or a hub name")


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _remote_code_hint(error: Exception) -> str:
    needed = "trust_remote_code" in str(error)
    return ". Read that code; trust_remote_code: true (--trust-remote-code) runs it" if needed else ""


def require_weights(peft_config: Any) -> None:
    """Raise UserError for an adapter of virtual tokens (prompt tuning, prefix tuning, p-tuning)."""
    if getattr(peft_config, "is_prompt_learning", False):
        raise UserError(
            f"{type(peft_config).__name__} is a prompt-learning method: its virtual tokens are put in front of each "
            "sequence by the PeftModel's forward, and batches here are packed, prompts computed once for all their "
            "completions. Use LoraConfig, which changes weights"
        )


def add_lora(model: Any, config: TrainingConfig, peft_config: Any = None, task_type: str = "CAUSAL_LM") -> Any:
    """Add LoRA layers by peft; returns the PeftModel. With `task_type` SEQ_CLS, a classifier's head is trained in full.
    Raises UserError where no module matches, or where the adapter would be saved over its base model."""
    from peft import LoraConfig, PeftConfig, get_peft_model

    base = model.config.name_or_path
    if base and Path(base).resolve() == Path(config.output_dir).resolve():
        raise UserError(
            f"output_dir {config.output_dir!r} is the base model's own folder: name another for the adapter"
        )
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise UserError(f"peft_config is a {type(peft_config).__name__}: give a configuration of peft, LoraConfig(...)")
    require_weights(peft_config)
    if peft_config is None:
        targets = config.lora_target
        if isinstance(targets, str):
            names = [name.strip() for name in targets.split(",")]
            targets = "all-linear" if names in (["all"], ["all-linear"]) else names
        peft_config = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            lora_dropout=config.lora_dropout,
            use_dora=config.use_dora,
            use_rslora=config.use_rslora,
            modules_to_save=config.modules_to_save or None,
            target_modules=targets,
            task_type=task_type,
        )
    tied = is_tied(model)
    try:
        with about_tied_weights():
            peft = get_peft_model(model, peft_config)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise UserError(f"LoRA: {_first_lines(error)}; linear layers of this model: {', '.join(linear)}") from error
    if tied and type(model.get_input_embeddings()) is not torch.nn.Embedding:
        log.info(
            "the embeddings are trained, and the output layer, which shared their weights, keeps the base model's: a "
            "merged model has both, with tie_word_embeddings false"
        )
    return peft


def make_policy(
    model: Any, tokenizer: Any, config: TrainingConfig, peft_config: Any = None, trained: bool = True
) -> Policy:
    """Make a policy of a model (name, path or object) and a tokenizer, on its device, with the fast paths that equal
    the model's own forward pass. Without `trained` all weights are frozen, as a reference's are."""
    quiet()
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model, trust_remote_code=config.trust_remote_code)
        model = load_model(
            model,
            trust_remote_code=config.trust_remote_code,
            allow_pickle=config.allow_pickle,
            **loading_options(config, find_device(config.use_cpu), peft_config is not None),
        )
    if tokenizer is None:
        name = getattr(model.config, "name_or_path", None) or model.config._name_or_path
        if not name:
            raise UserError("the model object names no directory to load a tokenizer from: pass processing_class=")
        tokenizer = load_tokenizer(name, trust_remote_code=config.trust_remote_code)
    release(model)
    device = device_of(model, find_device(config.use_cpu), config.use_cpu)
    if device.type == "cpu":
        keep_freed_memory()
    bf16 = fast_bf16(device) if config.bf16 is None else config.bf16
    if not trained:
        model.requires_grad_(False)
        config = config.model_copy(update={"finetuning_type": "full"})  # no adapter is added
    peft = adapt(model, config, peft_config)
    model = peft.get_base_model() if peft is not None else model
    for line in widen(model, bf16):
        log.info(line)
    model.to(device)
    set_up(model, peft, config)
    policy = Policy(model, tokenizer, peft=peft, bf16=bf16)
    with Task("comparing the fast paths with the model's own code"):
        if config.disable_dropout and policy.parameters:
            check_repeatable(policy)
        choose_paths(policy, config.fast_paths, config.longest_sequence)
    return policy


def adapt(model: Any, config: TrainingConfig, peft_config: Any = None) -> Any:
    """Freeze the parameters that `finetuning_type` does not train. Returns the PeftModel, or None without an adapter.
    Raises UserError for a second adapter."""
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        require_weights(model.active_peft_config)
        if peft_config is not None:
            raise UserError("the model has an adapter already: leave peft_config out, or merge the adapter first")
        return model
    if peft_config is not None or config.finetuning_type == "lora":
        return add_lora(model, config, peft_config)
    if config.finetuning_type == "freeze":
        freeze(model, config)
    return None


def set_up(model: Any, peft: Any, config: TrainingConfig) -> None:
    """Set dropout and gradient checkpointing as configured."""
    if config.disable_dropout:
        zero_dropout(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if peft is not None:
            model.enable_input_require_grads()


def loading_options(config: TrainingConfig, device: torch.device, has_adapter: bool) -> dict[str, Any]:
    """model_init_kwargs, on one device; quantised weights are created there. Raises UserError for several devices,
    where quantised weights would be trained, or where bitsandbytes is missing."""
    options = dict(config.model_init_kwargs)
    if options.get("device_map") is not None:
        options["device_map"] = {"": one_device(options["device_map"], device, config.use_cpu)}
    if options.get("quantization_config") is None:
        return options
    if config.finetuning_type != "lora" and not has_adapter:
        raise UserError("quantised weights are not trained: set finetuning_type: lora beside quantization_config")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantization_config needs bitsandbytes: pip install 'cohort-rl[quantization]'")
    if device.type != "cuda":
        log.warning("quantised weights on %s save memory and cost time; they are made for CUDA", device.type)
    return {"device_map": {"": device}, **options}
