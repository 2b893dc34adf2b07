"""One small thread a process that notices a change of the control file, and says how far this process has come.

The call path never looks at the file: it reads an attribute, which this thread has others assign.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from llm_hub.control_file import FileBook, Signature
from llm_hub.presence import Presence, Report

if TYPE_CHECKING:
    from llm_hub.health import BackendCondition

__all__ = ["Follower", "Standing", "follow", "unfollow"]

logger = logging.getLogger("llm_hub")

PAUSE = 0.02
"""Seconds between two looks at the file. Asking for its state costs microseconds, and works on every mounted volume."""

_REPORTS = 1.0  # seconds between two reports, where nothing but numbers has changed
_AGAIN = 1.0  # seconds after which what could not be taken up is tried again
_ANYWAY = 5.0  # seconds after which the file is read even if it looks the same: network file systems remember its state


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far a hub has come: see `Report`."""

    epoch: int
    switch: str
    tried: str
    problem: str | None
    pinned: bool
    backends: Sequence[BackendCondition]


class Follower(Protocol):
    """A hub that follows a control file."""

    def refresh(self) -> None:
        """Take up what the file says now. Never raises; it may take long."""
        ...

    def standing(self) -> Standing:
        """How far it has come."""
        ...


class _Followed:
    """A control file, and the hubs of this process that follow it."""

    def __init__(self, path: str, *, meant: bool) -> None:
        self.meant = meant  # somebody has named it; the one that is there by default need not be wanted at all
        self.book = FileBook(path)
        self.followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        self.signature: Signature | None = None
        self.presence: Presence | None = None
        self.silent = False
        self.busy = threading.Lock()
        self.coming = False  # a thread that has not looked at the file yet is on its way
        self.reporting = threading.Lock()
        self.again = time.monotonic() + _ANYWAY
        self.due = 0.0
        self.said: tuple[object, ...] | None = None
        self.since = time.time()

    def look(self, now: float) -> None:
        """Notice a change; what follows from it is done in another thread, so that the next one is noticed too."""
        signature = self.book.signature()
        if signature != self.signature or now >= self.again:
            self.signature, self.again = signature, now + _ANYWAY
            # One that waits while another builds or warms an epoch, however long that takes, is enough.
            before, self.coming = self.coming, True
            try:
                if not before:
                    threading.Thread(target=self._refresh, name="llm-hub-switch", daemon=True).start()
            except RuntimeError as error:  # the interpreter ends, or the process can have no more threads
                self.signature, self.coming = None, False
                logger.debug("a change of %s waits for a thread: %s", self.book.where, error)
        if now >= self.due:
            self.due = now + _REPORTS
            self.report()

    def _refresh(self) -> None:
        with self.busy:
            self.coming = False
            followers = list(self.followers)
            for follower in followers:
                follower.refresh()
            if any(follower.standing().problem for follower in followers):
                self.again = time.monotonic() + _AGAIN
        self.report()

    def report(self) -> None:
        """Say how far this process has come, if that has changed."""
        with self.reporting:
            self._report()

    def _report(self) -> None:
        standings = [follower.standing() for follower in list(self.followers)]
        if not standings:
            return
        # Of several hubs the one that has not come along is what others wait for.
        behind = min(standings, key=lambda one: (one.problem is None, one.epoch))
        said = (behind.epoch, behind.switch, behind.tried, behind.problem, behind.pinned, behind.backends)
        if said == self.said:
            return
        report = Report(
            name=_name(),
            host=socket.gethostname(),
            since=self.since,
            written=time.time(),
            epoch=behind.epoch,
            switch=behind.switch,
            tried=behind.tried,
            problem=behind.problem,
            pinned=behind.pinned,
            backends=tuple(behind.backends),
        )
        try:
            if self.presence is None:
                self.presence = Presence(self.book)
            self.presence.write(report)
            self.said, self.silent = said, False
        except OSError as error:
            # It follows all the same. Only those who wait for it cannot see it, until this works again.
            if self.presence is not None:
                self.presence.close()
                self.presence = None
            if not self.silent:
                logger.log(
                    logging.WARNING if self.meant else logging.DEBUG,
                    "this process cannot say in %s that it follows %s, so `llm-hub status` does not show it: %s",
                    self.book.folder,
                    self.book.where,
                    error,
                )
            self.silent = True


class _Watcher:
    """The thread. It ends when nobody follows any more, and never keeps the process alive."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.followed: dict[str, _Followed] = {}
        self.thread: threading.Thread | None = None

    def add(self, path: str, follower: Follower, *, meant: bool) -> None:
        with self.lock:
            one = self.followed.get(path)
            if one is None:
                one = self.followed[path] = _Followed(path, meant=meant)
                one.signature = one.book.signature()
            one.followers.add(follower)
            if self.thread is None:
                thread = threading.Thread(target=self._run, name="llm-hub-watcher", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # the interpreter ends, or the process can have no more threads
                    logger.error("this process cannot follow %s, and serves on as it is: %s", path, error)
                    return
                self.thread = thread

    def remove(self, path: str, follower: Follower) -> None:
        with self.lock:
            one = self.followed.get(path)
            if one is None:
                return
            one.followers.discard(follower)
            if not one.followers:
                self._drop(path)

    def _drop(self, path: str) -> None:
        presence = self.followed.pop(path).presence
        if presence is not None:
            presence.close()

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            with self.lock:
                for path in [path for path, one in self.followed.items() if not one.followers]:
                    self._drop(path)
                looked_at = list(self.followed.values())
                if not looked_at:
                    self.thread = None
                    return
            for one in looked_at:
                try:
                    one.look(now)
                except Exception:  # the thread must go on, whatever it is
                    logger.exception("the watcher of %s has failed", one.book.where)
            time.sleep(PAUSE)


_watcher = _Watcher()


def follow(path: str, follower: Follower, *, meant: bool = True) -> None:
    """Have this hub told of every change of the control file, from now on; it is held weakly.

    `meant`: somebody has named this file, and so wants to know if this process cannot be seen there.
    """
    _watcher.add(path, follower, meant=meant)


def unfollow(path: str, follower: Follower) -> None:
    """Tell it no more."""
    _watcher.remove(path, follower)


def _name() -> str:
    program = os.path.basename(sys.argv[0] if sys.argv else "")  # noqa: PTH119
    if program == "__main__.py":
        program = os.path.basename(os.path.dirname(os.path.abspath(sys.argv[0])))  # noqa: PTH100, PTH119, PTH120
    return program if program not in ("", "-c", "-m") else "python"


def _leave() -> None:
    """At the end of the process: nobody waits for it any more."""
    for one in list(_watcher.followed.values()):
        if one.presence is not None:
            one.presence.close()


def _after_fork() -> None:
    """In the child there is no such thread yet, and what is locked is locked by the parent."""
    global _watcher
    before, _watcher = _watcher, _Watcher()
    for one in before.followed.values():
        if one.presence is not None:
            one.presence.forget()


atexit.register(_leave)
os.register_at_fork(after_in_child=_after_fork)
