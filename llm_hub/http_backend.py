"""A backend over HTTP: the I/O of every dialect, written once for blocking callers and event loops."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.dialect import Conversation, Dialect, EmbeddingDialect, HttpReply, HttpRequest
from llm_hub.errors import (
    BackendError,
    BackendFailed,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    HubError,
    ProtocolError,
    SettingsError,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, EmbedRequest, EmbedResponse, TokenCount
from llm_hub.transport import Exchange, Origin, Port, Send, drive, fetch

__all__ = ["HttpBackend"]

T = TypeVar("T")

_CONTROL_SECONDS = 10.0  # how long a question about models or health may take, apart from its connect


class HttpBackend:
    """Speaks a dialect over the hub's transport; fulfils TextBackend, and EmbeddingBackend if the dialect has embeddings.

    `default_url` is used where `config` has no address for the capability; neither is a SettingsError.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        config: BackendConfig,
        context: BuildContext,
        capability: Capability = Capability.TEXT,
        default_url: str | None = None,
    ) -> None:
        url = config.base_url(capability) or default_url
        if url is None:
            raise SettingsError(
                f"the backend {config.name!r} has no address",
                where=config.source,
                hint=f'Set base_url = "http://host:port" in [backends.{config.name}].',
            )
        self.dialect = dialect
        self.config = config
        self.capability = capability
        self.origin = Origin(url)
        self._headers = self.origin.headers(config.api_key.reveal() if config.api_key else None)
        self._dropped = context.transport.dropped
        self._sync: Port = context.transport.sync_port
        self._async: Port = context.transport.async_port

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.config.name!r} at {self.origin.url}>"

    @property
    def features(self) -> frozenset[Feature]:
        return self.dialect.features

    # -- whole answers ------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        return drive(self._chat(self._sync, request, call))

    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        return await self._chat(self._async, request, call)

    async def _chat(self, port: Port, request: ChatRequest, call: Call) -> ChatResponse:
        try:
            wire = self.dialect.encode_chat(request, stream=False, request_id=call.request_id)
            reply = await fetch(port, self._send(wire), call, ("whole", call.timeouts.whole))
            if reply.status != 200:
                raise self.dialect.error(reply, model=request.model)
            return self.dialect.decode_chat(request, reply)
        except HubError as error:
            self._named(error)
            raise

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        return drive(self._embed(self._sync, request, call))

    async def aembed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        return await self._embed(self._async, request, call)

    async def _embed(self, port: Port, request: EmbedRequest, call: Call) -> EmbedResponse:
        dialect = self.dialect
        try:
            if not isinstance(dialect, EmbeddingDialect):
                raise UnsupportedFeature(
                    "its protocol has no embeddings",
                    features=("embedding",),
                    hint="Name another backend for embedding; `llm-hub plugins` lists what is installed.",
                )
            wire = dialect.encode_embed(request, request_id=call.request_id)
            reply = await fetch(port, self._send(wire), call, ("whole", call.timeouts.whole))
            if reply.status != 200:
                raise dialect.error(reply, model=request.model)
            return dialect.decode_embed(request, reply)
        except HubError as error:
            self._named(error)
            raise

    # -- streams ------------------------------------------------------------------------------------------------------

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        opened: list[Exchange] = []
        return _SyncStream(self._batches(self._sync, request, call, opened), opened, self._dropped)

    def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        return _AsyncStream(self._batches(self._async, request, call))

    async def _batches(
        self, port: Port, request: ChatRequest, call: Call, opened: list[Exchange] | None = None
    ) -> AsyncGenerator[list[ChatChunk], None]:
        """The chunks of each read. Raises StreamInterrupted only after something was produced.

        The exchange is put into `opened`, where it can be woken without this generator.
        """
        produced = False
        try:
            wire = self.dialect.encode_chat(request, stream=True, request_id=call.request_id)
            waits = call.timeouts
            exchange = await port.open(self._send(wire), call, ("first token", waits.first_token))
            if opened is not None:
                opened.append(exchange)
            try:
                if exchange.status != 200:
                    raise self.dialect.error(await self._rest(port, exchange), model=request.model)
                decoder = self.dialect.decode_stream(request)
                guard = exchange.guard
                while not decoder.done and (piece := await port.next(exchange)) is not None:
                    try:
                        chunks = decoder.feed(piece)
                    except BackendFailed as error:
                        # An error in place of the first chunk: it has done nothing yet, and may do better.
                        error.retryable = error.retryable or not (produced or error.ejects)
                        raise
                    if chunks:
                        produced = produced or any(chunk.has_content for chunk in chunks)
                        if produced:
                            guard.enter("between tokens", waits.between_tokens)
                        yield chunks
                        guard.left()  # cancelled while the caller held the chunks
                if chunks := decoder.finish():
                    yield chunks
                if decoder.done:
                    await self._drain(port, exchange)
            finally:
                await port.close(exchange)
        except StreamInterrupted as error:
            if produced:
                self._named(error)
                raise
            lost = ConnectionLost(error.message, status=error.status, hint=error.hint)
            raise self._named(lost) from (error.__cause__ or error)
        except HubError as error:
            self._named(error)
            raise

    async def _rest(self, port: Port, exchange: Exchange) -> HttpReply:
        """The body of an error that came in place of a stream."""
        pieces: list[bytes] = []
        size = 0
        while size < exchange.limit and (piece := await port.next(exchange)) is not None:
            size += len(piece)
            pieces.append(piece)
        return HttpReply(exchange.status, exchange.headers, b"".join(pieces))

    async def _drain(self, port: Port, exchange: Exchange) -> None:
        """Read what follows the end mark, so that the connection can be used again. The answer is complete already."""
        exchange.guard.enter("whole", 0.5)
        size = 0
        try:
            while size < 65536 and (piece := await port.next(exchange)) is not None:
                size += len(piece)
        except (BackendError, Cancelled):
            return  # the connection is closed instead

    # -- control ------------------------------------------------------------------------------------------------------

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return drive(self._converse(self._sync, self.dialect.models(), call))

    async def amodels(self, call: Call) -> tuple[ModelInfo, ...]:
        return await self._converse(self._async, self.dialect.models(), call)

    def count_tokens(self, request: ChatRequest, call: Call) -> TokenCount | None:
        """The tokens of a prompt, where the dialect has a conversation `count_tokens` for it; else None."""
        talk = getattr(self.dialect, "count_tokens", None)
        return None if talk is None else self.converse(talk(request), call)

    async def acount_tokens(self, request: ChatRequest, call: Call) -> TokenCount | None:
        """`count_tokens`, async."""
        talk = getattr(self.dialect, "count_tokens", None)
        return None if talk is None else await self.aconverse(talk(request), call)

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return drive(self._probe(self._sync, rung, model, call))

    async def aprobe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return await self._probe(self._async, rung, model, call)

    def converse(self, talk: Conversation[T], call: Call) -> T:
        """Carry out a conversation that only this dialect knows, such as counting tokens."""
        return drive(self._converse(self._sync, talk, call))

    async def aconverse(self, talk: Conversation[T], call: Call) -> T:
        """`converse`, async."""
        return await self._converse(self._async, talk, call)

    async def _probe(self, port: Port, rung: Rung, model: str | None, call: Call) -> Probe:
        try:
            return await self._converse(port, self.dialect.probe(rung, model), call, slow=rung >= Rung.LOADED)
        except Cancelled:
            raise
        except HubError as error:
            if isinstance(error, DeadlineExceeded) and error.stage == "total":
                raise
            return Probe(rung=None, wanted=rung, detail=error.message, hint=error.hint)

    async def _converse(self, port: Port, talk: Conversation[T], call: Call, *, slow: bool = False) -> T:
        """Carry out a conversation of the dialect."""
        after = ("load", call.timeouts.load) if slow else ("whole", _CONTROL_SECONDS)
        try:
            wire = next(talk)
            while True:
                try:
                    reply = await fetch(port, self._send(wire), call, after)
                except HubError as error:
                    wire = talk.throw(self._named(error))
                else:
                    wire = talk.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except HubError as error:
            self._named(error)
            raise
        finally:
            talk.close()

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _send(self, wire: HttpRequest) -> Send:
        return Send(self.origin, wire, self._headers, self.config.name)

    def _named(self, error: HubError) -> HubError:
        """The error, saying whose it is."""
        if error.backend is None:
            error.backend = self.config.name
        if isinstance(error, ProtocolError) and self.origin.url not in error.message:
            error.message = f"{error.message} (at {self.origin.url})"
        return error

    def close(self) -> None:
        """Nothing to release: the connections belong to the hub's transport."""


