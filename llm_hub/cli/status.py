"""`llm-hub status`: what serves, how healthy it is, and how far each process has come."""

from __future__ import annotations

import io
import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import every_field, guarded_output, notes, open_hub, print_json, table

if TYPE_CHECKING:
    from llm_hub.health import BackendCondition
    from llm_hub.overview import BackendLine, CapabilityLine, Overview
    from llm_hub.running import RunningBackend
    from llm_hub.selection import Decision

__all__ = ["command"]


@click.command("status")
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document (with --watch: one a line).")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds for each backend.",
)
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds, for --watch.")
@click.pass_context
def command(ctx: click.Context, *, watch: bool, as_json: bool, timeout: float, every: float) -> None:
    """Show what serves each capability, how healthy the backends are, and how far each process has come.

    Backends are asked now, from here. Breakers, calls in flight, latencies and errors are what the live processes say that
    share the control file. Exits with 1 when something that was asked for cannot serve, or a process stays behind.
    """
    import msgspec

    from llm_hub.overview import overview

    with open_hub() as hub, notes(quiet=True):
        while True:
            with guarded_output():
                hub.refresh()
                found = overview(hub, timeout=timeout)
            document = {"ready": found.ready, **every_field(found)} if as_json else {}
            if as_json and watch:
                click.echo(msgspec.json.encode(document).decode())
            elif as_json:
                print_json(document)
            elif watch:
                _redraw(found)
            else:
                _print(found)
            if not watch:
                break
            time.sleep(every)
    if not found.ready:
        ctx.exit(1)


def _redraw(found: Overview) -> None:
    """One screen in place of the last, written at once so that it does not flicker."""
    colour = sys.stdout.isatty()
    text = io.StringIO()
    with redirect_stdout(text):
        _print(found, colour=colour)
    clear = "\x1b[H\x1b[J" if colour else ""
    click.echo(f"{clear}{text.getvalue()}{time.strftime('%H:%M:%S')}", color=colour)


def _print(found: Overview, *, colour: bool | None = None) -> None:
    click.echo(f"{click.style(f'epoch {found.current.epoch}', bold=True)}, {found.current.described}", color=colour)
    if found.current.at:
        click.secho(f"since {found.current.when}; control file: {found.control_file}", dim=True, color=colour)
    if found.pinned:
        click.secho(
            "LLM_HUB_PIN is set here: what is shown is the environment, not the control file", fg="yellow", color=colour
        )
    if found.problem:
        click.secho(f"control file: {found.problem}", fg="red", color=colour)
    if found.current.bindings:
        click.secho("The switch overrides the environment until: llm-hub use --reset", dim=True, color=colour)
    click.echo()
    table(("capability", "backend", "model", "by"), [_capability(line) for line in found.capabilities], colour=colour)
    if found.backends:
        click.echo()
        table(
            ("backend", "health", "breaker", "in flight", "latency", "calls", "failed"),
            [_backend(line) for line in found.backends],
            colour=colour,
        )
        for line in found.backends:
            for said in _details(line):
                click.echo(f"  {line.name}: {said}")
    if found.started:
        click.echo()
        head = ("started by up", "state", "process", "restarts", "for", "note")
        table(head, [_started(name, one) for name, one in found.started.items()], colour=colour)
    click.echo()
    if not found.processes:
        click.secho("No process is running that shares the control file.", dim=True, color=colour)
        return
    rows = []
    for one in found.processes:
        state = "pinned" if one.pinned else "in place" if one.switch == found.current.id else "behind"
        why = one.problem or ("" if state != "behind" else "not taken up yet")
        rows.append((one.who, str(one.epoch), state, _age(time.time() - one.since), why))
    table(("process", "epoch", "state", "runs for", "note"), rows, colour=colour)


def _started(name: str, one: RunningBackend) -> tuple[str, ...]:
    return (name, one.state, str(one.pid or "-"), str(one.restarts), _age(time.time() - one.since), one.detail)


def _capability(line: CapabilityLine) -> tuple[str, str, str, str]:
    decision = line.decision
    if decision is None:
        return (line.what, "error", "-", line.error or "")
    then = "".join(f", then {target.backend}" for target in decision.fallbacks)
    return (
        line.what,
        decision.backend + then,
        decision.model or "its only one",
        decision.source if decision.source in decision.rule_text else _by(decision),
    )


def _by(decision: Decision) -> str:
    return decision.source if decision.rule == 2 else f"{decision.rule_text} ({decision.source})"


def _backend(line: BackendLine) -> tuple[str, ...]:
    condition = line.condition
    health = "not asked"
    if line.probe is not None:
        if line.probe.ok:
            health = "degraded" if line.probe.degraded or (condition and condition.degraded) else "ready"
        else:
            health = "unreachable" if line.probe.rung is None else "model missing"
    if condition is None:
        return (line.name, health, "-", "-", "-", "-", "-")
    waiting = f" (+{condition.waiting} waiting)" if condition.waiting else ""
    return (
        line.name,
        health,
        _breaker(condition),
        f"{condition.in_flight}{f'/{condition.places}' if condition.places else ''}{waiting}",
        _latency(condition),
        str(condition.calls),
        str(condition.failures),
    )


def _breaker(condition: BackendCondition) -> str:
    if condition.breaker == "closed":
        return "closed"
    return f"{condition.breaker}, {condition.cooling:.0f} s still" if condition.cooling else condition.breaker


def _latency(condition: BackendCondition) -> str:
    parts = []
    if condition.latency is not None:
        parts.append(_pair(condition.latency))
    if condition.first_chunk is not None:
        parts.append(f"first {_pair(condition.first_chunk)}")
    return ", ".join(parts) or "-"


def _pair(seconds: tuple[float, float]) -> str:
    """Median and 95th percentile."""
    if seconds[1] < 1:
        return f"{seconds[0] * 1000:.0f}/{seconds[1] * 1000:.0f} ms"
    return f"{seconds[0]:.2f}/{seconds[1]:.2f} s"


def _details(line: BackendLine) -> list[str]:
    """What does not fit into a cell."""
    said = []
    if line.probe is not None and not line.probe.ok:
        said.append(f"{line.probe.detail}{f'. {line.probe.hint}' if line.probe.hint else ''}")
    degraded = (line.probe.degraded if line.probe is not None else None) or (
        line.condition.degraded if line.condition is not None else None
    )
    if degraded:
        said.append(f"degraded: {degraded}")
    if line.condition is not None and line.condition.breaker != "closed":
        named = ", as the server asked" if line.condition.asked else ""
        said.append(f"breaker {_breaker(line.condition)}{named}: {line.condition.reason}")
    elif line.condition is not None and line.condition.last_error is not None:
        said.append(f"last error {_age(line.condition.last_error_age or 0)} ago: {line.condition.last_error}")
    return said


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
