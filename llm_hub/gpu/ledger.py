"""The memory of each GPU: what others use, what each backend of the plan takes, what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from llm_hub.gpu.inventory import Gpu, GpuProcess, Inventory, Unit
from llm_hub.gpu.known import Known
from llm_hub.gpu.plan import Claim, Placement, Row, in_bytes

__all__ = ["claim_of", "label", "owner", "rows", "size"]

_GIB = 1 << 30


def size(amount: float | None) -> str:
    """Bytes for a person: 20.5 GiB."""
    if amount is None:
        return "?"
    if abs(amount) < _GIB / 10:
        return f"{amount / (1 << 20):.0f} MiB"
    return f"{amount / _GIB:.1f} GiB"


def label(inventory: Inventory, unit: Unit) -> str:
    """How to call it: by index and name; an instance by its UUID."""
    if isinstance(unit, Gpu):
        return f"GPU {unit.index}"
    return f"GPU {inventory.card(unit).index} {unit.uuid[:12]}"


def claim_of(placement: Placement, known: Known) -> Claim:
    """What a backend takes of each of its GPUs.

    A server that takes a share takes it of each card's own size, so of a larger one more. Else it is what the
    assignment says, or else what its models are estimated to need.
    """
    gpus = placement.devices.gpus
    assigned = placement.devices.memory
    if known.needs.on_cpu:
        return Claim(basis="assigned", amounts={gpu.id: 0 for gpu in gpus}, detail="its settings keep it on the CPU")
    if (share := known.needs.share) is not None:
        return Claim(
            basis="share" if assigned is None else "assigned",
            amounts={gpu.id: None if gpu.total is None else int(gpu.total * share) for gpu in gpus},
            detail=f"{share:.0%} of each" + ("" if assigned is not None else ", which its server takes by itself"),
        )
    if isinstance(assigned, float):
        return Claim(
            basis="assigned",
            amounts={gpu.id: None if gpu.total is None else int(gpu.total * assigned) for gpu in gpus},
            detail=f"{assigned:.0%} of each",
        )
    if assigned is not None:
        return Claim(basis="assigned", amounts={gpu.id: assigned for gpu in gpus}, detail="as assigned")
    estimates = known.estimates(len(gpus))
    if not estimates or None in estimates.values():
        missing = [name for name, one in estimates.items() if one is None]
        said = f"nothing is known of {', '.join(missing)}" if missing else "it has no model configured"
        return Claim(basis="unknown", amounts={gpu.id: None for gpu in gpus}, detail=said)
    needed = sum(one.per_gpu for one in estimates.values() if one is not None)
    least = any(one.lower_bound for one in estimates.values() if one is not None)
    return Claim(
        basis="estimated",
        amounts={gpu.id: needed for gpu in gpus},
        lower_bound=least,
        detail="at least, estimated from its models" if least else "estimated from its models",
    )


def owner(process: GpuProcess, unit: Unit, placements: Mapping[str, Placement], pids: Mapping[int, str]) -> str | None:
    """The backend of the plan that this process belongs to: as the supervisor says, else one of that unit whose plugin its name tells."""
    if process.pid in pids:
        return pids[process.pid]
    name = (process.name or "").casefold()
    for backend, placement in placements.items():
        here = any(gpu.id == unit.uuid for gpu in placement.devices.gpus)
        if here and name and placement.plugin.casefold() in name:
            return backend
    return None


def rows(
    inventory: Inventory, placements: Mapping[str, Placement], headroom: str | float, pids: Mapping[int, str]
) -> Iterator[Row]:
    """One row for each card and instance that something can be put on."""
    for unit in inventory.units():
        if unit.uuid is None:
            continue
        claims = {
            name: placement.claim.amounts.get(unit.uuid)
            for name, placement in placements.items()
            if any(gpu.id == unit.uuid for gpu in placement.devices.gpus)
        }
        others = _others(unit, placements, pids)
        spare = 0
        if unit.total is not None:
            spare = int(unit.total * headroom) if isinstance(headroom, float) else in_bytes(headroom)
        left = None
        if unit.total is not None:
            left = unit.total - (others or 0) - spare - sum(one or 0 for one in claims.values())
        yield Row(
            gpu=unit.uuid,
            label=label(inventory, unit),
            total=unit.total,
            others=others,
            claims=claims,
            headroom=spare,
            left=left,
        )


def _others(unit: Unit, placements: Mapping[str, Placement], pids: Mapping[int, str]) -> int | None:
    """What is in use by anything but the plan's backends; what the driver keeps for itself is with it."""
    if unit.total is None or unit.free is None:
        return None
    here = {name for name, one in placements.items() if any(gpu.id == unit.uuid for gpu in one.devices.gpus)}
    own = [one for one in unit.processes if owner(one, unit, placements, pids) in here]
    taken = unit.total - unit.free
    if own and len(own) == len(unit.processes) and any(one.memory is None for one in own):
        return max(0, taken - (unit.used or 0))  # all that is in use is theirs, whatever each of them has
    return max(0, taken - sum(one.memory or 0 for one in own))


def with_claims(placements: Mapping[str, Placement], known: Mapping[str, Known]) -> dict[str, Placement]:
    """The placements, each with what it takes and with the plugin that it is of."""
    found = {}
    for name, placement in placements.items():
        one = known.get(name) or Known(backend=name, plugin=name)
        found[name] = msgspec.structs.replace(
            placement,
            plugin=one.plugin,
            claim=claim_of(placement, one),
            models=one.estimates(len(placement.written)),
            tensor_parallel=one.needs.tensor_parallel if one.needs.split == "tensor" else 1,
        )
    return found
