"""Is reality as planned? What the driver and the servers say of the running backends, beside where these were put."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from llm_hub.gpu.inventory import Gpu, Inventory, Unit
from llm_hub.gpu.plan import Finding, Placement

__all__ = ["Seen", "compare"]

_TOLERANCE = 1.05  # of a claim: contexts of the driver come on top of what a server counts
_IDLE = 64 << 20  # bytes: what a card has in use when nothing runs on it
_SHARE = 0.005


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of a backend that serves.

    `pids` are its processes, None where they are not known (another machine, another user). `complaints` are what its own
    server says of its loaded models ("llava:7b: the model runs on the CPU"). `loaded`: has it a model in memory, None where it
    does not tell. `share` is the part of each GPU that the server was started with, where it tells.
    """

    pids: frozenset[int] | None = None
    complaints: tuple[str, ...] = ()
    loaded: bool | None = None
    share: float | None = None


def compare(placements: Mapping[str, Placement], inventory: Inventory, seen: Mapping[str, Seen]) -> tuple[Finding, ...]:
    """Where the backends that were seen are not as they were placed. An "error" is drift, "info" what cannot be told here."""
    found: list[Finding] = []
    for name, one in seen.items():
        placement = placements.get(name)
        if placement is None or not placement.devices.gpus:
            found += _intruder(name, one, placements, inventory)
            continue
        found += _own_words(name, one, placement)
        found += _cards(name, one, placement, inventory)
    return tuple(found)


def _own_words(name: str, seen: Seen, placement: Placement) -> Iterator[Finding]:
    """What its server says itself, which needs no driver."""
    for complaint in seen.complaints:
        yield Finding(
            code="not-on-gpu",
            level="error",
            message=f"{name} was put on {_names(placement)}, and its server says: {complaint}",
            where=placement.source,
            fix="Make room: less context (num_ctx), a smaller model or quantization, or another GPU; `llm-hub plan` counts.",
            backend=name,
        )
    planned = placement.devices.fraction()
    if planned is not None and seen.share is not None and abs(planned - seen.share) > _SHARE:
        yield Finding(
            code="other-share",
            level="error",
            message=f"{name} was started with {seen.share:g} of its GPU's memory, and the plan gives it {planned:g}",
            where=placement.source,
            fix=f"Start it again by `llm-hub up`, or with --gpu-memory-utilization {planned:g}.",
            backend=name,
        )


def _cards(name: str, seen: Seen, placement: Placement, inventory: Inventory) -> Iterator[Finding]:
    """What the driver says."""
    if not placement.verified or seen.pids is None:
        reason = (
            "the driver here does not know its GPUs" if not placement.verified else "its processes are not seen here"
        )
        yield Finding(
            code="unverified",
            level="info",
            message=f"{name} is believed to run on {_names(placement)}: {reason}",
            where=placement.source,
            backend=name,
        )
        return
    planned = {gpu.id for gpu in placement.devices.gpus}
    used = _used(seen.pids, inventory)
    wrong = sorted(used.keys() - planned - _parents(planned, inventory))
    missing = sorted(gpu for gpu in planned if not ({gpu} | _parents({gpu}, inventory)) & used.keys())
    for gpu in wrong:
        yield Finding(
            code="wrong-gpu",
            level="error",
            message=f"{name} runs on {_label(gpu, inventory)}, and was put on {_names(placement)}",
            where=placement.source,
            fix="Start it again by `llm-hub up`, which shows it its own GPUs alone (CUDA_VISIBLE_DEVICES, by UUID).",
            backend=name,
            gpu=gpu,
        )
    if missing and seen.loaded is not False:
        yield _missing(name, missing, placement, inventory, anywhere=bool(used))
    yield from _over(name, used, placement, inventory)


def _missing(name: str, missing: list[str], placement: Placement, inventory: Inventory, *, anywhere: bool) -> Finding:
    where = ", ".join(_label(gpu, inventory) for gpu in missing)
    units = [unit for gpu in missing if (unit := inventory.find(gpu)) is not None]
    silent = not any(gpu.processes for gpu in inventory.gpus) and all((unit.used or 0) > _IDLE for unit in units)
    if silent:  # something is on it, and the driver lists nobody: WSL, or a container with process ids of its own
        return Finding(
            code="unverified",
            level="info",
            message=f"{name} is believed to run on {where}: the driver lists no processes here",
            where=placement.source,
            backend=name,
        )
    instead = "" if anywhere else ": it runs on the CPU"
    return Finding(
        code="not-on-gpu",
        level="error",
        message=f"{name} does not use {where}, which it was put on{instead}",
        where=placement.source,
        fix="See its log for why (no CUDA in this build, no memory left), and start it again by `llm-hub up`.",
        backend=name,
        gpu=missing[0],
    )


def _over(name: str, used: Mapping[str, int | None], placement: Placement, inventory: Inventory) -> Iterator[Finding]:
    memory = placement.devices.memory
    for gpu in placement.devices.gpus:
        total, taken = gpu.total, used.get(gpu.id)
        claim = int(memory * total) if isinstance(memory, float) and total else memory
        if taken is not None and isinstance(claim, int) and taken > claim * _TOLERANCE:
            yield Finding(
                code="over-claim",
                level="error",
                message=f"{name} uses {_gib(taken)} of {_label(gpu.id, inventory)}, and the plan gives it {_gib(claim)}",
                where=placement.source,
                fix="Give it more in [gpu.assign], if the plan allows, or make it use less.",
                backend=name,
                gpu=gpu.id,
            )


def _intruder(name: str, seen: Seen, placements: Mapping[str, Placement], inventory: Inventory) -> Iterator[Finding]:
    """One without an assignment on a card that another has for itself."""
    exclusive = {
        gpu.id: other for other, one in placements.items() if one.exclusive for gpu in one.devices.gpus if other != name
    }
    for gpu in sorted(_used(seen.pids or frozenset(), inventory).keys() & exclusive.keys()):
        owner = exclusive[gpu]
        yield Finding(
            code="wrong-gpu",
            level="error",
            message=f"{name} has no assignment and runs on {_label(gpu, inventory)}, which {owner} has for itself",
            where=placements[owner].source,
            fix=f"Assign it to another GPU ([gpu.assign.{name}]), or to none: CUDA_VISIBLE_DEVICES=-1.",
            backend=name,
            gpu=gpu,
        )


# -- the driver's list ------------------------------------------------------------------------------------------------


def _used(pids: frozenset[int], inventory: Inventory) -> dict[str, int | None]:
    """The cards and instances that these processes use, by UUID, and how much of each; None where that is not told."""
    found: dict[str, int | None] = {}
    units: list[Unit] = [*inventory.gpus, *(one for gpu in inventory.gpus for one in gpu.instances)]
    for unit in units:
        own = [one.memory for one in unit.processes if one.pid in pids]
        if own and unit.uuid is not None:
            known = [memory for memory in own if memory is not None]
            found[unit.uuid] = sum(known) if len(known) == len(own) else None
    return found


def _parents(gpus: set[str], inventory: Inventory) -> set[str]:
    """The cards that these MIG instances are on: a driver may list a process with its card."""
    return {card.uuid for card in inventory.gpus if card.uuid and any(one.uuid in gpus for one in card.instances)}


def _names(placement: Placement) -> str:
    return ", ".join(f"GPU {one}" if isinstance(one, int) else one for one in placement.written)


def _label(gpu: str, inventory: Inventory) -> str:
    unit = inventory.find(gpu)
    return f"{unit} [{gpu}]" if isinstance(unit, Gpu) else gpu


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
