"""Engines over LangChain objects: chat models and embeddings, for `EngineBackend` to run.

Where a class has async methods of its own they are used, in a loop of their own, because only they can be cancelled while
they wait; its blocking ones run in the worker thread that asks.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from llm_hub.addresses import redacted
from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.dialect import HttpRequest
from llm_hub.errors import (
    BackendUnreachable,
    Cancelled,
    HubError,
    ModelNotFound,
    ProtocolError,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.langchain.as_plugin import Source, Terms
from llm_hub.langchain.construct import MODEL, check_present, construct, parameters, resolve
from llm_hub.langchain.failures import broken, to_error, was_stale
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, EmbedRequest, EmbedResponse, Message

if TYPE_CHECKING:
    from llm_hub.langchain.foreign import Asked

__all__ = ["ChatEngine", "EmbeddingsEngine"]

T = TypeVar("T")

_CONTROL_SECONDS = 10.0  # how long a question about health may take


class _Engine:
    """What both kinds have in common: an object for each model, made when it is first asked for."""

    def __init__(
        self,
        source: Source,
        terms: Terms,
        config: BackendConfig,
        context: BuildContext,
        capability: Capability,
        *,
        features: frozenset[Feature],
        default_model: str | None,
    ) -> None:
        check_present(source)
        self._source = source
        self._terms = terms
        self._config = config
        self._port = context.transport.sync_port
        self._capability = capability
        self._features = features
        self._model = config.models.get(capability) or default_model
        self._lock = threading.Lock()
        self._made: dict[str | None, Any] = {}

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do with a model that can."""
        return self._features

    def load(self, model: str | None, call: Call) -> None:
        """Make the object for a model."""
        self._object(model)

    def _object(self, model: str | None) -> Any:
        name = model or self._model
        if name is not None and name == self._itself():
            name = None
        made = self._made.get(name)
        if made is None:
            with self._lock:
                made = self._made.get(name)
                if made is None:
                    made = construct(resolve(self._source), self._terms, self._config, self._capability, name)
                    self._made[name] = made
        return made

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """Those that the plugin can list, else the one that is configured: LangChain has no way to ask."""
        if self._terms.list_models is not None:
            try:
                listed = tuple(self._terms.list_models(self._config))
            except Exception as error:
                raise self._error(error) from error
            return tuple(one if isinstance(one, ModelInfo) else ModelInfo(name=one) for one in listed)
        name = self._model or self._itself()
        return () if name is None else (ModelInfo(name=name),)

    def _itself(self) -> str | None:
        """The name of an object that is its own model: its class has no parameter for another."""
        source = resolve(self._source)
        kind = source if isinstance(source, type) else type(source)
        if inspect.isfunction(source) or parameters(kind).argument(MODEL) is not None:
            return None
        return str(kind.__name__)

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """The lower rungs as far as they can be seen, the upper ones by asking something."""
        reached: Rung | None = None
        detail = ""
        try:
            if self._terms.list_models is not None:
                names = [name for info in self.models(call) for name in (info.name, *info.aliases)]
                reached = Rung.ALIVE
                wanted = model or self._model
                if rung > Rung.ALIVE and wanted is not None and wanted not in names:
                    raise ModelNotFound(
                        f"it does not have the model {wanted!r}",
                        model=wanted,
                        available=names,
                        hint=f"It has: {', '.join(names)}." if names else None,
                    )
            else:
                self._greet(call)
                detail = "LangChain has no way to ask what is there; probe up to GENERATING to be sure"
            reached = min(rung, Rung.MODEL_PRESENT)
            if rung > Rung.MODEL_PRESENT:
                self._object(model)
                self._try(model, call)
                reached, detail = rung, ""
        except Cancelled:
            raise
        except HubError as error:
            return Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint)
        return Probe(rung=reached, wanted=rung, detail=detail)

    def _greet(self, call: Call) -> None:
        """Does anything answer at the address, if there is one? What it says is all the same."""
        url = self._url
        if url is not None:
            from llm_hub.transport import Origin, Send, drive, fetch

            origin = Origin(url)
            send = Send(origin, HttpRequest("GET", "/"), origin.headers(), self._config.name)
            drive(fetch(self._port, send, call, ("whole", _CONTROL_SECONDS)))

    @property
    def _url(self) -> str | None:
        return self._config.base_url(self._capability)

    def _try(self, model: str | None, call: Call) -> None:
        raise NotImplementedError

    def _error(self, error: BaseException, model: str | None = None) -> HubError:
        key = self._config.api_key
        secret = key.reveal() if key is not None else None
        made = to_error(error, model=model or self._model, capability=self._capability, secret=secret)
        if isinstance(made, BackendUnreachable) and self._url is not None and not isinstance(error, HubError):
            made.message = f"{made.message.rstrip('.')} (at {redacted(self._url)})"
        return made

    def forked(self) -> None:
        """Forget the objects: their connections are the parent's."""
        self._lock = threading.Lock()
        self._made = {}

    def close(self) -> None:
        """Close the clients of the objects that were made here, and forget these."""
        from llm_hub.langchain.own_loop import close

        ours = isinstance(self._source, str | type)
        for one in self._made.values() if ours else ():
            for client in _clients(one):
                close(client)
        self._made.clear()


