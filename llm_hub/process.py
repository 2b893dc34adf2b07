"""One process of a backend, with all that it starts: begun, told to stop, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_hub.errors import HubError

__all__ = ["MARK", "Process", "is_alive", "listener", "started_at", "sweep", "tail"]

MARK = "LLM_HUB_SUPERVISED"
"""The variable in the environment of everything that was started, by which what is left of it is found."""

_PROC = Path("/proc")
_GUARDIAN = str(Path(__file__).with_name("_guardian.py"))
_STARTED = "--- llm-hub: started"
_ORPHAN_GRACE = 5.0  # seconds that a backend may take to end when `llm-hub up` was killed
_LOG_LIMIT = 10 << 20  # bytes; two older logs are kept


class Process:
    """A backend's process below its guardian (see `_guardian`).

    `mark` names it among all that this and other supervisors started; `log` is the file that its output goes to. Raises
    HubError when it cannot be executed.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        log: Path,
        mark: str,
        log_limit: int = _LOG_LIMIT,
        orphan_grace: float = _ORPHAN_GRACE,
    ) -> None:
        self.mark = mark
        self.code: int | None = None
        """How it ended: the exit code, negative for a signal; None while it runs."""
        self.pid = 0
        self._failed = self._unlogged = ""
        self._over = threading.Event()
        self._began = threading.Event()
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", _GUARDIAN, str(log), str(log_limit), f"{orphan_grace:g}", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environ, MARK: mark},
            start_new_session=True,  # a Ctrl-C in the terminal is for `llm-hub up` alone, which stops what it started
        )
        threading.Thread(target=self._listen, name=f"llm-hub-up-{mark}", daemon=True).start()
        self._began.wait(30)
        if self._unlogged:
            self._over.wait(10)
            raise HubError(
                f"its log cannot be written: {log}: {self._unlogged}",
                hint="Make it a file that may be written, or remove it, or name another LLM_HUB_STATE.",
            )
        if self._failed:
            self._over.wait(10)
            raise HubError(
                f"{command[0]} cannot be started: {self._failed}",
                hint=f"Install {command[0]}, or put it into the PATH.",
            )

    @property
    def guardian(self) -> int:
        """The process that watches over it."""
        return self._guardian.pid

    def _listen(self) -> None:
        assert self._guardian.stdout is not None
        code: int | None = None
        with self._guardian.stdout as said:
            for line in said:
                word, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
                if word == "started":
                    self.pid = int(rest)
                elif word == "failed":
                    self._failed = rest
                elif word == "unlogged":
                    self._unlogged = rest
                elif word == "exited":
                    code = int(rest)
                self._began.set()
        self._guardian.wait()
        if code is None:
            # The guardian was killed. The kernel kills the backend; whatever else there is is found by its mark.
            sweep(self.mark)
            code = -signal.SIGKILL
        self.code = code
        if self._guardian.stdin is not None:
            with contextlib.suppress(OSError):
                self._guardian.stdin.close()
        self._began.set()
        self._over.set()

    def wait(self, timeout: float) -> bool:
        """Wait until it has ended, with all that it started; False if it has not after `timeout` seconds."""
        return self._over.wait(timeout)

    def stop(self, grace: float) -> None:
        """Ask it to end, and kill it if it has not after `grace` seconds. Returns at once; `wait` waits."""
        self._command(f"stop {grace:g}")

    def kill(self) -> None:
        """Kill it, with all that it started. Returns at once."""
        self._command("kill")

    def end(self, timeout: float) -> None:
        """Wait until it has ended; after `timeout` seconds make sure of it, even if its guardian does not answer."""
        if not self.wait(timeout):
            with contextlib.suppress(OSError):
                os.kill(self._guardian.pid, signal.SIGKILL)  # the kernel kills the backend, `sweep` what is left
            self.wait(10)

    def _command(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended
            assert self._guardian.stdin is not None
            self._guardian.stdin.write(f"{text}\n".encode())
            self._guardian.stdin.flush()


# -- processes in general ---------------------------------------------------------------------------------------------


def started_at(pid: int) -> str | None:
    """When a process began, in the kernel's own terms: with the pid it names one process. None if there is none.

    Where there is no /proc, "?" for one that lives.
    """
    if _PROC.is_dir():
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            return None if fields[0] == b"Z" else fields[19].decode()
        except (OSError, IndexError):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "?"
    return "?"


def is_alive(pid: int, began: str | None) -> bool:
    """Does the process live that had this pid when it began?"""
    return pid > 0 and began is not None and started_at(pid) == began


def listener(port: int) -> int | None:
    """The process of this user that listens on a TCP port; None if there is none, or if that cannot be seen."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (_PROC / "net" / table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if (
                    fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
                ):  # 0A: listening (tcp(7), proc(5))
                    sockets.add(f"socket:[{fields[9]}]")
    if not sockets:
        return None
    for entry in sorted(_PROC.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError):  # somebody else's
            for file in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(file.readlink()) in sockets:
                        return int(entry.name)
    return None


def sweep(mark: str, *, wait: float = 5.0) -> int:
    """Kill every process of this user that has the mark, or one that begins with it; the number of those that were found.

    `wait` in seconds, until they are gone. Finds nothing where there is no /proc.
    """
    wanted = f"{MARK}={mark}".encode()
    found: set[int] = set()
    until = time.monotonic() + wait
    while True:
        left = [pid for pid in _marked(wanted) if pid != os.getpid()]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        found.update(left)
        if not left or time.monotonic() > until:
            return len(found)
        time.sleep(0.02)


def _marked(wanted: bytes) -> list[int]:
    found = []
    for entry in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if any(one.startswith(wanted) for one in (entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    return found


def tail(log: Path, lines: int = 20, *, longest: int = 32768) -> list[str]:
    """The last lines that the last process wrote into its log. At most `longest` bytes are looked at.

    Where the log was put aside in the midst of them, those before come from the older one.
    """
    text = ""
    for path in (log, log.with_name(f"{log.name}.1")):
        text = _end_of(path, longest) + text
        if _STARTED in text or text.count("\n") > lines:
            break
    last = text.rpartition(_STARTED)[2] if _STARTED in text else text
    found = [line.rstrip() for line in last.splitlines()[1 if _STARTED in text else 0 :]]
    return [line for line in found if line and not line.startswith("--- llm-hub:")][-lines:]


def _end_of(path: Path, longest: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - longest))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
