"""One call: lease, route, deadline, failover in the declared order, and an answer that says who gave it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from llm_hub.call import Call, CancelToken
from llm_hub.capabilities import Capability, Feature, required_features
from llm_hub.epochs import EpochStore, Lease
from llm_hub.errors import (
    BackendError,
    BackendFailed,
    BackendUnreachable,
    Cancelled,
    EmbeddingSpaceChanged,
    HubError,
    ModelNotFound,
    ProtocolError,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.events import FailedOver
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    ReadRequest,
    ReadResponse,
    ServedBy,
    TokenCount,
)
from llm_hub.promises import check_promises
from llm_hub.runtime import Destination, Route, Runtime
from llm_hub.selection import Ask, elsewhere
from llm_hub.streams import collect
from llm_hub.transport import drive
from llm_hub.watching import begin
from llm_hub.worlds import ASYNC, BLOCKING, World

__all__ = ["AsyncChatStream", "ChatStream", "in_order", "route_chat", "route_count", "route_read"]

T = TypeVar("T")

logger = logging.getLogger("llm_hub")

R = TypeVar("R", bound=msgspec.Struct)
Attempt = Callable[[Destination, R], Awaitable[T]]
Admit = Callable[[Destination], Awaitable[None]]


async def in_order(
    world: World,
    lease: Lease[Runtime],
    ask: Ask,
    request: R,
    needs: frozenset[Feature],
    call: Call,
    attempt: Attempt[R, T],
    *,
    admit: Admit | None = None,
) -> tuple[T, ServedBy]:
    """Try the destinations of the route in order, until one of them serves; the first that may not be passed over ends it.

    `request` has a field `model`; each destination gets its own. `needs` are the features that a destination must have.
    `admit` is asked before a fallback is tried, and raises EmbeddingSpaceChanged for one that must not serve.
    """
    runtime = lease.value
    route = runtime.cached(ask) or await runtime.route(world, ask, call)
    earlier: list[HubError] = []
    refused: list[HubError] = []
    for position, destination in enumerate(route.destinations):
        call.check()
        call.timeouts = destination.timeouts
        try:
            if destination.model is None:
                complete = runtime.with_model(world, route, position, ask, call)
                destination = await _guarded(complete, destination)
            _refuse(runtime, destination, needs, ask.capability)
            if position and admit is not None:
                await admit(destination)
            to_send = request
            if destination.model != request.model:  # type: ignore[attr-defined]  # every request has one
                to_send = msgspec.structs.replace(request, model=destination.model)
            result = await _watched(attempt(destination, to_send), destination, call)
        except EmbeddingSpaceChanged as refusal:
            if not earlier:
                raise
            # That the one before failed is what matters; the refusal of a fallback is an addition to it.
            logger.warning("%s", refusal)
            refused.append(refusal)
        except HubError as error:
            if error.backend is None:
                error.backend = destination.name
            if isinstance(error, UnsupportedFeature) and tuple(error.features) == (Feature.IMAGES,):
                error.hint = elsewhere(ask.capability, frozenset({Feature.IMAGES}))
            if isinstance(error, ModelNotFound):
                await _list_models(world, runtime, route, position, ask, call, error)
            if position + 1 == len(route.destinations) or not _may_pass_on(error, call):
                error.earlier = (*earlier, *refused)
                raise
            runtime.watch.tell(
                FailedOver(
                    request_id=call.request_id,
                    capability=str(ask.capability),
                    backend=destination.name,
                    to=route.destinations[position + 1].name,
                    model=destination.model,
                    epoch=lease.epoch.number,
                    error=type(error).__name__,
                    reason=str(error),
                )
            )
            earlier.append(error)
        else:
            return result, ServedBy(
                destination.name,
                destination.plugin,
                destination.model,
                lease.epoch.number,
                attempts=position + 1,
                fallback=position > 0,
            )
    failed = earlier.pop()
    failed.earlier = tuple(earlier)
    failed.hint = " ".join(
        filter(None, (failed.hint, *(f"No fallback: {str(refusal).rstrip('.')}." for refusal in refused)))
    )
    raise failed


def _checked(response: ChatResponse, request: ChatRequest) -> ChatResponse:
    """The answer, if it is one: as many choices as were asked for, each at its end and what it was to be."""
    n = request.n
    found: object = response
    if not isinstance(found, ChatResponse):
        raise ProtocolError(f"its plugin answered with a {type(found).__name__} in place of a ChatResponse")
    if len(found.choices) < n or any(choice.finish_reason is None for choice in found.choices):
        raise ProtocolError(
            f"its plugin answered with {len(found.choices)} of {n} choices, or with one that has no end"
        )
    check_promises(request, found)
    return found


async def _watched(work: Awaitable[T], destination: Destination, call: Call) -> T:
    """`_guarded`, and the observers are told of the attempt."""
    watching = call.watching
    if watching is None:
        return await _guarded(work, destination)
    started = time.monotonic()
    try:
        result = await _guarded(work, destination)
    except BaseException as error:
        watching.attempt(destination, started, error)
        raise
    watching.attempt(destination, started)
    return result


async def _guarded(work: Awaitable[T], destination: Destination) -> T:
    """What a plugin raises that is no error of the hub is a failure of its backend, with what it raised as the cause."""
    try:
        return await work
    except HubError:
        raise
    except Exception as error:
        raise _fault(error, destination.name, destination.plugin) from error


def _fault(error: Exception, backend: str | None, plugin: str) -> BackendFailed:
    return BackendFailed(
        f"its plugin {plugin!r} raised {type(error).__name__}: {error}",
        backend=backend,
        hint="This is a fault of the plugin: report it there, with the traceback that --debug or the log shows.",
    )


def _may_pass_on(error: HubError, call: Call) -> bool:
    """May the next destination be tried after this? Only if no backend can have acted on a call that must not be repeated."""
    if call.remaining() <= 0:  # then this error says who was slow
        return False
    return error.failover and (call.repeatable or isinstance(error, BackendUnreachable | ModelNotFound))


def _refuse(runtime: Runtime, destination: Destination, needs: frozenset[Feature], capability: Capability) -> None:
    """Raise UnsupportedFeature for what the backend or the model, as far as it is known, cannot do."""
    missing = needs - destination.features
    what = f"its plugin {destination.plugin!r} has"
    if not missing and destination.model is not None:
        known = runtime.known.get((destination.name, destination.model))
        if known is not None and known.features is not None:
            missing = (needs & _OF_MODELS) - known.features
            what = f"its model {destination.model!r} has"
    if missing:
        raise UnsupportedFeature(
            f"{what} no support for {', '.join(sorted(missing))}",
            features=tuple(sorted(missing)),
            backend=destination.name,
            hint=elsewhere(capability, missing)
            or "Leave it out, or choose a backend and model that have it; see: llm-hub models",
        )


_OF_MODELS = frozenset({Feature.TOOLS, Feature.IMAGES, Feature.REASONING})
"""What depends on the model and not on the server alone."""


async def _list_models(
    world: World, runtime: Runtime, route: Route, position: int, ask: Ask, call: Call, error: ModelNotFound
) -> None:
    """Say what the backend has instead, and how to get what it has not."""
    destination = route.destinations[position]
    runtime.forget(ask)
    if not error.available:
        try:
            found = await runtime.models(world, destination.name, destination.backend, call)
        except BackendError:
            return  # the error stands without the list
        error.available = tuple(model.name for model in found)
        if found:
            error.message += f"; it has {', '.join(error.available)}"
    if error.hint is None and destination.install_model and (error.model or destination.model):
        error.hint = "Fetch it: " + destination.install_model.format(model=error.model or destination.model)


A = TypeVar("A", ChatResponse, ReadResponse)


def _stamp(response: A, served_by: ServedBy, call: Call) -> A:
    timings = msgspec.structs.replace(response.timings, total=time.monotonic() - call.started)
    if call.watching is not None:
        call.watching.ended(response, served_by)
    return msgspec.structs.replace(response, served_by=served_by, timings=timings)


async def _ready(world: World, request: ChatRequest) -> tuple[ChatRequest, frozenset[Feature]]:
    """The request with its images checked and made ready, and the features that serving it takes."""
    needs = required_features(request)
    if Feature.IMAGES in needs:
        from llm_hub.images import prepare  # here, because most calls have no images

        ready = request
        request = await world.apart(lambda: prepare(ready))
    return request, needs


async def route_chat(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ChatRequest, call: Call
) -> ChatResponse:
    """A whole answer. Raises the errors of `llm_hub.errors`; `earlier` holds those of the destinations before."""

    async def attempt(destination: Destination, to_send: ChatRequest) -> ChatResponse:
        return _checked(await world.chat(destination.backend, to_send, call), to_send)

    lease = epochs.lease()
    begin(lease, ask, "chat", call)
    try:
        request, needs = await _ready(world, request)
        response, served_by = await in_order(world, lease, ask, request, needs, call, attempt)
    except BaseException as error:
        if call.watching is not None:
            call.watching.failed(error)
        raise
    finally:
        lease.release()
    return _stamp(response, served_by, call)


async def route_read(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ReadRequest, call: Call
) -> ReadResponse:
    """The text on an image. Raises as `route_chat` does."""

    async def attempt(destination: Destination, to_send: ReadRequest) -> ReadResponse:
        return await world.read(destination.backend, to_send, call)

    lease = epochs.lease()
    begin(lease, ask, "read", call)
    try:
        response, served_by = await in_order(world, lease, ask, request, _READ, call, attempt)
    except BaseException as error:
        if call.watching is not None:
            call.watching.failed(error)
        raise
    finally:
        lease.release()
    return _stamp(response, served_by, call)


_READ = frozenset({Feature.READ})


async def route_count(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ChatRequest, call: Call
) -> TokenCount:
    """The tokens of a prompt, counted by the backend that would answer it, or estimated."""
    lease = epochs.lease()

    async def attempt(destination: Destination, to_send: ChatRequest) -> TokenCount:
        counted = await world.count(destination.backend, to_send, call)
        if counted is not None:
            return counted
        known = lease.value.known.get((destination.name, destination.model or ""))
        size = sum(len(message.text.encode()) for message in request.messages)
        limit = known.context_length if known is not None else None
        return TokenCount(tokens=-(-size // 4) + 4 * len(request.messages), limit=limit, exact=False)

    begin(lease, ask, "count", call)
    try:
        request, needs = await _ready(world, request)
        counted, served_by = await in_order(world, lease, ask, request, needs, call, attempt)
    except BaseException as error:
        if call.watching is not None:
            call.watching.failed(error)
        raise
    finally:
        lease.release()
    if call.watching is not None:
        call.watching.ended(counted, served_by)
    return counted


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
            self._given.subscribe(self, self._stop.cancel)
        self._reading = False
        self._chunks: Any = None
        self._lease: Lease[Runtime] | None = None
        self._ready: list[ChatChunk] = []
        self._seen: list[ChatChunk] = []
        self._over = False
        self._expired: HubError | None = None
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

        async def attempt(destination: Destination, to_send: ChatRequest) -> tuple[Any, list[ChatChunk]]:
            chunks = self._world.stream(destination.backend, to_send, self._call)
            held: list[ChatChunk] = []
            try:
                while (chunk := await self._world.next(chunks)) is not None:
                    held.append(chunk)
                    if chunk.has_content:
                        break
                else:
                    if not any(chunk.finish_reason for chunk in held):
                        raise BackendFailed("its stream ended before it had produced anything")
            except BaseException:
                await self._world.close(chunks)
                raise
            return chunks, held

        self._lease = self._epochs.lease()
        begin(self._lease, self._ask, "chat", self._call, streamed=True)
        self._lease.attach(self._expire)
        request = self._request
        if not isinstance(request, ChatRequest):
            request = await self._world.apart(request)
        request, needs = await _ready(self._world, request)
        self._wanted = request.n
        self._asked = request
        (self._chunks, held), self.served_by = await in_order(
            self._world, self._lease, self._ask, request, needs, self._call, attempt
        )
        self._first = time.monotonic() - self._call.started
        self._ready = held[::-1]

    async def _next(self) -> ChatChunk | None:
        """The next chunk, None at the proper end. Whatever goes wrong ends the stream."""
        if self._over:
            return None
        self._reading = True
        try:
            if self._lease is None:
                await self._begin()
            chunk = self._ready.pop() if self._ready else await self._world.next(self._chunks)
            if chunk is None:
                self._finish()
                return None
        except BaseException as error:
            failure = self._failure(error)
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
            failure = _fault(error, self.served_by.backend, self.served_by.plugin)
            return self._interrupted(failure) if self._produced() else failure
        if isinstance(error, HubError) and not isinstance(error, Cancelled) and self._produced():
            return self._interrupted(error)
        if isinstance(error, Cancelled):
            error.partial = self.text
        return error

    def _produced(self) -> bool:
        return any(chunk.has_content for chunk in self._seen)

    def _expire(self, error: HubError) -> None:
        """The epoch is drained no longer: end with this error, now if somebody waits, else when the next chunk is asked for."""
        if self._given is None or not self._given.cancelled:
            self._expired = error
        self._stop.cancel()

    def _drained(self, error: HubError) -> StreamInterrupted:
        """An error of its own: the one that was told is told to every stream."""
        name = self.served_by.backend if self.served_by is not None else None
        return StreamInterrupted(error.message, partial=self.text, backend=name, hint=error.hint)

    def _interrupted(self, error: HubError) -> StreamInterrupted:
        """After the first content every failure is this one, so that nobody takes a part for the whole."""
        if isinstance(error, StreamInterrupted):
            error.partial = self.text
            return error
        return StreamInterrupted(
            f"the answer broke off: {error.message}",
            partial=self.text,
            status=getattr(error, "status", None),
            backend=error.backend,
            hint=error.hint,
        )

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
        if self._call.watching is not None:
            self._call.watching.ended(self._response, self.served_by, self._first)

    def _release(self) -> None:
        self._over = True
        if self._given is not None:
            self._given.unsubscribe(self)
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
            self._release()

    async def _leave(self) -> None:
        """Stop, whoever reads: a reader that waits is cancelled, and cleans up itself."""
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
