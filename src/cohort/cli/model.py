"""`cohort generate` and `cohort export`: using a model that was trained."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohort.cli.console import log_console
from cohort.cli.options import AllowPickle, TrustRemoteCode, check_output, pairs
from cohort.types import Message, UserError

if TYPE_CHECKING:
    from cohort.evaluation.generate import Generator
    from cohort.types import Completion, Text

LEAVE, ANEW = "/exit", "/new"


def generate(
    model: Annotated[str, typer.Argument(help="Name or path of a model or an adapter.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt. Without --data too: a chat in the terminal.")] = None,
    data: Annotated[str | None, typer.Option(help="Prompts: a file, a folder or a hub name.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --data: JSON lines go there, else to the terminal.")] = None,
    num_generations: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    temperature: Annotated[float | None, typer.Option(min=0, help="Default: 0 for one completion, else 1.")] = None,
    top_p: Annotated[float, typer.Option(min=0.0001, max=1, help="1: all tokens.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: all tokens.")] = 0,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="0: all tokens.")] = 0.0,
    max_completion_length: Annotated[int, typer.Option(min=1, help="Tokens.")] = 1024,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends a completion; may come again.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Makes plain prompts conversational.")] = None,
    template: Annotated[str | None, typer.Option(help="Chat template, where the tokenizer has none.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The prompt as it stands, in no chat turn.")] = False,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    columns: Annotated[str, typer.Option(help="Ours=theirs, such as prompt=question.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of --data to take.")] = None,
    seed: Annotated[int, typer.Option(help="For sampling.")] = 42,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Let a model answer: one prompt, a file of them, or a chat in the terminal."""
    if prompt is not None and data is not None:
        raise UserError("--prompt and --data both say what is asked: give one of them")
    if output is not None and data is None:
        raise UserError("--output takes the answers to --data; one answer is printed: > FILE keeps it")
    check_output(output)
    mapped = pairs(columns, "--columns", "prompt=question")
    greedy = temperature == 0 or (temperature is None and num_generations == 1)
    if greedy and num_generations > 1:
        raise UserError(f"{num_generations} greedy completions are all the same: set --temperature above 0")
    sampling = {
        "temperature": 0.0 if greedy else 1.0 if temperature is None else temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "max_tokens": max_completion_length,
        "stop": list(stop or []),
    }
    if data is None and prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise UserError("nothing is asked: give --prompt, --data FILE, or text on standard input")
    log_console(stderr=True)
    rows = _rows(data, split, mapped, system_prompt, limit)

    from cohort.evaluation.generate import Generator

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "seed": seed}
    generator = Generator(model, template=template, **options)
    if rows is not None:
        _write(generator.records(rows, sampling, num_generations), output)
    elif prompt is not None:
        _print(generator, generator.as_prompt(prompt, system_prompt, plain), sampling, num_generations)
    else:
        _chat(generator, sampling, system_prompt)


def _rows(data: str | None, split: str, columns: dict[str, str], system_prompt: str | None, limit: int | None) -> Any:
    """Before the model is loaded: mistakes in them are told at once."""
    if data is None:
        return None
    from cohort.data.rows import load_rows

    return load_rows(data, split=split, columns=columns, system_prompt=system_prompt, max_samples=limit)


def _write(records: Any, output: Path | None) -> None:
    if output is None:
        for record in records:
            typer.echo(json.dumps(record, default=str))  # ASCII: nothing in it steers a terminal
        return
    count = 0
    with open(output, "w", encoding="utf-8") as file:
        for count, record in enumerate(records, 1):  # noqa: B007
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
            file.flush()
    typer.echo(f"{count} prompts answered, in {output}", err=True)


def _print(generator: Generator, prompt: Text, sampling: dict[str, Any], count: int) -> None:
    """The answers, a single one on a terminal while it is sampled."""
    if count == 1 and sys.stdout.isatty():
        _end(generator.stream(prompt, sampling, _show))
        return
    for completion in generator.generate([prompt], sampling, count)[0]:
        _show(completion.text)
        _end(completion)


def _show(text: str) -> None:
    """A completion may hold anything, sequences that steer a terminal among it."""
    from cohort.report.tables import harmless

    typer.echo(harmless(text), nl=False)


def _end(completion: Completion) -> None:
    typer.echo()
    if completion.truncated:
        typer.echo(f"[cut after {len(completion.ids)} tokens: --max-completion-length]", err=True)


def _chat(generator: Generator, sampling: dict[str, Any], system_prompt: str | None) -> None:
    """Turns until the end of input. The whole conversation is asked each time. Ctrl-C ends an answer."""
    if not generator.model.has_chat_template:
        raise UserError(
            "a chat needs a chat template, and this tokenizer has none: name one by --template, or --prompt"
        )
    start: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    typer.echo(f"{ANEW} starts over, Ctrl-C ends an answer, {LEAVE} or the end of input leaves.", err=True)
    messages = list(start)
    while (text := _line()) is not None:
        if text == ANEW:
            messages = list(start)
            continue
        if not text:
            continue
        asked = [*messages, {"role": "user", "content": text}]
        try:
            said = _answer(generator, asked, sampling)
        except UserError as error:
            typer.echo(f"error: {error}. {ANEW} starts over", err=True)
            continue
        messages = [*asked, {"role": "assistant", "content": said}]


def _answer(generator: Generator, messages: list[Message], sampling: dict[str, Any]) -> str:
    """What the model says while it says it, up to its end or to Ctrl-C."""
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        _show(piece)

    try:
        completion = generator.stream(messages, sampling, write)
    except KeyboardInterrupt:
        typer.echo()
        return "".join(pieces)
    _end(completion)
    return completion.text


def _line() -> str | None:
    with suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history at the prompt)
    try:
        text = input("> ").strip()
    except EOFError:
        return None
    return None if text == LEAVE else text


def export(
    run: Annotated[str, typer.Argument(help="A run's output_dir, or a model directory.")],
    merge: Annotated[bool, typer.Option("--merge", help="Put an adapter into its model's weights.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where to. Default: RUN-export beside it.")] = None,
    push: Annotated[str | None, typer.Option(help="Then upload it: NAME or OWNER/NAME on the hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a repository nobody else sees.")] = False,
    dtype: Annotated[str, typer.Option(help="Of merged weights: the base model's, or float32, bfloat16, ...")] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Leave a trained model as a directory of its own, ready for transformers, vLLM and the hub."""
    console = log_console()
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {dtype!r}: it is one of auto, float32, bfloat16, float16")
    if private and push is None:
        raise UserError("--private is for --push")

    from cohort.train.output import hub
    from cohort.train.output.export import export as write

    if push is not None:
        hub.require_token()
    options = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    target = write(run, output, merge=merge, dtype=dtype, **options)
    lines = [f"exported to {target}"]
    if push is not None:
        address = hub.push(target, push, private=private or None)
        lines.append(f"pushed to {address}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
