"""What the commands that switch share: times, what was switched, and who has taken it up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import shown

if TYPE_CHECKING:
    from llm_hub.hub import Hub
    from llm_hub.presence import Report, Uptake
    from llm_hub.switching import Switched

__all__ = ["Seconds", "plain", "print_switched", "print_uptake", "waited"]

_BRIEFLY = 2.0  # seconds that are waited for the processes anyway, to be able to say that they have come along
_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Seconds(click.ParamType):  # type: ignore[type-arg]  # older versions of click have no argument there
    """A time: 60, 60s, 500ms, 5m, 1h."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|)", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time: write 60s, 5m or 500ms", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def waited(hub: Hub, switched: Switched, timeout: float | None) -> Uptake:
    """Who has taken it up; without a time of its own it is a moment that is waited."""
    return hub.uptake(switched, timeout=_BRIEFLY if timeout is None else timeout)


def print_switched(switched: Switched) -> None:
    """What serves from now on."""
    click.echo(f"{click.style(f'epoch {switched.epoch}', bold=True)} is in force (before: {switched.previous})")
    proofs = {proof.what: proof for proof in switched.proofs}
    width = max([len(key) for key in (*proofs, *switched.changed)] or [0])
    for key, targets in sorted(switched.changed.items()):
        mine = [proof for what, proof in proofs.items() if what == key or what.startswith(f"{key}.")]
        said = "; ".join(
            ", ".join(filter(None, (proof.rung, proof.space, f"{proof.seconds:.2f} s"))) for proof in mine[:1]
        )
        models = {proof.backend: proof.model for proof in mine if proof.model}
        names = [
            str(target)
            if target.model or target.backend not in models
            else f"{target.backend}/{models[target.backend]}"
            for target in targets
        ]
        what = ", then ".join(names) if names else "as the environment and the settings file say"
        click.echo(f"  {key.ljust(width)}  {click.style(what, bold=True)}" + (f"  ({said})" if said else ""))
    for key, targets in sorted(switched.bindings.items()):
        if key not in switched.changed:
            click.secho(f"  {key.ljust(width)}  {', then '.join(map(str, targets))}, as before", dim=True)
    for note in switched.notes:
        shown(f"{click.style('note', fg='yellow')}: {note}")
    if switched.bindings:
        click.secho("It overrides the environment until: llm-hub use --reset. To undo it: llm-hub rollback", dim=True)


def plain(uptake: Uptake) -> dict[str, object]:
    """For --json."""

    def listed(reports: tuple[Report, ...]) -> list[dict[str, object]]:
        return [
            {"process": one.name, "host": one.host, "epoch": one.epoch, "pinned": one.pinned, "problem": one.problem}
            for one in reports
        ]

    return {
        "complete": uptake.complete,
        "seconds": round(uptake.seconds, 3),
        "taken": listed(uptake.taken),
        "refused": listed(uptake.refused),
        "pending": listed(uptake.pending),
    }


def print_uptake(uptake: Uptake, *, insist: bool) -> None:
    """Who has taken it up, and who has not and why."""
    everybody = len(uptake.taken) + len(uptake.refused) + len(uptake.pending)
    if not everybody:
        click.echo("No process is running that shares the control file; those that start will begin there.")
        return
    of = f"{len(uptake.taken)} of {everybody} process{'es' if everybody != 1 else ''}"
    click.echo(f"Taken up by {of} within {uptake.seconds:.2f} s.")
    for one in uptake.refused:
        if one.pinned:
            shown(f"{click.style('note', fg='yellow')}: {one.who} is pinned (LLM_HUB_PIN) and keeps to its environment")
        else:
            shown(f"{click.style('error', fg='red')}: {one.who} stays at epoch {one.epoch}: {one.problem}")
    for one in uptake.pending:
        mark = click.style("error", fg="red") if insist else click.style("note", fg="yellow")
        shown(f"{mark}: {one.who} is at epoch {one.epoch} still{f': {one.problem}' if one.problem else ''}")
    if uptake.refused and not uptake.complete:
        shown("Mend that (its log tells more), or go back everywhere: llm-hub rollback")
