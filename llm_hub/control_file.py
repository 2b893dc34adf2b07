"""The control file on disk: read whole or not at all, written in one step by one writer at a time, with a copy of the last."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from llm_hub.control import Document, decode
from llm_hub.errors import ControlFileDamaged, SettingsError

if TYPE_CHECKING:
    from llm_hub.embedding_space import SpaceRecord

__all__ = ["FileBook", "Signature", "signature_of", "write_whole"]

logger = logging.getLogger("llm_hub")

_LONGEST_LOCK = 5.0  # seconds that a writer waits for another
_COPY = "last-good.json"
_LARGEST = 16 * 1024 * 1024  # bytes; a control file of a hundred epochs has some ten thousand

Signature = tuple[int, ...]


class FileBook:
    """The document in a file that processes share. Safe to use from any thread.

    Beside it, in `FILE.d`, are the lock of its writers, a copy of the last document, the records of embedding spaces and
    what the live processes say of themselves. Reading needs none of these.
    """

    shared = True

    def __init__(self, path: str) -> None:
        self.where = path
        self._latest: Document | None = None

    @property
    def folder(self) -> str:
        """The folder beside the file. A link to the file is followed: whoever writes must not replace the link."""
        return f"{self._path}.d"

    @property
    def _path(self) -> str:
        return os.path.realpath(self.where)

    def signature(self) -> Signature:
        """Changes when the file does. Costs one question to the file system."""
        return signature_of(self.where)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self) -> Document:
        """The newest document; that of no switch if there never was one. Raises ControlFileDamaged."""
        try:
            document = decode(self._found(), self.where)
        except FileNotFoundError:
            return Document.first()
        except OSError as error:
            raise ControlFileDamaged(
                f"it cannot be read: {error.strerror or error}", where=self.where, hint=_way_out(error, self.where)
            ) from error
        except ControlFileDamaged as error:
            error.hint = self._repair(error.hint)
            raise
        latest = self._latest
        if latest is None or document.epoch >= latest.epoch:  # else a writer in another thread was faster
            self._latest = document
        return document

    def _found(self) -> bytes:
        """What is in the file. Raises FileNotFoundError where there never was one, ControlFileDamaged where it is gone."""
        try:
            return _whole(self.where)
        except FileNotFoundError:
            last = self.last()
            if last is None:
                raise
        try:
            return _whole(self.where)  # it may have come into being in between
        except FileNotFoundError:
            gone = f"it is gone, after {last.epoch - 1} switches"
            raise ControlFileDamaged(gone, where=self.where, hint=self._repair()) from None

    def last(self) -> Document | None:
        """The last document that was not damaged: as this process has seen it, else the copy of the last writer."""
        if self._latest is not None:
            return self._latest
        copy = self._copy
        return None if copy is None else decode(_whole(copy), copy)

    @property
    def _copy(self) -> str | None:
        """Where the copy is, None if there is none that can be read. A link may have come in between."""
        for folder in dict.fromkeys((self.folder, f"{self.where}.d")):
            copy = os.path.join(folder, _COPY)  # noqa: PTH118 (pathlib is slow to import)
            with contextlib.suppress(OSError, SettingsError):
                decode(_whole(copy), copy)
                return copy
        return None

    def _repair(self, otherwise: str | None = None) -> str:
        if otherwise is not None and "Upgrade" in otherwise:
            return otherwise
        copy = self._copy
        if copy is None:
            return otherwise or "Begin anew with what the environment says: llm-hub use --reset"
        return f"Bring back the last good one: cp {copy} {self._path} - or begin anew: llm-hub use --reset"

    # -- writing ------------------------------------------------------------------------------------------------------

    def update(self, change: Callable[[Document], Document], *, repair: bool = False) -> Document:
        """Put what `change` makes of the newest document in its place, as one step, with all other writers kept out.

        `repair`: if it is damaged, `change` is given the last one that was not. Raises ControlFileDamaged, and what
        `change` raises; then nothing has changed.
        """
        try:
            with self._locked():
                document = change(self._to_change(repair=repair)).above(self._reached())
                path = self._path
                if repair and os.path.isdir(path):  # noqa: PTH112
                    os.rmdir(path)  # noqa: PTH106 - it goes only if it is empty, as what Docker puts in place of a file
                data = document.encode()
                _tidy(path)
                write_whole(path, data)
                self._latest = document
        except OSError as error:
            raise ControlFileDamaged(
                f"it cannot be written: {error.strerror or error}; nothing has changed",
                where=self.where,
                hint=_way_out(error, self.where),
            ) from error
        try:
            write_whole(os.path.join(self.folder, _COPY), data, durable=False)  # noqa: PTH118
        except OSError as error:
            logger.warning("the copy of %s cannot be written: %s", self.where, error)
        return document

    def _to_change(self, *, repair: bool) -> Document:
        try:
            return self.read()
        except ControlFileDamaged as error:
            if not repair:
                raise
            logger.warning("%s", error)
            return self.last() or Document.first()

    def _reached(self) -> int:
        """The highest epoch that any live process is on, where the file may have forgotten it."""
        from llm_hub.presence import live

        return max((one.epoch for one in live(self)), default=0)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        self.make_folder()
        handle = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT, _mode(self.folder))  # noqa: PTH118
        try:
            until = time.monotonic() + _LONGEST_LOCK
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise ControlFileDamaged(
                            f"another writer has kept it locked for {_LONGEST_LOCK:g} s; nothing has changed",
                            where=self.where,
                            hint="Try again. If nobody is switching: which process holds it? fuser "
                            + self.folder
                            + "/lock",
                        ) from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(handle)

    def forked(self) -> None:
        """In the child of a fork: there is nothing to forget."""

    def make_folder(self) -> str:
        """The folder beside the file, there from now on. Raises OSError."""
        folder = self.folder
        parent = os.path.dirname(folder)  # noqa: PTH120
        os.makedirs(parent, exist_ok=True)  # noqa: PTH103
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)  # noqa: PTH102
            # Whoever may write beside the file may write in here, whoever was first.
            os.chmod(folder, os.stat(parent).st_mode & 0o777)  # noqa: PTH101, PTH116
        return folder

    # -- embedding spaces ---------------------------------------------------------------------------------------------

    def load(self, space: str) -> SpaceRecord | None:
        """The record of an embedding space, None if there is none that can be read."""
        from llm_hub.embedding_space import SpaceRecord

        try:
            return SpaceRecord.load(self._record(space))
        except SettingsError as error:
            logger.warning("the embedding space in force has no record: %s", error)
            return None

    def save(self, record: SpaceRecord) -> None:
        """Keep the record of an embedding space. Raises ControlFileDamaged if that is not possible."""
        path = self._record(record.id)
        try:
            self.make_folder()
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            write_whole(path, record.to_json())
        except OSError as error:
            raise ControlFileDamaged(
                f"the record of the embedding space cannot be written: {error.strerror or error}; nothing has changed",
                where=path,
                hint=_way_out(error, path),
            ) from error

    def _record(self, space: str) -> str:
        name = "".join(letter for letter in space if letter.isalnum() or letter == "-")
        return os.path.join(self.folder, "spaces", f"{name}.json")  # noqa: PTH118


def signature_of(path: str) -> Signature:
    """Changes when the file does; that of a file that cannot be asked for is negative."""
    try:
        found = os.stat(path)  # noqa: PTH116 - asked fifty times a second
    except OSError as error:
        return (-(error.errno or 1),)
    return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns)


def _whole(path: str) -> bytes:
    """All of a file that is one. Raises OSError."""
    # Without waiting: opening a pipe that somebody has put there would. And with few system calls: after each, a busy process
    # has to wait for its interpreter again.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        pieces = []
        left = _LARGEST + 1
        while left and (piece := os.read(handle, min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
    finally:
        os.close(handle)
    if not left:
        raise OSError(errno.EFBIG, f"it has more than {_LARGEST} bytes")
    return b"".join(pieces)


def write_whole(path: str, data: bytes, *, durable: bool = True) -> None:
    """Put these bytes in the place of a file, whole or not at all, even if the machine goes down. Raises OSError."""
    import tempfile  # here, because it is slow to import, and most processes only read

    folder, name = os.path.split(path)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), _mode(folder))
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    if durable:
        with contextlib.suppress(OSError):  # some file systems cannot
            entry = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(entry)
            finally:
                os.close(entry)


def _mode(folder: str) -> int:
    """Who may go about in the folder may read and write what is in it."""
    return os.stat(folder).st_mode & 0o666  # noqa: PTH116


def _tidy(path: str) -> None:
    """Take away what writers that were killed have left. Called by the one writer there is."""
    folder, name = os.path.split(path)
    for one in os.listdir(folder):  # noqa: PTH208
        if one.startswith(f".{name}.") and len(one) == len(name) + 10:  # as mkstemp names them
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, one))  # noqa: PTH108, PTH118


def _way_out(error: OSError, path: str) -> str:
    folder = os.path.dirname(path)  # noqa: PTH120
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"Give this user the right to read and write in {folder}, or name another file: LLM_HUB_STATE=..."
    if error.errno == errno.EROFS:
        return f"{folder} is mounted to be read only: switch from where it can be written."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"Make room where {folder} is, and try again."
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return "Move away what stands in the place of the file or its folder, and then: llm-hub use --reset"
    return f"Move {path} away and begin anew: llm-hub use --reset - or name another file: LLM_HUB_STATE=..."
