"""The GPUs of NVIDIA, asked of the driver through nvidia-ml-py in a process of its own, which may hang or crash."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import msgspec

from llm_hub.gpu.inventory import Inventory
from llm_hub.gpu.visible import apply_visibility

__all__ = ["INSTALL", "NvidiaSource"]

INSTALL = "pip install 'llm-hub-core[gpu]'"
_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from llm_hub.gpu.nvml import main; main()"
_ENDING = 2.0  # seconds to wait for a process that was killed; one that sits in the driver does not end at all
_abandoned: list[subprocess.Popen[bytes]] = []


class NvidiaSource:
    """Asks the driver. `timeout` in seconds, for all of it; `environ` in place of `os.environ`.

    A driver call cannot be interrupted: not one that waits for a card that has fallen off the bus, and a process in the
    midst of it does not even die. So they are made in another process, which is left behind if it must be.
    """

    def __init__(self, *, timeout: float = 15.0, environ: Mapping[str, str] | None = None) -> None:
        self._timeout = timeout
        self._environ = environ

    def read(self) -> Inventory:
        """The GPUs, those that CUDA_VISIBLE_DEVICES keeps from this process marked as hidden."""
        environ = dict(os.environ if self._environ is None else self._environ)
        return apply_visibility(_read(self._timeout, environ), environ)


def _read(timeout: float, environ: Mapping[str, str]) -> Inventory:
    from importlib.util import find_spec

    if find_spec("pynvml") is None:
        return Inventory(reason=f"the package nvidia-ml-py is not installed ({INSTALL})")
    for process in [one for one in _abandoned if one.poll() is not None]:
        _abandoned.remove(process)
    path = [str(entry) or os.getcwd() for entry in sys.path]  # noqa: PTH109 (an entry of sys.path is text)
    command = [sys.executable, "-P", "-c", _CODE, json.dumps(path)]
    with tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=output,
                env=dict(environ),
                start_new_session=os.name == "posix",
            )
        except OSError as error:
            return Inventory(reason=f"no process could be started to ask the driver: {error}")
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return Inventory(
                reason=f"the driver did not answer within {timeout:g} s. Does `nvidia-smi` answer? If not, look into dmesg "
                "for Xid errors; a card that has fallen off the bus may need a reboot"
            )
        finally:
            _end(process)
        report.seek(0)
        if code == 0:
            with contextlib.suppress(msgspec.DecodeError):  # as a library may print: told of below
                return msgspec.json.decode(report.read(), type=Inventory)
        output.seek(0)
        said = output.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
    return Inventory(reason=f"asking the driver ended {how}" + (f": {said[-1]}" if said else ""))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return
    process.kill()
    try:
        process.wait(_ENDING)
    except subprocess.TimeoutExpired:
        _abandoned.append(process)
