"""Work of an engine in threads of its own, and the bounded, cancellable way of what it makes to whoever waits for it.

A `Job` is one call. Its worker thread puts chunks in and ends it; its consumer, a blocking caller or a task of an event
loop, takes them out. Whoever stops it (the consumer, a deadline, a cancellation from any thread) wakes both sides at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from llm_hub.call import Call, CancelToken
from llm_hub.errors import BackendFailed, BackendOverloaded, Cancelled, DeadlineExceeded, HubClosed, HubError
from llm_hub.messages import ChatChunk

__all__ = ["Job", "Pool", "Stopped"]

_CAPACITY = 64  # chunks that may wait for a slow consumer before the engine has to
_WAITING = {
    "load": "loading the model",
    "first token": "the first piece of the answer",
    "between tokens": "the next piece of the answer",
    "whole": "the answer",
}


class Stopped(BaseException):
    """Raised in the engine's thread, through the engine, when nobody waits for it any more.

    Not an Exception, so that an engine which reports its own errors does not take it for one of them.
    """


class Job:
    """One call of a backend, between the thread that works for it and the one that waits.

    `call` is the caller's, `inner` the engine's own view of it: cancelled for whatever reason the job is stopped.
    """

    __slots__ = (
        "__weakref__",
        "_armed_for",
        "_began",
        "_call",
        "_cond",
        "_ended",
        "_failure",
        "_finished",
        "_loop",
        "_pool",
        "_produced",
        "_ready",
        "_result",
        "_seconds",
        "_since",
        "_stage",
        "_stopped",
        "_timer",
        "_waiter",
        "_work",
        "inner",
    )

    def __init__(self, pool: Pool, work: Callable[[Job], Any], call: Call, *, stage: str, seconds: float) -> None:
        self._pool = pool
        self._work: Callable[[Job], Any] | None = work
        self._call = call
        self.inner = Call(
            timeouts=call.timeouts, cancel=CancelToken(), repeatable=call.repeatable, request_id=call.request_id
        )
        self.inner.started, self.inner.timeout, self.inner.deadline = call.started, call.timeout, call.deadline
        # Its lock is reentrant: a signal handler or the garbage collector may stop a job within any line below.
        self._cond = threading.Condition()
        self._ready: deque[ChatChunk] = deque()
        self._result: Any = None
        self._failure: HubError | None = None
        self._finished: set[int] = set()
        self._ended = False  # the worker is done with it, or nobody waits for what it still makes
        self._stopped = False
        self._produced = False
        self._stage = stage
        self._seconds = seconds
        self._since = self._began = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf

    def start(self) -> None:
        """Hand it to the workers. Raises BackendOverloaded, HubClosed, Cancelled, DeadlineExceeded."""
        self._call.check(self._pool.backend)
        self._pool.submit(self)
        self._call.cancellation().subscribe(self, self._cancelled)

    def _cancelled(self) -> None:
        self.stop(Cancelled(backend=self._pool.backend))

    # -- the engine's side --------------------------------------------------------------------------------------------

    @property
    def finished(self) -> set[int]:
        """The choices that have ended."""
        return self._finished

    @property
    def produced(self) -> bool:
        """Was anything put in that the model wrote?"""
        return self._produced

    def run(self) -> None:
        """Do the work, in a worker thread. Never raises: what goes wrong is raised where the job is waited for."""
        work, self._work = self._work, None
        try:
            result = work(self) if work is not None and not self._stopped else None
        except Stopped:
            self._end(None, None)
        except HubError as error:
            if error.backend is None:
                error.backend = self._pool.backend
            self._end(None, error)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits, as this cause of a typed error
            failed = BackendFailed(
                f"its engine failed: {type(error).__name__}: {str(error)[:300]}", backend=self._pool.backend
            )
            failed.__cause__ = error
            self._end(None, failed)
        else:
            self._end(result, None)

    def _end(self, result: Any, failure: HubError | None) -> None:
        with self._cond:
            if not self._stopped:
                self._result, self._failure = result, failure
                self._ended = True
                self._wake()

    def put(self, chunk: ChatChunk) -> None:
        """Hand a chunk over. Waits while the consumer is behind; raises Stopped when nobody waits any more."""
        with self._cond:
            while len(self._ready) >= _CAPACITY and not self._stopped:
                left = self._call.remaining()
                if left <= 0:
                    self.stop(self._call.expired(self._pool.backend))
                else:
                    self._cond.wait(min(left, threading.TIMEOUT_MAX))
            if self._stopped:
                raise Stopped
            self._ready.append(chunk)
            if chunk.finish_reason is not None:
                self._finished.add(chunk.index)
            if not self._produced and chunk.has_content:
                self._produced = True
                self._enter("between tokens", self._call.timeouts.between_tokens)
            self._wake()

    def check(self) -> None:
        """Raise Stopped if nobody waits any more."""
        if self._stopped:
            raise Stopped

    def enter(self, stage: str, seconds: float) -> None:
        """Something else is being waited for from now on."""
        with self._cond:
            before = self._until()
            self._enter(stage, seconds)
            if self._until() < before:
                self._wake()  # whoever waits must look at the new deadline

    def _enter(self, stage: str, seconds: float) -> None:
        self._stage, self._seconds, self._since = stage, seconds, time.monotonic()

    # -- either side --------------------------------------------------------------------------------------------------

    def stop(self, error: HubError) -> None:
        """End it for this reason, from any thread: the consumer gets the error, the engine is told to stop. Idempotent."""
        with self._cond:
            if self._stopped or (self._ended and not self._ready):
                return
            self._stopped = self._ended = True
            self._ready.clear()
            self._result, self._failure = None, error
            self._wake()
        self._pool.withdraw(self)
        self.inner.cancellation().cancel()

    def _wake(self) -> None:
        """Under the lock: something has changed."""
        self._cond.notify_all()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(_resolve, waiter)
            except RuntimeError:  # the loop was closed while it waited: nobody will take anything
                self.stop(Cancelled("the event loop of the call was closed", backend=self._pool.backend))

    def forked(self) -> None:
        """In the child of a fork: the thread that worked for this is gone, and so may be the one that held the lock."""
        self._cond = threading.Condition()
        self._waiter = self._loop = self._timer = None  # the loop's wake-up pipe is shared with the parent
        self.stop(
            BackendFailed(
                "the process was forked while this call ran, and its thread stayed in the parent",
                backend=self._pool.backend,
                hint="Make the call again in the child.",
            )
        )

    # -- the consumer's side ------------------------------------------------------------------------------------------

    def _until(self) -> float:
        """When the wait that began at `_began` has taken too long. Time that the consumer spent elsewhere counts for nothing."""
        return min(self._call.deadline, max(self._began, self._since) + self._seconds)

    def _expired(self) -> HubError:
        if self._until() >= self._call.deadline:
            return self._call.expired(self._pool.backend)
        return DeadlineExceeded(
            f"{_WAITING.get(self._stage, self._stage)} took more than {self._seconds:g} s",
            stage=self._stage,
            seconds=self._seconds,
            backend=self._pool.backend,
            hint=f"Raise the backend's timeout {self._stage.replace(' ', '_')!r} if it needs longer.",
        )

    def wait(self) -> None:
        """Block until there is something to take."""
        self._began = time.monotonic()
        try:
            with self._cond:
                while not self._ready and not self._ended:
                    left = self._until() - time.monotonic()
                    if left <= 0:
                        self.stop(self._expired())
                        return
                    self._cond.wait(min(left, threading.TIMEOUT_MAX))
        except BaseException:  # KeyboardInterrupt
            self._cancelled()
            raise

    async def wait_async(self) -> None:
        """`wait` for a task."""
        self._began = time.monotonic()
        loop = asyncio.get_running_loop()
        while True:
            with self._cond:
                if self._ready or self._ended:
                    return
                if not self._arm(loop):
                    return
                waiter = self._waiter = loop.create_future()
                self._loop = loop
            try:
                await waiter
            except BaseException:  # asyncio.CancelledError, or the generator of the coroutine is closed
                self._waiter = None
                self._cancelled()
                self.release()
                raise

    def _arm(self, loop: asyncio.AbstractEventLoop) -> bool:
        """See to it that the deadline is noticed: one timer for a whole stream, moved only when it fires or is too late."""
        until = self._until()
        left = until - time.monotonic()
        if left <= 0:
            self.stop(self._expired())
            return False
        if self._timer is not None and until < self._armed_for:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and left != math.inf:
            self._armed_for = until
            self._timer = loop.call_later(left, self._tick, loop)
        return True

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._cond:
            self._timer = None
            if self._waiter is not None:
                self._arm(loop)

    def take(self) -> deque[ChatChunk] | None:
        """What was put in since the last time, None if that was all. Raises what the job failed with. Never waits."""
        with self._cond:
            if self._ready:
                batch, self._ready = self._ready, deque()
                self._cond.notify_all()  # the engine may wait for room
                return batch
            failure, self._failure = self._failure, None
        self.release()
        if failure is not None:
            raise failure
        return None

    def result(self) -> Any:
        """What the work returned. Raises what it failed with."""
        self.take()
        return self._result

    def release(self) -> None:
        """Nothing more is waited for: forget what holds on to this."""
        if self._call.cancel is not None:
            self._call.cancel.unsubscribe(self)
        timer, self._timer = self._timer, None
        if timer is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its timers with it
                self._loop.call_soon_threadsafe(timer.cancel)

    def abandon(self) -> None:
        """The consumer wants nothing more: stop the engine."""
        self._cancelled()
        self.release()


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Pool:
    """At most `workers` threads, started when needed, and at most `queue` jobs that wait for one of them."""

    def __init__(self, backend: str, *, workers: int, queue: int) -> None:
        self.backend = backend
        self._workers = workers
        self._queue = queue
        self._serial = itertools.count(1)
        self._start_anew()
        self._closed = False

    def _start_anew(self) -> None:
        self._cond = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._threads: set[threading.Thread] = set()
        self._idle = 0

    def submit(self, job: Job) -> None:
        """Let a worker run it. Raises BackendOverloaded, HubClosed."""
        with self._cond:
            if self._closed:
                raise HubClosed("the backend is closed", backend=self.backend, hint="Take it from an open hub.")
            waiting = len(self._waiting) + len(self._running) - self._workers
            if waiting >= self._queue:
                raise BackendOverloaded(
                    f"{self._workers} calls run and {waiting} wait already",
                    backend=self.backend,
                    hint="Send fewer at once, or give the backend more workers or a longer queue.",
                )
            self._waiting.append(job)
            if self._idle >= len(self._waiting):
                self._cond.notify()
            elif len(self._threads) < self._workers:
                thread = threading.Thread(
                    target=_work, args=(self,), name=f"llm-hub-{self.backend}-{next(self._serial)}", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:
                    if self._threads:
                        return  # one of these will come to it
                    self._waiting.remove(job)
                    raise BackendOverloaded(
                        "no thread could be started for its engine",
                        backend=self.backend,
                        hint="The limit of threads of this machine or container is reached, or the interpreter ends.",
                    ) from error
                self._threads.add(thread)

    def withdraw(self, job: Job) -> None:
        """Forget a job that no worker has begun.

        Without the lock: whoever stops a job may hold that job's, and removing an object from a deque is atomic.
        """
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def next(self) -> Job | None:
        """For a worker: what to do next; None: end."""
        with self._cond:
            while not self._waiting and not self._closed:
                self._idle += 1
                try:
                    self._cond.wait()
                finally:
                    self._idle -= 1
            if self._closed:
                self._threads.discard(threading.current_thread())
                return None
            job = self._waiting.popleft()
            self._running.add(job)
            return job

    def done(self, job: Job) -> None:
        """For a worker: this one is over."""
        with self._cond:
            self._running.discard(job)

    def close(self) -> list[threading.Thread]:
        """Take nothing more, fail what runs or waits; the threads that are about to end."""
        with self._cond:
            self._closed = True
            jobs = [*self._waiting, *self._running]
            threads = list(self._threads)
            self._cond.notify_all()
        for job in jobs:
            closed = BackendFailed(
                "it was closed while this call ran",
                backend=self.backend,
                hint="Close a hub after its last call, and give a switch a longer --drain, or none.",
            )
            closed.blames_backend = False
            job.stop(closed)
        return threads

    def forked(self) -> None:
        """In the child of a fork, where no worker exists: begin anew."""
        jobs = [*self._waiting, *self._running]
        self._start_anew()
        for job in jobs:
            job.forked()


def _work(pool: Pool) -> None:
    """A worker. It refers to the pool alone, so that a backend which nobody closed can be collected."""
    while (job := pool.next()) is not None:
        job.run()
        pool.done(job)
        del job  # an idle worker keeps no conversation in memory
