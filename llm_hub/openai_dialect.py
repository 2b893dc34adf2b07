"""The dialect of OpenAI-compatible servers: a few declarations make one of vLLM, llama.cpp, SGLang and their like."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import msgspec

from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig
from llm_hub.dialect import Conversation, HttpReply, HttpRequest, StreamDecoder
from llm_hub.errors import (
    BackendError,
    BackendLoading,
    DeadlineExceeded,
    HubError,
    ModelNotFound,
    ProtocolError,
    RequestError,
    UnsupportedFeature,
)
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, EmbedRequest, EmbedResponse, Message, Reasoning
from llm_hub.openai_decoding import (
    Chunk,
    ChunkStream,
    decode_chunk,
    decode_completion,
    decode_event,
    finish_reason,
    response_from_bytes,
)
from llm_hub.openai_embedding import EncodingFormat, decode_embeddings, encode_embeddings
from llm_hub.openai_encoding import check_features, encode_body, to_json
from llm_hub.openai_errors import classify, classify_error, complaint, first_words, reply_error
from llm_hub.streaming import Event, SSEDecoder
from llm_hub.vectors import check_vectors

__all__ = [
    "ChunkStream",
    "OpenAIDialect",
    "OpenAIStreamDecoder",
    "classify_error",
    "decode_chunk",
    "decode_completion",
    "encode_body",
    "finish_reason",
    "optional",
    "server_root",
]

_DONE = b"[DONE]"
_HEAD = 4096  # bytes kept of a body that so far holds no event, to say what it is instead
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":", b"\xef\xbb\xbf")  # how a stream of events can begin
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError)

_any = msgspec.json.Decoder().decode


class _Model(msgspec.Struct):
    """An entry of /v1/models. `max_model_len` is vLLM's and SGLang's, `meta` llama.cpp's."""

    id: str
    max_model_len: int | None = None
    meta: dict[str, Any] | None = None
    aliases: list[str] | None = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


_models = msgspec.json.Decoder(_ModelList).decode


class OpenAIStreamDecoder(ChunkStream):
    """Decodes the server-sent events of one answer; fulfils StreamDecoder.

    A proper end is `[DONE]` after a finish reason for every choice and no error event. An error that comes in one read
    with content is raised by the next call, after the content was handed out: it does not matter how the bytes are cut.
    """

    __slots__ = ("_asked", "_events", "_failure", "_head", "done")

    def __init__(self, *, n: int = 1, model: str | None = None) -> None:
        super().__init__(n=n)
        self._asked = model
        self._events = SSEDecoder()
        self._head: bytes | None = b""
        self._failure: HubError | None = None
        self.done = False

    def feed(self, data: bytes) -> list[ChatChunk]:
        if self.done:
            return self._after()
        chunks: list[ChatChunk] = []
        try:
            events = self._events.feed(data)
            if self._head is not None:
                self._head = None if events else (self._head + data)[:_HEAD]
            for event in events:
                if event == _DONE:
                    chunks += self.end()
                    self.done = True
                    break
                self.add(self._decode(event), chunks)
        except HubError as error:
            self._fail(error)
        return chunks or self._after()

    def _decode(self, event: bytes) -> Chunk:
        try:
            chunk = decode_event(event)
        except _DECODE_ERRORS as error:
            raise ProtocolError(
                f"its stream holds something that is no chunk: {first_words(event)} ({error})"
            ) from error
        if chunk.error is not None or not chunk.choices or event.__class__ is Event:
            said = complaint(_any(event))
            if said is None and isinstance(event, Event) and event.name == "error":
                said = complaint({"error": _any(event)})
            if said is not None:
                raise classify(None, said, model=self._asked)
        return chunk

    def _fail(self, error: HubError) -> None:
        self._failure = self.broken(error)
        self.done = True

    def _after(self) -> list[ChatChunk]:
        """Raise the failure that waits, if there is one."""
        if self._failure is not None:
            raise self._failure
        return []

    def finish(self) -> list[ChatChunk]:
        if self.done:
            return self._after()
        try:
            for event in self._events.finish():  # one that lacks the empty line after it
                if event == _DONE:
                    chunks = self.end()
                    self.done = True
                    return chunks
                self._head = None
                with contextlib.suppress(ProtocolError):  # half an event
                    self._decode(event)  # raises the error that it stands for; content would come too late
            raise self._unfinished()
        except HubError as error:
            self._fail(error)
        return self._after()

    def _unfinished(self) -> HubError:
        """The error for a body that ended without the end mark."""
        head = self._head or b""
        if not head.strip() or head.startswith(_FIELDS) or b"data:".startswith(head):
            return self.interrupted("its stream ended without its end mark, [DONE]")
        try:
            said = complaint(_any(head))
        except _DECODE_ERRORS:
            said = None
        if said is not None:
            return classify(None, said, model=self._asked)
        return ProtocolError(f"its answer is no stream of events; it begins {first_words(head)}")


