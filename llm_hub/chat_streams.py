"""An answer in pieces: it begins with the first chunk that is asked for, and ends exactly once."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any

import msgspec

from llm_hub.asking import fault
from llm_hub.attempts import Journey
from llm_hub.call import Call, CancelToken
from llm_hub.epochs import EpochStore, Lease
from llm_hub.errors import BackendFailed, Cancelled, HubError, StreamInterrupted
from llm_hub.health import Visit
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, ServedBy
from llm_hub.promises import check_promises
from llm_hub.routing import make_ready
from llm_hub.runtime import Destination, Runtime
from llm_hub.selection import Ask
from llm_hub.streams import collect
from llm_hub.transport import drive
from llm_hub.watching import begin
from llm_hub.worlds import ASYNC, BLOCKING, World

__all__ = ["AsyncChatStream", "ChatStream"]


_Begun = tuple[Any, list[ChatChunk], Destination]


class _Stream:
    """What a stream is in either world. It begins with the first chunk that is asked for, and ends exactly once."""

    _world: World

    def __init__(
        self,
        epochs: EpochStore[Runtime],
        ask: Ask,
        request: ChatRequest | Callable[[], ChatRequest],
        call: Call,
    ) -> None:
        self._epochs = epochs
        self._ask = ask
        self._request = request
        self._asked: ChatRequest | None = None
        self._wanted = 1
        self._call = call
        # A token of its own, so that the stream can be closed while another thread or task waits for its next chunk.
        self._given, self._stop = call.cancel, CancelToken()
        call.cancel = self._stop
        if self._given is not None:
            self._given.subscribe(self._stop, self._stop.cancel)  # which holds no stream that was dropped
        self._reading = False
        self._chunks: Any = None
        self._lease: Lease[Runtime] | None = None
        self._journey: Journey[ChatRequest, _Begun] | None = None
        self._visit: Visit | None = None
        self._destination: Destination | None = None
        self._ready: list[ChatChunk] = []
        self._seen: list[ChatChunk] = []
        self._over = False
        self._expired: HubError | None = None
        self._left = False
        self._first: float | None = None
        self._response: ChatResponse | None = None
        self.served_by: ServedBy | None = None

    @property
    def text(self) -> str:
        """The text so far, of choice 0."""
        return "".join([chunk.text for chunk in self._seen if chunk.index == 0])

    @property
    def response(self) -> ChatResponse:
        """The whole answer, once the stream has ended. Raises RuntimeError before."""
        if self._response is None:
            raise RuntimeError("the stream has not ended, or it failed: iterate over it to its end first")
        return self._response

    async def _begin(self) -> None:
        """Find a destination that produces something. Until then others may be tried; from then on none."""
        world, call = self._world, self._call  # no way back to the stream: it must be gone as soon as it is dropped

        async def attempt(destination: Destination, to_send: ChatRequest) -> _Begun:
            chunks = world.stream(destination.backend, to_send, call)
            held: list[ChatChunk] = []
            try:
                while (chunk := await world.next(chunks)) is not None:
                    held.append(chunk)
                    if chunk.has_content:
                        break
                else:
                    if not any(chunk.finish_reason for chunk in held):
                        raise BackendFailed("its stream ended before it had produced anything")
            except BaseException:
                await world.close(chunks)
                raise
            return chunks, held, destination

        self._lease = self._epochs.lease()
        if self._call.watching is None:
            begin(self._lease, self._ask, "chat", self._call, streamed=True)
        else:
            self._call.watching.moved(self._lease)
        self._lease.attach(self._expire)
        request = self._request
        if not isinstance(request, ChatRequest):
            request = await self._world.apart(request)
        request, needs = await make_ready(self._world, request)
        self._wanted = request.n
        self._asked = request
        journey = Journey(self._world, self._lease, self._ask, request, needs, self._call, attempt)
        (self._chunks, held, self._destination), self.served_by, self._visit = await journey.go()
        self._journey = journey
        self._visit.first = self._visit.health.clock()
        self._first = time.monotonic() - self._call.started
        self._ready = held[::-1]

    async def _next(self) -> ChatChunk | None:
        """The next chunk, None at the proper end. Whatever goes wrong ends the stream."""
        if self._over:
            return None
        self._reading = True
        try:
            while self._lease is None:
                try:
                    await self._begin()
                except Cancelled as error:
                    if not self._moves_on():
                        raise
                    error.__traceback__ = None  # its frames hold this stream, and something may hold the error
            chunk = self._ready.pop() if self._ready else await self._world.next(self._chunks)
            if chunk is None:
                self._finish()
                return None
        except BaseException as error:
            failure = self._failure(error)
            if self._expired is None:  # else it is the switch that ended it
                self._blame(failure)
            if self._call.watching is not None:
                self._call.watching.failed(failure, self._first)
            await self._abandon()
            if failure is error:
                raise
            raise failure from error
        finally:
            self._reading = False
        self._seen.append(chunk)
        return chunk

    def _failure(self, error: BaseException) -> BaseException:
        """What the caller is told of this."""
        if self._expired is not None and isinstance(error, Cancelled):
            return self._drained(self._expired)
        if isinstance(error, Exception) and not isinstance(error, HubError) and self.served_by is not None:
            failure = fault(error, self.served_by.backend, self.served_by.plugin)
            return self._interrupted(failure) if self._produced() else failure
        if isinstance(error, HubError) and not isinstance(error, Cancelled) and self._produced():
            return self._interrupted(error)
        if isinstance(error, Cancelled):
            error.partial = self.text
        return error

    def _blame(self, failure: BaseException) -> None:
        """Tell the backend's health of a failure that came after the answer had begun."""
        if self._journey is None or self._visit is None or self._destination is None:
            return
        if isinstance(failure, HubError):
            self._journey.failed(self._destination, self._visit, failure)

    def _produced(self) -> bool:
        return any(chunk.has_content for chunk in self._seen)

    def _expire(self, error: HubError) -> None:
        """The epoch is drained no longer: end with this error, now if somebody waits, else when the next chunk is asked for."""
        if self._given is None or not self._given.cancelled:
            self._expired = error
        self._stop.cancel()

    def _moves_on(self) -> bool:
        """Was it a switch that ended it, before anything had come? Then it begins anew, on the epoch in force."""
        if self._expired is None or self._left or not self._call.repeatable or self._lease is None:
            return False
        self._lease.release()
        self._lease = self._expired = None
        if self._given is not None:
            self._given.unsubscribe(self._stop)
        self._call.cancel = self._stop = CancelToken()
        if self._given is not None:
            self._given.subscribe(self._stop, self._stop.cancel)
        if self._is_left():  # by another thread, just now: it has cancelled the token of before
            self._stop.cancel()
        return True

    def _is_left(self) -> bool:
        return self._left

    def _drained(self, error: HubError) -> StreamInterrupted:
        """An error of its own: the one that was told is told to every stream."""
        name = self.served_by.backend if self.served_by is not None else None
        return StreamInterrupted(error.message, partial=self.text, backend=name, hint=error.hint)

    def _interrupted(self, error: HubError) -> StreamInterrupted:
        """After the first content every failure is this one, so that nobody takes a part for the whole."""
        if isinstance(error, StreamInterrupted):
            error.partial = self.text
            if isinstance(cause := error.__cause__, HubError):
                error.ejects = error.ejects or cause.ejects
            return error
        interrupted = StreamInterrupted(
            f"the answer broke off: {error.message}",
            partial=self.text,
            status=getattr(error, "status", None),
            backend=error.backend,
            hint=error.hint,
        )
        interrupted.blames_backend, interrupted.ejects = error.blames_backend, error.ejects
        return interrupted

    def _finish(self) -> None:
        """The backend says that this was all: check it, and put the answer together."""
        self._release()
        response = collect(self._seen)
        open_choices = [choice.index for choice in response.choices if choice.finish_reason is None]
        if open_choices or len(response.choices) < self._wanted:
            name = self.served_by.backend if self.served_by is not None else None
            raise StreamInterrupted(
                "the stream ended without a finish reason for every choice", partial=self.text, backend=name
            )
        timings = msgspec.structs.replace(
            response.timings, total=time.monotonic() - self._call.started, first_chunk=self._first
        )
        if self._asked is not None:
            check_promises(self._asked, response)
        self._response = msgspec.structs.replace(response, served_by=self.served_by, timings=timings)
        if self._journey is not None and self._visit is not None:
            self._journey.served(self._visit, self.served_by.model if self.served_by is not None else None)
        if self._call.watching is not None:
            self._call.watching.ended(self._response, self.served_by, self._first)

    def _release(self) -> None:
        self._over = True
        if self._given is not None:
            self._given.unsubscribe(self._stop)
        if self._lease is not None:
            self._lease.release()

    async def _abandon(self) -> None:
        """Stop before the end: the backend is told by the connection closing."""
        over, self._over = self._over, True
        if not over and self._call.watching is not None:
            self._call.watching.failed(Cancelled())
        try:
            if not over and self._chunks is not None:
                await self._world.close(self._chunks)
        finally:
            if self._visit is not None:
                self._visit.leave()
            self._release()

    async def _leave(self) -> None:
        """Stop, whoever reads: a reader that waits is cancelled, and cleans up itself."""
        self._left = True
        if self._reading:
            self._stop.cancel()
        else:
            await self._abandon()


class ChatStream(_Stream):
    """An answer in pieces: iterate over it, or over `with` it, which closes it however the block is left.

    Raises StreamInterrupted, with what has arrived as `partial`, when the answer breaks off. After the end, `response`
    is the whole answer.
    """

    _world = BLOCKING

    def __iter__(self) -> Iterator[ChatChunk]:
        return self

    def __next__(self) -> ChatChunk:
        chunk = drive(self._next())
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Stop, and tell the backend. Idempotent."""
        drive(self._leave())

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncChatStream(_Stream):
    """`ChatStream` for an event loop: `async for`, `async with`, `aclose`."""

    _world = ASYNC

    def __aiter__(self) -> AsyncIterator[ChatChunk]:
        return self

    async def __anext__(self) -> ChatChunk:
        chunk = await self._next()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop, and tell the backend. Idempotent."""
        await self._leave()

    async def __aenter__(self) -> AsyncChatStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
