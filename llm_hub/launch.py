"""How to run a backend: one description, from which local processes, Compose files and whatever comes later are made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

__all__ = ["API_KEY", "Container", "Device", "Devices", "GpuNeeds", "LaunchSpec", "Volume"]

API_KEY = "${API_KEY}"
"""Stands in an environment for the key of the backend. No description holds the key itself, nor is it ever in a command."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, or a MIG instance of one. `id` is its UUID, or the index as it was written where the cards are elsewhere.

    `total` is its memory in bytes, None where it is not known.
    """

    id: str
    total: int | None = None

    @property
    def resolved(self) -> bool:
        """Is it named by UUID, which means one card whatever the order?"""
        return self.id.startswith(("GPU-", "MIG-"))


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """Where a backend was put: its GPUs and what it may take of the memory of each.

    No GPUs: none were assigned. `memory` is an amount in bytes or a fraction in (0, 1], None where nothing was said.
    """

    gpus: tuple[Device, ...] = ()
    memory: int | float | None = None
    exclusive: bool = False

    def __len__(self) -> int:
        return len(self.gpus)

    def fraction(self) -> float | None:
        """The share of each GPU that may be taken; None if nothing was said, or if a size is needed and not known."""
        if self.memory is None or isinstance(self.memory, float):
            return self.memory
        totals = [gpu.total for gpu in self.gpus]
        sizes = [total for total in totals if total]
        if not sizes or len(sizes) < len(totals):
            return None
        return min(1.0, int(self.memory / min(sizes) * 10_000) / 10_000)  # rounded down: it is a limit

    def environment(self) -> dict[str, str]:
        """What makes a local process see these GPUs and no others, in the order of the bus, as the driver counts them."""
        if not self.gpus:
            return {}
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpu.id for gpu in self.gpus)}


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a container keeps or is given: a named volume, or a file or folder of the host (`source`)."""

    path: str
    name: str | None = None
    source: str | None = None
    read_only: bool = False


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """How to run a backend in a container.

    `image` carries a version. `entrypoint` None leaves the image's own. `health` is a command that the image has, and
    that ends with 0 when the server serves; "{health}" in it is the address of the LaunchSpec's `health_path` there. `fetch` is a shell command of the same image that fetches the models from
    the server's registry; None where the server does so by itself. `dockerfile` is for an image that nobody publishes.
    `shared_memory` is the size of /dev/shm.
    """

    image: str
    command: tuple[str, ...]
    port: int
    health: tuple[str, ...]
    entrypoint: tuple[str, ...] | None = None
    environment: Mapping[str, str] = {}
    volumes: tuple[Volume, ...] = ()
    fetch: str | None = None
    dockerfile: str | None = None
    shared_memory: str | None = None


class GpuNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What the process asks of its GPUs, for the plan to check.

    `share`: of each GPU's memory, in (0, 1], what it takes when it starts, whatever its model needs; it does not start where less
    is free. None: what its models need. `split`: over several GPUs either the heads of the model are divided ("tensor") or its
    layers. `tensor_parallel` is the number of parts then, and `gpus` how many GPUs the command makes use of; None: any number.
    `models` are what is loaded, as the server finds it: files, folders, names. `context`: tokens of one call, and at most what the
    model was trained for; None: just that. `parallel`: calls at once whose tokens are kept. `kv_bytes`: bytes of a number
    in the cache of keys and values. `on_cpu`: its settings keep it off the GPU.
    """

    share: float | None = None
    split: Literal["tensor", "layers"] = "layers"
    tensor_parallel: int = 1
    gpus: int | None = None
    models: tuple[str, ...] = ()
    context: int | None = None
    parallel: int = 1
    kv_bytes: float = 2.0
    on_cpu: bool = False


class LaunchSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to run one backend as a process of its own. Made by a plugin's `llm_hub_launch`, without any I/O.

    `command` is what a local process executes; "{host}", "{port}" and "{address}" (both) in it and in `environment`
    stand for where to listen. `environment` is what it needs beside what it inherits; a value may be `API_KEY`, or name
    a variable of the operator as "${NAME}". `health_path` answers 200 once it lives, and is what is asked in a container. `models` must be there to serve,
    `fetch` are commands that get them, in the same environment, while it runs. `drain` is how long it lets calls end that run when it is told to stop, `stop_grace` how long to wait
    before it is killed (longer than `drain`), `start_timeout` how long it may take until its model is in memory; all in
    seconds. `notes` are for the operator. `needs` is what it asks of its GPUs; how it is made to see them is not the plugin's
    concern: see `Devices.environment`.
    """

    command: tuple[str, ...]
    health_path: str
    environment: Mapping[str, str] = {}
    devices: Devices = Devices()
    container: Container | None = None
    models: tuple[str, ...] = ()
    fetch: tuple[tuple[str, ...], ...] = ()
    drain: float = 0.0
    stop_grace: float = 10.0
    start_timeout: float = 120.0
    notes: tuple[str, ...] = ()
    needs: GpuNeeds = GpuNeeds()

    def health_command(self) -> tuple[str, ...]:
        """The command that sees in its container whether it serves; empty where it is not run in one."""
        if self.container is None:
            return ()
        url = f"http://127.0.0.1:{self.container.port}{self.health_path}"
        return tuple(part.replace("{health}", url) for part in self.container.health)

    def listening(self, host: str, port: int) -> LaunchSpec:
        """The same with a place to listen on."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

        def at(text: str) -> str:
            return text.replace("{host}", host).replace("{port}", str(port)).replace("{address}", address)

        return msgspec.structs.replace(
            self,
            command=tuple(at(part) for part in self.command),
            environment={name: at(value) for name, value in self.environment.items()},
        )


def is_pinned(image: str) -> bool:
    """Has the name of an image a version, so that it will be the same tomorrow?"""
    tag = re.search(r"(?::([A-Za-z0-9_][A-Za-z0-9_.-]*)|@sha256:[0-9a-f]{64})$", image)
    return tag is not None and tag[1] != "latest"
