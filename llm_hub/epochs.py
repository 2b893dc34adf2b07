"""Epochs: immutable configurations that calls lease, and that close when the last lease is returned."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from llm_hub.errors import HubClosed, HubError

__all__ = ["Epoch", "EpochStore", "Lease"]

T = TypeVar("T")

Told = Callable[[HubError], object]


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
        self.tokens: dict[int, weakref.WeakMethod[Told] | None] = {}
        self._on_drained = on_drained
        self._drained = threading.Lock()  # taken once, by whoever gets to close

    def retire(self) -> None:
        """No new leases; close as soon as none is left."""
        self.retired = True
        self.settle()

    def claim(self) -> bool:
        """Take over the closing, so that nobody else does it. False if it has been done or taken already."""
        return self._drained.acquire(blocking=False)

    @property
    def closed(self) -> bool:
        """Has its closing begun?"""
        return self._drained.locked()

    def settle(self) -> None:
        """Close if retired and no lease is left. Called whenever either may have become true."""
        if self.retired and not self.tokens and self.claim():
            self._on_drained(self.value)

    def expire(self, error: HubError) -> int:
        """The drain deadline: tell `error` to those that still hold a lease and asked to be told, and close all the same.

        Returns how many leases there were.
        """
        waiting = list(self.tokens.values())
        if self.closed:
            return 0
        for token in waiting:
            if token is not None and (told := token()) is not None:
                told(error)
        if self.claim():
            self._on_drained(self.value)
        return len(waiting)


class Lease(Generic[T]):
    """Keeps an epoch from closing. `release` may be called any number of times, and is, when the lease is dropped."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: Epoch[T]) -> None:
        self.epoch = epoch
        epoch.tokens[id(self)] = None

    @property
    def value(self) -> T:
        """What the epoch holds."""
        return self.epoch.value

    def attach(self, told: Told) -> None:
        """Call this bound method, with the error to end with, should the drain deadline come before the lease is returned.

        It is held weakly, so that whoever holds the lease can still be dropped. It is called in another thread, must be
        quick and must not raise.
        """
        tokens = self.epoch.tokens
        if id(self) in tokens:
            tokens[id(self)] = weakref.WeakMethod(told)

    def release(self) -> None:
        """Give it back."""
        epoch = self.epoch
        epoch.tokens.pop(id(self), None)
        if epoch.retired:
            epoch.settle()

    __del__ = release


class EpochStore(Generic[T]):
    """The current epoch. Publishing another is one assignment; whoever holds a lease keeps what it has.

    `on_first` runs in the thread that takes the first lease, before it gets it, and again in the child of a fork: what
    has to be alive while epochs are leased (a thread that watches for the next one) is begun there, not sooner.
    """

    __slots__ = ("__weakref__", "_beginning", "_ended", "_numbers", "_on_first", "_resting", "_swapping", "current")

    def __init__(self, on_first: Callable[[], None] | None = None) -> None:
        self.current: Epoch[T] | None = None
        self._numbers = itertools.count(1)
        self._on_first = on_first
        self._resting: Epoch[T] | None = None
        self._ended = False
        self._beginning = threading.RLock()
        self._swapping = threading.Lock()
        _STORES.add(self)

    def next_epoch(self, value: T, on_drained: Callable[[T], None], *, number: int | None = None) -> Epoch[T]:
        """An epoch, not yet published; its number is the next one if none is given."""
        return Epoch(next(self._numbers) if number is None else number, value, on_drained)

    def publish(self, epoch: Epoch[T] | None) -> Epoch[T] | None:
        """Make this the current epoch (None: there is none any more) and retire the one before, which is returned.

        Where nobody has wanted a lease yet, it is the one that will be current as soon as somebody does. None is the end:
        what is published after it raises HubClosed.
        """
        with self._swapping:
            if self._ended and epoch is not None:
                raise HubClosed("the hub is closed", hint="Open a new one.")
            self._ended = epoch is None
            previous = self.current or self._resting
            if self.current is None and previous is not None and epoch is not None:
                self._resting = epoch
            else:
                self.current, self._resting = epoch, None
        if previous is not None:
            previous.retire()
        return previous

    def rest(self, epoch: Epoch[T]) -> None:
        """Make this the epoch that will be current as soon as somebody wants a lease."""
        self._resting = epoch

    @property
    def latest(self) -> Epoch[T] | None:
        """The current epoch, or the one that is going to be; None when there is none any more."""
        return self.current or self._resting

    def lease(self) -> Lease[T]:
        """A lease on the current epoch. Raises HubClosed when there is none."""
        while True:
            epoch = self.current
            if epoch is None:
                self._begin()
                continue
            lease = Lease(epoch)
            if not epoch.retired:
                return lease
            lease.release()  # lost the race against a switch

    def _begin(self) -> None:
        with self._beginning:
            with self._swapping:
                if self.current is not None:
                    return
                if self._resting is None:
                    raise HubClosed("the hub is closed", hint="Open a new one.")
                self.current, self._resting = self._resting, None
            if self._on_first is not None:
                self._on_first()

    def _forked(self) -> None:
        self._beginning, self._swapping = threading.RLock(), threading.Lock()
        epoch = self.current or self._resting
        if epoch is not None:
            epoch.tokens.clear()  # those who held these leases are threads of the parent
            if self._on_first is not None:
                self.current, self._resting = None, epoch


_STORES: weakref.WeakSet[EpochStore[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for store in list(_STORES):
        store._forked()


os.register_at_fork(after_in_child=_after_fork)
