"""`llm-hub rollback`: back to an older epoch, at once."""

from __future__ import annotations

import click

from llm_hub.cli.common import every_field, guarded_output, notes, open_hub, print_json, shown
from llm_hub.cli.switches import Seconds, plain, print_switched, print_uptake, waited

__all__ = ["command"]


@click.command("rollback")
@click.option("--to", type=click.IntRange(min=1), metavar="EPOCH", help="An older epoch; `llm-hub history` lists them.")
@click.option("--drain", type=Seconds(), metavar="TIME", help="When this time is over, end what still streams.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds for looking at each backend afterwards.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(*, to: int | None, drain: float | None, timeout: float, as_json: bool) -> None:
    """Go back to the epoch before the switch, in every process, at once. Once more goes further back.

    It is published first; only then is each backend that it goes back to looked at, and said if one is not healthy.
    """
    from llm_hub.capabilities import Capability

    with open_hub() as hub, notes(quiet=as_json), guarded_output():
        before = hub.history()[-1].space
        switched = hub.rollback(to, drain=drain)
        uptake = waited(hub, switched, None)
        after = hub.history()[-1].space
        wanted = {Capability(key.partition(".")[0]): None for key in switched.changed}
        status = hub.status(wanted, timeout=timeout)
    sick = [
        f"{one.name} ({one.capability}) is not healthy: {one.probe.detail}. {one.probe.hint or ''}".rstrip()
        for one in status.backends
        if not one.probe.ok
    ] + [f"{route.capability}: {route.error}" for route in status.routes if route.error]
    if before != after and before is not None:
        sick.append(f"embeddings are in another space again: {after or 'that of before the switches'}, not {before}")
    if as_json:
        print_json({"switched": every_field(switched), "uptake": plain(uptake), "warnings": sick})
        return
    print_switched(switched)
    for one in sick:
        shown(f"{click.style('note', fg='yellow')}: {one}")
    print_uptake(uptake, insist=False)
