"""`llm-hub embed`: the vectors of texts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from llm_hub.cli.answers import Bar
from llm_hub.cli.common import guarded_output, notes, open_hub, shown, table

if TYPE_CHECKING:
    from llm_hub.messages import EmbedResponse

__all__ = ["command"]


@click.command("embed")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-b", "--backend", help="The backend to ask, in place of the one that is configured.")
@click.option("-m", "--model", help="The model to ask for.")
@click.option(
    "--kind", type=click.Choice(["query", "document"]), help="What the texts are, for models that want to know."
)
@click.option("--dimensions", type=click.IntRange(min=1), help="Fewer numbers a vector, where the model allows it.")
@click.option("--truncate", is_flag=True, help="Cut a text that is over the model's limit; otherwise it is an error.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds for all of it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with the vectors.")
@click.option("-q", "--quiet", is_flag=True, help="Print the vectors alone.")
def command(
    *,
    texts: tuple[str, ...],
    backend: str | None,
    model: str | None,
    kind: Any,
    dimensions: int | None,
    truncate: bool,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Embed texts: show or print their vectors.

    Each argument is a text. Without arguments each line of standard input is one; empty lines are left out.
    """
    wanted = _checked(texts) if texts else _lines()
    with open_hub(progress=None if quiet else Bar()) as hub, notes(quiet=quiet):
        with guarded_output():
            decision = hub.explain("embedding", backend=backend, model=model)
        if not quiet:
            shown(f"{decision.backend} serves embedding: {', '.join(decision.reasons)}", dim=True)
        response = hub.embedding(backend=backend, model=model).embed(
            wanted, kind=kind, dimensions=dimensions, truncate=truncate, timeout=timeout
        )
    if as_json:
        _print_json(wanted, response)
    else:
        _print_table(wanted, response)
    if not quiet:
        shown(_summary(response), dim=True)


def _checked(texts: tuple[str, ...]) -> list[str]:
    for number, text in enumerate(texts, 1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise click.UsageError(f"text {number} is not valid UTF-8") from error
    return list(texts)


def _lines() -> list[str]:
    """The lines of standard input, where it is not a person's terminal."""
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise click.UsageError('there is nothing to embed. Name a text: llm-hub embed "hello"')
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(
            f"standard input is not valid UTF-8 (byte {error.start}). Convert it first: iconv -f latin1 -t utf-8"
        ) from error
    # Not splitlines, which splits at form feeds and the like too.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    found = [line for line in lines if line.strip()]
    if not found:
        raise click.UsageError("standard input holds no text: each line of it is one")
    return found


def _print_json(texts: list[str], response: EmbedResponse) -> None:
    """On one line: vectors are not for reading."""
    import msgspec

    document = {
        "model": response.model,
        "dimension": response.dimension,
        "normalized": response.normalized,
        "embeddings": [{"text": text, "vector": vector} for text, vector in zip(texts, response.vectors, strict=True)],
        "usage": response.usage,
        "served_by": response.served_by,
    }
    click.echo(msgspec.json.encode(document).decode())


def _print_table(texts: list[str], response: EmbedResponse) -> None:
    """How each vector begins, and how near it is to the first."""
    norms = response.norms
    rows = []
    for text, vector, norm in zip(texts, response.vectors, norms, strict=True):
        near = sum(a * b for a, b in zip(response.vectors[0], vector, strict=True)) / (norms[0] * norm)
        begins = " ".join(f"{value:+.4f}" for value in vector[:4])
        rows.append((_short(text), f"{near:.4f}", f"{norm:.4f}", f"{begins} ..."))
    table(("text", "cosine", "length", "vector"), rows)


def _short(text: str, limit: int = 40) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _summary(response: EmbedResponse) -> str:
    """One line: who embedded, how many, how long the vectors are, how fast."""
    parts = [str(response.served_by), f"{len(response)} vectors of {response.dimension} dimensions"]
    parts.append("normalized" if response.normalized else "not normalized")
    if response.usage.prompt_tokens is not None:
        parts.append(f"{response.usage.prompt_tokens} tokens")
    if response.timings.total is not None:
        parts.append(f"{response.timings.total:.2f} s")
    if response.served_by is not None and response.served_by.fallback:
        parts.append("a fallback")
    return " | ".join(parts)
