"""How many calls a backend is given at a time; the others wait in a bounded queue, in their order."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import Protocol

__all__ = ["Limiter", "QueueFull", "Waiter"]


class QueueFull(Exception):
    """No place, and none to wait in."""


class Waiter(Protocol):
    """Somebody who wants a place: a thread or a task. `gone` is set when it has left, for good."""

    gone: bool

    def wake(self) -> None:
        """The place is yours. May be called from any thread, once."""
        ...


class Limiter:
    """Places in a backend, and the queue for them, in which threads and tasks stand together.

    `places` None: no limit. `leave` may be called any number of times, and by the garbage collector, even while the
    very same thread is inside `enter`: it only ever tries the lock, and whoever holds it looks again afterwards.
    """

    __slots__ = ("_inside", "_lock", "_waiting", "places", "queue")

    def __init__(self, places: int | None = None, queue: int = 0) -> None:
        self.places = places
        self.queue = queue
        self._lock = threading.Lock()
        self._inside: set[int] = set()
        self._waiting: deque[Waiter] = deque()

    @property
    def inside(self) -> int:
        """How many have a place."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """How many stand in the queue."""
        return len(self._waiting)

    def enter(self, waiter: Waiter) -> bool:
        """Take a place, or stand in the queue and be woken with one. True if it is there at once. Raises QueueFull."""
        if self.places is None:
            self._inside.add(id(waiter))
            return True
        with self._lock:
            if not self._waiting and len(self._inside) < self.places:
                self._inside.add(id(waiter))
                return True
            full = len(self._waiting) >= self.queue
            if not full:
                self._waiting.append(waiter)
        self._serve()  # for those who left while the lock was held
        if full:
            raise QueueFull
        return False

    def leave(self, waiter: Waiter) -> None:
        """Give the place back, or leave the queue."""
        # Marked first and looked at last by `_serve`, so that a place given at this very moment is not lost.
        waiter.gone = True
        if id(waiter) in self._inside:
            self._inside.discard(id(waiter))
        elif self._waiting:
            with contextlib.suppress(ValueError, IndexError):  # it is not there, or was just let in
                self._waiting.remove(waiter)
            self._inside.discard(id(waiter))
        if self._waiting:
            self._serve()

    def has_place(self, waiter: Waiter) -> bool:
        """Has it been given a place?"""
        return id(waiter) in self._inside

    def _serve(self) -> None:
        """Give the places that are free to those who wait, first come first served."""
        while self._waiting and (self.places is None or len(self._inside) < self.places):
            if not self._lock.acquire(blocking=False):
                return  # whoever holds it looks again, below
            woken = []
            try:
                while self._waiting and (self.places is None or len(self._inside) < self.places):
                    try:
                        waiter = self._waiting.popleft()
                    except IndexError:  # it has just left
                        break
                    self._inside.add(id(waiter))
                    if waiter.gone:
                        self._inside.discard(id(waiter))
                    else:
                        woken.append(waiter)
            finally:
                self._lock.release()
            for waiter in woken:
                waiter.wake()

    def forked(self) -> None:
        """In the child of a fork: whoever was inside or waited is not here."""
        self._lock = threading.Lock()
        self._inside = set()
        self._waiting = deque()
