"""The engine: blocking, asked from worker threads. `EngineBackend` adds async, deadlines, cancellation and bounded queues."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from llm_hub.call import Call
from llm_hub.capabilities import Feature, ModelInfo, Probe, Rung
from llm_hub.errors import ContextOverflow, ModelNotFound
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, Usage
from llm_hub.streams import collect

from llm_hub_example_engine.plugin import FEATURES, MODEL
from llm_hub_example_engine.settings import ExampleEngineSettings


class Parrot:
    """Stands in for the native library that yours is about: it is loaded once, and repeats what it is told, word by word."""

    def generate(self, prompt: str) -> Iterator[str]:
        """The answer in pieces."""
        words = prompt.split(" ")
        for at, word in enumerate(words):
            yield word if at == 0 else f" {word}"


class ExampleEngineEngine:
    """Fulfils `llm_hub.engine.Engine`. Its methods run in several threads at once, and never in an event loop."""

    def __init__(self, settings: ExampleEngineSettings) -> None:
        self.settings = settings
        self._model: Parrot | None = None
        self._lock = threading.Lock()

    @property
    def features(self) -> frozenset[Feature]:
        """What it can do. Asking for anything else is refused before the engine sees it."""
        return FEATURES

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        """The models it can serve; none of them is loaded by asking."""
        return (ModelInfo(name=MODEL, context_length=self.settings.context, loaded=self._model is not None),)

    def load(self, model: str | None, call: Call) -> None:
        """Make the model ready; called before each answer, so it returns at once if it is."""
        if model not in (None, MODEL):
            raise ModelNotFound(f"it does not have the model {model!r}", model=model, available=(MODEL,))
        with self._lock:
            if self._model is None:
                self._model = Parrot()

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        """The whole answer."""
        return collect(self.stream(request, call))

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        """The answer in pieces; the last one says why it ended."""
        prompt = next((message.text for message in reversed(request.messages) if message.role == "user"), "")
        read = sum(len(message.text.split()) for message in request.messages)
        if read > self.settings.context:
            raise ContextOverflow(
                f"the conversation has {read} words, and the context {self.settings.context}",
                tokens=read,
                limit=self.settings.context,
            )
        assert self._model is not None  # `load` was called
        wrote, text, reason = 0, "", "stop"
        for piece in self._model.generate(prompt):
            if call.cancelled:  # nobody waits any more: look at least every 100 ms
                return
            if request.max_tokens is not None and wrote >= request.max_tokens:
                reason = "length"
                break
            wrote += 1
            cut = _cut(text + piece, request.stop)
            if cut is not None:
                if cut > len(text):
                    yield ChatChunk(text=(text + piece)[len(text) : cut], model=MODEL)
                break
            text += piece
            yield ChatChunk(text=piece, model=MODEL)
        usage = Usage(prompt_tokens=read, completion_tokens=wrote)
        yield ChatChunk(finish_reason="length" if reason == "length" else "stop", usage=usage, model=MODEL)

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        """Climb the health ladder. Below LOADED nothing is loaded."""
        if model not in (None, MODEL):
            return Probe(rung=Rung.ALIVE, wanted=rung, detail=f"it does not have the model {model!r}")
        if rung >= Rung.LOADED:
            self.load(model, call)
        return Probe(rung=rung, wanted=rung)

    def close(self) -> None:
        """Release everything."""
        self._model = None


def _cut(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first stop sequence begins, None without one."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return min(places, default=None)
