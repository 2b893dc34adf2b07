"""`llm-hub use`: switch every process to other backends, proven before it is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import every_field, guarded_output, notes, open_hub, print_json
from llm_hub.cli.switches import Seconds, plain, print_switched, print_uptake, waited

if TYPE_CHECKING:
    from llm_hub.selection import Target

__all__ = ["command"]


class _Use(click.Command):
    """`--wait` has a value or not: what follows it is its value only if it is a time."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        told = []
        for at, arg in enumerate(args):
            following = args[at + 1] if at + 1 < len(args) else ""
            told.append("--wait=30s" if arg == "--wait" and not following[:1].isdigit() else arg)
        return super().parse_args(ctx, told)


@click.command("use", cls=_Use)
@click.argument("what", nargs=-1, metavar="[BACKEND] [CAPABILITY=BACKEND[/MODEL][,FALLBACK...]]...")
@click.option("--warm", is_flag=True, help="Have the models loaded before the switch.")
@click.option(
    "--drain",
    type=Seconds(),
    metavar="TIME",
    help="When this time is over (60s, 5m), end what still streams from the old backends. Without it they may finish.",
)
@click.option(
    "--wait",
    type=Seconds(),
    metavar="[TIME]",
    help="Wait until every live process has taken it up, or says why not; 30s if no time is given.",
)
@click.option(
    "--new-space", is_flag=True, help="Embed into another space than before; what was embedded is lost to search."
)
@click.option("--reset", is_flag=True, help="Back to what the environment and the settings file say.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    help="Seconds for each question of the proof; models that are loaded have their own.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    what: tuple[str, ...],
    warm: bool,
    drain: float | None,
    wait: float | None,
    new_space: bool,
    reset: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Switch to other backends, in every process that shares the control file, with no restart and no call lost.

    A BACKEND alone serves all that it offers and has a model for. CAPABILITY is text, embedding, vision, vision.read or
    vision.describe. All of it is one new epoch, or none: each target is proven first (its plugin loads, its server is
    alive and has the model, embeddings stay in their space), and if a proof fails nothing changes.

    The switch overrides the environment until `llm-hub use --reset`, and `llm-hub rollback` undoes it. Exits with 1 when it
    was refused, or when with --wait a process has not taken it up.
    """
    everything, wanted = _parsed(what)
    if reset and what:
        raise click.UsageError("--reset goes back to the environment for everything: name nothing with it")
    if not reset and not what:
        raise click.UsageError("name a backend, or CAPABILITY=BACKEND, or --reset; see: llm-hub models")
    with open_hub() as hub, notes(quiet=as_json), guarded_output():
        if reset:
            switched = hub.reset(drain=drain)
        else:
            switched = hub.switch(
                wanted, everything=everything, warm=warm, new_space=new_space, drain=drain, timeout=timeout
            )
        uptake = waited(hub, switched, wait)
    if as_json:
        print_json({"switched": every_field(switched), "uptake": plain(uptake)})
    else:
        print_switched(switched)
        print_uptake(uptake, insist=wait is not None)
    if wait is not None and not uptake.complete:
        ctx.exit(1)


def _parsed(what: tuple[str, ...]) -> tuple[str | None, dict[str, tuple[Target, ...]]]:
    """What stands for everything, and what is named by capability."""
    from llm_hub.control import parse_target

    everything: str | None = None
    wanted: dict[str, tuple[Target, ...]] = {}
    for one in what:
        key, equals, value = one.partition("=")
        if not equals:
            if everything is not None:
                raise click.UsageError(f"both {everything!r} and {one!r} stand for everything; write CAPABILITY={one}")
            everything = one
        elif key in wanted:
            raise click.UsageError(f"{key} is named twice")
        else:
            wanted[key] = parse_target(value)
    return everything, wanted
