"""The two worlds that a call can come from: blocking threads and event loops, behind one interface of coroutines.

Routing is written once, as coroutines over a `World`. Those of `BlockingWorld` never suspend, so that `transport.drive`
runs them to their end in the calling thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar

from llm_hub.call import Call
from llm_hub.capabilities import Backend, EmbeddingBackend, ModelInfo, Probe, ReadingBackend, Rung, TextBackend
from llm_hub.errors import Cancelled
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    ReadRequest,
    ReadResponse,
    TokenCount,
)

__all__ = ["ASYNC", "BLOCKING", "Signal", "World"]

T = TypeVar("T")


class Signal(Protocol):
    """Wakes one thread or task."""

    def set(self) -> None:
        """Wake it, from any thread. Calling it again does nothing."""
        ...


class World(Protocol):
    """How routing reaches a backend."""

    async def chat(self, backend: TextBackend, request: ChatRequest, call: Call) -> ChatResponse:
        """A whole answer."""
        ...

    def stream(self, backend: TextBackend, request: ChatRequest, call: Call) -> Any:
        """The iterator of an answer in pieces, for `next` and `close`."""
        ...

    async def next(self, chunks: Any) -> ChatChunk | None:
        """The next chunk, None at the end."""
        ...

    async def close(self, chunks: Any) -> None:
        """Stop a stream before its end."""
        ...

    async def count(self, backend: Any, request: ChatRequest, call: Call) -> TokenCount | None:
        """The tokens of a prompt, None where the backend cannot count."""
        ...

    async def read(self, backend: ReadingBackend, request: ReadRequest, call: Call) -> ReadResponse:
        """The text on an image."""
        ...

    async def embed(self, backend: EmbeddingBackend, request: EmbedRequest, call: Call) -> EmbedResponse:
        """One vector a text."""
        ...

    async def models(self, backend: Backend, call: Call) -> tuple[ModelInfo, ...]:
        """What the backend can serve."""
        ...

    async def probe(self, backend: Backend, rung: Rung, model: str | None, call: Call) -> Probe:
        """How healthy it is."""
        ...

    async def apart(self, work: Callable[[], T]) -> T:
        """Do what may block (loading a plugin) where it holds up nobody else."""
        ...

    def signal(self) -> Signal:
        """Something to `wait` for, in this thread or task."""
        ...

    async def wait(self, signal: Signal, seconds: float, call: Call) -> bool:
        """Wait until the signal is set, at most so many seconds. True if it was. Raises Cancelled at once."""
        ...


class BlockingWorld:
    """Calls come from a thread, which waits."""

    async def chat(self, backend: TextBackend, request: ChatRequest, call: Call) -> ChatResponse:
        return backend.chat(request, call)

    def stream(self, backend: TextBackend, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        return iter(backend.stream(request, call))

    async def next(self, chunks: Iterator[ChatChunk]) -> ChatChunk | None:
        return next(chunks, None)

    async def close(self, chunks: Any) -> None:
        if (close := getattr(chunks, "close", None)) is not None:
            close()

    async def count(self, backend: Any, request: ChatRequest, call: Call) -> TokenCount | None:
        count: Callable[..., TokenCount | None] | None = getattr(backend, "count_tokens", None)
        return None if count is None else count(request, call)

    async def read(self, backend: ReadingBackend, request: ReadRequest, call: Call) -> ReadResponse:
        return backend.read(request, call)

    async def embed(self, backend: EmbeddingBackend, request: EmbedRequest, call: Call) -> EmbedResponse:
        return backend.embed(request, call)

    async def models(self, backend: Backend, call: Call) -> tuple[ModelInfo, ...]:
        return backend.models(call)

    async def probe(self, backend: Backend, rung: Rung, model: str | None, call: Call) -> Probe:
        return backend.probe(rung, model, call)

    async def apart(self, work: Callable[[], T]) -> T:
        return work()

    def signal(self) -> Signal:
        return _BlockingSignal()

    async def wait(self, signal: Any, seconds: float, call: Call) -> bool:
        waited: _BlockingSignal = signal
        if call.cancel is not None:
            call.cancel.subscribe(waited, waited.set)
        try:
            woken = waited.wait(min(max(seconds, 0.0), _LONGEST))
        finally:
            if call.cancel is not None:
                call.cancel.unsubscribe(waited)
        if call.cancelled:
            raise Cancelled
        return woken


class _BlockingSignal:
    """A bare lock, and not an Event, which takes a lock to set: the garbage collector may do that within the wait for it."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was set before
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        woken = self._lock.acquire(timeout=seconds)
        if woken:
            self.set()  # once set, it stays so
        return woken


class AsyncWorld:
    """Calls come from a task of an event loop, which goes on meanwhile."""

    async def chat(self, backend: TextBackend, request: ChatRequest, call: Call) -> ChatResponse:
        return await backend.achat(request, call)

    def stream(self, backend: TextBackend, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        return aiter(backend.astream(request, call))

    async def next(self, chunks: AsyncIterator[ChatChunk]) -> ChatChunk | None:
        return await anext(chunks, None)

    async def close(self, chunks: Any) -> None:
        if (close := getattr(chunks, "aclose", None)) is not None:
            await close()

    async def count(self, backend: Any, request: ChatRequest, call: Call) -> TokenCount | None:
        count: Callable[..., Awaitable[TokenCount | None]] | None = getattr(backend, "acount_tokens", None)
        return None if count is None else await count(request, call)

    async def read(self, backend: ReadingBackend, request: ReadRequest, call: Call) -> ReadResponse:
        return await backend.aread(request, call)

    async def embed(self, backend: EmbeddingBackend, request: EmbedRequest, call: Call) -> EmbedResponse:
        return await backend.aembed(request, call)

    async def models(self, backend: Backend, call: Call) -> tuple[ModelInfo, ...]:
        return await backend.amodels(call)

    async def probe(self, backend: Backend, rung: Rung, model: str | None, call: Call) -> Probe:
        return await backend.aprobe(rung, model, call)

    async def apart(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    def signal(self) -> Signal:
        return _AsyncSignal()

    async def wait(self, signal: Any, seconds: float, call: Call) -> bool:
        waited: _AsyncSignal = signal
        if call.cancel is not None:
            call.cancel.subscribe(waited, waited.set)
        try:
            async with asyncio.timeout(min(max(seconds, 0.0), _LONGEST)):
                await waited.event.wait()
        except TimeoutError:
            pass
        finally:
            if call.cancel is not None:
                call.cancel.unsubscribe(waited)
        if call.cancelled:
            raise Cancelled
        return waited.event.is_set()


class _AsyncSignal:
    """An event of the running loop that other threads may set."""

    __slots__ = ("_loop", "event")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.event = asyncio.Event()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there any more
            self._loop.call_soon_threadsafe(self.event.set)


_LONGEST = 1e6  # seconds; what every platform can wait


BLOCKING = BlockingWorld()
ASYNC = AsyncWorld()
