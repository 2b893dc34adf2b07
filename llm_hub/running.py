"""The register of what `llm-hub up` started: a file beside the control file, for `status`, `doctor` and the next `up`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from llm_hub.errors import ConfigurationError, HubError
from llm_hub.process import is_alive

__all__ = ["Register", "Running", "RunningBackend", "State", "folder_of", "read_running"]

State = Literal["waiting", "starting", "ready", "degraded", "unresponsive", "restarting", "failed", "stopped"]
"""How a backend stands: waiting for its turn on a GPU, starting until its model is in memory, ready, degraded (it serves, and
something is not as planned), unresponsive, restarting after it ended, failed (given up), stopped (as it was told to)."""


class RunningBackend(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One backend that was started. `pid` and `began` name its process, 0 and None while there is none.

    `since` is when it came into its state, in seconds since 1970. `gpus` are as they were assigned.
    """

    state: State
    address: str
    plugin: str
    log: str
    pid: int = 0
    began: str | None = None
    guardian: int = 0
    since: float = 0.0
    restarts: int = 0
    gpus: tuple[str, ...] = ()
    detail: str = ""
    hint: str = ""

    @property
    def alive(self) -> bool:
        """Does its process live, whatever the register says of it?"""
        return is_alive(self.pid, self.began)


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What one `llm-hub up` started. `mark` is in the environment of all of it."""

    mark: str
    pid: int
    began: str | None
    since: float
    backends: Mapping[str, RunningBackend] = {}
    version: int = 1

    @property
    def alive(self) -> bool:
        """Does that `llm-hub up` still live?"""
        return is_alive(self.pid, self.began)


def folder_of(state_path: str | None) -> Path:
    """Where register, lock and logs are kept: `control.up` beside `control.json`."""
    if state_path is None:
        raise ConfigurationError(
            "these settings have no control file, beside which `llm-hub up` keeps what it knows",
            hint="Set LLM_HUB_STATE.",
        )
    return Path(state_path).with_suffix(".up")


def read_running(state_path: str | None) -> Running | None:
    """The register, None where nothing was ever started. What it says of a process may have changed: see `alive`.

    Raises HubError for a file that is none of ours.
    """
    if state_path is None:
        return None
    path = folder_of(state_path) / "running.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise HubError(f"{path} cannot be read: {error}", hint="Remove it, if no `llm-hub up` is running.") from error


class Register:
    """Holds the lock of one folder, and writes its register. Raises HubError if another `llm-hub up` has it, or if the folder
    cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            import fcntl
        except ImportError as error:
            raise HubError("`llm-hub up` needs a Unix system", hint="Use `llm-hub compose`.") from error
        try:
            self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 64, 0).decode("utf-8", "replace").strip()
            os.close(self._lock)
            raise HubError(
                f"`llm-hub up` is running already{f', as process {holder}' if holder else ''}",
                hint=f"Stop it ({f'kill {holder}' if holder else 'Ctrl-C where it runs'}), or name another LLM_HUB_STATE.",
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    @property
    def logs(self) -> Path:
        """The folder of the logs, one a backend."""
        return self.folder / "logs"

    def log(self, name: str) -> Path:
        """The log of a backend."""
        return self.logs / f"{name}.log"

    def previous(self) -> Running | None:
        """What the last holder of the lock left; None if that cannot be read."""
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((self.folder / "running.json").read_bytes(), type=Running)
        return None

    def write(self, running: Running) -> None:
        """Replace the register, whole: a reader sees the old one or the new one. Raises HubError where it cannot be written."""
        path = self.folder / "running.json"
        new = path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.format(msgspec.json.encode(running), indent=1) + b"\n")
            new.replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error

    def close(self) -> None:
        """Let go of the lock."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock, 0)
        os.close(self._lock)

    @classmethod
    @contextlib.contextmanager
    def held(cls, folder: Path) -> Iterator[Register]:
        """The register of a folder, let go of at the end."""
        register = cls(folder)
        try:
            yield register
        finally:
            register.close()


def _unwritable(path: Path, error: OSError) -> HubError:
    return HubError(
        f"`llm-hub up` cannot keep what it knows in {path}: {error.strerror or error}",
        hint="Make room or give it the right to, or name another place: LLM_HUB_STATE=/somewhere/control.json.",
    )


def changed(backend: RunningBackend, state: State, *, detail: str = "", hint: str = "") -> RunningBackend:
    """The backend in another state, from now on."""
    since = backend.since if backend.state == state else time.time()
    return msgspec.structs.replace(backend, state=state, since=since, detail=detail, hint=hint)
