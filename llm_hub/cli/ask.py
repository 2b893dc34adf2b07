"""`llm-hub ask`: a question, and its answer as it comes."""

from __future__ import annotations

import sys
from typing import Any

import click

from llm_hub.cli.answers import Bar, print_stream, summary
from llm_hub.cli.common import guarded_output, notes, open_hub, shown

__all__ = ["command"]


@click.command("ask")
@click.argument("prompt", nargs=-1)
@click.option("-b", "--backend", help="The backend to ask, in place of the one that is configured.")
@click.option("-m", "--model", help="The model to ask for.")
@click.option("-s", "--system", help="A system message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 for the likeliest answer.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--json", "as_json", is_flag=True, help="Ask for a JSON object.")
@click.option("--schema", type=click.File("rb"), help="A file with the JSON schema that the answer must follow.")
@click.option("--think/--no-think", default=None, help="Let the model think first, or not.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for all of it.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("-q", "--quiet", is_flag=True, help="Print the answer alone.")
def command(
    *,
    prompt: tuple[str, ...],
    backend: str | None,
    model: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
    schema: Any,
    think: bool | None,
    timeout: float | None,
    no_stream: bool,
    quiet: bool,
) -> None:
    """Ask a question; the answer is streamed.

    The prompt is the arguments, or standard input, or both: then the input comes after the arguments.
    """
    options: dict[str, Any] = {
        "system": system,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "reasoning": think,
        "timeout": timeout,
        "response_format": _response_format(as_json=as_json, schema=schema),
    }
    options = {name: value for name, value in options.items() if value is not None}
    text = _prompt(prompt)
    with open_hub(progress=None if quiet else Bar()) as hub, notes(quiet=quiet):
        with guarded_output():
            decision = hub.explain("text", backend=backend, model=model)
        if not quiet:
            shown(f"{decision.backend} serves text: {', '.join(decision.reasons)}", dim=True)
        handle = hub.text(backend=backend, model=model)
        if no_stream:
            response = handle.chat(text, **options)
            click.echo(response.text)
        else:
            response = print_stream(handle.stream(text, **options), quiet=quiet)
        if not quiet:
            shown(summary(response), dim=True)


def _prompt(words: tuple[str, ...]) -> str:
    """The arguments, then what stands on standard input, where it is not a person's terminal."""
    said = " ".join(words)
    try:
        said.encode("utf-8")
    except UnicodeEncodeError as error:
        raise click.UsageError("the prompt is not valid UTF-8") from error
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty() or (said and not _piped()):
        if not said.strip():
            raise click.UsageError('the prompt is empty. Say something: llm-hub ask "Why is the sky blue?"')
        return said
    data = sys.stdin.buffer.read()
    try:
        piped = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"standard input is not valid UTF-8 (byte {error.start}). Convert it first: iconv -f latin1 -t utf-8"
        ) from error
    text = f"{said}\n\n{piped}" if said and piped.strip() else said or piped
    if not text.strip():
        raise click.UsageError('the prompt is empty. Say something: llm-hub ask "Why is the sky blue?"')
    return text


def _piped() -> bool:
    """Is standard input a pipe or a file? With a prompt among the arguments, nothing else is waited for."""
    import os
    import stat

    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _response_format(*, as_json: bool, schema: Any) -> Any:
    if as_json and schema is not None:
        raise click.UsageError("--json and --schema exclude each other: a schema implies JSON")
    from llm_hub.messages import ResponseFormat

    if schema is not None:
        import msgspec

        try:
            return ResponseFormat.json_schema(msgspec.json.decode(schema.read(), type=dict[str, Any]))
        except msgspec.MsgspecError as error:
            raise click.UsageError(f"--schema {schema.name}: not a JSON schema ({error})") from error
    return ResponseFormat.json_object() if as_json else None
