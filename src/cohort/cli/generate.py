"""`cohort generate`: completions of one prompt, of a file of prompts, or a chat in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohort.cli.console import echo, log_console, write_data
from cohort.cli.options import (
    AllowPickle,
    ChatTemplate,
    Columns,
    MaxCompletionLength,
    Plain,
    Seed,
    SystemPrompt,
    TrustRemoteCode,
    check_folder_of,
    check_plain,
    parse_pairs,
)
from cohort.types import Message, UserError

if TYPE_CHECKING:
    from cohort.evaluation.generate import Generator
    from cohort.types import Completion, Row, Text

EXIT, NEW_CHAT = "/exit", "/new"


def generate(
    model: Annotated[str, typer.Argument(help="Name or path of a model or an adapter.")],
    prompt: Annotated[
        str | None, typer.Option(help="One prompt. Without it and --data: a chat in the terminal.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Prompts: a file, a folder or a hub name.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --data: JSON Lines file. Default: the terminal.")] = None,
    num_generations: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    temperature: Annotated[float | None, typer.Option(min=0, help="Default: 0 for one completion, else 1.")] = None,
    top_p: Annotated[float, typer.Option(min=0.0001, max=1, help="1: all tokens.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: all tokens.")] = 0,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="0: all tokens.")] = 0.0,
    max_completion_length: MaxCompletionLength = 1024,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends a completion; repeat it for more.")] = None,
    system_prompt: SystemPrompt = None,
    template: ChatTemplate = None,
    plain: Plain = False,
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "test",
    columns: Columns = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first prompts of --data only.")] = None,
    seed: Seed = 42,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
) -> None:
    """Sample completions of one prompt or of a file of prompts, or chat in the terminal."""
    if prompt is not None and data is not None:
        raise UserError("--prompt and --data both name prompts: give one of them")
    if output is not None and data is None:
        raise UserError(
            "--output is for the answers to --data; the answer to one prompt is printed: redirect it by > FILE"
        )
    check_folder_of(output)
    check_plain(plain, system_prompt)
    mapped = parse_pairs(columns, "--columns", "prompt=question")
    sampling = {
        "temperature": _temperature(temperature, num_generations),
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "max_tokens": max_completion_length,
        "stop": list(stop or []),
    }
    if data is None and prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
        if not prompt.strip():
            raise UserError("there is no prompt: give --prompt, --data FILE, or text on standard input")
    log_console(stderr=True)
    rows = _rows(data, split, mapped, system_prompt, limit)

    from cohort.evaluation.generate import Generator

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "seed": seed}
    alone = rows is None and num_generations == 1
    generator = Generator(model, template=template, plain=plain, one_by_one=alone, **options)
    if rows is not None:
        _write(generator.records(rows, sampling, num_generations), output)
    elif prompt is not None:
        _print(generator, generator.as_prompt(prompt, system_prompt), sampling, num_generations)
    else:
        _chat(generator, sampling, system_prompt)


def _temperature(temperature: float | None, num_generations: int) -> float:
    """The given temperature; by default 0 (greedy) for one completion and 1 for several."""
    if temperature is None:
        return 0.0 if num_generations == 1 else 1.0
    if temperature == 0 and num_generations > 1:
        raise UserError(f"{num_generations} greedy completions are all the same: set --temperature above 0")
    return temperature


def _rows(
    data: str | None, split: str, columns: dict[str, str], system_prompt: str | None, limit: int | None
) -> list[Row] | None:
    """The rows of --data. They are read before the model is loaded, so that mistakes in them show at once."""
    if data is None:
        return None
    from cohort.data.rows import load_rows

    return load_rows(data, split=split, columns=columns, system_prompt=system_prompt, max_samples=limit)


def _write(records: Iterable[dict[str, Any]], output: Path | None) -> None:
    if output is None:
        for record in records:
            write_data(json.dumps(record, default=str) + "\n")
        return
    count = 0
    with open(output, "w", encoding="utf-8", errors="backslashreplace") as file:
        for count, record in enumerate(records, 1):  # noqa: B007
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
            file.flush()
    echo(f"{count} prompts answered, in {output}", err=True)


def _print(generator: Generator, prompt: Text, sampling: dict[str, Any], count: int) -> None:
    """Print the completions; a single one on a terminal is printed while it is sampled."""
    if count == 1 and sys.stdout.isatty():
        _end(generator.stream(prompt, sampling, write_data))
        return
    for completion in generator.generate([prompt], sampling, count)[0]:
        write_data(completion.text)
        _end(completion)


def _end(completion: Completion) -> None:
    echo()
    if completion.truncated:
        echo(f"[cut after {len(completion.ids)} tokens: --max-completion-length]", err=True)


def _chat(generator: Generator, sampling: dict[str, Any], system_prompt: str | None) -> None:
    """Chat until the end of input. The prompt of an answer is all turns before it. Ctrl-C ends an answer."""
    if not generator.model.has_chat_template:
        raise UserError(
            "a chat needs a chat template, and this tokenizer has none: name one by --template, or use --prompt"
        )
    start: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    echo(f"{NEW_CHAT} starts over, Ctrl-C ends an answer, {EXIT} or the end of input leaves.", err=True)
    messages = list(start)
    while (text := _line()) is not None:
        if text == NEW_CHAT:
            messages = list(start)
            continue
        if not text:
            continue
        with_question = [*messages, {"role": "user", "content": text}]
        try:
            answer = _answer(generator, with_question, sampling)
        except UserError as error:
            echo(f"error: {error}. {NEW_CHAT} starts over", err=True)
            continue
        messages = [*with_question, {"role": "assistant", "content": answer}]


def _answer(generator: Generator, messages: list[Message], sampling: dict[str, Any]) -> str:
    """Print the answer while it is sampled and return it, or the part before Ctrl-C."""
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        write_data(piece)

    try:
        completion = generator.stream(messages, sampling, write)
    except KeyboardInterrupt:
        echo()
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
    return None if text == EXIT else text
