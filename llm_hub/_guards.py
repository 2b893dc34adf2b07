"""The deadlines and the cancellation of one HTTP exchange, as what the sockets under it obey.

The HTTP client hands the `timeout` of a request down to every read and write untouched. Here that object is a `Guard`,
so each read is clamped to what is left of the current stage: headers that trickle in byte by byte, or a body that
stalls, cannot outlive their deadline. Whoever cancels, or the watchdog of an event loop, shuts the socket down, which
wakes the reader at once in either world.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
import time

from llm_hub.call import Call
from llm_hub.errors import Cancelled, DeadlineExceeded, HubError

__all__ = ["AsyncGuard", "Guard", "shut"]


class Guard:
    """The deadlines of one exchange, for blocking sockets.

    `stage` is what is being waited for, `until` when its deadline passes (monotonic). `reused` and `received` tell
    whether the exchange was put on a kept-alive connection, and whether a byte of the answer came.
    """

    __slots__ = (
        "after",
        "backend",
        "call",
        "failure",
        "lock",
        "received",
        "reused",
        "seconds",
        "sock",
        "stage",
        "until",
    )

    def __init__(self, call: Call, backend: str, after: tuple[str, float]) -> None:
        self.call = call
        self.backend = backend
        self.after = after
        self.failure: HubError | None = None
        self.lock = threading.Lock()
        self.received = False
        self.reused = False
        self.sock: socket.socket | None = None
        self.stage = "connect"
        self.seconds = call.timeouts.connect
        self.until = min(time.monotonic() + self.seconds, call.deadline)
        if call.cancel is not None:
            call.cancel.subscribe(self, self.cancel)

    def connected(self) -> None:
        """The connection stands, the request goes out: what is waited for now is the answer."""
        if self.stage == "connect":
            self.enter(*self.after)

    def enter(self, stage: str, seconds: float) -> None:
        """Begin to wait for something else."""
        self.stage = stage
        self.seconds = seconds
        self.until = min(time.monotonic() + seconds, self.call.deadline)

    def left(self) -> float:
        """Seconds that may still be waited. Raises what ended the exchange, if anything has."""
        if self.failure is not None:
            raise self.failure
        left = self.until - time.monotonic()
        if left <= 0:
            raise self.expired()
        return left

    def expired(self) -> HubError:
        """The error for the stage that took too long."""
        if self.until >= self.call.deadline:
            return self.call.expired(self.backend)
        return DeadlineExceeded(
            f"{_WAITING.get(self.stage, self.stage)} took more than {self.seconds:g} s",
            stage=self.stage,
            seconds=self.seconds,
            backend=self.backend,
            hint=f"If it needs longer, raise timeouts.{self.stage.replace(' ', '_')} of this backend.",
        )

    def attach(self, sock: socket.socket) -> float:
        """From now on `sock` is what a cancellation shuts. Returns the seconds left."""
        self.sock = sock
        return self.left()

    def cancel(self) -> None:
        """Called in the thread that cancels."""
        self.fail(Cancelled(backend=self.backend))

    def fail(self, failure: HubError) -> None:
        """End the exchange with this error and wake whoever reads or writes."""
        with self.lock:  # so that a socket which has gone back to the pool is not shut
            if self.failure is None:
                self.failure = failure
            if self.sock is not None:
                shut(self.sock)

    def wake(self) -> None:
        """Shut the socket, with no lock taken: for what the garbage collector runs."""
        sock = self.sock
        if sock is not None:
            shut(sock)

    def finish(self) -> None:
        """The exchange is over: its socket may go back to the pool."""
        with self.lock:
            self.sock = None
        if self.call.cancel is not None:
            self.call.cancel.unsubscribe(self)


class AsyncGuard(Guard):
    """A Guard for an event loop: one watchdog timer an exchange, set anew only when it is due."""

    __slots__ = ("due", "loop", "scope", "timer")

    def __init__(self, call: Call, backend: str, after: tuple[str, float]) -> None:
        self.loop = asyncio.get_running_loop()
        self.scope: asyncio.Timeout | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.due = math.inf
        super().__init__(call, backend, after)
        self._arm()

    def enter(self, stage: str, seconds: float) -> None:
        super().enter(stage, seconds)
        if self.until < self.due:
            self._arm()

    def _arm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.due = self.until
        self.timer = None if self.until == math.inf else self.loop.call_later(self.until - time.monotonic(), self._tick)

    def _tick(self) -> None:
        if self.until > time.monotonic():  # the stage has changed since the timer was set
            self._arm()
        else:
            self.timer = None
            self.fail(self.expired())
            self._interrupt()

    def cancel(self) -> None:
        super().cancel()
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing runs there any more
            self.loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        """Wake a connect or a name look-up, which no socket's end would wake."""
        if self.scope is not None and not self.scope.expired():  # its own timer may have been a moment faster
            self.scope.reschedule(self.loop.time())

    def finish(self) -> None:
        super().finish()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


_WAITING = {
    "connect": "connecting",
    "first token": "the first token",
    "between tokens": "the next token",
    "whole": "the answer",
}


def shut(sock: socket.socket) -> None:
    """Wake every reader and writer of the socket, in whatever thread or loop it is."""
    with contextlib.suppress(OSError):  # not connected any more, or closed: then nobody waits
        sock.shutdown(socket.SHUT_RDWR)
