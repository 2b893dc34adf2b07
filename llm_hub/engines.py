"""What an engine inside the process must be like: the Protocols of those that `EngineBackend` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from llm_hub.call import Call
from llm_hub.capabilities import Feature, ModelInfo, Probe, Rung
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    ReadRequest,
    ReadResponse,
)

__all__ = ["CallbackEngine", "EmbeddingEngine", "Engine", "ReadingEngine"]


class _EngineBase(Protocol):
    """What every engine can do. Called from worker threads, several at once, and never from an event loop.

    `call` is the engine's own view of the caller's call: `call.cancelled` turns true, and what subscribed to
    `call.cancel` is called, as soon as nobody waits for the result any more, for whatever reason (a deadline of the
    call included). An engine looks at it wherever it would otherwise be busy for more than 100 ms, and may then raise
    anything. Errors are those of `llm_hub.errors` without `backend`; any other exception becomes BackendFailed.
    An engine whose native threads do not survive a fork also has `forked()`, called in the child: it forgets, without
    touching them, what must be made anew.
    """

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do with a model that can. Asking for anything else is refused before the engine sees it."""
        ...

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """The models it can serve right now; none of them is loaded by asking."""
        ...

    def load(self, model: str | None, call: Call) -> None:
        """Make a model ready; done before each answer, so it returns at once if it is. The load deadline counts here."""
        ...

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """Climb the health ladder up to `rung`. Below LOADED no model is loaded by it."""
        ...

    def close(self) -> None:
        """Release everything. Called once, after the last call has ended (or has not, for 5 seconds)."""
        ...


class Engine(_EngineBase, Protocol):
    """A blocking engine that is asked for each piece of an answer."""

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        """The whole answer."""
        ...

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        """The answer in pieces; every choice ends with a finish reason. If it has `close()`, that is called at the end."""
        ...


class CallbackEngine(_EngineBase, Protocol):
    """A blocking engine that hands out each piece of an answer by itself, as native libraries do."""

    def generate(self, request: ChatRequest, call: Call, emit: Callable[[ChatChunk], None]) -> None:
        """Pass the pieces of the answer to `emit`; every choice ends with a finish reason.

        `emit` waits while the consumer is behind, and raises (no Exception) when the engine is to stop.
        """
        ...


class EmbeddingEngine(_EngineBase, Protocol):
    """A blocking engine that turns texts into vectors. An engine may be this and one of the others."""

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """One vector a text, in their order."""
        ...


class ReadingEngine(_EngineBase, Protocol):
    """A blocking engine that reads the text on images. An engine may be this and one of the others."""

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        """The text, with the box of each word."""
        ...
