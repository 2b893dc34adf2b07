"""Sockets that obey the deadlines and the cancellation of a call, under the HTTP client of `transport.py`.

The client hands the `timeout` of a request down to every read and write untouched. Here that object is a `Guard`, so
each read is clamped to what is left of the current stage: headers that trickle in byte by byte, or a body that stalls,
cannot outlive their deadline. Whoever cancels, or the watchdog of an event loop, shuts the socket down, which wakes
the reader at once in either world.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

import httpcore

from llm_hub.call import Call
from llm_hub.errors import BackendUnreachable, Cancelled, DeadlineExceeded, HubError

__all__ = ["OPEN", "AsyncGuard", "AsyncNetwork", "Guard", "SyncNetwork", "snapshot"]

S = TypeVar("S")

_SLICE = 0.05  # how often a blocking connect looks whether it was cancelled, in seconds
_DNS_HINT = "Check the host in its base_url."
_DOWN_HINT = "Start it, or correct its base_url; `llm-hub doctor` tells more."

Address = tuple[int, int, int, Any]


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
        if self.scope is not None:
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


def snapshot(streams: weakref.WeakSet[S]) -> list[S]:
    """The members now. Another thread may open a connection meanwhile, which a set does not like while it is read."""
    while True:
        try:
            return list(streams)
        except RuntimeError:
            continue


def _refused(guard: Guard, host: str, port: int, error: OSError) -> BackendUnreachable:
    if isinstance(error, socket.gaierror):
        return BackendUnreachable(f"cannot resolve the host {host!r}", backend=guard.backend, hint=_DNS_HINT)
    reason = "refused the connection" if error.errno == errno.ECONNREFUSED else (error.strerror or str(error))
    return BackendUnreachable(f"{host}:{port} {reason[:1].lower()}{reason[1:]}", backend=guard.backend, hint=_DOWN_HINT)


def _tls_failed(guard: Guard, host: str | None, error: OSError) -> BackendUnreachable:
    if isinstance(error, ssl.SSLCertVerificationError):
        return BackendUnreachable(
            f"the TLS certificate of {host} is not valid: {error.verify_message}",
            backend=guard.backend,
            hint="Renew it, or add its authority to the file that SSL_CERT_FILE names.",
        )
    reason = getattr(error, "reason", None) or str(error)
    return BackendUnreachable(
        f"{host} does not speak TLS as expected ({reason})",
        backend=guard.backend,
        hint="Is its base_url http:// rather than https://?",
    )


def _readable(sock: socket.socket) -> bool:
    """Is there something to read on an idle connection? Then the server has closed it."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _open_socket(family: int, kind: int, proto: int, options: Iterable[Any]) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in options:
        sock.setsockopt(*option)
    return sock


# -- blocking ---------------------------------------------------------------------------------------------------------


class SyncStream(httpcore.NetworkStream):
    """A blocking connection."""

    def __init__(self, sock: socket.socket, siblings: weakref.WeakSet[SyncStream]) -> None:
        self.sock = sock
        self.used = False
        self.siblings = siblings
        siblings.add(self)
        OPEN.add(self)

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        guard: Guard = timeout
        self.sock.settimeout(guard.attach(self.sock))
        try:
            data = self.sock.recv(max_bytes)
        except TimeoutError as error:
            guard.left()
            raise guard.expired() from error
        except OSError as error:
            guard.left()
            raise httpcore.ReadError(str(error)) from error
        if data:
            guard.received = True
        else:
            guard.left()
        return data

    def write(self, buffer: bytes, timeout: Any = None) -> None:
        guard: Guard = timeout
        guard.connected()
        guard.reused = guard.reused or (self.used and not guard.received)
        view = memoryview(buffer)
        while view:
            self.sock.settimeout(guard.attach(self.sock))
            try:
                view = view[self.sock.send(view) :]
            except TimeoutError as error:
                guard.left()
                raise guard.expired() from error
            except OSError as error:
                guard.left()
                raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        OPEN.discard(self)
        self.sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Any = None
    ) -> httpcore.NetworkStream:
        guard: Guard = timeout
        OPEN.discard(self)
        try:
            self.sock.settimeout(guard.attach(self.sock))
            secured = ssl_context.wrap_socket(self.sock, server_hostname=server_hostname)
        except BaseException as error:
            self.sock.close()
            if isinstance(error, TimeoutError):
                raise guard.expired() from error
            if isinstance(error, OSError):
                guard.left()
                raise _tls_failed(guard, server_hostname, error) from error
            raise
        return SyncStream(secured, self.siblings)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            self.used = True  # asked of a connection that comes out of the pool
            return _readable(self.sock)
        if info == "ssl_object":
            return self.sock if isinstance(self.sock, ssl.SSLSocket) else None
        return self.sock if info == "socket" else None


class SyncNetwork(httpcore.NetworkBackend):
    """Opens blocking connections, and knows them, so that whoever waits for one can be woken."""

    def __init__(self) -> None:
        self.streams: weakref.WeakSet[SyncStream] = weakref.WeakSet()

    def wake(self) -> None:
        """Wake every thread that reads or writes: it finds its connection broken."""
        for stream in snapshot(self.streams):
            shut(stream.sock)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Any = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        guard: Guard = timeout
        guard.left()
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _refused(guard, host, port, error) from error
        failed: OSError | None = None
        for family, kind, proto, _, address in addresses:
            sock = _open_socket(family, kind, proto, socket_options or ())
            try:
                _connect(sock, address, guard)
            except OSError as error:
                sock.close()
                failed = failed or error
                continue
            except BaseException:
                sock.close()
                raise
            return SyncStream(sock, self.streams)
        failed = failed or OSError("has no address")
        raise _refused(guard, host, port, failed) from failed


