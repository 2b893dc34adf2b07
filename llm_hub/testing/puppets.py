"""A plugin in memory whose backend does as it is told: serves, or fails in a given way, without a server or a clock."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Mapping

from llm_hub.call import Call
from llm_hub.capabilities import Backend, Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import (
    AuthenticationFailed,
    BackendFailed,
    BackendLoading,
    BackendOverloaded,
    BackendUnreachable,
    ConnectionLost,
    DeadlineExceeded,
    HubError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
)
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import API_VERSION, PluginManifest
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    Choice,
    EmbedRequest,
    EmbedResponse,
    Message,
    ReadRequest,
    ReadResponse,
    Usage,
    Word,
)

__all__ = ["MOODS", "STREAM_MOODS", "Puppet"]

MODEL = "puppet"

MOODS: Mapping[str, Callable[[], BaseException | None]] = {
    "well": lambda: None,
    "refused": lambda: BackendUnreachable("it refused the connection"),
    "lost": lambda: ConnectionLost("the connection broke"),
    "failed": lambda: BackendFailed("internal error", status=500),
    "dead": lambda: _ejected(),
    "full": lambda: BackendOverloaded("its queue is full", status=503),
    "limited": lambda: BackendOverloaded("too many requests", status=429, retry_after=0.01),
    "loading": lambda: BackendLoading("it is loading the model", status=503),
    "slow": lambda: DeadlineExceeded("no first token", stage="first token", seconds=1.0),
    "garbled": lambda: ProtocolError("no JSON"),
    "bad request": lambda: InvalidRequest("it makes no sense"),
    "denied": lambda: AuthenticationFailed("the key is wrong"),
    "no model": lambda: ModelNotFound("it has no such model", model=MODEL),
    "raises": lambda: ValueError("a fault of the plugin"),
    "nonsense": lambda: None,
}
"""What a backend may do with the next call: serve it, raise this, or ("nonsense") give what is no answer."""

STREAM_MOODS = ("breaks", "raises later", "ends early", "fails later")
"""What may befall a stream after its first pieces."""

_LATER: Mapping[str, Callable[[], BaseException | None]] = {
    "breaks": lambda: ConnectionLost("the connection broke"),
    "fails later": lambda: BackendFailed("the engine died"),
    "raises later": lambda: ValueError("a fault of the plugin, later"),
    "ends early": lambda: None,
}


def _ejected() -> HubError:
    error = BackendFailed("out of memory", status=500)
    error.ejects = True
    return error


class Puppet:
    """A plugin object, to be given to `Hub(plugins={name: puppet})`, and what its backends have been asked.

    `next` are the moods of the next calls, each used once; `mood` is that of all others. `space` tells embeddings apart:
    puppets of one space embed alike. `alive` False fails each probe, `broken` each build. Answers name the puppet:
    "NAME NUMBER", in pieces of one letter when streamed. Safe to use from any thread.
    """

    def __init__(self, name: str, *, space: str = "one", pieces: int = 6) -> None:
        self.name = name
        self.space = space
        self.pieces = pieces
        self.mood = "well"
        self.next: deque[str] = deque()
        self.alive = True
        self.broken = False
        self.asked = 0
        self.probes = 0
        self.built: list[_Backend] = []
        self.streaming = 0
        self._lock = threading.Lock()

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        """It can do everything."""
        return PluginManifest(
            api_version=API_VERSION,
            features=frozenset(Feature),
            default_models=dict.fromkeys(Capability, MODEL),
        )

    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> Backend | None:
        """A backend, unless it is `broken`."""
        return self._build()

    @hookimpl
    def llm_hub_embedding(self, config: BackendConfig, context: BuildContext) -> Backend | None:
        """As `llm_hub_text`."""
        return self._build()

    @hookimpl
    def llm_hub_vision(self, config: BackendConfig, context: BuildContext) -> Backend | None:
        """As `llm_hub_text`."""
        return self._build()

    def _build(self) -> Backend:
        if self.broken:
            raise RuntimeError("it cannot be built")
        built = _Backend(self)
        self.built.append(built)
        return built

    def take(self) -> str:
        """The mood of the call that has come; raises what it stands for."""
        with self._lock:
            self.asked += 1
            mood = self.next.popleft() if self.next else self.mood
        error = MOODS.get(mood, MOODS["well"])()
        if error is not None:
            raise error
        return mood

    def vector(self, text: str) -> tuple[float, ...]:
        """Where a text is in its space."""
        digest = hashlib.sha256(f"{self.space} {text}".encode()).digest()
        return tuple([byte / 128 - 1 for byte in digest])


class _Backend:
    """Text, embedding and vision of one puppet."""

    features = frozenset(Feature)

    def __init__(self, puppet: Puppet) -> None:
        self.puppet = puppet
        self.closed = 0

    # -- answers ------------------------------------------------------------------------------------------------------

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        """Its name and how many calls it has had."""
        if self.puppet.take() == "nonsense":
            return "nonsense"  # type: ignore[return-value]  # that is the fault
        answer = Message(role="assistant", content=self._text())
        return ChatResponse(
            choices=tuple(Choice(message=answer, finish_reason="stop", index=index) for index in range(request.n)),
            model=request.model,
            usage=Usage(prompt_tokens=1, completion_tokens=self.puppet.pieces),
        )

    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        """`chat`."""
        return self.chat(request, call)

    def _text(self) -> str:
        return f"{self.puppet.name} {self.puppet.asked}"

    def stream(self, request: ChatRequest, call: Call) -> Generator[ChatChunk, None, None]:
        """The same in pieces."""
        mood = self.puppet.take()
        with self.puppet._lock:
            self.puppet.streaming += 1
        try:
            if mood == "nonsense":
                yield "nonsense"  # type: ignore[misc]  # that is the fault
            for number in range(self.puppet.pieces):
                call.check()
                if number == 2 and mood in _LATER:
                    error = _LATER[mood]()
                    if error is not None:
                        raise error
                    return
                yield ChatChunk(text=self.puppet.name)
            yield ChatChunk(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=self.puppet.pieces))
        finally:
            with self.puppet._lock:
                self.puppet.streaming -= 1

    async def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        """`stream`."""
        with contextlib.closing(self.stream(request, call)) as chunks:
            for chunk in chunks:
                yield chunk

    def embed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """A vector that depends on the text and the space alone."""
        if self.puppet.take() == "nonsense":
            return EmbedResponse(vectors=((0.0,),))
        vectors = tuple(self.puppet.vector(text) for text in request.texts)
        return EmbedResponse(vectors=vectors, model=request.model, usage=Usage(prompt_tokens=1))

    async def aembed(self, request: EmbedRequest, call: Call) -> EmbedResponse:
        """`embed`."""
        return self.embed(request, call)

    def read(self, request: ReadRequest, call: Call) -> ReadResponse:
        """Its name, as if it stood there."""
        self.puppet.take()
        word = Word(text=self.puppet.name, box=(0, 0, 1, 1), confidence=1.0, line=0, paragraph=0)
        return ReadResponse(text=self.puppet.name, words=(word,), width=1, height=1)

    async def aread(self, request: ReadRequest, call: Call) -> ReadResponse:
        """`read`."""
        return self.read(request, call)

    # -- the rest -----------------------------------------------------------------------------------------------------

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """One model, or an error if it is not alive."""
        if not self.puppet.alive:
            raise BackendUnreachable("it refused the connection")
        return (ModelInfo(name=MODEL, capabilities=frozenset(Capability)),)

    async def amodels(self, call: Call) -> tuple[ModelInfo, ...]:
        """`models`."""
        return self.models(call)

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """As it is told."""
        self.puppet.probes += 1
        if not self.puppet.alive:
            return Probe(rung=None, wanted=rung, detail="it refused the connection")
        return Probe(rung=rung, wanted=rung)

    async def aprobe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """`probe`."""
        return self.probe(rung, model, call)

    def close(self) -> None:
        """Counted."""
        self.closed += 1
