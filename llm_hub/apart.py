"""One plugin loaded in a process of its own, which it may crash, hang or litter without harm."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from typing import IO, TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import subprocess

__all__ = ["Died", "load_apart", "main"]

_CODE = "import json, sys; ask = json.loads(sys.argv[1]); sys.path[:] = ask['path']; from llm_hub.apart import main; main(ask)"
_ORPHANED = 1.0  # seconds after which a process ends by itself that its parent should have ended
_LONGEST = 4000  # bytes of the output of a process that are kept, from its end


class Died(msgspec.Struct, frozen=True):
    """The process gave no report: `reason` continues a sentence that the plugin's name begins, `output` is its last."""

    reason: str
    output: str


def load_apart(name: str, *, timeout: float) -> bytes | Died:
    """The report on one plugin as JSON, from an interpreter of its own that has the same `sys.path`.

    `timeout` in seconds, for all of it. Nothing the plugin has started is left behind where the system has sessions of
    processes. Its output goes to a file: a pipe would stay open in whatever it has started, and be waited for.
    """
    import subprocess
    import tempfile

    ask = {
        "name": name,
        "path": [str(entry) or str(os.getcwd()) for entry in sys.path],  # noqa: PTH109 - "" is a path entry, not a Path
        "until": time.time() + timeout,
        "timeout": timeout,
    }
    # -I would drop the user's site-packages, -P only keeps the current folder out of the path.
    command = [sys.executable, "-P", *(f"-W{one}" for one in sys.warnoptions), "-c", _CODE, json.dumps(ask)]
    with tempfile.TemporaryFile() as report, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=report, stderr=output, start_new_session=os.name == "posix"
        )
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        found = _read(report)
        if code == 0 and found:
            return found
        return Died(_reason(code, timeout), _read(output)[-_LONGEST:].decode("utf-8", "replace").strip())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _reason(code: int | None, timeout: float) -> str:
    if code is None:
        return f"importing it took more than {timeout:g} s"
    if code >= 0:
        return f"importing it ended the interpreter with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"importing it crashed the interpreter ({name})"


def main(ask: dict[str, object]) -> None:
    """The other side: load the plugin, write the report to standard output, and leave without further ado."""
    import faulthandler

    timeout, until = float(str(ask["timeout"])), float(str(ask["until"]))
    left = min(max(until - time.time(), 0.1 * timeout), timeout)
    # What hangs without releasing the GIL, or crashes, can only be seen from below. Before the parent loses patience:
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.95 * left)
    if os.name == "posix":
        # A parent that is killed ends nobody. The kernel does, even what never lets go of the interpreter.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, left + _ORPHANED)
    # What the plugin prints must not be taken for the report.
    channel = os.dup(1)
    os.dup2(2, 1)
    from llm_hub.registry import Registry

    report = Registry(timeout=0.85 * left).report(str(ask["name"]), load=True)
    with os.fdopen(channel, "wb") as stream:
        stream.write(msgspec.json.encode(report))
    # Not through the end of the interpreter: threads and exit handlers of the plugin could hold it up.
    os._exit(0)