def _fresh(ask: Callable[[], T], call: Call) -> T:
    """What it gives; asked once more where a connection that was kept from an earlier call had been closed meanwhile."""
    try:
        return ask()
    except Exception as error:
        if not (call.repeatable and was_stale(error)) or call.cancelled:
            raise
    return ask()


def _fresh_stream(start: Callable[[], Iterator[Any]], call: Call) -> Iterator[Any]:
    """`_fresh` for a stream, of which only the beginning may be tried again."""
    chunks = start()
    try:
        first = next(chunks, None)
    except Exception as error:
        if not (call.repeatable and was_stale(error)) or call.cancelled:
            raise
        chunks = start()
        first = next(chunks, None)
    if first is not None:
        yield first
        yield from chunks


def _clients(made: Any) -> Iterator[Any]:
    """The clients that an object holds and may close: openai's and anthropic's share one connection pool among objects."""
    found = {**getattr(made, "__dict__", {}), **(getattr(made, "__pydantic_private__", None) or {})}
    for name, value in found.items():
        shared = type(value).__module__.partition(".")[0] in ("anthropic", "openai")
        if name.endswith("client") and not shared and (hasattr(value, "aclose") or hasattr(value, "close")):
            yield value


class ChatEngine(_Engine):
    """A chat model of LangChain as an engine; see `llm_hub.engine.Engine`."""

    def __init__(
        self,
        terms: Terms,
        config: BackendConfig,
        context: BuildContext,
        capability: Capability,
        *,
        features: frozenset[Feature],
        default_model: str | None,
    ) -> None:
        super().__init__(terms.chat, terms, config, context, capability, features=features, default_model=default_model)

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        """The whole answer."""
        from llm_hub.langchain.foreign import ask, whole
        from llm_hub.langchain.own_loop import run

        try:
            asked = ask(self._object(request.model), request, self._terms)

            def once() -> Any:
                if _own(asked.model, "_agenerate"):
                    return run(lambda: asked.model.agenerate([asked.messages], **asked.arguments), call)
                return asked.model.generate([asked.messages], **asked.arguments)

            result = _fresh(once, call)
            return whole(result.generations[0], request, self._terms)
        except Exception as error:
            raise self._error(error, request.model) from error

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        """The answer in pieces."""
        from llm_hub.langchain.foreign import Gathered, ask

        gathered = Gathered(request, self._terms)
        try:
            asked = ask(self._object(request.model), request, self._terms)
            if request.n > 1:
                yield from _in_one_piece(self.chat(request, call))
                return
            for chunk in _fresh_stream(lambda: _chunks(asked, call), call):
                piece = gathered.feed(chunk)
                if piece is not None:
                    yield piece
                if call.cancelled:
                    raise Cancelled
            last = gathered.end()
            if last is None:
                raise self._unfinished(gathered.partial, produced=gathered.produced)
            yield last
        except Exception as error:
            failure = self._error(error, request.model)
            if gathered.produced and not isinstance(failure, Cancelled):
                failure = broken(failure, gathered.partial)
            if failure is error:
                raise
            raise failure from failure.__cause__

    def _unfinished(self, text: str, *, produced: bool) -> HubError:
        from llm_hub.langchain.foreign import unexplained

        message, hint = "its stream ended without a finish reason", unexplained(self._terms)
        return StreamInterrupted(message, partial=text, hint=hint) if produced else ProtocolError(message, hint=hint)

    def _try(self, model: str | None, call: Call) -> None:
        named = "max_tokens" in self._terms.parameters
        known = named or parameters(type(self._object(model))).field("max_tokens") is not None
        message = Message(role="user", content="ping")
        self.chat(ChatRequest(messages=(message,), model=model, max_tokens=1 if known else None), call)


