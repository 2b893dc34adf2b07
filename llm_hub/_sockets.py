"""Sockets that obey the deadlines and the cancellation of a call, under the HTTP client of `transport.py`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import math
import os
import select
import socket
import ssl
import threading
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar

import httpcore

from llm_hub._guards import AsyncGuard, Guard, shut
from llm_hub.errors import BackendUnreachable

__all__ = ["OPEN", "AsyncNetwork", "SyncNetwork", "snapshot"]

S = TypeVar("S")

_SLICE = 0.05  # how often a blocking connect looks whether it was cancelled, in seconds
_DNS_HINT = "Check the host in its base_url."
_DOWN_HINT = "Start it, or correct its base_url; `llm-hub doctor` tells more."

Address = tuple[int, int, int, Any]


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
        left = guard.attach(self.sock)
        secured = ssl_context.wrap_socket(self.sock, server_hostname=server_hostname, do_handshake_on_connect=False)
        stream = SyncStream(secured, self.siblings)
        try:
            guard.attach(secured)
            secured.settimeout(left)
            secured.do_handshake()
        except BaseException as error:
            stream.close()
            if isinstance(error, OSError):
                guard.left()
                if isinstance(error, TimeoutError):
                    raise guard.expired() from error
                raise _tls_failed(guard, server_hostname, error) from error
            raise
        return stream

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
            addresses = _look_up(host, port, guard)
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


_Addresses = list[tuple[Any, ...]]


def _look_up(host: str, port: int, guard: Guard) -> _Addresses:
    """The addresses of a host. A name is looked up in a thread: a name server may take longer than the deadline."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    found: list[_Addresses | OSError] = []
    done = threading.Event()

    def ask() -> None:
        try:
            found.append([*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except OSError as error:
            found.append(error)
        finally:
            done.set()

    threading.Thread(target=ask, name=f"llm-hub-lookup-{host}", daemon=True).start()
    while not done.wait(min(guard.left(), _SLICE)):
        pass
    if not found:
        raise OSError("cannot be looked up")
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


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
        self.busy = False
        self.siblings = siblings
        siblings.add(self)
        OPEN.add(self)

    async def _recv(self, max_bytes: int, guard: AsyncGuard) -> bytes:
        guard.attach(self.sock)
        self.busy = True
        try:
            data = await guard.loop.sock_recv(self.sock, max_bytes)
        except OSError as error:
            guard.left()
            raise httpcore.ReadError(str(error)) from error
        finally:
            self.busy = False
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

    def wake(self) -> None:
        """Wake whoever waits for it, from any thread: it finds the connection broken, and closes it."""
        shut(self.sock)

    def close_idle(self) -> None:
        """Close it unless somebody waits for it, who will. In its loop."""
        if not self.busy:
            self.close()

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
