"""The HTTP client, once: pools, deadlines, cancellation and error mapping, for blocking callers and event loops alike.

A `Port` is what a body written once as a coroutine does its I/O through. The coroutines of `SyncPort` never suspend,
so `drive` runs such a body to its end without an event loop; those of `AsyncPort` await.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import threading
import weakref
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpcore
import msgspec

from llm_hub._guards import AsyncGuard, Guard
from llm_hub._sockets import OPEN, AsyncNetwork, SyncNetwork, snapshot
from llm_hub.call import Call
from llm_hub.dialect import HttpReply, HttpRequest
from llm_hub.errors import BackendUnreachable, ConnectionLost, HubClosed, HubError, ProtocolError, SettingsError

__all__ = ["AsyncPort", "Exchange", "Limits", "Origin", "Port", "Send", "SyncPort", "Transport", "drive", "fetch"]

T = TypeVar("T")

_STALE_TRIES = 8


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the transport: seconds that an idle connection is kept, and bytes of one whole answer.

    A connection is given up before the shortest keep-alive that is common among servers (uvicorn's 5 s) has passed.
    """

    keepalive: float = 4.0
    max_idle: int = 64
    max_reply: int = 64 * 1024 * 1024


class Origin:
    """An address that requests go to: scheme, host, port and the path before every path."""

    __slots__ = ("_urls", "host_header", "prefix", "scheme", "url", "where")

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                f"{base_url!r} is no address of an HTTP server", where="base_url", hint="Write http://host:port."
            )
        self.url = base_url.rstrip("/")
        self.scheme = parts.scheme
        self.prefix = parts.path.rstrip("/")
        self.where = (parts.scheme.encode(), parts.hostname.encode("idna"), parts.port)
        self.host_header = parts.netloc.rpartition("@")[2].encode("idna")
        self._urls: dict[str, httpcore.URL] = {}

    def headers(self, key: str | None = None) -> list[tuple[bytes, bytes]]:
        """The headers of every request to this address; `key` is sent as a bearer token (RFC 6750)."""
        lines = [(b"host", self.host_header), (b"accept-encoding", b"identity"), (b"user-agent", b"llm-hub")]
        if key is not None:
            try:
                lines.append((b"authorization", b"Bearer " + key.encode("ascii")))
            except UnicodeEncodeError:  # not chained: its message would hold the key
                raise SettingsError("the API key has characters that no HTTP header can hold") from None
        return lines

    def target(self, path: str) -> httpcore.URL:
        """The full URL of a path; built once for each."""
        url = self._urls.get(path)
        if url is None:
            scheme, host, port = self.where
            url = httpcore.URL(scheme=scheme, host=host, port=port, target=(self.prefix + path).encode("ascii"))
            if len(self._urls) < 64:
                self._urls[path] = url
        return url


class Send(msgspec.Struct, frozen=True):
    """A request with all that the transport adds to it. `headers` come from `Origin.headers`."""

    origin: Origin
    request: HttpRequest
    headers: list[tuple[bytes, bytes]]
    backend: str


class Exchange:
    """One request on its way: the answer's status and headers (names in lower case), then its body in pieces."""

    __slots__ = ("_inflate", "_response", "body", "guard", "headers", "limit", "status")

    def __init__(self, response: httpcore.Response, guard: Guard, body: Any, limit: int) -> None:
        self.status = response.status
        self.headers = {name.lower().decode("ascii"): value.decode("latin-1") for name, value in response.headers}
        self.guard = guard
        self.body = body
        self.limit = limit
        self._response = response
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        self._inflate: Any = None
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(wbits=47 if encoding != "deflate" else 15)
        elif encoding not in ("identity", ""):
            self._inflate = encoding

    def decode(self, piece: bytes) -> bytes:
        """Undo a content encoding that was not asked for, within the limit, so that a small body cannot become huge."""
        if self._inflate is None:
            return piece
        if isinstance(self._inflate, str):
            raise ProtocolError(f"it answered in the encoding {self._inflate!r}, which was not asked for")
        try:
            data: bytes = self._inflate.decompress(piece, self.limit)
        except zlib.error as error:
            raise ProtocolError(f"its compressed answer cannot be unpacked ({error})") from error
        if self._inflate.unconsumed_tail:
            raise too_long(self.limit)
        return data


