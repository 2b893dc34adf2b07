"""The three capabilities, the features within them, and the Protocols that a backend fulfils."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec

from llm_hub.call import Call
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    ReadRequest,
    ReadResponse,
)

__all__ = [
    "Backend",
    "Capability",
    "EmbeddingBackend",
    "Feature",
    "ModelInfo",
    "Probe",
    "ReadingBackend",
    "Rung",
    "TextBackend",
    "VisionBackend",
    "required_features",
]


class Capability(enum.StrEnum):
    """What a service asks the hub for. The value is also the end of the entry point group, `llm_hub.text`."""

    TEXT = "text"
    EMBEDDING = "embedding"
    VISION = "vision"

    @property
    def group(self) -> str:
        """The entry point group of the plugins that offer it."""
        return f"llm_hub.{self.value}"


class Feature(enum.StrEnum):
    """What a backend or a model can do within a capability. Undeclared means: asking for it is an error."""

    SYSTEM = "system"
    """System messages."""
    TOOLS = "tools"
    """Tools may be offered, calls and results go into the conversation."""
    TOOL_CHOICE = "tool_choice"
    """"none", "required" or one tool by name can be enforced."""
    JSON_OBJECT = "json_object"
    """The answer can be forced to be a JSON object."""
    JSON_SCHEMA = "json_schema"
    """The answer can be forced to follow a JSON schema."""
    REGEX = "regex"
    """The answer can be forced to match a regular expression."""
    CHOICE = "choice"
    """The answer can be forced to be one of several texts."""
    GRAMMAR = "grammar"
    """The answer can be forced to follow a grammar."""
    IMAGES = "images"
    """Messages may hold images."""
    READ = "read"
    """The text on an image can be read, each word with its box and a confidence."""
    REASONING = "reasoning"
    """Thinking can be turned on or off, and its text comes apart from the answer."""
    REASONING_EFFORT = "reasoning_effort"
    """Thinking takes an effort: low, medium, high."""
    LOGPROBS = "logprobs"
    """Log probabilities of the tokens."""
    SEED = "seed"
    """Sampling can be seeded."""
    MULTIPLE_CHOICES = "multiple_choices"
    """Several answers to one request, `n` > 1."""
    PENALTIES = "penalties"
    """Presence and frequency penalties."""
    DIMENSIONS = "dimensions"
    """Embeddings can be cut to fewer dimensions."""


class Rung(enum.IntEnum):
    """The health ladder: each rung implies those below it."""

    ALIVE = 1
    """The process answers."""
    MODEL_PRESENT = 2
    """It has the model."""
    LOADED = 3
    """The model is in memory."""
    GENERATING = 4
    """The model produced a token."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a backend, as far as the backend tells. Lengths in tokens, size in bytes.

    `features` and `capabilities` None: the backend does not say, so nothing is ruled out. `degraded` says what is not as
    it should be (it runs on the CPU, another server runs it). `header` is what the model's GGUF file says of itself, by its
    keys, where the backend tells that.
    """

    name: str
    capabilities: frozenset[Capability] | None = None
    features: frozenset[Feature] | None = None
    context_length: int | None = None
    max_input: int | None = None
    embedding_dimension: int | None = None
    digest: str | None = None
    loaded: bool | None = None
    size: int | None = None
    aliases: tuple[str, ...] = ()
    degraded: str | None = None
    header: Mapping[str, Any] = {}


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found: the highest rung that held (None: not even alive) and why the next one did not.

    `digest` identifies what is behind the model's name, where the backend tells: another one is another model.
    """

    rung: Rung | None
    wanted: Rung
    detail: str = ""
    hint: str | None = None
    version: str | None = None
    degraded: str | None = None
    digest: str | None = None

    @property
    def ok(self) -> bool:
        """Did the wanted rung hold?"""
        return self.rung is not None and self.rung >= self.wanted


@runtime_checkable
class Backend(Protocol):
    """What every backend can do. All methods are safe to call from any thread and any event loop.

    Errors are those of `llm_hub.errors`, with `backend` set to the backend's name.
    """

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do with a model that can."""
        ...

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """The models it can serve right now; none of them is loaded by asking."""
        ...

    async def amodels(self, call: Call) -> tuple[ModelInfo, ...]:
        """`models`, async."""
        ...

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """Climb the health ladder up to `rung`. Below LOADED no model is loaded by it.

        An unhealthy backend is an answer, not an error: this raises only Cancelled and DeadlineExceeded of the call.
        """
        ...

    async def aprobe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """`probe`, async."""
        ...

    def close(self) -> None:
        """Release everything. Calls that still run fail with Cancelled or BackendFailed. Idempotent."""
        ...


class TextBackend(Backend, Protocol):
    """Continues conversations. `request.model` is set, unless the backend serves a single model of its own."""

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        """The whole answer."""
        ...

    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        """`chat`, async."""
        ...

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        """The answer in pieces. Every choice ends with a chunk that has a finish reason; then the iterator ends.

        Anything else is an error that it raises. If it has `close()` (a generator does), that cancels upstream.
        """
        ...

    def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        """`stream`, async; with `aclose()` for `close()`."""
        ...


class EmbeddingBackend(Backend, Protocol):
    """Turns texts into vectors."""

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """One vector a text, in their order."""
        ...

    async def aembed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """`embed`, async."""
        ...


class ReadingBackend(Backend, Protocol):
    """Reads the text on images; its features hold `Feature.READ`."""

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        """The text on an image, with the box of each word."""
        ...

    async def aread(self, request: ReadRequest, call: Call) -> ReadResponse:
        """`read`, async."""
        ...


VisionBackend: TypeAlias = TextBackend | ReadingBackend
"""Describes images (it continues conversations that hold them, and its features hold `Feature.IMAGES`), or reads the text on
them, or both. It is never asked for what it does not declare."""


_STRUCTURED = {
    "json_object": Feature.JSON_OBJECT,
    "json_schema": Feature.JSON_SCHEMA,
    "regex": Feature.REGEX,
    "choice": Feature.CHOICE,
    "grammar": Feature.GRAMMAR,
}


def required_features(request: ChatRequest) -> frozenset[Feature]:
    """The features that a backend must have to serve this request as it was asked."""
    wanted: set[Feature] = set()
    if request.tools:
        wanted.add(Feature.TOOLS)
    if request.tool_choice not in (None, "auto"):
        wanted.add(Feature.TOOL_CHOICE)
    if request.response_format is not None:
        wanted.add(_STRUCTURED[request.response_format.type])
    if request.reasoning:
        wanted.add(Feature.REASONING)
        if request.reasoning is not True:
            wanted.add(Feature.REASONING_EFFORT)
    if request.logprobs or request.top_logprobs:
        wanted.add(Feature.LOGPROBS)
    if request.seed is not None:
        wanted.add(Feature.SEED)
    if request.n != 1:
        wanted.add(Feature.MULTIPLE_CHOICES)
    if request.presence_penalty is not None or request.frequency_penalty is not None:
        wanted.add(Feature.PENALTIES)
    for message in request.messages:
        if message.role == "system":
            wanted.add(Feature.SYSTEM)
        elif message.role == "tool":
            wanted.add(Feature.TOOLS)
        if message.content.__class__ is not str and message.images:
            wanted.add(Feature.IMAGES)
    return frozenset(wanted)
