"""One breaker a backend: it stops sending calls to one that fails, and lets a single call try when its time is up."""

from __future__ import annotations

import enum
import math
import threading
import time
from collections.abc import Callable

from llm_hub.retries import CHANCE

__all__ = ["Breaker", "BreakerState"]

THRESHOLD = 3
"""How many distinct requests must have failed since the last success before a backend is left alone."""

_FIRST = 1.0  # seconds of the first cool-down; each one that follows is twice as long
_LONGEST = 60.0
_LONGEST_ASKED = 3600.0  # of what a server may ask for
_STABLE = 60.0  # seconds after which a backend that has come back is believed to be well
_REMEMBERED = 32  # requests whose failure is remembered; more than THRESHOLD needs no counting


class BreakerState(enum.StrEnum):
    """What a breaker does with calls."""

    CLOSED = "closed"
    """All go through."""
    OPEN = "open"
    """The backend cools down."""
    HALF_OPEN = "half-open"
    """The cool-down is over: one call may try."""


class Breaker:
    """Decides whether a backend is to be tried. It never forbids: routing tries what is open last, not never.

    Failures count once for each distinct request, so that a poison request opens nothing; a success wipes them out.
    `clock` is monotonic, in seconds. Safe to use from any thread; the path of a healthy call takes no lock.
    """

    __slots__ = (
        "_blamed",
        "_clock",
        "_closed_at",
        "_held",
        "_jitter",
        "_level",
        "_lock",
        "_open",
        "_opened_at",
        "_trial",
        "asked",
        "opened",
        "reason",
        "until",
    )

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = CHANCE.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._open = False
        self._blamed: dict[object, None] = {}
        self._trial: int | None = None  # the id of a visitor, which may be dropped
        self._level = 0
        self._opened_at = -math.inf
        self._held = -math.inf
        self._closed_at = -math.inf
        self.until = -math.inf
        self.reason = ""
        self.asked = False  # did the server itself ask to be left alone until then?
        self.opened = 0  # how many times

    # -- asking -------------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Do all calls go through?"""
        return not self._open

    @property
    def state(self) -> BreakerState:
        """What it does with calls now."""
        if not self._open:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._clock() < self.until else BreakerState.HALF_OPEN

    def cooling(self) -> float:
        """Seconds until a call may try again; 0 if it may."""
        return max(0.0, self.until - self._clock()) if self._open else 0.0

    def admit(self, visitor: object) -> bool:
        """May this call go to the backend? When half-open that makes it the one that tries, until it says how it went."""
        if not self._open:
            return True
        with self._lock:
            if not self._is_open():
                return True
            if self._clock() < max(self.until, self._held) or self._trial is not None:
                return False
            self._trial = id(visitor)
            return True

    # -- being told ---------------------------------------------------------------------------------------------------

    def succeeded(self, visitor: object, began: float) -> bool:
        """A call that began at this time was served. True if that closed the breaker."""
        if not self._open:
            if self._blamed:
                self._blamed.clear()
            return False
        with self._lock:
            if not self._is_open() or (began < self._opened_at and self._trial != id(visitor)):
                return False  # what began before it broke proves nothing
            self._close()
            return True

    def blame(self, visitor: object, request: object, reason: str, *, at_once: bool = False) -> bool:
        """The backend failed at `request`. True if that opened the breaker, or kept it open for longer.

        `at_once` is for what needs no second witness: an engine that has died.
        """
        with self._lock:
            tried = self._trial == id(visitor)
            if tried:
                self._trial = None
            if self._open:
                if tried or (at_once and self._clock() >= self.until):
                    self._cool_down(reason)
                    return True
                return False
            if len(self._blamed) < _REMEMBERED:
                self._blamed[request] = None
            if not at_once and len(self._blamed) < THRESHOLD:
                return False
            self._cool_down(reason)
            return True

    def pause(self, visitor: object, seconds: float, reason: str) -> bool:
        """The server asked to be left alone for so many seconds. True if the breaker was closed."""
        with self._lock:
            if self._trial == id(visitor):
                self._trial = None
            was_closed = not self._open
            until = self._clock() + min(seconds, _LONGEST_ASKED)
            if was_closed or until > self.until:
                self.until = until
                self.reason = reason
                self.asked = True
            if was_closed:
                self._opened_at = self._clock()
                self.opened += 1
            self._open = True
            return was_closed

    def leave(self, visitor: object) -> None:
        """A call ended without telling anything about the backend (it was cancelled): another may try."""
        # No lock: the garbage collector may come here while this very thread holds it.
        if self._trial == id(visitor):
            self._trial = None

    def hold(self, seconds: float) -> None:
        """A probe is on its way: for so many seconds at most, no call need be risked."""
        self._held = self._clock() + seconds

    def probed(self, *, well: bool, reason: str = "") -> bool:
        """A probe in the background found it well, so a call may try now; or not, so it cools down for longer.

        True if that changed anything.
        """
        with self._lock:
            self._held = -math.inf
            if well:
                if not self._open or self.asked:
                    return False
                self.until = self._clock()
                return True
            self._cool_down(reason)
            return True

    def _is_open(self) -> bool:
        """Asked again under the lock, after the look without it."""
        return self._open

    def _cool_down(self, reason: str) -> None:
        now = self._clock()
        if not self._open and now - self._closed_at > _STABLE:
            self._level = 0
        seconds = min(_LONGEST, _FIRST * 2**self._level)
        # Jitter, so that many processes do not come back to it at the same moment.
        self.until = now + seconds * (0.8 + 0.4 * self._jitter())
        self._level = min(self._level + 1, 16)
        self.reason = reason
        self.asked = False
        self.opened += 1
        self._opened_at = now
        self._open = True
        self._trial = None
        self._blamed.clear()

    def _close(self) -> None:
        self._open = False
        self._trial = None
        self._blamed.clear()
        self._closed_at = self._clock()
        self.reason = ""
        self.asked = False

    def forked(self) -> None:
        """In the child of a fork: no other thread holds the lock, and who was to try is not here."""
        self._lock = threading.Lock()
        self._trial = None
