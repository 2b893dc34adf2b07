"""The sans-I/O base of HTTP backends: a dialect turns requests into HTTP and bytes into answers, and does no I/O."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from llm_hub.capabilities import Feature, ModelInfo, Probe, Rung
from llm_hub.errors import HubError
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, EmbedRequest, EmbedResponse

__all__ = ["Conversation", "Dialect", "EmbeddingDialect", "HttpReply", "HttpRequest", "StreamDecoder"]


class HttpRequest(msgspec.Struct, frozen=True):
    """What to send, relative to the backend's address. The transport adds the host, the key and the length."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}


class HttpReply(msgspec.Struct, frozen=True):
    """A whole answer. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


T = TypeVar("T")

Conversation = Generator[HttpRequest, HttpReply, T]
"""Several exchanges written as one pure function: it yields requests, is sent the replies and returns its result.

Replies of every status are sent in; an error of the transport (BackendUnreachable, DeadlineExceeded, ...) is raised at
the `yield`, and may be caught there.
"""


class StreamDecoder(Protocol):
    """Decodes the body of one streamed answer, in pieces cut anywhere."""

    def feed(self, data: bytes) -> list[ChatChunk]:
        """The chunks that these bytes complete. Raises the typed error that an error event stands for."""
        ...

    @property
    def done(self) -> bool:
        """Has the end mark of the protocol been seen? What follows it is not read."""
        ...

    def finish(self) -> list[ChatChunk]:
        """The body has ended: the chunks that were held back. Raises StreamInterrupted if the end mark is missing."""
        ...


class Dialect(Protocol):
    """One wire format. Stateless and shared by threads: what a stream needs to remember is in its StreamDecoder.

    Errors are raised without `backend`; the HTTP backend fills it in.
    """

    @property
    def features(self) -> frozenset[Feature]:
        """What the wire format can express."""
        ...

    def encode_chat(self, request: ChatRequest, *, stream: bool, request_id: str | None = None) -> HttpRequest:
        """The HTTP request. Raises UnsupportedFeature for what this format cannot express."""
        ...

    def decode_chat(self, request: ChatRequest, reply: HttpReply) -> ChatResponse:
        """The answer in a reply of status 200. Raises ProtocolError, or the error that the body stands for."""
        ...

    def decode_stream(self, request: ChatRequest) -> StreamDecoder:
        """A decoder for the streamed answer to this request."""
        ...

    def error(self, reply: HttpReply, *, model: str | None = None) -> HubError:
        """The typed error for a reply whose status is not 200."""
        ...

    def models(self) -> Conversation[tuple[ModelInfo, ...]]:
        """Ask for the models."""
        ...

    def probe(self, rung: Rung, model: str | None) -> Conversation[Probe]:
        """Climb the health ladder."""
        ...


@runtime_checkable
class EmbeddingDialect(Dialect, Protocol):
    """A wire format that has embeddings. Of any other, asking for them is UnsupportedFeature."""

    def encode_embed(self, request: EmbedRequest, *, request_id: str | None = None) -> HttpRequest:
        """The HTTP request. Raises UnsupportedFeature for what this format cannot express."""
        ...

    def decode_embed(self, request: EmbedRequest, reply: HttpReply) -> EmbedResponse:
        """The vectors in a reply of status 200, in the order of the texts. Raises ProtocolError.

        How many there are, and of what length, is checked by the hub.
        """
        ...
