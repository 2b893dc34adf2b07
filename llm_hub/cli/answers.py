"""How answers are shown: as they come, with a line that sums them up, and a bar while a model loads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llm_hub.config import Progress
    from llm_hub.messages import ChatResponse

__all__ = ["Bar", "print_stream", "summary"]


def print_stream(stream: Any, *, quiet: bool) -> ChatResponse:
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


def summary(response: ChatResponse) -> str:
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


class Bar:
    """Shows on standard error how far the loading of a model has come."""

    def __init__(self) -> None:
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Show how far it has come."""
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
