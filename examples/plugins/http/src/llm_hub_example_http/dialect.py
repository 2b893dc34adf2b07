"""The wire format: requests to HTTP, bytes to answers, and no I/O. The hub sends, with deadlines, pools and cancellation.

The protocol here is an invented one, so that there is something to change:

    GET  /health      200 while the server lives
    GET  /models      {"models": [{"name": "small", "context": 4096}]}
    POST /generate      {"model", "turns": [{"role", "text"}], "limit", "stop", "temperature", "stream"}
                      -> {"text": "...", "end": "stop" | "length", "read": 12, "wrote": 7}
                      streamed as server-sent events: {"text": " a"}, {"text": " piece"}, then {"end": ..., "read": ...}
    POST /embed       {"model", "texts"} -> {"embeddings": [[0.1, ...], ...], "read": 12}
    errors            {"error": "words"} with a status, or as an event within a stream
"""

from __future__ import annotations

from typing import Any

import msgspec
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.dialect import Conversation, HttpReply, HttpRequest, StreamDecoder
from llm_hub.errors import (
    BackendLoading,
    DeadlineExceeded,
    HubError,
    ModelNotFound,
    ProtocolError,
    RequestError,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    Choice,
    EmbedRequest,
    EmbedResponse,
    FinishReason,
    Message,
    Usage,
)
from llm_hub.openai_encoding import check_features, to_json
from llm_hub.openai_errors import classify, complaint, first_words, reply_error
from llm_hub.streaming import SSEDecoder
from llm_hub.vectors import check_vectors

from llm_hub_example_http.settings import ExampleHttpSettings

_ENDS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class _Model(msgspec.Struct):
    name: str
    context: int | None = None


class _Models(msgspec.Struct):
    models: tuple[_Model, ...]


class _Said(msgspec.Struct):
    """A whole answer, or an event of a stream."""

    text: str = ""
    end: str | None = None
    read: int | None = None
    wrote: int | None = None
    error: Any = None

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=self.read, completion_tokens=self.wrote)


class _Vectors(msgspec.Struct):
    embeddings: tuple[tuple[float, ...], ...]
    read: int | None = None


class ExampleHttpDialect:
    """Stateless: one serves all calls of a backend. What a stream must remember is in its decoder."""

    def __init__(self, settings: ExampleHttpSettings, *, features: frozenset[Feature], capability: Capability) -> None:
        self.settings = settings
        self._features = features if capability is not Capability.EMBEDDING else frozenset()
        self._capability = capability

    @property
    def features(self) -> frozenset[Feature]:
        """What the wire format can express."""
        return self._features

    # -- text ---------------------------------------------------------------------------------------------------------

    def encode_chat(self, request: ChatRequest, *, stream: bool, request_id: str | None = None) -> HttpRequest:
        """The request. What this protocol cannot express is refused here, and never dropped in silence."""
        check_features(request, self._features)
        body: dict[str, Any] = {
            "model": request.model,
            "turns": [{"role": message.role, "text": message.text} for message in request.messages],
            "stream": stream,
        }
        asked = {
            "limit": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stop) or None,
        }
        body.update({name: value for name, value in asked.items() if value is not None})
        return self._post("/generate", {**body, **request.options})

    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        """The answer in a reply of status 200."""
        said = _decoded(reply.body, _Said)
        if said.end is None:
            raise ProtocolError(f"its answer has no end; it begins {first_words(reply.body)}")
        message = Message(role="assistant", content=said.text)
        choice = Choice(message=message, finish_reason=_end(said.end))
        return ChatResponse(choices=(choice,), model=request.model, usage=said.usage)

    def decode_stream(self, request: ChatRequest) -> StreamDecoder:
        """A decoder for one stream."""
        return _Stream(request.model)

    # -- embedding ----------------------------------------------------------------------------------------------------

    def encode_embed(self, request: EmbedRequest, *, request_id: str | None = None) -> HttpRequest:
        """The request."""
        if request.truncate:
            raise UnsupportedFeature("it cannot be asked to cut texts that are too long", features=("truncate",))
        if request.dimensions is not None:
            raise UnsupportedFeature("its vectors have one length", features=(Feature.DIMENSIONS,))
        return self._post("/embed", {"model": request.model, "texts": request.texts, **request.options})

    def decode_embed(self, request: EmbedRequest, reply: HttpReply) -> EmbedResponse:
        """The vectors, in the order of the texts."""
        answer = _decoded(reply.body, _Vectors)
        return EmbedResponse(vectors=answer.embeddings, model=request.model, usage=Usage(prompt_tokens=answer.read))

    # -- control ------------------------------------------------------------------------------------------------------

    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        """The typed error for a reply whose status is not 200: `reply_error` knows the words of most servers."""
        return reply_error(reply, model=model, capability=self._capability)

    def models(self) -> Conversation[tuple[ModelInfo, ...]]:
        """Ask for the models: a conversation yields requests, and is sent the replies."""
        reply = yield HttpRequest("GET", "/models")
        if reply.status != 200:
            raise self.error(reply)
        found = _decoded(reply.body, _Models).models
        return tuple(ModelInfo(name=one.name, context_length=one.context) for one in found)

    def probe(self, rung: Rung, model: str | None) -> Conversation[Probe]:
        """Climb the health ladder as far as `rung`."""
        reached: Rung | None = None
        try:
            reply = yield HttpRequest("GET", "/health")
            if reply.status != 200:
                raise self.error(reply)
            reached = Rung.ALIVE
            if rung >= Rung.MODEL_PRESENT:
                names = [info.name for info in (yield from self.models())]
                if model is not None and model not in names:
                    raise ModelNotFound(f"it does not have the model {model!r}", model=model, available=names)
                reached = Rung.MODEL_PRESENT
            if rung > reached:  # only an answer proves more
                yield from self._try(model)
                reached = Rung.GENERATING
        except HubError as error:
            if isinstance(error, DeadlineExceeded) and error.stage == "total":
                raise  # that is the caller's own
            if reached is None and isinstance(error, BackendLoading | RequestError):
                reached = Rung.ALIVE  # somebody answers, and says what is in the way
            return Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint)
        return Probe(rung=reached, wanted=rung)

    def _try(self, model: str | None) -> Conversation[None]:
        if self._capability is Capability.EMBEDDING:
            wanted = EmbedRequest(texts=("ping",), model=model)
            reply = yield self.encode_embed(wanted)
            if reply.status != 200:
                raise self.error(reply, model=model)
            check_vectors(self.decode_embed(wanted, reply), 1)
            return
        request = ChatRequest(messages=(Message(role="user", content="ping"),), model=model, max_tokens=1)
        reply = yield self.encode_chat(request, stream=False)
        if reply.status != 200:
            raise self.error(reply, model=model)
        self.decode_chat(request, reply)

    def _post(self, path: str, body: dict[str, Any]) -> HttpRequest:
        headers = {} if self.settings.tenant is None else {"x-tenant": self.settings.tenant}
        return HttpRequest("POST", path, to_json(body), headers)


