"""A backend inside the process: a blocking engine, made safe for many threads, event loops, deadlines and forks."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Set
from typing import Any

from llm_hub._jobs import Job, Pool
from llm_hub.call import Call
from llm_hub.capabilities import Feature, ModelInfo, Probe, Rung, required_features
from llm_hub.engines import CallbackEngine, EmbeddingEngine, Engine, ReadingEngine
from llm_hub.errors import BackendFailed, Cancelled, DeadlineExceeded, HubError, StreamInterrupted, UnsupportedFeature
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    ReadRequest,
    ReadResponse,
)
from llm_hub.streams import collect

__all__ = ["CallbackEngine", "EmbeddingEngine", "Engine", "EngineBackend", "ReadingEngine"]

logger = logging.getLogger("llm_hub")

_CONTROL_SECONDS = 10.0  # how long a question about models or health may take
_CONTROL_WORKERS = 2  # apart from those that generate, so that health can be asked while all of these are busy
_GRACE = 5.0  # how long close() waits for engines that do not stop, in seconds


class EngineBackend:
    """Runs an engine in threads of its own; fulfils TextBackend, EmbeddingBackend, VisionBackend, as its engine does.

    `workers` calls run at once and `queue` more may wait; what comes then is BackendOverloaded. Between an engine and a
    slow consumer at most 64 chunks are held, then the engine waits. Whoever gives up, or whose deadline passes, gets the
    error at once, even if the engine takes longer to notice; until then it keeps its worker.

    Works with any number of threads and event loops, side by side and one after another, and in the child of a fork.
    """

    def __init__(
        self,
        engine: Engine | CallbackEngine | EmbeddingEngine | ReadingEngine,
        *,
        name: str,
        workers: int = 4,
        queue: int = 64,
    ) -> None:
        self.engine = engine
        self.name = name
        self._calls = Pool(name, workers=workers, queue=queue)
        self._control = Pool(name, workers=_CONTROL_WORKERS, queue=queue)
        self._lock = threading.Lock()
        self._closed = False
        self._chats = hasattr(engine, "generate") or hasattr(engine, "stream")
        self._push, self._whole = _ways(engine)
        _BACKENDS.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {type(self.engine).__name__}>"

    @property
    def features(self) -> frozenset[Feature]:
        return self.engine.features

    # -- answers ------------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        response: ChatResponse = _finish(self._chat(request, call))
        return response

    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        response: ChatResponse = await _afinish(self._chat(request, call))
        return response

    def _chat(self, request: ChatRequest, call: Call) -> Job:
        self._check(request)
        whole = self._whole

        def work(job: Job) -> ChatResponse:
            self._load(job, request, "whole", call.timeouts.whole)
            return whole(request, job)

        return Job(self._calls, work, call, stage="whole", seconds=call.timeouts.whole)

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        return _SyncStream(lambda: self._stream(request, call))

    def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        return _AsyncStream(lambda: self._stream(request, call))

    def _stream(self, request: ChatRequest, call: Call) -> Job:
        self._check(request)
        push = self._push

        def work(job: Job) -> None:
            self._load(job, request, "first token", call.timeouts.first_token)
            push(request, job.inner, job.put)
            _check_ended(request, job.finished, produced=job.produced)

        return Job(self._calls, work, call, stage="first token", seconds=call.timeouts.first_token)

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        response: EmbedResponse = _finish(self._embed(request, call))
        return response

    async def aembed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        response: EmbedResponse = await _afinish(self._embed(request, call))
        return response

    def _embed(self, request: EmbedRequest, call: Call) -> Job:
        if not hasattr(self.engine, "embed"):
            raise self._cannot("embed texts", "embedding")
        if request.dimensions is not None:
            self._need({Feature.DIMENSIONS})
        return self._at_once(self.engine.embed, request, call)

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        response: ReadResponse = _finish(self._read(request, call))
        return response

    async def aread(self, request: ReadRequest, call: Call) -> ReadResponse:
        response: ReadResponse = await _afinish(self._read(request, call))
        return response

    def _read(self, request: ReadRequest, call: Call) -> Job:
        if not hasattr(self.engine, "read"):
            raise self._cannot("read the text on images", "read")
        return self._at_once(self.engine.read, request, call)

    def _at_once(self, answer: Callable[[Any, Call], Any], request: EmbedRequest | ReadRequest, call: Call) -> Job:
        def work(job: Job) -> Any:
            self._load(job, request, "whole", call.timeouts.whole)
            return answer(request, job.inner)

        return Job(self._calls, work, call, stage="whole", seconds=call.timeouts.whole)

    def _load(self, job: Job, request: ChatRequest | EmbedRequest | ReadRequest, stage: str, seconds: float) -> None:
        job.enter("load", job.inner.timeouts.load)
        self.engine.load(request.model, job.inner)
        job.check()
        job.enter(stage, seconds)

    def _check(self, request: ChatRequest) -> None:
        if not self._chats:
            raise self._cannot("chat", "chat")
        self._need(required_features(request))

    def _cannot(self, do: str, feature: str) -> UnsupportedFeature:
        return UnsupportedFeature(
            f"its engine does not {do}",
            features=(feature,),
            backend=self.name,
            hint="Name another backend; `llm-hub plugins` lists what is installed.",
        )

    def _need(self, features: Set[Feature]) -> None:
        missing = features - self.engine.features
        if missing:
            names = sorted(missing)
            raise UnsupportedFeature(
                f"it cannot be asked for {', '.join(names)}",
                features=names,
                backend=self.name,
                hint="See what each backend can do: llm-hub plugins",
            )

    # -- control ------------------------------------------------------------------------------------------------------

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        models: tuple[ModelInfo, ...] = _finish(self._ask(lambda job: self.engine.models(job.inner), call))
        return models

    async def amodels(self, call: Call) -> tuple[ModelInfo, ...]:
        models: tuple[ModelInfo, ...] = await _afinish(self._ask(lambda job: self.engine.models(job.inner), call))
        return models

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        try:
            probe: Probe = _finish(self._ask(lambda job: self.engine.probe(rung, model, job.inner), call, rung))
        except HubError as error:
            return _unhealthy(rung, error)
        return probe

    async def aprobe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        try:
            probe: Probe = await _afinish(self._ask(lambda job: self.engine.probe(rung, model, job.inner), call, rung))
        except HubError as error:
            return _unhealthy(rung, error)
        return probe

    def _ask(self, work: Callable[[Job], Any], call: Call, rung: Rung = Rung.ALIVE) -> Job:
        if rung >= Rung.LOADED:
            return Job(self._control, work, call, stage="load", seconds=call.timeouts.load)
        return Job(self._control, work, call, stage="whole", seconds=_CONTROL_SECONDS)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Fail what runs with BackendFailed, wait up to 5 s for the threads to end, close the engine. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        threads = [*self._calls.close(), *self._control.close()]
        until = time.monotonic() + _GRACE
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - time.monotonic()))
        busy = sum(thread.is_alive() for thread in threads if thread is not threading.current_thread())
        if busy:
            logger.warning("%s: %d threads of its engine did not stop within %g s", self.name, busy, _GRACE)
        self.engine.close()

    def __del__(self) -> None:
        if "_closed" in self.__dict__ and not self._closed:
            self._calls.close()
            self._control.close()

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self._calls.forked()
        self._control.forked()
        forked = getattr(self.engine, "forked", None)
        if forked is not None:
            forked()


# -- asking an engine -------------------------------------------------------------------------------------------------

Push = Callable[[ChatRequest, Call, Callable[[ChatChunk], None]], None]


def _ways(engine: Any) -> tuple[Push, Callable[[ChatRequest, Job], ChatResponse]]:
    """How to get an answer out of an engine: in pieces, and whole."""
    generate: Push | None = getattr(engine, "generate", None)
    if generate is None:
        return _pulling(engine), lambda request, job: engine.chat(request, job.inner)

    def whole(request: ChatRequest, job: Job) -> ChatResponse:
        chunks: list[ChatChunk] = []

        def emit(chunk: ChatChunk) -> None:
            job.check()
            chunks.append(chunk)

        generate(request, job.inner, emit)
        finished = {chunk.index for chunk in chunks if chunk.finish_reason is not None}
        _check_ended(request, finished, produced=False)
        return collect(chunks)

    return generate, whole


def _pulling(engine: Engine) -> Push:
    """An engine that is asked for each piece, as one that hands them out."""

    def push(request: ChatRequest, call: Call, emit: Callable[[ChatChunk], None]) -> None:
        chunks = engine.stream(request, call)
        try:
            for chunk in chunks:
                emit(chunk)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    return push


def _check_ended(request: ChatRequest, finished: set[int], *, produced: bool) -> None:
    """Raise unless every choice has come to its end: a part must never be taken for the whole."""
    if len(finished) < request.n:
        message = f"its engine ended {len(finished)} of {request.n} answers with a finish reason"
        raise StreamInterrupted(message) if produced else BackendFailed(message)


def _unhealthy(rung: Rung, error: HubError) -> Probe:
    """The answer of a probe that failed; what the caller did himself is raised instead."""
    if isinstance(error, Cancelled) or (isinstance(error, DeadlineExceeded) and error.stage == "total"):
        raise error
    return Probe(rung=None, wanted=rung, detail=error.message, hint=error.hint)


# -- waiting for it ---------------------------------------------------------------------------------------------------


def _finish(job: Job) -> Any:
    job.start()
    job.wait()
    return job.result()


async def _afinish(job: Job) -> Any:
    job.start()
    await job.wait_async()
    return job.result()


class _Stream:
    """What is common to both kinds of stream. Nothing happens before the first chunk is asked for."""

    __slots__ = ("_begin", "_job", "_over", "_ready")

    def __init__(self, begin: Callable[[], Job]) -> None:
        self._begin: Callable[[], Job] | None = begin
        self._job: Job | None = None
        self._over = False
        self._ready: deque[ChatChunk] = deque()

    def _started(self) -> Job | None:
        """The job, started if this is the first chunk; None when it is over."""
        if self._over:
            return None
        if self._job is None:
            begin, self._begin = self._begin, None
            if begin is None:
                return None  # it failed before it began
            job = begin()
            job.start()
            self._job = job
        return self._job

    def _next(self, job: Job) -> ChatChunk | None:
        """The next of what the job has ready."""
        try:
            batch = job.take()
        except BaseException:
            self._over = True
            raise
        if batch is None:
            self._over = True
            return None
        self._ready = batch
        return batch.popleft()

    def _stop(self) -> None:
        over, self._over = self._over, True
        self._begin = None
        self._ready.clear()
        if self._job is not None and not over:
            self._job.abandon()

    def __del__(self) -> None:
        self._stop()


class _SyncStream(_Stream):
    """The chunks of a job, for a thread."""

    __slots__ = ()

    def __iter__(self) -> _SyncStream:
        return self

    def __next__(self) -> ChatChunk:
        if self._ready:
            return self._ready.popleft()
        job = self._started()
        if job is None:
            raise StopIteration
        job.wait()
        chunk = self._next(job)
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Stop the engine. Idempotent."""
        self._stop()


class _AsyncStream(_Stream):
    """The chunks of a job, for a task."""

    __slots__ = ()

    def __aiter__(self) -> _AsyncStream:
        return self

    async def __anext__(self) -> ChatChunk:
        if self._ready:
            return self._ready.popleft()
        job = self._started()
        if job is None:
            raise StopAsyncIteration
        try:
            await job.wait_async()
        except BaseException:
            self._over = True
            raise
        chunk = self._next(job)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop the engine. Idempotent."""
        self._stop()


# -- the process ------------------------------------------------------------------------------------------------------

_BACKENDS: weakref.WeakSet[EngineBackend] = weakref.WeakSet()


def _close_all() -> None:
    """Threads that are still in native code when the interpreter goes away would bring the process down."""
    for backend in list(_BACKENDS):
        backend.close()


def _after_fork() -> None:
    for backend in list(_BACKENDS):
        backend._forked()


atexit.register(_close_all)
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
