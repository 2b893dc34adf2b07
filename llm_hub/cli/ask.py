"""`llm-hub ask`: a question, and its answer as it comes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llm_hub.cli.common import guarded_output, notes, open_hub, shown

if TYPE_CHECKING:
    from llm_hub.config import Progress
    from llm_hub.messages import ChatResponse

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
    with open_hub(progress=None if quiet else _Bar()) as hub, notes(quiet=quiet):
        with guarded_output():
            decision = hub.explain("text", backend=backend, model=model)
        if not quiet:
            shown(f"{decision.backend} serves text: {', '.join(decision.reasons)}", dim=True)
        handle = hub.text(backend=backend, model=model)
        if no_stream:
            response = handle.chat(text, **options)
            click.echo(response.text)
        else:
            response = _stream(handle.stream(text, **options), quiet=quiet)
        if not quiet:
            shown(_summary(response), dim=True)


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


def _stream(stream: Any, *, quiet: bool) -> ChatResponse:
    """Print the pieces as they come; a newline at the end, also when it breaks off."""
    thinking = False
    printed = ""
    try:
        with stream:
            for chunk in stream:
                if chunk.reasoning and not quiet:
                    thinking = True
                    click.secho(chunk.reasoning, nl=False, err=True, dim=True)
                if chunk.index == 0 and chunk.text:
                    if thinking:
                        thinking = False
                        click.echo(err=True)
                    click.echo(chunk.text, nl=False)
                    printed = chunk.text
    finally:
        if printed and not printed.endswith("\n"):
            click.echo()
    response: ChatResponse = stream.response
    for call in response.tool_calls:
        click.echo(f"{call.name}({call.arguments})")
    return response


def _summary(response: ChatResponse) -> str:
    """One line: who answered, how much, how fast, and whether it was cut."""
    parts = [str(response.served_by)]
    if response.usage.completion_tokens is not None:
        parts.append(f"{response.usage.prompt_tokens} + {response.usage.completion_tokens} tokens")
    if response.timings.total is not None:
        parts.append(f"{response.timings.total:.2f} s")
    if response.timings.first_chunk is not None:
        parts.append(f"first after {response.timings.first_chunk:.2f} s")
    if response.finish_reason != "stop":
        parts.append(
            {"length": "cut off at the token limit"}.get(str(response.finish_reason), str(response.finish_reason))
        )
    if response.served_by is not None and response.served_by.fallback:
        parts.append("a fallback")
    return " | ".join(parts)


class _Bar:
    """Shows on standard error how far the loading of a model has come."""

    def __init__(self) -> None:
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        if progress.done:
            self._line(f"{progress.doing}: done\n")
        elif sys.stderr.isatty() or not self._width:
            share = "" if progress.fraction is None else f" {progress.fraction:4.0%}"
            self._line(f"{progress.doing}{share}" + ("" if sys.stderr.isatty() else "\n"))

    def _line(self, text: str) -> None:
        start = "\r" if sys.stderr.isatty() and self._width else ""
        click.echo(
            click.style(start + text.ljust(self._width if sys.stderr.isatty() else 0), dim=True), nl=False, err=True
        )
        self._width = len(text)
