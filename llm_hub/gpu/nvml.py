"""The side that talks to the driver: everything that NVML tells, with what one card lacks kept to that card."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llm_hub.gpu.inventory import Gpu, GpuProcess, Inventory, MigInstance

__all__ = ["main", "named", "read"]

T = TypeVar("T")

_MIB = 1 << 20
_USUAL = ("", "bin", "sbin", "lib", "lib64", "libexec", "local", "usr")
_LOST = (
    "GPU_IS_LOST",
    "the driver has lost it: it has fallen off the bus. Look into dmesg for Xid 79; reboot, or reseat it",
)
_RESET = ("RESET_REQUIRED", "it needs a reset: nvidia-smi --gpu-reset, while nothing uses it")


def main() -> None:
    """Write the inventory to standard output as JSON, and leave without further ado."""
    channel = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not be taken for the report
    found = read()
    with os.fdopen(channel, "wb") as stream:
        stream.write(msgspec.json.encode(found))
    sys.stderr.flush()
    os._exit(0)


def read() -> Inventory:
    """The inventory. Raises nothing for what the driver lacks."""
    import pynvml

    try:
        # The plain nvmlInit: with the flag NO_GPUS it would succeed without a card, and say less.
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Inventory(reason=_why_not(pynvml, error))
    try:
        return _read(pynvml)
    except pynvml.NVMLError as error:
        return Inventory(reason=f"the driver answers, but does not list its GPUs: {_text(error)}")
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read(nvml: Any) -> Inventory:
    driver = _asked(nvml, nvml.nvmlSystemGetDriverVersion)
    cuda = _asked(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    cards = [_card(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
    if all(card.pci is not None for card in cards):
        cards.sort(key=lambda card: card.pci or "")
    return Inventory(
        # A card whose place is not known any more was counted by the driver in the order of the bus, as all are.
        gpus=tuple(msgspec.structs.replace(card, index=index) for index, card in enumerate(cards)),
        reason="" if cards else "the driver lists no GPU",
        driver=driver,
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
    )


def _card(nvml: Any, number: int) -> Gpu:
    """One card; what it does not tell is None, and that it is lost its problem."""
    card = Gpu(index=number, uuid=None)
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
    except nvml.NVMLError as error:
        return msgspec.structs.replace(card, problem=_problem(nvml, error))
    trouble: list[str] = []

    def ask(function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
                trouble.append(_problem(nvml, error))
            return None

    name = ask(nvml.nvmlDeviceGetName, handle)
    uuid = ask(nvml.nvmlDeviceGetUUID, handle)
    place = ask(nvml.nvmlDeviceGetPciInfo_v3, handle)
    total, free, used = _memory(nvml, handle, ask)
    mode = ask(nvml.nvmlDeviceGetMigMode, handle)
    mig = bool(mode and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    return Gpu(
        index=number,
        uuid=uuid,
        name=name or "unknown",
        pci=_decoded(place.busId).casefold() if place is not None else None,
        total=total,
        free=free,
        used=used,
        processes=tuple(_processes(nvml, handle, ask)),
        mig=mig,
        instances=tuple(_instances(nvml, handle)) if mig else (),
        # What makes it useless: not each call that fails, for a driver may know fewer of them.
        problem=next((one for one in trouble if one in (_LOST[1], _RESET[1])), "")
        or (trouble[0] if uuid is None and trouble else ""),
    )


def _memory(nvml: Any, handle: Any, ask: Callable[..., Any]) -> tuple[int | None, int | None, int | None]:
    """Total, free and used memory. Version 2 tells apart what the driver keeps; before driver 510 there is only 1."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    return (None, None, None) if memory is None else (int(memory.total), int(memory.free), int(memory.used))


def _processes(nvml: Any, handle: Any, ask: Callable[..., Any]) -> Iterator[GpuProcess]:
    seen: dict[int, int | None] = {}
    for function in (_compute, _graphics):
        for one in ask(function, nvml, handle) or ():
            seen.setdefault(one.pid, one.usedGpuMemory)
    for pid, memory in sorted(seen.items()):
        yield GpuProcess(pid=pid, name=_name(nvml, pid), memory=None if memory is None else int(memory))