class _Stream:
    """Decodes one stream, whose bytes come cut anywhere. A stream that just stops is an error, never an end."""

    def __init__(self, model: str | None) -> None:
        self._model = model
        self._events = SSEDecoder()
        self._head: bytes | None = b""  # how the body begins, until there was an event in it
        self._text: list[str] = []
        self._failure: HubError | None = None
        self.done = False

    def feed(self, data: bytes) -> list[ChatChunk]:
        """The chunks that these bytes complete. What came before a failure is handed out first."""
        chunks: list[ChatChunk] = []
        try:
            events = self._events.feed(data) if not self.done else []
            if self._head is not None:
                self._head = None if events else (self._head + data)[:200]
            for event in events:
                chunks += self._chunk(event)
                if self.done:
                    break
        except HubError as error:
            self._failure, self.done = self._broken(error), True
        return chunks or self.finish() if self.done else chunks

    def _chunk(self, event: bytes) -> list[ChatChunk]:
        said = _decoded(event, _Said)
        if said.error is not None:
            words = complaint(msgspec.json.decode(event))
            if words is None:
                raise ProtocolError(f"it failed, and says {first_words(event)}")
            raise classify(None, words, model=self._model)
        if said.end is not None:
            self.done = True
            return [ChatChunk(text=said.text, finish_reason=_end(said.end), usage=said.usage, model=self._model)]
        self._text.append(said.text)
        return [ChatChunk(text=said.text)]

    def finish(self) -> list[ChatChunk]:
        """The body has ended, or all has been said."""
        if self._failure is not None:
            raise self._failure
        if not self.done and self._head:
            raise ProtocolError(f"its answer is no stream of its protocol; it begins {first_words(self._head)}")
        if not self.done:
            raise self._broken(StreamInterrupted("its stream ended without an end mark"))
        return []

    def _broken(self, cause: HubError) -> HubError:
        """Once something was produced, a failure is an interruption, which holds the text so far."""
        if not self._text:
            return cause
        message = f"its stream broke off: {cause.message}"
        broken = StreamInterrupted(message, partial="".join(self._text), hint=cause.hint)
        broken.__cause__ = cause
        return broken


def _end(word: str) -> FinishReason:
    try:
        return _ENDS[word]
    except KeyError:
        raise ProtocolError(f"its answer ended with {word!r:.40}, which is no end") from None


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"its answer is not of its protocol; it begins {first_words(data)} ({error})") from error