def too_long(limit: int) -> ProtocolError:
    """The error for a body over the limit."""
    return ProtocolError(f"its answer is longer than {limit // (1024 * 1024)} MiB and was cut off")


def lost(error: Exception, guard: Guard) -> HubError:
    """The typed error for a failure of the HTTP client."""
    if guard.failure is not None:
        return guard.failure
    if isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout):
        return BackendUnreachable(str(error) or "cannot connect", backend=guard.backend)
    text = str(error)
    if isinstance(error, httpcore.ProtocolError) and "disconnected" not in text and "closed connection" not in text:
        return ProtocolError(f"its answer is not HTTP ({text})", backend=guard.backend)
    return ConnectionLost(
        f"the connection broke ({text})" if text else "the connection broke",
        backend=guard.backend,
        hint="See the log of the backend.",
    )


class Port(Protocol):
    """How a body that is written once does its I/O."""

    async def open(self, send: Send, call: Call, after: tuple[str, float]) -> Exchange:
        """Send the request and wait for status and headers. The caller closes the exchange.

        `after` is what is waited for once the connection stands, and for how many seconds at most.
        """
        ...

    async def next(self, exchange: Exchange) -> bytes | None:
        """The next piece of the body, None at its end."""
        ...

    async def close(self, exchange: Exchange) -> None:
        """Give the connection back, or close it if the answer was not read to its end."""
        ...

    async def sleep(self, seconds: float, call: Call) -> None:
        """Wait; the call's cancellation and deadline end it early."""
        ...


async def fetch(port: Port, send: Send, call: Call, after: tuple[str, float]) -> HttpReply:
    """One exchange whose answer is read as a whole.

    Raises BackendUnreachable, ConnectionLost, ProtocolError, DeadlineExceeded, Cancelled.
    """
    exchange = await port.open(send, call, after)
    try:
        pieces: list[bytes] = []
        size = 0
        while (piece := await port.next(exchange)) is not None:
            size += len(piece)
            if size > exchange.limit:
                raise too_long(exchange.limit)
            pieces.append(piece)
    finally:
        await port.close(exchange)
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return HttpReply(exchange.status, exchange.headers, body)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a SyncPort to its end, in this thread, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine over the sync port suspended; it must do its I/O through the port alone")


def _request(send: Send, guard: Guard) -> httpcore.Request:
    request = send.request
    lines = [*send.headers]
    if request.body is not None:
        lines.append((b"content-length", b"%d" % len(request.body)))
        lines.append((b"content-type", b"application/json"))
    for name, value in request.headers.items():
        lines.append((name.encode("ascii"), value.encode("latin-1")))
    return httpcore.Request(
        request.method,
        send.origin.target(request.path),
        headers=lines,
        content=request.body,
        extensions={"timeout": {"connect": guard, "read": guard, "write": guard}},
    )


def _may_repeat(error: Exception, guard: Guard, call: Call, tries: int) -> bool:
    """Did a kept-alive connection turn out to be closed already? Then the request goes out again, on a fresh one.

    No byte of an answer came, which is how a server's end of an idle connection looks (RFC 9112, section 9.6).
    """
    return (
        guard.reused
        and not guard.received
        and guard.failure is None
        and call.repeatable
        and tries < _STALE_TRIES
        and isinstance(error, httpcore.RemoteProtocolError | httpcore.ReadError | httpcore.WriteError)
    )


_CLIENT_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError)