def _connect(sock: socket.socket, address: Any, guard: Guard) -> None:
    """Connect in slices, so that another thread can cancel it."""
    sock.settimeout(0)
    code = sock.connect_ex(address)
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        while not poll.poll(math.ceil(min(guard.left(), _SLICE) * 1000)):
            pass
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


# -- asyncio ----------------------------------------------------------------------------------------------------------


class AsyncStream(httpcore.AsyncNetworkStream):
    """A connection of an event loop: a plain socket, which can be closed even when its loop is closed already."""

    def __init__(self, sock: socket.socket, siblings: weakref.WeakSet[AsyncStream]) -> None:
        self.sock = sock
        self.used = False
        self.siblings = siblings
        siblings.add(self)
        OPEN.add(self)

    async def _recv(self, max_bytes: int, guard: AsyncGuard) -> bytes:
        guard.attach(self.sock)
        try:
            data = await guard.loop.sock_recv(self.sock, max_bytes)
        except OSError as error:
            guard.left()
            raise httpcore.ReadError(str(error)) from error
        if not data:
            guard.left()
        return data

    async def _send(self, data: bytes, guard: AsyncGuard) -> None:
        guard.attach(self.sock)
        try:
            await guard.loop.sock_sendall(self.sock, data)
        except OSError as error:
            guard.left()
            raise httpcore.WriteError(str(error)) from error

    async def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        data = await self._recv(max_bytes, timeout)
        if data:
            timeout.received = True
        return data

    async def write(self, buffer: bytes, timeout: Any = None) -> None:
        guard: AsyncGuard = timeout
        guard.connected()
        guard.reused = guard.reused or (self.used and not guard.received)
        await self._send(buffer, guard)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Close, in any loop or none."""
        OPEN.discard(self)
        self.sock.close()

    def abort(self) -> None:
        """Wake whoever still waits for it, then close. In its loop."""
        shut(self.sock)
        asyncio.get_running_loop().call_later(0.1, self.close)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Any = None
    ) -> httpcore.AsyncNetworkStream:
        guard: AsyncGuard = timeout
        secured = TlsStream(self, ssl_context, server_hostname)
        try:
            await secured.handshake(guard)
        except OSError as error:
            secured.close()
            guard.left()
            raise _tls_failed(guard, server_hostname, error) from error
        except httpcore.NetworkError as error:
            secured.close()
            raise _tls_failed(guard, server_hostname, OSError(str(error))) from error
        except BaseException:
            secured.close()
            raise
        return secured

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            self.used = True
            return _readable(self.sock)
        return self.sock if info == "socket" else None


class TlsStream(AsyncStream):
    """TLS over the plain socket, through memory buffers."""

    def __init__(self, plain: AsyncStream, context: ssl.SSLContext, server_hostname: str | None) -> None:
        super().__init__(plain.sock, plain.siblings)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=server_hostname)

    async def _pump(self, step: Any, guard: AsyncGuard) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush(guard)
                data = await self._recv(65536, guard)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
            else:
                await self._flush(guard)
                return result

    async def _flush(self, guard: AsyncGuard) -> None:
        if self.outgoing.pending:
            await self._send(self.outgoing.read(), guard)

    async def handshake(self, guard: AsyncGuard) -> None:
        """Raises OSError (ssl.SSLError among them) and httpcore.NetworkError."""
        await self._pump(self.tls.do_handshake, guard)

    async def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        try:
            data: bytes = await self._pump(lambda: self.tls.read(max_bytes), timeout)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        except ssl.SSLError as error:
            raise httpcore.ReadError(str(error)) from error
        if data:
            timeout.received = True
        return data

    async def write(self, buffer: bytes, timeout: Any = None) -> None:
        guard: AsyncGuard = timeout
        guard.connected()
        guard.reused = guard.reused or (self.used and not guard.received)
        view = memoryview(buffer)
        while view:
            try:
                view = view[await self._pump(lambda view=view: self.tls.write(view), guard) :]
            except ssl.SSLError as error:
                raise httpcore.WriteError(str(error)) from error

    def get_extra_info(self, info: str) -> Any:
        return self.tls if info == "ssl_object" else super().get_extra_info(info)


class AsyncNetwork(httpcore.AsyncNetworkBackend):
    """Opens connections of one event loop, and knows them, so that they can be closed without it."""

    def __init__(self) -> None:
        self.streams: weakref.WeakSet[AsyncStream] = weakref.WeakSet()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Any = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        guard: AsyncGuard = timeout
        try:
            async with asyncio.timeout(guard.left()) as guard.scope:
                return await self._connect(guard, host, port, socket_options or ())
        except TimeoutError as error:
            if guard.failure is not None:
                raise guard.failure from error
            raise guard.expired() from error
        finally:
            guard.scope = None

    async def _connect(self, guard: AsyncGuard, host: str, port: int, options: Iterable[Any]) -> AsyncStream:
        try:
            addresses = await guard.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise _refused(guard, host, port, error) from error
        failed: OSError | None = None
        for family, kind, proto, _, address in addresses:
            sock = _open_socket(family, kind, proto, options)
            sock.settimeout(0)
            try:
                await guard.loop.sock_connect(sock, address)
            except TimeoutError:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                failed = failed or error
                continue
            except BaseException:
                sock.close()
                raise
            return AsyncStream(sock, self.streams)
        failed = failed or OSError("has no address")
        raise _refused(guard, host, port, failed) from failed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


OPEN: weakref.WeakSet[SyncStream | AsyncStream] = weakref.WeakSet()
"""Every open connection of this process, so that a forked child can let go of its copies."""
