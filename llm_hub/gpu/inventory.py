"""The GPUs of a machine as values: cards, MIG instances, who uses them; and the contract of what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

__all__ = ["Gpu", "GpuProcess", "GpuSource", "Inventory", "MigInstance", "Unit", "read_inventory"]


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that uses a GPU. `memory` is what it uses of it, in bytes; None where the driver does not tell.

    `name` is what it runs, without its arguments, which may hold secrets; None where that cannot be read (a process of
    another container, or of another user).
    """

    pid: int
    name: str | None = None
    memory: int | None = None


class MigInstance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A MIG instance: a part of a card with memory of its own. Sizes are in bytes, None where unknown."""

    uuid: str
    index: int
    name: str = ""
    total: int | None = None
    free: int | None = None
    used: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    hidden_by: str = ""


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A card. `index` counts in the order of the PCI bus, which is what CUDA_DEVICE_ORDER=PCI_BUS_ID means.

    `uuid` is None where the driver gives none (a lost card). Sizes are in bytes, None where unknown; what is neither
    `free` nor `used` the driver keeps for itself. With `mig`, nothing runs on the card itself but on its `instances`.
    `problem` says why it cannot be used, `hidden_by` which variable keeps it from this process; empty: neither.
    """

    index: int
    uuid: str | None
    name: str = "unknown"
    pci: str | None = None
    total: int | None = None
    free: int | None = None
    used: int | None = None
    processes: tuple[GpuProcess, ...] = ()
    mig: bool = False
    instances: tuple[MigInstance, ...] = ()
    problem: str = ""
    hidden_by: str = ""

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


Unit = Gpu | MigInstance
"""What a process can be put on."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The GPUs that were found, in the order of the PCI bus. `reason` says why there are none.

    `driver` and `cuda` are versions; `cuda` is the newest that the driver serves. `notes` are for the operator.
    """

    gpus: tuple[Gpu, ...] = ()
    reason: str = ""
    driver: str | None = None
    cuda: str | None = None
    notes: tuple[str, ...] = ()

    def units(self) -> Iterator[Unit]:
        """All that a process can be put on: cards, and of a card with MIG its instances."""
        for gpu in self.gpus:
            if gpu.mig:
                yield from gpu.instances
            else:
                yield gpu

    def matches(self, name: int | str) -> list[Unit]:
        """The cards and instances that an index, a UUID or the beginning of one names: none, one, or several."""
        if isinstance(name, int):
            return [gpu for gpu in self.gpus if gpu.index == name]
        wanted = name.casefold()
        named: list[tuple[str, Unit]] = [(gpu.uuid.casefold(), gpu) for gpu in self.gpus if gpu.uuid is not None]
        named += [(one.uuid.casefold(), one) for gpu in self.gpus for one in gpu.instances]
        whole = [unit for uuid, unit in named if uuid == wanted]
        return whole or [unit for uuid, unit in named if uuid.startswith(wanted)]

    def find(self, name: int | str) -> Unit | None:
        """The one card or instance that this names; None if it names none, or several."""
        found = self.matches(name)
        return found[0] if len(found) == 1 else None

    def card(self, unit: Unit) -> Gpu:
        """The card that an instance is on, or the card itself. Raises LookupError for what is not of this inventory."""
        for gpu in self.gpus:
            if unit is gpu or unit in gpu.instances:
                return gpu
        raise LookupError(f"{unit} is not in this inventory")


class GpuSource(Protocol):
    """What finds the GPUs of one vendor on this machine."""

    def read(self) -> Inventory:
        """The GPUs as they are now. It never raises for what is missing or lost, and ends within a bounded time."""
        ...


def read_inventory(source: GpuSource | None = None) -> Inventory:
    """The GPUs of this machine as they are now, by default those of NVIDIA.

    Without the package nvidia-ml-py, a driver or a GPU it is empty and says why. It takes at most some seconds.
    """
    if source is None:
        from llm_hub.gpu.nvidia import NvidiaSource

        source = NvidiaSource()
    return source.read()
