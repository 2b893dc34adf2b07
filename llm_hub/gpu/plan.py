"""The plan: each assigned backend with the GPUs that it means, what it takes of them, and what does not fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.gpu.inventory import Inventory, Unit
from llm_hub.gpu.memory import Estimate
from llm_hub.launch import Device, Devices
from llm_hub.settings import Assignment

__all__ = ["Claim", "Finding", "Placement", "Plan", "Row", "in_bytes", "resolve"]

Level = Literal["error", "warning", "info"]

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something about a plan. `code` names its kind, `where` the line that it is about, `fix` what to do.

    An "error" keeps a plan from being carried out, a "warning" is likely to hurt, "info" is good to know.
    """

    code: str
    level: Level
    message: str
    where: str = ""
    fix: str = ""
    backend: str = ""
    gpu: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a backend takes of each of its GPUs, by their ids, in bytes; None where it is not known.

    `basis`: "assigned" (the settings say it), "share" (its server takes so much by itself), "estimated" (from its
    models) or "unknown"; `lower_bound`: it may be more; `detail` says more in words.
    """

    basis: Literal["assigned", "share", "estimated", "unknown"] = "unknown"
    amounts: Mapping[str, int | None] = {}
    lower_bound: bool = False
    detail: str = ""


class Placement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One backend on its GPUs.

    `devices` are what it is started with: UUIDs where the cards are, else what is `written`. `verified`: the driver
    here knows all of them, in contrast to an assignment that is merely believed. `models` are what each model is
    estimated to need, None where nothing is known of it. `tensor_parallel` is the number of GPUs that the heads of
    the model are divided among, 1 where layers are. `source` is the line of the assignment.
    """

    backend: str
    plugin: str = ""
    capabilities: tuple[Capability, ...] = ()
    written: tuple[int | str, ...] = ()
    devices: Devices = Devices()
    claim: Claim = Claim()
    models: Mapping[str, Estimate | None] = {}
    exclusive: bool = False
    tensor_parallel: int = 1
    verified: bool = False
    source: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The memory of one GPU or MIG instance under the plan, in bytes; None where the driver does not tell it.

    `others` is in use by what is no backend of the plan, the driver's own part included; `claims` is by backend;
    `left` what remains of `total` without `others`, the claims and the `headroom`.
    """

    gpu: str
    label: str
    total: int | None = None
    others: int | None = None
    claims: Mapping[str, int | None] = {}
    headroom: int = 0
    left: int | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which backend runs on which GPU, as the settings say it and the inventory has it."""

    placements: Mapping[str, Placement] = {}
    findings: tuple[Finding, ...] = ()
    rows: tuple[Row, ...] = ()
    inventory: Inventory = Inventory()

    @property
    def usable(self) -> bool:
        """Is there no error in it?"""
        return not any(one.level == "error" for one in self.findings)

    @property
    def verified(self) -> bool:
        """Are all GPUs of it known to the driver here?"""
        return all(one.verified for one in self.placements.values())

    def devices(self, backend: str) -> Devices:
        """What this backend is started with; none in particular if it has no assignment."""
        placement = self.placements.get(backend)
        return placement.devices if placement is not None else Devices()


def in_bytes(amount: str) -> int:
    """`"20 GiB"` in bytes, as the settings write amounts."""
    number = amount.rstrip("MGTiB ")
    return int(float(number) * _UNITS[amount[len(number) :].strip()])


def resolve(assignments: Iterable[Assignment], inventory: Inventory) -> dict[str, Placement]:
    """Each assignment with its GPUs pinned by UUID where this machine has them, and as written where it does not.

    Nothing is checked here: what names nothing, or several, stays as it was written and is not verified.
    """
    return {one.backend: _placement(one, inventory) for one in assignments}


def _placement(assignment: Assignment, inventory: Inventory) -> Placement:
    gpus: list[Device] = []
    verified = True
    for name in assignment.gpus:
        unit = inventory.find(name)
        if unit is None or unit.uuid is None:
            gpus.append(Device(id=str(name)))
            verified = False
        else:
            gpus.append(Device(id=unit.uuid, total=unit.total))
            verified = verified and usable(unit)
    memory = in_bytes(assignment.memory) if isinstance(assignment.memory, str) else assignment.memory
    return Placement(
        backend=assignment.backend,
        plugin=assignment.backend,
        capabilities=assignment.capabilities,
        written=assignment.gpus,
        devices=Devices(gpus=tuple(gpus), memory=memory, exclusive=assignment.exclusive),
        exclusive=assignment.exclusive,
        verified=verified,
        source=assignment.source,
    )


def usable(unit: Unit) -> bool:
    """Can a process be put on it, as far as the driver tells?"""
    return not getattr(unit, "problem", "") and not getattr(unit, "mig", False)