def _own(model: Any, method: str) -> bool:
    """Has the class made this anew?"""
    from langchain_core.language_models.chat_models import BaseChatModel

    return getattr(type(model), method) is not getattr(BaseChatModel, method)


def _chunks(asked: Asked, call: Call) -> Iterator[Any]:
    """The chunks of LangChain's, by the best way that the class has."""
    from llm_hub.langchain.own_loop import pull

    model = asked.model
    if _own(model, "_astream") or (_own(model, "_agenerate") and not _own(model, "_stream")):

        def start() -> AsyncIterator[Any]:
            found: AsyncIterator[Any] = model.astream(asked.messages, **asked.arguments)
            return found

        return pull(start, call)
    found: Iterator[Any] = model.stream(asked.messages, **asked.arguments)
    return found


def _in_one_piece(response: ChatResponse) -> Iterator[ChatChunk]:
    """A whole answer as chunks: several answers at once are one message to LangChain's streams."""
    from llm_hub.messages import ToolCallDelta

    for choice in response.choices:
        message = choice.message
        calls = tuple(
            ToolCallDelta(index=at, id=one.id, name=one.name, arguments=one.arguments)
            for at, one in enumerate(message.tool_calls)
        )
        last = choice.index == len(response.choices) - 1
        yield ChatChunk(
            text=message.text,
            index=choice.index,
            reasoning=message.reasoning or "",
            tool_calls=calls,
            finish_reason=choice.finish_reason,
            logprobs=choice.logprobs,
            usage=response.usage if last else None,
            id=response.id,
            model=response.model,
        )


class EmbeddingsEngine(_Engine):
    """Embeddings of LangChain as an engine; see `llm_hub.engine.EmbeddingEngine`."""

    def __init__(
        self,
        terms: Terms,
        config: BackendConfig,
        context: BuildContext,
        capability: Capability,
        *,
        features: frozenset[Feature],
        default_model: str | None,
    ) -> None:
        super().__init__(
            terms.embeddings, terms, config, context, capability, features=features, default_model=default_model
        )

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """One vector a text, in their order."""
        if request.truncate:
            raise UnsupportedFeature(
                "LangChain's embeddings cannot be asked to cut texts that are too long",
                features=("truncate",),
                hint="Split the texts, and leave truncate out.",
            )
        if request.options:
            raise UnsupportedFeature(
                f"LangChain's embeddings take no options with a call: {', '.join(sorted(request.options))}",
                features=("options",),
                hint="Set them for the backend: arguments = { ... } in its section of llm-hub.toml.",
            )
        from llm_hub.langchain.foreign import embeds_as

        try:
            model = embeds_as(self._object(request.model), request.dimensions, self._terms)
            vectors = _fresh(lambda: self._vectors(model, request, call), call)
        except Exception as error:
            raise self._error(error, request.model) from error
        return EmbedResponse(
            vectors=tuple([tuple([float(number) for number in vector]) for vector in vectors]),
            model=request.model or self._model,
        )

    def _vectors(self, model: Any, request: EmbedRequest, call: Call) -> list[Any]:
        from llm_hub.langchain.own_loop import run

        texts = list(request.texts)
        one_by_one = request.kind == "query"
        if _own_embeddings(model, "aembed_query" if one_by_one else "aembed_documents"):
            if not one_by_one:
                return list(run(lambda: model.aembed_documents(texts), call))
            return [run(partial(model.aembed_query, text), call) for text in texts]
        if not one_by_one:
            return list(model.embed_documents(texts))
        vectors = []
        for text in texts:
            vectors.append(model.embed_query(text))
            if call.cancelled:
                raise Cancelled
        return vectors

    def _try(self, model: str | None, call: Call) -> None:
        from llm_hub.vectors import check_vectors

        check_vectors(self.embed(EmbedRequest(texts=("ping",), model=model), call), 1)


def _own_embeddings(model: Any, method: str) -> bool:
    from langchain_core.embeddings import Embeddings

    found = getattr(type(model), method, None)
    return found is not None and found is not getattr(Embeddings, method)