def _compute(nvml: Any, handle: Any) -> Any:
    try:
        return nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except nvml.NVMLError_FunctionNotFound:  # before driver 510
        return nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)


def _graphics(nvml: Any, handle: Any) -> Any:
    try:
        return nvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle)
    except nvml.NVMLError:  # a display is of no interest where it cannot be asked for
        return ()


def _instances(nvml: Any, handle: Any) -> Iterator[MigInstance]:
    for number in range(_asked(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _asked(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if instance is None:
            continue  # a place for one that is not taken
        uuid = _asked(nvml, nvml.nvmlDeviceGetUUID, instance)
        if uuid is None:
            continue

        def ask(function: Callable[..., T], *arguments: Any) -> T | None:
            return _asked(nvml, function, *arguments)

        total, free, used = _memory(nvml, instance, ask)
        if total is None and (attributes := ask(nvml.nvmlDeviceGetAttributes_v2, instance)) is not None:
            total = int(attributes.memorySizeMB) * _MIB
        yield MigInstance(
            uuid=uuid,
            index=number,
            name=_asked(nvml, nvml.nvmlDeviceGetName, instance) or "",
            total=total,
            free=free,
            used=used,
            processes=tuple(_processes(nvml, instance, ask)),
        )


def _asked(nvml: Any, function: Callable[..., T], *arguments: Any) -> T | None:
    """The answer, None where there is none."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _name(nvml: Any, pid: int) -> str | None:
    """What a process runs, as its command line or, where that is not to be read, the driver tells."""
    try:
        words = [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]
    except OSError:
        words = []
    if words:
        return named(words)
    return (_asked(nvml, nvml.nvmlSystemGetProcessName, pid) or "").split(" ")[0].rpartition("/")[2] or None


def named(words: list[str]) -> str:
    """What this command runs: of Python, what that runs. Without its arguments, which may hold a key."""
    *folders, name = words[0].split(" ")[0].split("/")
    if name.startswith("python"):
        first = next(
            (at for at, word in enumerate(words) if at and (word in ("-m", "-c") or word[:1] != "-")), len(words)
        )
        rest = words[first:]
        if rest[:1] == ["-m"] and len(rest) > 1:
            return f"{name} -m {rest[1]}"
        return f"{name} {rest[0].rpartition('/')[2]}" if rest and rest[0] != "-c" else name
    for folder in reversed(folders[-2:]):
        if folder in _USUAL:
            break
        name = f"{folder}/{name}"  # ollama/cuda_v13/llama-server: of a helper its folder tells whose it is
    return name


def _why_not(nvml: Any, error: Any) -> str:
    """Why NVML does not begin, and what to do."""
    known = {
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver here: libnvidia-ml.so.1 is not found. In a container, it must "
        "be given GPUs (docker run --gpus, or a device reservation in Compose)",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded: `nvidia-smi` says more, "
        "`sudo modprobe nvidia` loads it",
        nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA driver in the kernel and its library are of different versions, as after "
        "an upgrade: reboot, or reload the kernel's modules",
        nvml.NVML_ERROR_NO_PERMISSION: "no permission to use the NVIDIA driver: look at the rights of /dev/nvidia*",
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "the NVIDIA driver is too old for nvidia-ml-py: upgrade the driver",
        nvml.NVML_ERROR_GPU_IS_LOST: f"a GPU was lost: {_LOST[1]}",
    }
    return known.get(error.value) or f"the NVIDIA driver does not begin: {_text(error)}"


def _problem(nvml: Any, error: Any) -> str:
    for name, text in (_LOST, _RESET):
        if error.value == getattr(nvml, f"NVML_ERROR_{name}"):
            return text
    return f"the driver says: {_text(error)}"


def _text(error: object) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (it asks the driver for the text, which may itself fail)
        return type(error).__name__


def _decoded(text: bytes | str) -> str:
    return text.decode("ascii", "replace") if isinstance(text, bytes) else text
