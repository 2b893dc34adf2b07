"""HTTP clients for LangChain classes that take one: they can be closed, follow no redirects, and read only so much.

Deadlines but for that of connecting are the hub's. httpx is installed where a class takes its clients, and this module is
imported only then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from llm_hub.errors import ProtocolError

__all__ = ["async_options", "sync_options", "timeout"]

_LONGEST = 64 * 1024 * 1024  # bytes of one answer, as in the hub's own transport


def sync_options(connect: float) -> dict[str, Any]:
    """The arguments of an `httpx.Client`; `connect` in seconds."""
    return {**_common(connect), "event_hooks": {"response": [_bound]}}


def async_options(connect: float) -> dict[str, Any]:
    """The arguments of an `httpx.AsyncClient`."""
    return {**_common(connect), "event_hooks": {"response": [_abound]}}


def timeout(connect: float) -> httpx.Timeout:
    """The deadlines of a client."""
    return httpx.Timeout(None, connect=connect)


def _common(connect: float) -> dict[str, Any]:
    return {
        "timeout": timeout(connect),
        "follow_redirects": False,
        "headers": {"accept-encoding": "identity"},  # a small body cannot become huge
    }


def _bound(response: httpx.Response) -> None:
    _check_encoding(response)
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Bounded(response.stream)


async def _abound(response: httpx.Response) -> None:
    _check_encoding(response)
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = _AsyncBounded(response.stream)


def _check_encoding(response: httpx.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ProtocolError(f"it answered in the encoding {encoding!r}, which was not asked for")


class _Bounded(httpx.SyncByteStream):
    """A body that may have so many bytes, for a thread."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left = _LONGEST
        for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise _too_long()
            yield piece

    def close(self) -> None:
        self._stream.close()


class _AsyncBounded(httpx.AsyncByteStream):
    """The same for a task."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _LONGEST
        async for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise _too_long()
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _too_long() -> ProtocolError:
    return ProtocolError(f"its answer is longer than {_LONGEST // (1024 * 1024)} MiB and was cut off")
