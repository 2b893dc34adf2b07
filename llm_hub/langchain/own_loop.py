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
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from llm_hub.call import Call
from llm_hub.errors import Cancelled

__all__ = ["close", "pull", "run"]

T = TypeVar("T")

_AHEAD = 16  # items that a stream may be ahead of whoever takes them

_CLOSING = 2.0  # seconds that a client may take to close its connections

_lock = threading.Lock()
_loop: tuple[int, asyncio.AbstractEventLoop] | None = None


def _running() -> asyncio.AbstractEventLoop:
    """The loop of this process; the child of a fork gets one of its own."""
    global _loop
    with _lock:
        if _loop is None or _loop[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="llm-hub-langchain", daemon=True).start()
            _loop = (os.getpid(), loop)
        return _loop[1]


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(work: Coroutine[Any, Any, T], call: Call) -> T:
    """Run it in the loop and wait; it is cancelled there when the call is. Raises Cancelled, or what it raises."""
    future = asyncio.run_coroutine_threadsafe(work, _running())
    return _result(future, call)


def _result(future: concurrent.futures.Future[T], call: Call) -> T:
    token = call.cancellation()
    token.subscribe(future, future.cancel)
    try:
        return future.result()
    except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
        raise Cancelled from error
    finally:
        token.unsubscribe(future)


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
        iterator = start()
        try:
            async for item in iterator:
                await room.acquire()
                items.put(item)
        finally:
            items.put(None)
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    future = asyncio.run_coroutine_threadsafe(pump(), loop)
    token = call.cancellation()
    token.subscribe(future, future.cancel)
    future.add_done_callback(lambda _: items.put(None))  # cancelled before it began
    try:
        while (item := items.get()) is not None:
            yield item
            loop.call_soon_threadsafe(room.release)
        _result(future, call)
    finally:
        token.unsubscribe(future)
        future.cancel()
        with contextlib.suppress(BaseException):
            future.exception(timeout=0)
