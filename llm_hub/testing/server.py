"""`FakeServer`: a small HTTP/1.1 server in a thread of its own, with control over every byte it sends and when."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

from llm_hub.testing.connection import Connection
from llm_hub.testing.exchange import Answer, Reply, Request
from llm_hub.testing.faults import ActiveFault, Fault
from llm_hub.testing.misbehaviour import misbehave
from llm_hub.testing.wire_form import WireForm

__all__ = ["FakeServer", "Handler"]

Handler: TypeAlias = Callable[[Request], Answer | Awaitable[Answer]]
"""Answers a request; called in the server's loop, so it must not block: what waits is async, or a Pause."""

_STOP_SECONDS = 5.0
_BACKLOG = 1024


class FakeServer:
    """Serves one handler on an IPv4 loopback port, over HTTP/1.1 with keep-alive.

    A context manager for any test, sync or async: `with FakeServer(handler) as server: client.get(server.url)`. The
    port is chosen on entry, unless given, and stays reserved until exit: while the server is stopped, connections are
    refused. What a handler raises is answered with 500 and raised again as an ExceptionGroup when the server closes.

    handler: answers a request; the default knows no path, subclasses override `respond` instead.
    form: how it says what faults need said, where its API is neither Ollama's nor OpenAI's.
    port: 0 for a free one.
    send_buffer: bytes the kernel may hold for each connection (it doubles them), small to feel a slow reader early.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        form: WireForm | None = None,
        port: int = 0,
        send_buffer: int | None = None,
    ) -> None:
        self.requests: list[Request] = []
        self.failures: list[Exception] = []
        self.accepted = 0
        self.form = form or WireForm()
        self._handler = handler
        self._port = port
        self.send_buffer = send_buffer
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connections: set[Connection] = set()
        self._fresh: set[socket.socket] = set()  # let in, and not attended to yet
        self._news = threading.Condition()
        self._unpaused: asyncio.Event | None = None
        self._paused = False
        self._faults: list[ActiveFault] = []
        self._fillers: list[socket.socket] = []
        self._filler_ports: set[int] = set()

    # addresses and the log

    @property
    def port(self) -> int:
        """The port, once the server was started."""
        return self._port

    @property
    def url(self) -> str:
        """The address without a slash at its end, as a backend's base_url."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """How many connections are open now. `accepted` counts all that ever were."""
        return len(self._connections)

    @property
    def running(self) -> bool:
        """Is it listening?"""
        return self._thread is not None

    def wait_for_requests(self, count: int, *, timeout: float = 5.0) -> Sequence[Request]:
        """Wait until `count` requests have arrived since the start and return all. Raises TimeoutError."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.requests) >= count, timeout):
                raise TimeoutError(f"{len(self.requests)} of {count} requests arrived in {timeout} s")
            return list(self.requests)

    def wait_for_connections(self, count: int, *, timeout: float = 5.0) -> None:
        """Wait until exactly `count` connections are open. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while self.connections != count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.connections} connections are open after {timeout} s, not {count}")
            time.sleep(0.001)

    # life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        failures, self.failures = self.failures, []
        if failures and error is None:
            raise ExceptionGroup("the handler of a fake server failed", failures)
        if error is not None:  # a test that failed already is told what went wrong behind it
            for failure in failures:
                error.add_note(f"The handler of a fake server failed: {failure!r}")

    def start(self) -> None:
        """Listen; on the same port as before if it was stopped. Does nothing if it runs."""
        if self._thread is not None:
            return
        if self._socket is None:
            self._socket = self._bind()
        self._socket.listen(_BACKLOG)
        self._loop = asyncio.SelectorEventLoop()
        self._unpaused = asyncio.Event()
        if not self._paused:
            self._unpaused.set()
        self._loop.add_reader(self._socket, self._accept)
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"fake-server-{self._port}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Cut all connections off and refuse new ones; the port stays reserved for `start`. Does nothing if stopped."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut(), loop).result(_STOP_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_STOP_SECONDS)
        if thread.is_alive():
            raise RuntimeError("the fake server's thread does not end: its handler blocks")
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        self._loop = self._thread = None
        self._socket = self._bind()  # bound but not listening: refuses, and nobody else can take the port

    def close(self) -> None:
        """Stop, forget all faults, and give the port back."""
        self._faults.clear()
        self.stop()
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def pause(self) -> None:
        """Freeze, as a process that is stopped: the kernel still accepts and buffers, but nothing is answered."""
        self._paused = True
        self._call(lambda: self._unpaused.clear() if self._unpaused else None)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._paused = False
        self._call(lambda: self._unpaused.set() if self._unpaused else None)

    def close_idle_connections(self) -> None:
        """Close the kept-alive connections that wait for a request, as a server does after its keep-alive timeout."""

        def close_idle() -> None:
            for connection in self._connections:
                if connection.idle:
                    connection.close()

        self._call(close_idle)

    # misbehaving

    def fault(self, fault: Fault, *, times: int | None = None, path: str | None = None, **options: Any) -> ActiveFault:
        """Misbehave: for the next `times` requests to `path`, or until it is cleared, and for any path.

        Faults that were set earlier come first: two with times=1 hit one request each. options: see Fault. Raises
        TypeError for options that this fault does not have.
        """
        active = ActiveFault.checked(fault, times, path, options, self._clear)
        self._faults.append(active)
        if fault is Fault.REFUSE:
            self.stop()
        elif fault is Fault.CONNECT_HANG:
            self._call(self._fill_backlog)
        return active

    def clear_faults(self) -> None:
        """Behave again."""
        for active in list(self._faults):
            self._clear(active)

    def _clear(self, active: ActiveFault) -> None:
        if active in self._faults:
            self._faults.remove(active)
            if active.fault is Fault.REFUSE:
                self.start()
            elif active.fault is Fault.CONNECT_HANG:
                self._call(self._free_backlog)

    def _fill_backlog(self) -> None:
        """Leave connections in the listening socket's queue until the kernel lets no more in."""
        if self._socket is None or self._loop is None:
            return
        self._loop.remove_reader(self._socket)
        self._socket.listen(0)
        while True:
            filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._fillers.append(filler)
            filler.settimeout(0.02)  # over loopback a connection that is let in is there at once
            try:
                filler.connect(("127.0.0.1", self._port))
            except TimeoutError:
                return
            finally:
                self._filler_ports.add(filler.getsockname()[1])

    def _free_backlog(self) -> None:
        if self._socket is None or self._loop is None:
            return
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self._socket.listen(_BACKLOG)
        self._loop.add_reader(self._socket, self._accept)

    # for subclasses

    def respond(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer a request. Called in the server's loop."""
        if self._handler is None:
            return Reply.of_text("404 page not found", status=404)
        return self._handler(request)

    # called by connections, in the server's loop

    def log(self, request: Request) -> None:
        """A request has arrived."""
        with self._news:
            self.requests.append(request)
            self._news.notify_all()

    async def answer(self, request: Request) -> Answer:
        """What is sent for a request: what `respond` says, unless a fault comes first."""

        async def right() -> Answer:
            answer = self.respond(request)
            return await answer if inspect.isawaitable(answer) else answer

        for active in list(self._faults):
            if active.meets(request, self.form):
                request.fault = active.fault
                return await misbehave(active, request, right, self.form)
        return await right()

    def connection_fault(self) -> Fault | None:
        """What befalls a connection that was just accepted."""
        return next((active.fault for active in list(self._faults) if active.meets_connection()), None)

    async def unpaused(self) -> None:
        """Wait while the server is paused."""
        if self._unpaused is not None and not self._unpaused.is_set():
            await self._unpaused.wait()

    # inside

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.send_buffer is not None:  # inherited by the connections
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
            sock.settimeout(0)
            sock.bind(("127.0.0.1", self._port))
        except BaseException:
            sock.close()
            raise
        self._port = sock.getsockname()[1]
        return sock

    def _call(self, function: Callable[[], Any]) -> None:
        """Run a function in the loop and wait for it. Does nothing if the server is stopped."""
        if self._loop is None:
            return

        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(_STOP_SECONDS)

    def _accept(self) -> None:
        if self._socket is None or self._loop is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, peer = self._socket.accept()
            if peer[1] in self._filler_ports:
                self._filler_ports.discard(peer[1])
                sock.close()
                return
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            connection = Connection(self, self.accepted)
            self._connections.add(connection)
            self._fresh.add(sock)
            self._loop.create_task(self._attend(connection, sock))

    async def _attend(self, connection: Connection, sock: socket.socket) -> None:
        """Keep a connection among the open ones until its socket is closed."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
            self._fresh.discard(sock)
            await connection.gone()
        finally:
            self._connections.discard(connection)

    async def _shut(self) -> None:
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for connection in list(self._connections):
            connection.abort()
        others = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for sock in self._fresh:  # let in at the very last, so that nobody has it yet
            sock.close()
        self._fresh.clear()
        await asyncio.sleep(0)  # transports close their sockets in the turn after connection_lost
