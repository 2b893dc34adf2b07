"""One event loop in a thread of its own, in which the async clients of LangChain objects live.

The connections of an async client belong to the loop that made them, and some packages share one client among all their
objects; so there is one loop in a process for all of them, whichever thread or loop calls.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import os
import queue
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from llm_hub.call import Call
from llm_hub.errors import Cancelled

__all__ = ["close", "pull", "run"]

T = TypeVar("T")

_AHEAD = 16  # items that a stream may be ahead of whoever takes them

_AGAIN = 0.05  # seconds until a cancellation is repeated
_CLOSING = 2.0  # seconds that a client may take to close its connections

_opened: ContextVar[list[weakref.ref[Any]] | None] = ContextVar("opened", default=None)
_lock = threading.Lock()
_loop: tuple[int, asyncio.AbstractEventLoop] | None = None


def _running() -> asyncio.AbstractEventLoop:
    """The loop of this process; the child of a fork gets one of its own."""
    global _loop
    with _lock:
        if _loop is None or _loop[0] != os.getpid():
            loop = asyncio.new_event_loop()
            loop.call_soon(_watch_generators)
            threading.Thread(target=loop.run_forever, name="llm-hub-langchain", daemon=True).start()
            _loop = (os.getpid(), loop)
        return _loop[1]


def _watch_generators() -> None:
    """In the loop's thread: note each async generator with the stream that it is begun for."""
    before = sys.get_asyncgen_hooks().firstiter

    def begun(generator: Any) -> None:
        if before is not None:
            before(generator)
        opened = _opened.get()
        if opened is not None:
            opened.append(weakref.ref(generator))

    sys.set_asyncgen_hooks(firstiter=begun)


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _start(
    work: Callable[[], Awaitable[T]],
) -> tuple[concurrent.futures.Future[T], Callable[[], None]]:
    """Begin it in the loop; what it will come to, and how to stop it.

    To cancel a task once is not enough: up to Python 3.11 `asyncio.wait_for`, which some clients use for each chunk, loses a
    cancellation that comes together with what it waits for.
    """
    loop = _running()
    begun: list[asyncio.Task[Any]] = []

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        begun.append(task)
        return await work()

    future = asyncio.run_coroutine_threadsafe(main(), loop)

    def insist(wait: float) -> None:
        if begun and not begun[0].done():
            begun[0].cancel()
            loop.call_later(wait, insist, 2 * wait)

    def stop() -> None:
        if future.cancel():
            loop.call_soon_threadsafe(loop.call_later, _AGAIN, insist, 2 * _AGAIN)

    return future, stop


def run(work: Callable[[], Awaitable[T]], call: Call) -> T:
    """Do it in the loop and wait; it is cancelled there when the call is. Raises Cancelled, or what it raises."""
    future, stop = _start(work)
    call.cancellation().subscribe(future, stop)
    try:
        return _result(future)
    finally:
        call.cancellation().unsubscribe(future)


def _result(future: concurrent.futures.Future[T]) -> T:
    try:
        return future.result()
    except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
        raise Cancelled from error


def close(client: Any) -> None:
    """Close a client, in the loop if that is async; what goes wrong there is of no use to anybody any more."""
    ending = getattr(client, "aclose", None) or client.close
    if not inspect.iscoroutinefunction(ending):
        with contextlib.suppress(Exception):
            ending()
        return

    async def closing() -> None:
        with contextlib.suppress(Exception):
            await ending()

    future = asyncio.run_coroutine_threadsafe(closing(), _running())
    with contextlib.suppress(TimeoutError):
        future.result(_CLOSING)


def pull(start: Callable[[], AsyncIterator[T]], call: Call) -> Iterator[T]:
    """The items of an async iterator that lives in the loop, for a thread. Closing this, or the call, ends it there."""
    loop = _running()
    items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
    room = asyncio.Semaphore(_AHEAD)

    async def pump() -> None:
        opened: list[weakref.ref[Any]] = []
        _opened.set(opened)
        try:
            async for item in start():
                await room.acquire()
                items.put(item)
        finally:
            items.put(None)
            # A generator that is closed leaves those within it to the garbage collector, and their connections with them:
            # so the innermost is closed first.
            for generator in reversed([one() for one in opened]):
                if generator is not None:
                    with contextlib.suppress(Exception):
                        await generator.aclose()

    future, stop = _start(pump)
    call.cancellation().subscribe(future, stop)
    future.add_done_callback(lambda _: items.put(None))  # cancelled before it began
    try:
        while (item := items.get()) is not None:
            yield item
            loop.call_soon_threadsafe(room.release)
        _result(future)
    finally:
        call.cancellation().unsubscribe(future)
        stop()
