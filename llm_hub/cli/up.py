"""`llm-hub up`: starts the backends as local processes, and keeps them running."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import guarded_output, open_hub, shown

if TYPE_CHECKING:
    from llm_hub.gpu import Plan
    from llm_hub.runtime import Runtime
    from llm_hub.starting import Startable
    from llm_hub.supervisor import Event, Supervisor

__all__ = ["command"]

_COLOURS = {"ready": "green", "degraded": "yellow", "restarting": "yellow", "unresponsive": "red", "failed": "red"}


@click.command("up")
@click.option("--only", multiple=True, metavar="NAME", help="Start this backend alone; may be repeated.")
@click.option("--fetch", is_flag=True, help="Fetch models that are missing, where the server can (ollama pull).")
@click.pass_context
def command(ctx: click.Context, *, only: tuple[str, ...], fetch: bool) -> None:
    """Start the backends of the settings file as processes of this machine, and keep them running.

    Started are those whose address is of this machine and whose plugin says how. One that ends is started again. Ctrl-C (or
    SIGTERM) stops them cleanly, a second one at once. Logs and the register are beside the control file.
    Exits with 1 when one of them had to be given up.
    """
    from llm_hub.drift import drift
    from llm_hub.errors import ConfigurationError
    from llm_hub.running import Register, folder_of
    from llm_hub.starting import startable, without_exclusive
    from llm_hub.supervisor import Supervisor

    with open_hub() as hub:
        runtime = hub.runtime
        with guarded_output():
            plan = _plan(runtime)
            found, others = startable(
                runtime, only=only, devices={name: plan.devices(name) for name in plan.placements}
            )
        _check(plan, [*(ours.name for ours in found), *(one.name for one in others if one.wrong)])
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

            environ = without_exclusive(os.environ, plan)
            supervisor = Supervisor(runtime, found, register, say=_say, check=check, environ=environ, fetch=fetch)
            shown(f"logs: {register.logs}", dim=True)
            with _signals(supervisor):
                fine = supervisor.run()
    if not fine or any(one.wrong for one in others):
        ctx.exit(1)


def _plan(runtime: Runtime) -> Plan:
    """The plan on the GPUs of this machine; an empty one where nothing is assigned, so that no driver is asked."""
    from llm_hub.gpu import Plan
    from llm_hub.gpu.planning import plan_of

    if not any(one.gpus for one in runtime.settings.assignments):
        return Plan()
    return plan_of(runtime, ask=False)


def _check(plan: Plan, names: Sequence[str]) -> None:
    """Raise SettingsError unless these backends can be started as planned: they would run on the CPU, or over one another."""
    from llm_hub.errors import SettingsError

    for name in names:
        placement = plan.placements.get(name)
        if placement is not None and placement.devices.gpus and not plan.inventory.gpus:
            named = ", ".join(map(str, placement.written))
            raise SettingsError(
                f"no GPU is seen on this machine ({plan.inventory.reason}), and {name!r} was put on {named}",
                where=placement.source,
                hint=f"`llm-hub gpus` tells more. To run it on the CPU, take [gpu.assign.{name}] out.",
            )
    ours = [one for one in plan.findings if one.backend in ("", *names)]
    for one in ours:
        if one.level == "error":
            raise SettingsError(one.message, where=one.where or None, hint=one.fix or "`llm-hub plan` tells more.")
        if one.level == "warning":
            shown(f"{click.style('note', fg='yellow')}: {one}")
            if one.fix:
                shown(f"  {one.fix}")


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
