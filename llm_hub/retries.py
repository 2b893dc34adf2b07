"""When a request is sent again: the budget that bounds it, and how long to wait before."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

__all__ = ["CHANCE", "RetryBudget", "backoff"]

CHANCE = random.SystemRandom()
"""Where jitter comes from. The shared generator may be seeded by a service, in all of its processes alike: then they would all
come back at the same moment, and the service would not get the numbers that it seeded."""

SHARE = 0.2
"""Retries, as a share of the requests of the window."""
RESERVE = 10
"""Retries that are allowed in any window, so that a backend with few calls has some at all."""
WINDOW = 10
"""Seconds; counted in slots of one second."""

_BASE = 0.1  # seconds
_LONGEST = 5.0


def backoff(retry: int, *, jitter: Callable[[], float] = CHANCE.random) -> float:
    """Seconds to wait before retry number `retry` (from 0): anywhere up to a bound that doubles.

    "Full jitter", which spreads callers the most:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    return jitter() * float(min(_LONGEST, _BASE * 2**retry))


class RetryBudget:
    """Allows RESERVE retries a window, and SHARE of the requests on top. Safe to use from any thread."""

    __slots__ = ("_clock", "_lock", "_requests", "_retries", "_slot")

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._slot = int(clock())
        self._requests = [0] * WINDOW
        self._retries = [0] * WINDOW

    def request(self, now: float) -> None:
        """A request came, at this time of the clock.

        Without a lock: a count that two threads lose to each other makes the budget smaller, never larger.
        """
        if int(now) != self._slot:
            with self._lock:
                self._turn(int(now))
        self._requests[self._slot % WINDOW] += 1

    def take(self) -> bool:
        """Take one retry out of the budget; False if none is left."""
        with self._lock:
            self._turn(int(self._clock()))
            if sum(self._retries) + 1 > RESERVE + SHARE * sum(self._requests):
                return False
            self._retries[self._slot % WINDOW] += 1
            return True

    def left(self) -> int:
        """How many retries it would allow now."""
        with self._lock:
            self._turn(int(self._clock()))
            return max(0, int(RESERVE + SHARE * sum(self._requests) - sum(self._retries)))

    def _turn(self, slot: int) -> None:
        """Empty the slots that have left the window."""
        for passed in range(max(self._slot + 1, slot - WINDOW + 1), slot + 1):
            self._requests[passed % WINDOW] = 0
            self._retries[passed % WINDOW] = 0
        self._slot = max(self._slot, slot)

    def forked(self) -> None:
        """In the child of a fork, where nobody else holds the lock."""
        self._lock = threading.Lock()
