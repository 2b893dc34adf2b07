"""`llm-hub models`: what each backend can serve right now."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import guarded_output, notes, open_hub, print_json, shown, table

if TYPE_CHECKING:
    from llm_hub.capabilities import ModelInfo

__all__ = ["command"]


@click.command("models")
@click.option("-b", "--backend", help="Ask this backend alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each backend.",
)
@click.pass_context
def command(ctx: click.Context, *, backend: str | None, as_json: bool, timeout: float) -> None:
    """List what each backend can serve right now.

    Without --backend: every backend that is configured, and those that the capabilities come to. Exits with 1 when one of them
    could not be asked.
    """
    from llm_hub.errors import HubError

    found: dict[str, tuple[ModelInfo, ...]] = {}
    failed: dict[str, str] = {}
    with open_hub() as hub, notes(quiet=as_json), guarded_output():
        names = [backend] if backend is not None else hub.backends()
        for name in names:
            try:
                found[name] = hub.models(name, timeout=timeout)
            except HubError as error:
                if backend is not None:
                    raise
                failed[name] = str(error)
    if as_json:
        print_json({"models": found, "failed": failed})
    else:
        rows = [_row(name, model) for name, models in found.items() for model in models]
        if rows:
            table(("backend", "model", "context", "dimension", "size", "loaded", "features"), rows)
        for name, models in found.items():
            if not models:
                shown(f"{name} has no models")
        for error_text in failed.values():
            shown(f"{click.style('error', fg='red')}: {error_text}")
    if failed:
        ctx.exit(1)


def _row(backend: str, model: ModelInfo) -> tuple[str, ...]:
    features = [*sorted(model.capabilities or ()), *sorted(model.features or ())]
    return (
        backend,
        model.name,
        str(model.context_length or "?"),
        str(model.embedding_dimension or ""),
        _size(model.size),
        {True: "yes", False: "no", None: "?"}[model.loaded],
        ", ".join(features) or "?",
    )


def _size(size: int | None) -> str:
    """Bytes for a person: 1.2 GB."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
