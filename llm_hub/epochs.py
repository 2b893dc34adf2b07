"""Epochs: immutable configurations that calls lease, and that close when the last lease is returned."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from llm_hub.errors import HubClosed

__all__ = ["Epoch", "EpochStore", "Lease"]

T = TypeVar("T")


class Epoch(Generic[T]):
    """One configuration, `value`, with the leases that calls hold on it.

    Leasing takes no lock: a lease adds its token and then looks at `retired`; retiring sets `retired` and then looks at
    the tokens. Whatever the order, one of the two sees the other, so `on_drained` runs once, after the last lease.
    """

    __slots__ = ("_drained", "_on_drained", "number", "retired", "tokens", "value")

    def __init__(self, number: int, value: T, on_drained: Callable[[T], None]) -> None:
        self.number = number
        self.value = value
        self.retired = False
        self.tokens: set[object] = set()
        self._on_drained = on_drained
        self._drained = threading.Lock()  # taken once, by whoever gets to close

    def retire(self) -> None:
        """No new leases; close as soon as none is left."""
        self.retired = True
        self.settle()

    def claim(self) -> bool:
        """Take over the closing, so that nobody else does it. False if it has been done or taken already."""
        return self._drained.acquire(blocking=False)

    def settle(self) -> None:
        """Close if retired and no lease is left. Called whenever either may have become true."""
        if self.retired and not self.tokens and self.claim():
            self._on_drained(self.value)


class Lease(Generic[T]):
    """Keeps an epoch from closing. `release` may be called any number of times, and is, when the lease is dropped."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: Epoch[T]) -> None:
        self.epoch = epoch
        epoch.tokens.add(id(self))

    @property
    def value(self) -> T:
        """What the epoch holds."""
        return self.epoch.value

    def release(self) -> None:
        """Give it back."""
        epoch = self.epoch
        epoch.tokens.discard(id(self))
        if epoch.retired:
            epoch.settle()

    __del__ = release


class EpochStore(Generic[T]):
    """The current epoch. Publishing another is one assignment; whoever holds a lease keeps what it has."""

    __slots__ = ("_numbers", "current")

    def __init__(self) -> None:
        self.current: Epoch[T] | None = None
        self._numbers = itertools.count(1)

    def next_epoch(self, value: T, on_drained: Callable[[T], None]) -> Epoch[T]:
        """An epoch with the next number, not yet published."""
        return Epoch(next(self._numbers), value, on_drained)

    def publish(self, epoch: Epoch[T] | None) -> None:
        """Make this the current epoch (None: there is none any more) and retire the one before."""
        previous, self.current = self.current, epoch
        if previous is not None:
            previous.retire()

    def lease(self) -> Lease[T]:
        """A lease on the current epoch. Raises HubClosed when there is none."""
        while True:
            epoch = self.current
            if epoch is None:
                raise HubClosed("the hub is closed", hint="Open a new one.")
            lease = Lease(epoch)
            if not epoch.retired:
                return lease
            lease.release()  # lost the race against a switch
