"""Which processes share a control file right now, and how far each has come: a lock that each holds while it lives.

There are no process ids in it, so it works between containers, and nothing is left of a process that was killed.
"""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from llm_hub.control_file import FileBook, write_whole
from llm_hub.health import BackendCondition

__all__ = ["Presence", "Report", "Uptake", "live", "uptake"]


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a live process says of itself.

    `epoch` is the one that new calls of it begin on, `switch` the id of the entry of the control file that made it, and
    `tried` that of the newest entry that it has tried to take up; `problem` is why it is not there, `pinned` that it
    refuses to. `backends` are how it has found its backends. `since` and `written` in seconds since 1970.
    """

    name: str
    host: str
    since: float
    written: float
    epoch: int
    switch: str
    tried: str
    problem: str | None = None
    pinned: bool = False
    backends: tuple[BackendCondition, ...] = ()

    @property
    def who(self) -> str:
        """Its name, for people."""
        return f"{self.name} on {self.host}"


class Presence:
    """The mark of this process, as one that shares the control file. Raises OSError if it cannot say so."""

    def __init__(self, book: FileBook) -> None:
        import fcntl

        folder = _folder(book)
        while True:
            self._stem = os.path.join(folder, os.urandom(16).hex())  # noqa: PTH118
            self._handle = os.open(f"{self._stem}.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX)
                ours = os.fstat(self._handle).st_ino
                if os.stat(f"{self._stem}.lock").st_ino == ours:  # noqa: PTH116
                    break
            except FileNotFoundError:
                pass  # somebody came before the lock, and took it for that of a dead process
            except BaseException:
                os.close(self._handle)
                raise
            os.close(self._handle)

    def write(self, report: Report) -> None:
        """Say this. Raises OSError."""
        write_whole(f"{self._stem}.json", msgspec.json.encode(report), durable=False)

    def close(self) -> None:
        """Be gone."""
        _remove(self._stem)
        self.forget()

    def forget(self) -> None:
        """In the child of a fork: it is the parent's."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Uptake(msgspec.Struct, frozen=True, kw_only=True):
    """How far the live processes have come with a switch: each has taken it up, or says why not, or has not said yet."""

    taken: tuple[Report, ...] = ()
    refused: tuple[Report, ...] = ()
    pending: tuple[Report, ...] = ()
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Is every process there, but for those that are pinned?"""
        return not self.pending and all(one.pinned for one in self.refused)


def uptake(book: FileBook, switch: str, *, timeout: float, began: float | None = None) -> Uptake:
    """Wait until every live process has taken up the entry with this id, or has said why not; `timeout` in seconds."""
    began = time.monotonic() if began is None else began
    while True:
        reports = live(book)
        taken = tuple(one for one in reports if one.switch == switch)
        refused = tuple(one for one in reports if one.switch != switch and (one.pinned or _failed(one, switch)))
        pending = tuple(one for one in reports if one not in taken and one not in refused)
        passed = time.monotonic() - began
        if not pending or passed >= timeout:
            return Uptake(taken=taken, refused=refused, pending=pending, seconds=passed)
        time.sleep(0.01)


def _failed(report: Report, switch: str) -> bool:
    return report.tried == switch and report.problem is not None


def live(book: FileBook) -> list[Report]:
    """What the processes that share this control file say, those that live; what dead ones have left is taken away.

    Empty where nothing can be read.
    """
    import fcntl

    folder = os.path.join(book.folder, "processes")  # noqa: PTH118
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []
    found = []
    for name in names:
        stem, _, ending = name.removeprefix(".").partition(".")
        if ending != "lock":
            if f"{stem}.lock" not in names:  # it was made before anything else, and is taken away last
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
            continue
        path = os.path.join(folder, stem)  # noqa: PTH118
        try:
            handle = os.open(f"{path}.lock", os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # it lives
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found.append(_read(f"{path}.json"))
        except OSError:
            continue
        else:
            _remove(path)
        finally:
            os.close(handle)
    return found


def _read(path: str) -> Report:
    with open(path, "rb") as file:  # noqa: PTH123
        return msgspec.json.decode(file.read(), type=Report)


def _folder(book: FileBook) -> str:
    folder = os.path.join(book.make_folder(), "processes")  # noqa: PTH118
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)  # noqa: PTH102
        os.chmod(folder, os.stat(book.folder).st_mode & 0o777)  # noqa: PTH101, PTH116
    return folder


def _remove(stem: str) -> None:
    for ending in (".json", ".lock"):
        with contextlib.suppress(OSError):
            os.unlink(f"{stem}{ending}")  # noqa: PTH108