class _SyncStream:
    """Iterates over the chunks of a generator of batches that never suspends."""

    __slots__ = ("_batches", "_begun", "_dropped", "_live", "_opened", "_ready")

    def __init__(
        self,
        batches: AsyncGenerator[list[ChatChunk], None],
        opened: list[Exchange],
        dropped: SimpleQueue[AsyncGenerator[Any, None]],
    ) -> None:
        self._batches = batches
        self._opened = opened
        self._dropped = dropped
        self._begun = False
        self._live = False
        self._ready: Iterator[ChatChunk] = iter(())

    def __iter__(self) -> _SyncStream:
        return self

    def __next__(self) -> ChatChunk:
        for chunk in self._ready:
            return chunk
        try:
            self._live = True
            (self._batches.__anext__() if self._begun else self._first()).send(None)
        except StopIteration as stop:
            self._ready = iter(stop.value)
            return next(self._ready)
        except StopAsyncIteration:
            self._live = False
            raise StopIteration from None
        except BaseException:
            self._live = False
            raise
        raise RuntimeError("a stream over the sync port suspended")

    def _first(self) -> Coroutine[Any, Any, list[ChatChunk]]:
        """Begin, and see to it that the garbage collector never runs what is left of the generator: see `__del__`."""
        self._begun = True
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._dropped.put)  # kept by the generator from here on
        try:
            return self._batches.__anext__()
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def close(self) -> None:
        """Stop reading; the backend sees the connection close."""
        self._ready = iter(())
        self._live = False
        drive(self._batches.aclose())

    def __del__(self) -> None:
        """Tell the backend at once; leave the rest, which takes locks, to the next call.

        The garbage collector may run this while the very same thread holds such a lock.
        """
        if self._live:
            for exchange in self._opened:
                exchange.guard.wake()
            self._dropped.put(self._batches)


class _AsyncStream:
    """Iterates over the chunks of a generator of batches."""

    __slots__ = ("_batches", "_ready")

    def __init__(self, batches: AsyncGenerator[list[ChatChunk], None]) -> None:
        self._batches = batches
        self._ready: Iterator[ChatChunk] = iter(())

    def __aiter__(self) -> _AsyncStream:
        return self

    async def __anext__(self) -> ChatChunk:
        for chunk in self._ready:
            return chunk
        self._ready = iter(await self._batches.__anext__())
        return next(self._ready)

    async def aclose(self) -> None:
        """Stop reading; the backend sees the connection close."""
        self._ready = iter(())
        await self._batches.aclose()
