"""One HTTP exchange as a fake server sees it: the request with its fate, and the reply as steps on the wire."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

import msgspec

__all__ = [
    "Answer",
    "Close",
    "Hang",
    "Pause",
    "Reply",
    "Request",
    "Reset",
    "Script",
    "Step",
    "body_steps",
    "wire_steps",
]


@dataclass(frozen=True, slots=True)
class Pause:
    """Send nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Send nothing more, with the connection open, until the client leaves or the server stops."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection in order (FIN), after what was sent so far."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Cut the connection off (RST): what the client has not read yet is lost."""


Step: TypeAlias = bytes | Pause | Hang | Close | Reset
"""One thing a server does on the wire. Bytes are one send on the socket."""

Body: TypeAlias = bytes | Iterable[Step] | AsyncIterable[Step]


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response. A body of bytes is sent with its length; an iterable's pieces are HTTP chunks, one send each.

    `framing` overrides that: "length" (a list's total), "chunked", or "close" (the body ends with the connection). A
    `content-length` or `transfer-encoding` among the headers is sent as it is, and then decides. Between the pieces of
    a body there may be Pause, Hang, Close and Reset. Where the client leaves early, a generator is closed.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = b""
    framing: Literal["auto", "length", "chunked", "close"] = "auto"

    @classmethod
    def of_json(cls, value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        """A JSON body in one piece."""
        merged = {"content-type": "application/json", **(headers or {})}
        return cls(status, merged, msgspec.json.encode(value))

    @classmethod
    def of_text(cls, text: str, *, status: int = 200, content_type: str = "text/plain; charset=utf-8") -> Reply:
        """A text body in one piece."""
        return cls(status, {"content-type": content_type}, text.encode())


@dataclass(frozen=True, slots=True)
class Script:
    """Steps done on the wire exactly as they are, status line and framing included; then the connection closes."""

    steps: Iterable[Step] | AsyncIterable[Step]


Answer: TypeAlias = Reply | Script


@dataclass(eq=False, slots=True)
class Request:
    """A request that arrived, and what became of it. Times are `time.monotonic()` seconds.

    Header names are in lower case; `path` holds the query. `connection` numbers the connections from 1 and `turn` the
    requests on one connection from 1.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int = 1
    turn: int = 1
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    gone_early: bool = False
    chunks_sent: int = 0
    bytes_sent: int = 0
    fault: str | None = None
    _over: threading.Event = field(default_factory=threading.Event, repr=False)
    _afterwards: list[Callable[[], None]] = field(default_factory=list, repr=False)

    @property
    def json(self) -> Any:
        """The decoded body. Raises ValueError if it is not JSON."""
        return msgspec.json.decode(self.body)

    def wait(self, timeout: float = 5.0) -> bool:
        """Wait until it is answered or its client is gone. False if neither happened within `timeout` seconds."""
        return self._over.wait(timeout)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Have something done in the server's loop when this request is answered or its client is gone."""
        self._afterwards.append(action)

    def finish(self, *, gone_early: bool) -> None:
        """Called by the server, once: the reply is sent (its last byte handed to the kernel), or the client left."""
        if self.ended is None:
            self.ended = time.monotonic()
            self.gone_early = gone_early
            self._over.set()
            for action in self._afterwards:
                action()


def _head(reply: Reply, extra: Mapping[str, str]) -> bytes:
    try:
        reason = HTTPStatus(reply.status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {reply.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in {**reply.headers, **extra}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def body_steps(body: Body) -> AsyncGenerator[Step, None]:
    """The steps of a body, whatever it is. Closes a generator at once when it is closed itself."""
    if isinstance(body, bytes):
        yield body
        return
    try:
        if isinstance(body, AsyncIterable):
            async for piece in body:
                yield piece
        else:
            for piece in body:
                yield piece
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()
        elif isinstance(body, Generator):
            body.close()


async def wire_steps(answer: Answer, *, head_only: bool = False) -> AsyncGenerator[Step, None]:
    """What an answer means on the wire. The first step of a Reply is its whole head, then each chunk is a step."""
    if isinstance(answer, Script):
        async with aclosing(body_steps(answer.steps)) as steps:
            async for step in steps:
                yield step
        yield Close()
        return
    names = {name.lower(): value.lower() for name, value in answer.headers.items()}
    body = answer.body
    framing = answer.framing
    extra: dict[str, str] = {}
    if "content-length" in names:
        framing = "length"
    elif "transfer-encoding" in names:
        framing = "chunked"
    else:
        if framing == "auto":
            framing = "length" if isinstance(body, bytes) else "chunked"
        if framing == "length":
            if not isinstance(body, bytes):
                if isinstance(body, AsyncIterable):
                    raise TypeError("a reply of known length needs bytes or a list as its body")
                body = list(body)
                extra["content-length"] = str(sum(len(step) for step in body if isinstance(step, bytes)))
            else:
                extra["content-length"] = str(len(body))
        elif framing == "chunked":
            extra["transfer-encoding"] = "chunked"
        else:
            extra["connection"] = "close"
    yield _head(answer, extra)
    if head_only:
        return
    async with aclosing(body_steps(body)) as steps:
        async for step in steps:
            if not isinstance(step, bytes):
                yield step
            elif step:  # an empty chunk would be the end of a chunked body
                yield b"%x\r\n%s\r\n" % (len(step), step) if framing == "chunked" else step
    if framing == "chunked":
        yield b"0\r\n\r\n"
    elif framing == "close":
        yield Close()
