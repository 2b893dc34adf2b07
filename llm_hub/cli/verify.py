"""`llm-hub verify`: the questions of a team that moves to the hub, put to its own backends."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

import click

from llm_hub.cli.common import given_config, guarded_output, notes, print_json

if TYPE_CHECKING:
    from llm_hub.verification import Answer

__all__ = ["command"]

_COLOURS = {"yes": "green", "no": "red", "skipped": "yellow"}


@click.command("verify")
@click.option("-b", "--backend", "backends", multiple=True, help="Ask this backend alone; may be repeated.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for each call; a model may have to be loaded.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, *, backends: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """Answer the questions of a team that moves to the hub, by its own backends.

    Is Ollama the default, does a switch need no restart, what happens when a backend is down, do streams, embeddings and
    pictures work, and so on: each is tried out on what is configured, with the models that are configured. Nothing that
    is in force changes: switches go to a control file that is thrown away, and a backend that is to be "down" is put
    behind a wire that is cut. Exits with 1 when an answer is no; what cannot be tried is skipped, with the reason.
    """
    out = sys.stdout  # what a plugin prints goes elsewhere
    with notes(quiet=True), guarded_output():
        from llm_hub.verification import Bench, verify

        with Bench(config=given_config(), backends=backends, timeout=timeout) as bench:
            answers: list[Answer] = []
            said: set[str] = set()
            for answer in verify(bench):
                answers.append(answer)
                if not as_json:
                    _show(answer, out, said)
    count = {state: sum(one.answer == state for one in answers) for state in _COLOURS}
    if as_json:
        print_json({**count, "answers": answers})
    else:
        click.echo()
        click.echo(f"{count['yes']} yes, {count['no']} no, {count['skipped']} skipped.")
    if count["no"]:
        ctx.exit(1)


def _show(answer: Answer, out: TextIO, said: set[str]) -> None:
    click.echo(f"{click.style(answer.answer.ljust(7), fg=_COLOURS[answer.answer])}  {answer.question}", file=out)
    for line in textwrap.wrap(answer.evidence, 100, break_long_words=False, break_on_hyphens=False):
        click.secho(f"         {line}", dim=True, file=out)
    if answer.next and answer.answer != "yes" and answer.next not in said:
        said.add(answer.next)
        click.echo(f"         {click.style('next:', bold=True)} {answer.next}", file=out)
