"""`llm-hub up`: starts the backends as local processes, and keeps them running."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import guarded_output, open_hub, shown

if TYPE_CHECKING:
    from llm_hub.gpu import Placement
    from llm_hub.starting import Startable
    from llm_hub.supervisor import Event, Supervisor

__all__ = ["command"]

_COLOURS = {"ready": "green", "degraded": "yellow", "restarting": "yellow", "unresponsive": "red", "failed": "red"}


@click.command("up")
@click.option("--only", multiple=True, metavar="NAME", help="Start this backend alone; may be repeated.")
@click.pass_context
def command(ctx: click.Context, *, only: tuple[str, ...]) -> None:
    """Start the backends of the settings file as processes of this machine, and keep them running.

    Started are those whose address is of this machine and whose plugin says how. One that ends is started again. Ctrl-C (or
    SIGTERM) stops them cleanly, a second one at once. Logs and the register are beside the control file.
    Exits with 1 when one of them had to be given up.
    """
    from llm_hub.drift import drift
    from llm_hub.errors import ConfigurationError
    from llm_hub.gpu import read_inventory, resolve
    from llm_hub.running import Register, folder_of
    from llm_hub.starting import startable
    from llm_hub.supervisor import Supervisor

    with open_hub() as hub:
        runtime = hub.runtime
        with guarded_output():
            assigned = runtime.settings.assignments
            placements = resolve(assigned, read_inventory()) if any(one.gpus for one in assigned) else {}
            devices = {name: one.devices for name, one in placements.items()}
            found, others = startable(runtime, only=only, devices=devices)
        for name in [*(ours.name for ours in found), *(one.name for one in others if one.wrong)]:
            _check_gpus(placements.get(name))
        for one in others:
            shown(f"{one.name}: not started: {one.reason}", dim=not one.wrong)
            if one.hint:
                shown(f"  {one.hint}")
        if not found:
            raise ConfigurationError(
                "there is no backend to start",
                hint='Give one an address of this machine: base_url = "http://127.0.0.1:8080" in [backends.NAME].',
            )
        with Register.held(folder_of(runtime.settings.state_path)) as register:
            for ours in found:
                for note in ours.spec.notes:
                    shown(f"{ours.name}: {note}", dim=True)

            def check(one: Startable) -> tuple[str, str] | None:
                wrong = [each for each in drift(runtime, only=[one.name]) if each.level == "error"]
                return ("; ".join(map(str, wrong)), wrong[0].fix) if wrong else None

            supervisor = Supervisor(runtime, found, register, say=_say, check=check)
            shown(f"logs: {register.logs}", dim=True)
            with _signals(supervisor):
                fine = supervisor.run()
    if not fine or any(one.wrong for one in others):
        ctx.exit(1)


def _check_gpus(placement: Placement | None) -> None:
    """Raise SettingsError unless its GPUs are here: it would run on the CPU, or on another card."""
    from llm_hub.errors import SettingsError

    if placement is not None and placement.devices.gpus and not placement.verified:
        named = ", ".join(map(str, placement.written))
        raise SettingsError(
            f"the GPUs of {placement.backend!r} ({named}) cannot be used on this machine",
            where=placement.source,
            hint=f"`llm-hub gpus` lists what is here, and why not. To run it on the CPU, take [gpu.assign.{placement.backend}] out.",
        )


def _say(event: Event) -> None:
    """One line an event, with the time; and the end of the log where that explains it."""
    state = click.style(event.state, fg=_COLOURS.get(event.state))
    click.echo(f"{time.strftime('%H:%M:%S')}  {event.backend}  {state}  {event.text}")
    for line in event.lines:
        click.secho(f"          | {line}", dim=True)
    if event.hint:
        click.echo(f"          {click.style('fix:', bold=True)} {event.hint}")


@contextlib.contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    """Whatever asks this process to end stops the backends first."""

    def stop(*_: object) -> None:
        supervisor.stop()

    numbers = [signal.SIGTERM]
    # What was ignored from the beginning stays so: that is what nohup, and a shell that puts it into the background, mean.
    numbers += [one for one in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
