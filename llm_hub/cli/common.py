"""What the commands share: opening the hub, notes on standard error, tables and JSON."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from llm_hub.config import Progress
    from llm_hub.hub import Hub

__all__ = ["debugging", "given_config", "guarded_output", "notes", "open_hub", "print_json", "shown", "table"]


def open_hub(*, progress: Callable[[Progress], None] | None = None) -> Hub:
    """The hub of the environment and of the settings file that --config names."""
    from llm_hub.hub import Hub

    return Hub.from_env(config=given_config(), progress=progress, follow=False)


def given_config() -> str | None:
    """The settings file that --config names."""
    config: str | None = _given("config")
    return config


def debugging() -> bool:
    """Was --debug given?"""
    return bool(_given("debug"))


def _given(name: str) -> Any:
    ctx = click.get_current_context(silent=True)
    return (ctx.find_root().obj or {}).get(name) if ctx is not None else None


def shown(text: str, *, dim: bool = False, err: bool = True) -> None:
    """A line for a person, beside the output."""
    click.secho(text, err=err, dim=dim)


class _Notes(logging.Handler):
    """Warnings of the hub, for a person."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{click.style('note', fg='yellow')}: {record.getMessage()}", err=True)


@contextlib.contextmanager
def notes(*, quiet: bool = False) -> Iterator[None]:
    """Show the warnings of the hub on standard error while a command runs."""
    logger = logging.getLogger("llm_hub")
    handler = _Notes(logging.CRITICAL if quiet else logging.WARNING)
    logger.addHandler(handler)
    if not debugging():
        logger.setLevel(logging.WARNING)
    before, logger.propagate = logger.propagate, debugging()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """What a plugin prints while it is imported goes to standard error: the output belongs to the command."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain, order="sorted"), indent=2).decode())


def every_field(value: Any) -> Any:
    """With nothing left out because it is as by default: whoever reads JSON should not have to know the defaults."""
    import msgspec

    if isinstance(value, msgspec.Struct):
        return {name: every_field(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: every_field(one) for key, one in value.items()}
    return [every_field(one) for one in value] if isinstance(value, list | tuple) else value


def _plain(value: object) -> object:
    if isinstance(value, BaseException):
        return str(value)
    raise NotImplementedError(type(value).__name__)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, colour: bool | None = None) -> None:
    """Columns as wide as they need to be; the last one runs free. States are coloured on a terminal (`colour` None)."""
    widths = [max(len(line[at]) for line in (head, *rows)) for at in range(len(head))]
    for number, row in enumerate((head, *rows)):
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padded = cell if at == len(row) - 1 else cell.ljust(width)
            cells.append(click.style(padded, bold=True) if number == 0 else click.style(padded, fg=_COLOURS.get(cell)))
        click.echo("  ".join(cells).rstrip(), color=colour)


_COLOURS = {
    "available": "green",
    "ready": "green",
    "ok": "green",
    "closed": "green",
    "in place": "green",
    "behind": "red",
    "pinned": "yellow",
    "blocked": "yellow",
    "degraded": "yellow",
    "conflict": "red",
    "incompatible": "red",
    "broken": "red",
    "unreachable": "red",
    "model missing": "red",
    "error": "red",
}
