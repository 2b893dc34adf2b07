"""A stand-in for NVIDIA's driver library, under the real nvidia-ml-py: cards as you describe them, where there are none."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

__all__ = ["NoCompiler", "StandInDriver", "StandInGpu", "StandInInstance", "StandInProcess"]

GIB = 1 << 30
_SOURCE = Path(__file__).with_name("nvml.c")


class NoCompiler(RuntimeError):
    """There is no C compiler here to make the library with."""


class StandInProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process on a card; `memory` in bytes, None as where the driver does not tell it."""

    pid: int
    memory: int | None = None


class StandInInstance(msgspec.Struct, frozen=True, kw_only=True):
    """A MIG instance; `place` is its number on the card."""

    uuid: str
    place: int
    name: str = "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
    total: int = 5 * GIB
    used: int = 0
    processes: tuple[StandInProcess, ...] = ()


class StandInGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A card. Sizes in bytes. `mig` None: MIG is off. `lost`: every call about it fails with NVML_ERROR_GPU_IS_LOST.

    `fails` are error codes of NVML by the name of the call, such as {"nvmlDeviceGetUUID": 999}. `pci` None: by its
    number.
    """

    uuid: str
    name: str = "NVIDIA GeForce RTX 4090"
    total: int = 24 * GIB
    reserved: int = GIB // 2
    used: int = 0
    pci: str | None = None
    processes: tuple[StandInProcess, ...] = ()
    mig: tuple[StandInInstance, ...] | None = None
    lost: bool = False
    fails: Mapping[str, int] = {}


class StandInDriver:
    """The library, compiled into `folder`, and what it answers.

    Whatever loads it needs `environment` from the start; what it answers may be changed at any time by `describe`.
    `old`: as before driver 510, whose calls had other names. Raises NoCompiler.
    """

    def __init__(self, folder: Path, *, old: bool = False) -> None:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise NoCompiler("no C compiler (cc, gcc, clang) is installed")
        self._description = folder / "nvml.txt"
        self._folder = folder
        flags = ["-DOLD_DRIVER"] if old else []
        library = folder / "libnvidia-ml.so.1"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-fvisibility=hidden", *flags, "-o", library, _SOURCE],
            check=True,
            capture_output=True,
            timeout=60,
        )
        self.describe()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process finds this library in place of a driver's."""
        before = os.environ.get("LD_LIBRARY_PATH")
        path = f"{self._folder}{os.pathsep}{before}" if before else str(self._folder)
        return {"LD_LIBRARY_PATH": path, "STAND_IN_NVML": str(self._description)}

    def describe(
        self,
        gpus: Iterable[StandInGpu] = (),
        *,
        init: int = 0,
        driver: str = "580.65.06",
        cuda: int = 13000,
        hang: str = "",
        crash: str = "",
        noise: str = "",
        count: int = 0,
    ) -> None:
        """What it answers from now on.

        `init` and `count` are error codes of NVML for starting it and for counting cards, `hang` and `crash` names of
        calls that never come back or end the process, `noise` is printed on standard output.
        """
        lines = [f"init\t{init}", f"count\t{count}", f"driver\t{driver}", f"cuda\t{cuda}"]
        lines += [f"{word}\t{value}" for word, value in (("hang", hang), ("crash", crash), ("noise", noise)) if value]
        for number, gpu in enumerate(gpus):
            lines += _card(number, gpu)
        fresh = self._description.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        fresh.replace(self._description)


def _card(number: int, gpu: StandInGpu) -> list[str]:
    pci = gpu.pci or f"00000000:{number + 1:02X}:00.0"
    most = 0 if gpu.mig is None else 8
    lines = ["\t".join(map(str, ("gpu", gpu.uuid, gpu.name, pci, gpu.total, gpu.reserved, gpu.used, most)))]
    lines += [_process(number, -1, process) for process in gpu.processes]
    for one in gpu.mig or ():
        lines.append("\t".join(map(str, ("mig", number, one.place, one.uuid, one.name, one.total, one.used))))
        lines += [_process(number, one.place, process) for process in one.processes]
    failing = {"*": 15} if gpu.lost else gpu.fails
    return lines + [f"fail\t{number}\t{call}\t{code}" for call, code in failing.items()]


def _process(number: int, place: int, process: StandInProcess) -> str:
    return f"process\t{number}\t{place}\t{process.pid}\t{-1 if process.memory is None else process.memory}"
