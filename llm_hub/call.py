"""What travels with one call besides the request: its deadlines, its cancellation and its identity."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from llm_hub.errors import Cancelled, DeadlineExceeded

if TYPE_CHECKING:
    from llm_hub.watching import Watching

__all__ = ["Call", "CancelToken", "Timeouts"]

_serial = itertools.count(1)


class Timeouts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The deadlines of a backend, in seconds.

    `connect` until the connection stands; `load` while the backend says that it is loading the model; `first_token`
    from then until the first piece of a streamed answer; `between_tokens` from one piece to the next; `whole` for an
    answer that is not streamed (it arrives in one piece, so the first token says nothing about it).
    """

    connect: float = 5.0
    load: float = 300.0
    first_token: float = 120.0
    between_tokens: float = 60.0
    whole: float = 600.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {value}")


class CancelToken:
    """Cancels the calls it was given to, from any thread, once and for all.

    Callbacks run in the thread that cancels; they must be quick and must not raise.
    """

    __slots__ = ("_callbacks", "_cancelled")

    def __init__(self) -> None:
        self._cancelled = False
        self._callbacks: dict[object, Callable[[], object]] = {}

    @property
    def cancelled(self) -> bool:
        """Has `cancel` been called?"""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel. Calling it again does nothing."""
        self._cancelled = True
        while self._callbacks:
            try:
                _, callback = self._callbacks.popitem()
            except KeyError:  # another thread cancels as well
                return
            callback()

    def subscribe(self, key: object, callback: Callable[[], object]) -> None:
        """Run `callback` on cancellation (now, if that has happened), until `unsubscribe(key)`."""
        self._callbacks[key] = callback
        # Looked at after the entry is in place, so that a cancel in between is seen by one side or the other.
        if self._cancelled and self._callbacks.pop(key, None) is not None:
            callback()

    def unsubscribe(self, key: object) -> None:
        """Forget the callback of `key`, if it is still there."""
        self._callbacks.pop(key, None)


class Call:
    """One call on its way through the hub: total deadline, stage deadlines, cancellation, identity.

    `deadline` is on the clock of `time.monotonic()`, infinite when the caller gave none. `repeatable` False: the
    request must reach a backend at most once. `watching` tells observers how it goes on, where there are any. A `Call` belongs to one call and is not reused.
    """

    __slots__ = ("_request_id", "cancel", "deadline", "repeatable", "started", "timeout", "timeouts", "watching")

    def __init__(
        self,
        *,
        timeout: float | None = None,
        timeouts: Timeouts | None = None,
        cancel: CancelToken | None = None,
        repeatable: bool = True,
        request_id: str | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.timeout = timeout
        self.deadline = math.inf if timeout is None else self.started + timeout
        self.timeouts = timeouts or DEFAULT_TIMEOUTS
        self.cancel = cancel
        self.repeatable = repeatable
        self._request_id = request_id
        self.watching: Watching | None = None

    @property
    def request_id(self) -> str:
        """Unique among the processes of this machine; part of log records, and sent where a backend takes one."""
        if self._request_id is None:
            self._request_id = f"hub-{os.getpid():x}-{time.time_ns():x}-{next(_serial):x}"
        return self._request_id

    @property
    def cancelled(self) -> bool:
        """Has the caller given up?"""
        return self.cancel is not None and self.cancel.cancelled

    def cancellation(self) -> CancelToken:
        """The token that cancels this call; made now if the caller gave none."""
        if self.cancel is None:
            self.cancel = CancelToken()
        return self.cancel

    def remaining(self) -> float:
        """Seconds until the total deadline, infinite without one, negative when it has passed."""
        return self.deadline - time.monotonic()

    def check(self, backend: str | None = None) -> None:
        """Raise Cancelled or DeadlineExceeded if either has happened."""
        if self.cancel is not None and self.cancel.cancelled:
            raise Cancelled(backend=backend)
        if self.deadline != math.inf and self.remaining() <= 0:
            raise self.expired(backend)

    def expired(self, backend: str | None = None) -> DeadlineExceeded:
        """The error for a total deadline that has passed."""
        return DeadlineExceeded(
            f"the call's deadline of {self.timeout:g} s passed" if self.timeout is not None else "the deadline passed",
            stage="total",
            seconds=self.timeout,
            backend=backend,
            hint="Give the call a longer timeout, or ask for a shorter answer (max_tokens).",
        )


DEFAULT_TIMEOUTS = Timeouts()
