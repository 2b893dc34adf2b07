"""CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES: which GPUs they leave to a process."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llm_hub.gpu.inventory import Gpu, Inventory

__all__ = ["apply_visibility", "visible"]

_CUDA = "CUDA_VISIBLE_DEVICES"
_CONTAINER = "NVIDIA_VISIBLE_DEVICES"


def apply_visibility(inventory: Inventory, environ: Mapping[str, str]) -> Inventory:
    """The inventory with what the variables keep from this process marked as hidden.

    The driver's own list knows nothing of CUDA_VISIBLE_DEVICES. NVIDIA_VISIBLE_DEVICES is for the container runtime,
    which has already acted on it: in a container the driver lists only what that was given. It explains an empty
    list.
    """
    if not inventory.gpus:
        given = environ.get(_CONTAINER)
        if given in ("none", "void", ""):
            said = f"this container was given no GPU ({_CONTAINER}={given}): {inventory.reason}"
            return msgspec.structs.replace(inventory, reason=said)
        return inventory
    value = environ.get(_CUDA)
    if value is None:
        return inventory
    left, notes = visible(value, inventory)
    by = f"{_CUDA}={value}"
    if (
        _by_index(value)
        and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"
        and len({g.name for g in inventory.gpus}) > 1
    ):
        notes.append(
            f"{by} counts the fastest card first, because CUDA_DEVICE_ORDER is not PCI_BUS_ID, and these cards differ: which ones it "
            "means is not certain. Name them by UUID, or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    gpus = tuple(_marked(gpu, left, by) for gpu in inventory.gpus)
    return msgspec.structs.replace(inventory, gpus=gpus, notes=(*inventory.notes, *notes))


def visible(value: str, inventory: Inventory) -> tuple[frozenset[str], list[str]]:
    """The UUIDs that this value of CUDA_VISIBLE_DEVICES leaves, and notes for the operator.

    As CUDA reads it (CUDA Programming Guide, "CUDA Environment Variables"): indices, UUIDs or beginnings of them;
    whatever follows a name that names nothing is not seen, and naming one twice leaves none at all.
    """
    left: list[str] = []
    for word in (word.strip() for word in value.split(",")):
        unit = inventory.find(int(word) if _is_index(word) else word) if word else None
        if unit is None:
            if word and word != "-1":
                return frozenset(left), [
                    f"{_CUDA}={value}: {word!r} names no GPU here, and CUDA ignores all from there on"
                ]
            break
        if isinstance(unit, Gpu) and unit.mig and unit.instances:
            uuid: str | None = unit.instances[0].uuid  # CUDA sees one instance, the first
        else:
            uuid = unit.uuid
        if uuid is None:
            break
        if uuid in left:
            return frozenset(), [f"{_CUDA}={value} names a GPU twice, and CUDA then sees none at all"]
        left.append(uuid)
    return frozenset(left), []


def _by_index(value: str) -> bool:
    return any(_is_index(word.strip()) for word in value.split(","))


def _is_index(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 6


def _marked(gpu: Gpu, left: frozenset[str], by: str) -> Gpu:
    instances = tuple(one if one.uuid in left else msgspec.structs.replace(one, hidden_by=by) for one in gpu.instances)
    hidden = "" if gpu.uuid in left or any(not one.hidden_by for one in instances) else by
    return msgspec.structs.replace(gpu, instances=instances, hidden_by=hidden)
