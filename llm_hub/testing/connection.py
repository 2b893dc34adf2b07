"""One client's connection to a fake server: reads requests, does the steps of the answers, notices who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from llm_hub.testing.exchange import Close, Hang, Pause, Reply, Request, Reset, Step, wire_steps
from llm_hub.testing.faults import Fault

if TYPE_CHECKING:
    from llm_hub.testing.server import FakeServer

__all__ = ["Connection"]

_HEAD_LIMIT = 64 * 1024


class _BadRequest(Exception):
    """What arrived is not HTTP/1.1 as these servers speak it."""


class Connection(asyncio.Protocol):
    """Lives in the server's loop."""

    def __init__(self, server: FakeServer, number: int) -> None:
        self.server = server
        self.number = number
        self.turn = 0
        self.idle = True
        self.lost = asyncio.Event()
        self._ended = False  # by this side
        self._silent = False
        self._unbroken = 0
        self.task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is here: begin the conversation."""
        self._transport = cast("asyncio.Transport", transport)
        # Nothing is kept in user space beyond one send, so that a slow reader is felt by the answer at once.
        self._transport.set_write_buffer_limits(high=0)
        self.task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if not self._silent:
            self._buffer += data
        self._arrived.set()

    def pause_writing(self) -> None:
        """The kernel's buffer is full: the client reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The kernel took all."""
        self._writable.set()

    def eof_received(self) -> bool:
        """The client closed its side: it is gone, as Ollama and uvicorn see it, and the generation with it."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed: whoever waits for the client is woken or cancelled."""
        self.lost.set()
        self._arrived.set()
        self._writable.set()
        if self.task is not None and not self._ended:
            self.task.cancel()

    # what the server calls

    def close(self) -> None:
        """Close in order, after what was written."""
        self._ended = True
        if self._transport is not None:
            self._transport.close()

    def abort(self, *, reset: bool = False) -> None:
        """Close now; with `reset` so that the client gets RST."""
        self._ended = True
        if self._transport is None or self.lost.is_set():  # asyncio does not bear it once the socket is closed
            return
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if reset and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # the conversation

    async def _run(self) -> None:
        try:
            if (fault := self.server.connection_fault()) is not None:
                if fault is Fault.NEVER_READ and self._transport is not None:
                    self._transport.pause_reading()
                self._silent = True
                await self.lost.wait()
                return
            while await self._serve_one():
                pass
            self.close()
        except asyncio.CancelledError:
            self.abort()
        except _BadRequest as error:
            await self._write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n%s" % str(error).encode())
            self.close()
        except Exception as error:  # noqa: BLE001 - raised again in the test's thread when the server stops
            self.server.failures.append(error)
            self.abort()

    async def _serve_one(self) -> bool:
        """Read one request and answer it. False if the connection is to be closed."""
        request = await self._read_request()
        if request is None:
            return False
        self.idle = False
        self.server.log(request)
        try:
            keep = await self._answer(request)
        except asyncio.CancelledError:
            request.finish(gone_early=True)
            raise
        except BaseException:
            request.finish(gone_early=False)
            raise
        request.finish(gone_early=False)
        self.idle = True
        return keep and request.headers.get("connection", "").lower() != "close"

    async def _answer(self, request: Request) -> bool:
        await self.server.unpaused()
        try:
            answer = await self.server.answer(request)
        except Exception as error:  # noqa: BLE001 - raised again in the test's thread when the server stops
            self.server.failures.append(error)
            answer = Reply.of_text("the fake server's handler failed", status=500)
        async with aclosing(wire_steps(answer, head_only=request.method == "HEAD")) as steps:
            async for step in steps:
                await self.server.unpaused()
                if not await self._do(step, request):
                    return False
        return True

    async def _do(self, step: Step, request: Request) -> bool:
        """Do one step. False if it ended the connection."""
        if isinstance(step, bytes):
            await self._write(step)
            request.chunks_sent += 1
            request.bytes_sent += len(step)
        elif isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        elif isinstance(step, Hang):
            await self.lost.wait()
            raise asyncio.CancelledError
        elif isinstance(step, Close):
            return False
        elif isinstance(step, Reset):
            self.abort(reset=True)
            return False
        return True

    async def _write(self, data: bytes) -> None:
        if self._transport is None or self.lost.is_set():
            raise asyncio.CancelledError
        self._transport.write(data)
        if (
            self._transport.is_closing()
        ):  # the write found the client gone; connection_lost comes in the loop's next turn
            await self.lost.wait()
        elif not self._writable.is_set():
            await self._writable.wait()
        else:
            self._unbroken += 1
            if self._unbroken % 8 == 0:  # a body that never waits must leave the loop its turns
                await asyncio.sleep(0)
        if self.lost.is_set():
            raise asyncio.CancelledError

    async def _more(self) -> bool:
        """Wait for more bytes. False if the client is gone."""
        self._arrived.clear()
        if not self.lost.is_set():
            await self._arrived.wait()
        await self.server.unpaused()
        return not self.lost.is_set()

    async def _read_request(self) -> Request | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise _BadRequest("the head of the request is too long")
            if not await self._more():
                return None
        head = bytes(self._buffer[:end]).decode("latin-1")
        del self._buffer[: end + 4]
        first, *lines = head.split("\r\n")
        parts = first.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            raise _BadRequest("the request line is malformed")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise _BadRequest("a header line without a colon")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            await self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._read_body(headers)
        if body is None:
            return None
        self.turn += 1
        return Request(parts[0], parts[1], headers, body, connection=self.number, turn=self.turn)

    async def _read_body(self, headers: dict[str, str]) -> bytes | None:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            try:
                return await self._take(int(headers.get("content-length", "0")))
            except ValueError:
                raise _BadRequest("content-length is no number") from None
        body = bytearray()
        while True:
            line = await self._take_line()
            if line is None:
                return None
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise _BadRequest("the size of a chunk is no number") from None
            piece = await self._take(size)
            if piece is None or await self._take_line() is None:
                return None
            if not size:
                return bytes(body)
            body += piece

    async def _take(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not await self._more():
                return None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _take_line(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if not await self._more():
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    async def gone(self) -> None:
        """Wait until the socket is closed and nothing of the conversation still runs."""
        await self.lost.wait()
        if self.task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
