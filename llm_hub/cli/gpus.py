"""`llm-hub gpus`: the GPUs of this machine, who uses them, and which backend claims them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llm_hub.cli.common import open_hub, print_json, shown, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_hub.gpu.inventory import Gpu, GpuProcess, Inventory, MigInstance
    from llm_hub.gpu.plan import Placement

__all__ = ["command"]


@click.command("gpus")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, which `llm-hub plan --inventory` reads.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=15.0,
    show_default=True,
    help="Seconds for the driver.",
)
def command(*, as_json: bool, timeout: float) -> None:
    """List the GPUs of this machine, who uses them and which backend claims them.

    The driver is asked in a process of its own, so that a card that hangs does not hang this. Indices count in the
    order of the PCI bus.
    """
    import msgspec

    from llm_hub.gpu.nvidia import NvidiaSource

    inventory = NvidiaSource(timeout=timeout).read()
    placed, pids = _placed(inventory)
    claims = {
        str(unit.uuid): [name for name, one in placed.items() if any(gpu.id == unit.uuid for gpu in one.devices.gpus)]
        for unit in inventory.units()
        if unit.uuid is not None
    }
    if as_json:
        print_json({"gpus": [], **msgspec.to_builtins(inventory), "claims": claims})
        return
    if not inventory.gpus:
        click.echo(f"No GPU: {inventory.reason}.")
    else:
        rows = []
        for gpu in inventory.gpus:
            rows.append(_row(str(gpu.index), gpu, claims, placed, pids))
            rows += [_row("", one, claims, placed, pids) for one in gpu.instances]
        table(("gpu", "name", "uuid", "free", "total", "used by", "claimed by"), rows)
        versions = [f"driver {inventory.driver}"] if inventory.driver else []
        versions += [f"CUDA up to {inventory.cuda}"] if inventory.cuda else []
        shown(", ".join(versions), dim=True)
        for gpu in inventory.gpus:
            if gpu.problem:
                shown(f"{click.style('bad', fg='red')}: {gpu}: {gpu.problem}")
    for note in inventory.notes:
        shown(f"{click.style('note', fg='yellow')}: {note}")


def _placed(inventory: Inventory) -> tuple[Mapping[str, Placement], Mapping[int, str]]:
    """What the settings assign, and the processes of `llm-hub up`; neither where the settings are wrong, which is not the matter here."""
    from llm_hub.errors import HubError
    from llm_hub.gpu.plan import resolve
    from llm_hub.gpu.planning import processes_of, with_plugins

    try:
        with open_hub() as hub:
            return with_plugins(hub.runtime, resolve(hub.settings.assignments, inventory)), processes_of(hub.runtime)
    except HubError as error:
        shown(f"{click.style('note', fg='yellow')}: no claims are shown: {error}")
        return {}, {}


def _row(
    index: str,
    unit: Gpu | MigInstance,
    claims: Mapping[str, list[str]],
    placed: Mapping[str, Placement],
    pids: Mapping[int, str],
) -> tuple[str, ...]:
    from llm_hub.gpu.ledger import owner, size

    if getattr(unit, "problem", ""):
        state = "unusable"
    elif unit.hidden_by:
        state = f"hidden by {unit.hidden_by}"
    elif getattr(unit, "mig", False):
        state = "divided by MIG"
    else:
        users = [_user(one, owner(one, unit, placed, pids)) for one in unit.processes]
        state = ", ".join(users) or "-"
    return (
        index,
        unit.name,
        unit.uuid or "?",
        size(unit.free),
        size(unit.total),
        state,
        ", ".join(claims.get(str(unit.uuid), [])) or "-",
    )


def _user(process: GpuProcess, backend: str | None) -> str:
    from llm_hub.gpu.ledger import size

    name = backend or process.name or "a process"
    return f"{name} (pid {process.pid}, {size(process.memory)})"
