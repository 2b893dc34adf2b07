"""`llm-hub new-plugin`: a complete distribution for a backend of one's own, tested at once."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

_KINDS = ("http", "openai", "engine", "langchain")
_OFFERS = ("text", "embedding", "vision")


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(_KINDS),
    required=True,
    help="http: a protocol of its own; openai: a server with the OpenAI API; engine: a library in the process; "
    "langchain: a class of LangChain.",
)
@click.option(
    "--capability", "capabilities", type=click.Choice(_OFFERS), multiple=True, help="What it offers (text); repeatable."
)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where to make it (./llm-hub-NAME).")
def command(*, name: str, kind: str, capabilities: tuple[str, ...], folder: Path | None) -> None:
    """Make a plugin: a distribution llm-hub-NAME with the package, its tests and a README.

    Its tests, which hold it to the conformance suites, pass at once; then change it into yours, and keep them so.
    """
    from llm_hub.capabilities import Capability
    from llm_hub.discovery import local_source
    from llm_hub.scaffold import render, with_core_from, write

    rendered = render(name, kind, [Capability(one) for one in capabilities])
    if (source := local_source("llm-hub-core")) is not None:  # then no index need have it
        rendered = with_core_from(rendered, *source)
    where = folder if folder is not None else Path(f"llm-hub-{name}")
    write(rendered, where)
    for path in rendered:
        click.echo(f"  {where / path}")
    click.echo(f"\nA plugin {name!r} is made, and works already. Next:\n")
    click.echo(f"  cd {where} && uv run pytest          its tests, and the rules that every plugin is held to")
    click.echo(f"  uv run llm-hub check {name}{' ' * max(1, 20 - len(name))}the same as a report")
