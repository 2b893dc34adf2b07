"""Making the plan of a hub's settings: the inventory is read, plugins and models are looked at, and all is put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llm_hub.errors import SettingsError
from llm_hub.gpu.checks import make_plan
from llm_hub.gpu.inventory import Inventory, read_inventory
from llm_hub.gpu.known import Known, elsewhere, gather
from llm_hub.gpu.plan import Placement, Plan, resolve
from llm_hub.gpu.proposal import Proposal, propose
from llm_hub.launch import Devices

if TYPE_CHECKING:
    from llm_hub.runtime import Runtime

__all__ = ["load_inventory", "plan_of", "processes_of", "proposal_of", "survey", "with_plugins"]


def plan_of(runtime: Runtime, inventory: Inventory | None = None, *, here: bool = True, ask: bool = True) -> Plan:
    """The plan of these settings on the GPUs of this machine, or of the inventory that is given.

    `here`: the inventory is of this machine, so that its processes are. With `ask`, servers that run are asked for
    the sizes of models of which nothing is here. Takes some seconds at most.
    """
    inventory = read_inventory() if inventory is None else inventory
    known = survey(runtime, inventory, ask=ask)
    return make_plan(runtime.settings, inventory, known, pids=processes_of(runtime) if here else None)


def proposal_of(
    runtime: Runtime, inventory: Inventory | None = None, *, here: bool = True, ask: bool = True
) -> Proposal:
    """An assignment for the models of these settings; see `plan_of` for the arguments. What is assigned already does not count."""
    from functools import partial

    inventory = read_inventory() if inventory is None else inventory
    return propose(
        runtime.settings,
        inventory,
        survey(runtime, inventory, ask=ask, assigned=False),
        pids=processes_of(runtime) if here else None,
        describe=partial(elsewhere, runtime),
    )


def survey(runtime: Runtime, inventory: Inventory, *, ask: bool = True, assigned: bool = True) -> dict[str, Known]:
    """What is known of each backend that is configured or assigned, on the GPUs that it has; with `assigned` False on none."""
    settings = runtime.settings
    placed = resolve(settings.assignments, inventory) if assigned else {}
    names = dict.fromkeys([*settings.backends, *placed])
    return {
        name: gather(runtime, name, placed[name].devices if name in placed else Devices(), ask=ask) for name in names
    }


def with_plugins(runtime: Runtime, placements: Mapping[str, Placement]) -> dict[str, Placement]:
    """The placements, each with the plugin that it is of, whose name tells its processes."""
    return {name: msgspec.structs.replace(one, plugin=runtime.plugin_name(name)) for name, one in placements.items()}


def processes_of(runtime: Runtime) -> dict[int, str]:
    """The processes of the backends that `llm-hub up` runs here, with all that they have started, by their numbers."""
    from llm_hub.running import read_running

    running = read_running(runtime.settings.state_path)
    if running is None:
        return {}
    parents = {one.pid: name for name, one in running.backends.items() if one.pid and one.alive}
    return descendants(parents)


def descendants(roots: Mapping[int, str]) -> dict[int, str]:
    """Of each process in `roots` all that descend from it, with the same name; only the roots where the system has no /proc."""
    found = dict(roots)
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        for child in children.get(pid, ()):
            if child not in found:
                found[child] = found[pid]
                waiting.append(child)
    return found


def _parents() -> Iterable[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything, so what follows the last one counts.
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            yield int(folder.name), int(fields[1])
        except (OSError, ValueError, IndexError):
            continue  # it has ended


def load_inventory(path: Path) -> Inventory:
    """The inventory in a file, as `llm-hub gpus --json` writes it on the machine that has the GPUs. Raises SettingsError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Inventory)
    except OSError as error:
        raise SettingsError(f"it cannot be read: {error.strerror}", where=str(path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"it is no inventory: {error}",
            where=str(path),
            hint="Write it on the machine that has the GPUs: llm-hub gpus --json > gpus.json",
        ) from error