class SyncPort:
    """Blocking I/O, behind coroutines that never suspend."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def open(self, send: Send, call: Call, after: tuple[str, float]) -> Exchange:
        self._transport.sweep_dropped()
        for tries in range(_STALE_TRIES + 1):
            guard = Guard(call, send.backend, after)
            try:
                pool = self._transport.pool(send.origin.scheme)
                response = pool.handle_request(_request(send, guard))
            except _CLIENT_ERRORS as error:
                guard.finish()
                if _may_repeat(error, guard, call, tries):
                    continue
                raise lost(error, guard) from error
            except BaseException:
                guard.finish()
                raise
            body: Iterator[bytes] = iter(response.iter_stream())
            exchange = Exchange(response, guard, body, self._transport.limits.max_reply)
            self._transport.live.add(exchange)
            return exchange
        raise AssertionError("unreachable")

    async def next(self, exchange: Exchange) -> bytes | None:
        try:
            for piece in exchange.body:
                return exchange.decode(piece)
        except _CLIENT_ERRORS as error:
            raise lost(error, exchange.guard) from error
        return None

    async def close(self, exchange: Exchange) -> None:
        exchange.guard.finish()
        exchange.body.close()
        exchange._response.close()
        self._transport.live.discard(exchange)

    async def sleep(self, seconds: float, call: Call) -> None:
        woken = threading.Event()
        if call.cancel is not None:
            call.cancel.subscribe(woken, woken.set)
        woken.wait(max(0.0, min(seconds, call.remaining())))
        if call.cancel is not None:
            call.cancel.unsubscribe(woken)
        call.check()


class AsyncPort:
    """The I/O of the running event loop."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def open(self, send: Send, call: Call, after: tuple[str, float]) -> Exchange:
        for tries in range(_STALE_TRIES + 1):
            guard = AsyncGuard(call, send.backend, after)
            try:
                pool = self._transport.async_pool(send.origin.scheme)
                response = await pool.handle_async_request(_request(send, guard))
            except _CLIENT_ERRORS as error:
                guard.finish()
                if _may_repeat(error, guard, call, tries):
                    continue
                raise lost(error, guard) from error
            except BaseException:
                guard.finish()
                raise
            body: AsyncIterator[bytes] = aiter(response.aiter_stream())
            return Exchange(response, guard, body, self._transport.limits.max_reply)
        raise AssertionError("unreachable")

    async def next(self, exchange: Exchange) -> bytes | None:
        try:
            async for piece in exchange.body:
                return exchange.decode(piece)
        except _CLIENT_ERRORS as error:
            raise lost(error, exchange.guard) from error
        return None

    async def close(self, exchange: Exchange) -> None:
        exchange.guard.finish()
        await exchange.body.aclose()
        await exchange._response.aclose()

    async def sleep(self, seconds: float, call: Call) -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        if call.cancel is not None:
            call.cancel.subscribe(woken, lambda: loop.call_soon_threadsafe(woken.set))
        try:
            async with asyncio.timeout(max(0.0, min(seconds, call.remaining()))):
                await woken.wait()
        except TimeoutError:
            pass
        finally:
            if call.cancel is not None:
                call.cancel.unsubscribe(woken)
        call.check()


