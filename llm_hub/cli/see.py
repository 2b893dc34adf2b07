"""`llm-hub see`: what a model says of images, or the text that is on one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llm_hub.cli.answers import Bar, print_stream, summary
from llm_hub.cli.common import guarded_output, notes, open_hub, print_json, shown

if TYPE_CHECKING:
    from llm_hub.hub import Hub
    from llm_hub.messages import ReadResponse

__all__ = ["command"]


@click.command("see")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-p", "--prompt", help="What to ask a vision model about the images; the answer is streamed.")
@click.option("--read", is_flag=True, help="Print the text on the image instead.")
@click.option("-l", "--language", "languages", multiple=True, help="With --read: a language of the text; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="With --read: the words with their boxes and confidences.")
@click.option("-b", "--backend", help="The backend to ask, in place of the one that is configured.")
@click.option("-m", "--model", help="The model to ask for.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 for the likeliest answer.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for all of it.")
@click.option("-q", "--quiet", is_flag=True, help="Print the answer alone.")
def command(
    *,
    images: tuple[str, ...],
    prompt: str | None,
    read: bool,
    languages: tuple[str, ...],
    as_json: bool,
    backend: str | None,
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    timeout: float | None,
    quiet: bool,
) -> None:
    """Describe images by a vision model (--prompt), or print the text on one (--read).

    An IMAGE is a file (PNG, JPEG, GIF, WebP, BMP, TIFF), or - for standard input. Nothing is fetched from a URL.
    """
    asking = {"max_tokens": max_tokens, "temperature": temperature}
    if read:
        given = ["--prompt"] if prompt is not None else []
        given += [f"--{name.replace('_', '-')}" for name, value in asking.items() if value is not None]
        if given:
            raise click.UsageError(f"{given[0]} is for a model that describes, --read for the text itself: use one")
        if len(images) > 1:
            raise click.UsageError("--read takes one image at a time")
    elif prompt is None:
        raise click.UsageError('say what to do: --prompt "What is on this page?", or --read for the text on it')
    elif as_json or languages:
        raise click.UsageError(f"{'--json' if as_json else '--language'} goes with --read")
    options: dict[str, Any] = {
        name: value for name, value in {**asking, "timeout": timeout}.items() if value is not None
    }
    sources = [_source(image) for image in images]
    with open_hub(progress=None if quiet else Bar()) as hub, notes(quiet=quiet):
        with guarded_output():
            operation = "read" if read else "describe"
            decision = hub.explain("vision", operation=operation, backend=backend, model=model)
        if not quiet:
            shown(f"{decision.backend} serves vision.{operation}: {', '.join(decision.reasons)}", dim=True)
        if read:
            _read(hub, sources[0], backend, model, languages, options, as_json=as_json, quiet=quiet)
            return
        stream = hub.vision(backend=backend, model=model).stream(sources, prompt or "", **options)
        response = print_stream(stream, quiet=quiet)
        if not quiet:
            shown(summary(response), dim=True)


def _source(image: str) -> str | bytes:
    """The path, or what stands on standard input."""
    if image != "-":
        return image
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise click.UsageError("there is no image on standard input: llm-hub see - --read < page.png")
    return sys.stdin.buffer.read()


def _read(
    hub: Hub,
    source: str | bytes,
    backend: str | None,
    model: str | None,
    languages: tuple[str, ...],
    options: dict[str, Any],
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    response = hub.vision(backend=backend, model=model).read(source, languages=languages, **options)
    if as_json:
        print_json(response)
    elif response.text:
        click.echo(response.text)
    if not quiet:
        shown(_read_summary(response), dim=True)


def _read_summary(response: ReadResponse) -> str:
    """One line: who read how much, how surely, how fast."""
    parts = [str(response.served_by), f"{len(response.words)} words" if response.words else "no text found"]
    if response.confidence is not None:
        parts.append(f"confidence {response.confidence:.0%}")
    if response.timings.total is not None:
        parts.append(f"{response.timings.total:.2f} s")
    return " | ".join(parts)
