"""Stands between `llm-hub up` and one backend: starts it, keeps its log, and ends all of it when either of them ends.

It is run as a script by an interpreter of its own, in a session of its own, and imports little: there is one for every
backend. Standard input is a pipe from `llm-hub up`: "stop SECONDS" and "kill" are commands, and its end means that
`llm-hub up` is gone, however it went. Standard output tells what happens: "started PID", "failed REASON", "exited CODE"; or, where nothing
was started, "unlogged REASON": its log cannot be written.

A process that is left over by the backend becomes a child of this one (PR_SET_CHILD_SUBREAPER, where there is such a
thing), so that it is found; and the backend is killed by the kernel when this process is (PR_SET_PDEATHSIG). See prctl(2).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_READ = 65536
_KEPT = 2  # old logs, beside the current one
_LAST_WORDS = 1.0  # seconds for what is still in the pipe when the backend has ended


def _prctl(option: int, value: int) -> None:
    """Linux alone has it; elsewhere a process that leaves its group outlives its group."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _tell(message: str) -> None:
    """To `llm-hub up`, which may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, f"{message}\n".encode("utf-8", "replace"))


class _Log:
    """A file that is put aside when it is large. A full disk costs lines, and never the backend."""

    def __init__(self, path: str, limit: int) -> None:
        self._path, self._limit = path, limit
        self._file = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._file, data)
            if os.fstat(self._file).st_size >= self._limit:
                for number in range(_KEPT, 0, -1):
                    older = f"{self._path}.{number - 1}" if number > 1 else self._path
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(older, f"{self._path}.{number}")  # noqa: PTH105 (nothing more is imported than needed)
                os.close(self._file)
                self._file = self._open()


def _start(command: list[str], output: int) -> tuple[int, str]:
    """The backend, as the leader of a group of its own, and why it could not be executed (it has ended then)."""
    me = os.getpid()
    executed, failed = os.pipe()  # closed by exec, which is how it is seen to have worked
    child = os.fork()
    if child:
        os.close(failed)
        with contextlib.suppress(OSError):
            os.setpgid(child, child)  # on both sides: whoever comes first
        reason = os.read(executed, _READ).decode("utf-8", "replace")
        os.close(executed)
        return child, reason
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            os.execvp(command[0], command)  # noqa: S606 (what the operator's plugin said)
        except OSError as error:
            os.write(failed, (error.strerror or str(error)).encode())
    finally:
        os._exit(127)


def _descendants() -> list[int]:
    """The processes below this one, as /proc has it; none where there is no /proc."""
    parents: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):  # noqa: PTH208 (see above)
            if entry.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                    fields = file.read().rpartition(b")")[2].split()
                    if fields[0] != b"Z":
                        parents[int(entry)] = int(fields[1])
    found: list[int] = []
    wanted = {os.getpid()}
    while more := [pid for pid, parent in parents.items() if parent in wanted and pid not in found]:
        found += more
        wanted = set(more)
    return found


def _kill_all(group: int) -> None:
    """End the group of the backend, and whatever it started that left the group. One that appears meanwhile is seen next."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        left = _descendants()
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(0.02)


class _Guardian:
    """Waits for commands, for output and for the end of the backend."""

    def __init__(self, child: int, output: int, wakeup: int, log: _Log, grace: float) -> None:
        self._child, self._output, self._wakeup, self._log, self._grace = child, output, wakeup, log, grace
        self._deadline: float | None = None
        self._commands = b""
        self._listens = True

    def run(self) -> int:
        """Until the backend has ended; its exit code, negative for the signal that ended it."""
        while True:
            code = self._reaped()
            if code is not None:
                _kill_all(self._child)
                self._drain()
                return code
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._deadline = None
                with contextlib.suppress(OSError):
                    os.kill(self._child, signal.SIGKILL)  # what it started is ended when it has been reaped
            self._wait()

    def _reaped(self) -> int | None:
        """The code of the backend if it has ended. Whoever else became a child of this process is reaped on the way."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return -signal.SIGKILL
            if pid == 0:
                return None
            if pid == self._child:
                return os.waitstatus_to_exitcode(status)

    def _wait(self) -> None:
        files = [self._output, self._wakeup, *([0] if self._listens else [])]
        files = [file for file in files if file >= 0]
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        ready, _, _ = select.select(files, [], [], left)
        if self._wakeup in ready:
            os.read(self._wakeup, _READ)
        if self._output in ready:
            data = os.read(self._output, _READ)
            if data:
                self._log.write(data)
            else:
                self._output = -1
        if 0 in ready:
            self._obey(os.read(0, _READ))

    def _obey(self, data: bytes) -> None:
        if not data:  # `llm-hub up` is gone
            self._listens = False
            self._stop(self._grace)
            return
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "stop":
                self._stop(float(rest))
            elif word == "kill":
                self._deadline = time.monotonic()

    def _stop(self, grace: float) -> None:
        """Ask the backend, which ends its own children; what does not go is killed."""
        deadline = time.monotonic() + grace
        if self._deadline is None:
            with contextlib.suppress(OSError):
                os.kill(self._child, signal.SIGTERM)
        self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)

    def _drain(self) -> None:
        until = time.monotonic() + _LAST_WORDS
        while self._output >= 0 and (left := until - time.monotonic()) > 0:
            if not select.select([self._output], [], [], left)[0]:
                return
            data = os.read(self._output, _READ)
            if not data:
                return
            self._log.write(data)


def main(arguments: list[str]) -> None:
    """`LOG LIMIT GRACE COMMAND...`: the log and its size in bytes, how long to let the backend end when all else is gone."""
    path, limit, grace, *command = arguments
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        log = _Log(path, int(limit))
    except OSError as error:
        _tell(f"unlogged {error.strerror or error}")
        return
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    read, write = os.pipe()
    child, failure = _start(command, write)
    os.close(write)
    guardian = _Guardian(child, read, wake_read, log, float(grace))
    signal.signal(signal.SIGTERM, lambda *_: guardian._stop(float(grace)))
    log.write(f"--- llm-hub: started process {child} at {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode())
    _tell(f"failed {failure}" if failure else f"started {child}")
    code = guardian.run()
    log.write(f"--- llm-hub: process {child} ended with {code} at {time.strftime('%Y-%m-%d %H:%M:%S')} ---\n".encode())
    _tell(f"exited {code}")


if __name__ == "__main__":
    main(sys.argv[1:])