class Transport:
    """The connections of one hub: a pool for blocking callers, and one for each event loop.

    `pool` and `async_pool` replace the real ones (a test, a benchmark). Nothing is opened before the first request.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        pool: httpcore.ConnectionPool | None = None,
        async_pool: httpcore.AsyncConnectionPool | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.dropped: SimpleQueue[AsyncGenerator[Any, None]] = SimpleQueue()
        # Held until they are closed: the garbage collector would end their generators wherever it happens to run, and they
        # take a lock of the pool to end, which that thread may hold.
        self.live: set[Exchange] = set()
        self.sync_port = SyncPort(self)
        self.async_port = AsyncPort(self)
        self._given = pool
        self._async_given = async_pool
        self._lock = threading.Lock()
        self._network = SyncNetwork()
        self._pools: dict[str, httpcore.ConnectionPool] = {}
        self._loops: dict[int, _LoopPools] = {}
        self._closed = False
        _TRANSPORTS.add(self)

    def sweep_dropped(self) -> None:
        """Close the blocking streams that were dropped half-read; their sockets are shut already."""
        while not self.dropped.empty():
            try:
                batches = self.dropped.get_nowait()
            except Empty:  # another thread was faster
                return
            with contextlib.suppress(ValueError, RuntimeError):  # it is being closed by another thread
                drive(batches.aclose())

    def pool(self, scheme: str) -> httpcore.ConnectionPool:
        """The pool of the blocking callers of this process."""
        pool = self._given or self._pools.get(scheme)
        if pool is None:
            with self._lock:
                if self._closed:
                    raise HubClosed("the hub is closed", hint="Open a new one.")
                pool = self._pools.get(scheme)
                if pool is None:
                    pool = self._pools[scheme] = httpcore.ConnectionPool(
                        max_connections=None, network_backend=self._network, **self._options(scheme)
                    )
        return pool

    def async_pool(self, scheme: str) -> httpcore.AsyncConnectionPool:
        """The pool of the running event loop."""
        if self._async_given is not None:
            return self._async_given
        loop = asyncio.get_running_loop()
        pools = self._loops.get(id(loop))
        if pools is None or pools.loop() is not loop:
            with self._lock:
                if self._closed:
                    raise HubClosed("the hub is closed", hint="Open a new one.")
                self._sweep()
                pools = self._loops[id(loop)] = _LoopPools(loop)
        pool = pools.pools.get(scheme)
        if pool is None:
            pool = pools.pools[scheme] = httpcore.AsyncConnectionPool(
                max_connections=None, network_backend=pools.network, **self._options(scheme)
            )
        return pool

    def _options(self, scheme: str) -> dict[str, Any]:
        return {
            "ssl_context": _ssl_context() if scheme == "https" else None,
            "max_keepalive_connections": self.limits.max_idle,
            "keepalive_expiry": self.limits.keepalive,
        }

    def _sweep(self) -> None:
        """Close what loops that are closed or gone have left behind. Under the lock."""
        for key, pools in list(self._loops.items()):
            loop = pools.loop()
            if loop is None or loop.is_closed():
                del self._loops[key]
                pools.abandon()

    def close(self) -> None:
        """Close every connection, also those of event loops: their calls fail with ConnectionLost."""
        self.sweep_dropped()
        with self._lock:
            self._closed = True
            pools, self._pools = list(self._pools.values()), {}
            loops, self._loops = list(self._loops.values()), {}
        self._network.wake()
        for pool in pools:
            pool.close()
        for abandoned in loops:
            abandoned.abandon()

    async def aclose(self) -> None:
        """`close`, async."""
        self.close()

    def _forked(self) -> None:
        """In the child of a fork: its copies of the connections are closed already; begin anew."""
        self._lock = threading.Lock()
        self._network = SyncNetwork()
        self._pools = {}
        self._loops = {}
        self.live.clear()


class _LoopPools:
    """The pools of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = weakref.ref(loop)
        self.network = AsyncNetwork()
        self.pools: dict[str, httpcore.AsyncConnectionPool] = {}

    def abandon(self) -> None:
        """Close every socket, whatever thread this is: shut first, which wakes a loop that still waits for it."""
        loop = self.loop()
        for stream in snapshot(self.network.streams):
            stream.wake()
            if loop is None or loop.is_closed():
                stream.close()
                continue
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(stream.close_idle)


def _ssl_context() -> ssl.SSLContext:
    """Trust what the machine trusts (SSL_CERT_FILE and SSL_CERT_DIR included), else the authorities of certifi."""
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"]:
        import certifi

        context.load_verify_locations(certifi.where())
    return context


_TRANSPORTS: weakref.WeakSet[Transport] = weakref.WeakSet()


def _after_fork() -> None:
    for stream in snapshot(OPEN):
        stream.sock.close()  # this process's copy; the parent's connection lives on
    for transport in list(_TRANSPORTS):
        transport._forked()


os.register_at_fork(after_in_child=_after_fork)