class OpenAIDialect:
    """Speaks to a server over the OpenAI API; fulfils EmbeddingDialect.

    A plugin for one more server declares what differs, by arguments here or by overriding the few `encode_` methods:

    features: what the server can be asked for; anything else is UnsupportedFeature before it is sent.
    prefix: what the paths begin with. The backend's address goes without it.
    health_path: answers 200 while the server lives; None where there is no such route.
    models_are_loaded: whether a model that is listed is in memory. Otherwise only generating proves it.
    max_tokens_field, reasoning_field: see `encode_body`.
    request_id_header: the header that takes the id of a call to the server's log; None for none.
    install_model: the command that makes the server serve a model, with `{model}` in it.
    capability: what the backend is for: a probe up to GENERATING asks one for embeddings to embed.
    encoding: how vectors are asked for; either is understood.
    """

    def __init__(
        self,
        *,
        features: frozenset[Feature] = frozenset(
            {
                Feature.SYSTEM,
                Feature.TOOLS,
                Feature.TOOL_CHOICE,
                Feature.JSON_OBJECT,
                Feature.JSON_SCHEMA,
                Feature.IMAGES,
                Feature.LOGPROBS,
                Feature.SEED,
                Feature.MULTIPLE_CHOICES,
                Feature.PENALTIES,
            }
        ),
        prefix: str = "/v1",
        health_path: str | None = None,
        models_are_loaded: bool = False,
        max_tokens_field: str = "max_tokens",
        reasoning_field: str | None = None,
        request_id_header: str | None = "x-request-id",
        install_model: str | None = None,
        capability: Capability = Capability.TEXT,
        encoding: EncodingFormat = "float",
    ) -> None:
        self._features = features
        self.capability = capability
        self.encoding = encoding
        self.chat_path = f"{prefix}/chat/completions"
        self.embed_path = f"{prefix}/embeddings"
        self.models_path = f"{prefix}/models"
        self.health_path = health_path
        self.models_are_loaded = models_are_loaded
        self.max_tokens_field = max_tokens_field
        self.reasoning_field = reasoning_field
        self.request_id_header = request_id_header
        self.install_model = install_model

    @property
    def features(self) -> frozenset[Feature]:
        return self._features

    # -- requests -----------------------------------------------------------------------------------------------------

    def encode_chat(self, request: ChatRequest, *, stream: bool, request_id: str | None = None) -> HttpRequest:
        check_features(request, self._features)
        body = self.encode_body(request, stream=stream)
        headers = {"accept": "text/event-stream" if stream else "application/json"}
        if request_id is not None:
            self.encode_request_id(body, headers, request_id)
        return HttpRequest("POST", self.chat_path, to_json(body), headers)

    def encode_body(self, request: ChatRequest, *, stream: bool = False) -> dict[str, Any]:
        """The body of a chat completion; a dialect adds here what is its own."""
        body = encode_body(
            request, stream=stream, max_tokens_field=self.max_tokens_field, reasoning_field=self.reasoning_field
        )
        if request.reasoning is not None:
            self.encode_reasoning(body, request.reasoning)
        return body

    def encode_reasoning(self, body: dict[str, Any], reasoning: Reasoning) -> None:
        """Ask for thinking, or for none. OpenAI's own way is an effort; True leaves the effort to the model."""
        if Feature.REASONING_EFFORT in self._features and reasoning is not True:
            body["reasoning_effort"] = reasoning or "none"

    def encode_request_id(self, body: dict[str, Any], headers: dict[str, str], request_id: str) -> None:
        """Send the id of the call along."""
        if self.request_id_header is not None:
            headers[self.request_id_header] = request_id

    def encode_embed(self, request: EmbedRequest, *, request_id: str | None = None) -> HttpRequest:
        body = encode_embeddings(request, encoding=self.encoding)
        if request.truncate:
            self.encode_truncate(body)
        headers = {"accept": "application/json"}
        if request_id is not None:
            self.encode_request_id(body, headers, request_id)
        return HttpRequest("POST", self.embed_path, to_json(body), headers)

    def encode_truncate(self, body: dict[str, Any]) -> None:
        """Ask for texts to be cut at the model's limit. OpenAI's API has no word for it."""
        raise UnsupportedFeature(
            "it cannot be asked to cut texts that are too long",
            features=("truncate",),
            hint="Split the texts, and leave truncate out.",
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        try:
            return response_from_bytes(reply.body, n=request.n, model=request.model)
        except _DECODE_ERRORS as error:
            kind = reply.headers.get("content-type", "no content type")
            raise ProtocolError(
                f"its answer is no chat completion ({kind}); it begins {first_words(reply.body)} ({error})", status=200
            ) from error

    def decode_stream(self, request: ChatRequest) -> StreamDecoder:
        return OpenAIStreamDecoder(n=request.n, model=request.model)

    def decode_embed(self, request: EmbedRequest, reply: HttpReply) -> EmbedResponse:
        return decode_embeddings(reply, model=request.model)

    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        return self._advise(reply_error(reply, model=model, capability=self.capability))

    def _advise(self, error: HubError) -> HubError:
        """Say how to get a model that is missing."""
        if isinstance(error, ModelNotFound) and error.model and self.install_model:
            command = self.install_model.replace("{model}", error.model)
            error.hint = f"{error.hint} To serve it: {command}" if error.hint else f"To serve it: {command}"
        return error

    # -- control ------------------------------------------------------------------------------------------------------

    def models(self) -> Conversation[tuple[ModelInfo, ...]]:
        reply = yield HttpRequest("GET", self.models_path)
        return self.decode_models(reply)

    def decode_models(self, reply: HttpReply) -> tuple[ModelInfo, ...]:
        """The models in a reply to `models_path`. Raises the typed error for anything but a list of models."""
        if reply.status != 200:
            raise self.error(reply)
        try:
            entries = _models(reply.body).data
        except _DECODE_ERRORS as error:
            raise ProtocolError(
                f"its list of models is none; it begins {first_words(reply.body)} ({error})", status=200
            ) from error
        return tuple(
            ModelInfo(
                name=entry.id,
                context_length=entry.max_model_len or (entry.meta or {}).get("n_ctx"),
                loaded=True if self.models_are_loaded else None,
                aliases=tuple(entry.aliases or ()),
            )
            for entry in entries
        )

    def probe(self, rung: Rung, model: str | None) -> Conversation[Probe]:
        reached: Rung | None = None
        version: str | None = None
        detail = ""
        try:
            if self.health_path is not None:
                reply = yield HttpRequest("GET", self.health_path)
                self.check_health(reply)
                reached = Rung.ALIVE
                version, detail = yield from self.about(rung)
            if rung > Rung.ALIVE or reached is None:
                models = yield from self.models()
                reached = Rung.ALIVE
                if rung > Rung.ALIVE:
                    model = self._find(model, models)
                    reached = Rung.LOADED if self.models_are_loaded else Rung.MODEL_PRESENT
            if rung > reached:
                yield from self._generate(model)
                reached = Rung.GENERATING
        except HubError as error:
            if isinstance(error, DeadlineExceeded) and error.stage == "total":
                raise
            if reached is None and isinstance(error, BackendLoading | RequestError):
                reached = Rung.ALIVE  # somebody answers, and says what is in the way
            return Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint, version=version)
        return Probe(rung=reached, wanted=rung, detail=detail, version=version)

    def check_health(self, reply: HttpReply) -> None:
        """Raise the typed error unless a reply to `health_path` says that the server lives."""
        if reply.status != 200:
            raise self.error(reply)

    def about(self, rung: Rung) -> Conversation[tuple[str | None, str]]:
        """Ask a living server for its version, and how it fares in a few words. `rung` is what the probe wants."""
        yield from ()
        return None, ""

    def _find(self, model: str | None, models: tuple[ModelInfo, ...]) -> str:
        """The model's name in the list; any if None is asked for. Raises ModelNotFound."""
        for info in models:
            if model is None or model == info.name or model in info.aliases:
                return info.name
        names = tuple(info.name for info in models)
        raise self._advise(
            ModelNotFound(
                f"it does not have the model {model!r}" if model else "it has no model",
                model=model,
                available=names,
                hint=f"It has: {', '.join(names)}." if names else None,
            )
        )

    def _generate(self, model: str | None) -> Conversation[None]:
        if self.capability is Capability.EMBEDDING:
            yield from self._embed_something(model)
            return
        request = ChatRequest(messages=(Message(role="user", content="ping"),), model=model, max_tokens=1)
        reply = yield self.encode_chat(request, stream=False)
        if reply.status != 200:
            raise self.error(reply, model=model)
        self.decode_chat(request, reply)

    def _embed_something(self, model: str | None) -> Conversation[None]:
        request = EmbedRequest(texts=("ping",), model=model)
        reply = yield self.encode_embed(request)
        if reply.status != 200:
            raise self.error(reply, model=model)
        check_vectors(self.decode_embed(request, reply), 1)


def server_root(config: BackendConfig, *, prefix: str = "/v1") -> BackendConfig:
    """The configuration with addresses that lack the prefix of the API: people write them with it and without."""
    urls = {key: url.rstrip("/").removesuffix(prefix) for key, url in config.base_urls.items()}
    return msgspec.structs.replace(config, base_urls=urls)


def optional(request: HttpRequest) -> Generator[HttpRequest, HttpReply, HttpReply | None]:
    """Ask for something that a conversation can do without: the reply if it is a 200, else None."""
    try:
        reply = yield request
    except DeadlineExceeded as error:
        if error.stage == "total":
            raise
        return None
    except BackendError:
        return None
    return reply if reply.status == 200 else None
