"""For each rule of text about streams a plugin that breaks it, and the rule that catches it by name."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call, Timeouts
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.engine import EngineBackend
from llm_hub.errors import (
    BackendError,
    ConnectionLost,
    ContextOverflow,
    ModelNotFound,
    ProtocolError,
    StreamInterrupted,
)
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, Usage
from llm_hub.openai_dialect import OpenAIStreamDecoder
from llm_hub.streams import collect
from llm_hub.testing import FakeVLLM, TinyModel
from llm_hub.testing.conformance import run_suite, text_giving_up, text_streams
from llm_hub.testing.conformance.mutants import Mutants, Parts, caught, over_http
from llm_hub.testing.conformance.report import Outcome
from llm_hub.testing.model import Prompt, Turn
from llm_hub.testing.text import TextRequirements
from llm_hub_vllm.dialect import FEATURES, VLLMDialect

MANIFEST = PluginManifest(api_version="1.0", summary="a plugin for tests", features=FEATURES)


class Right(TextRequirements):
    """The right plugin, which the mutants spoil."""

    def server(self) -> FakeVLLM:
        return FakeVLLM()


def make(part: Any) -> object:
    return over_http(part, capability=Capability.TEXT, manifest=MANIFEST, dialect=VLLMDialect)


MUTANTS = Mutants(Right, make)
breaks = MUTANTS.breaks


class Spoils(HttpBackend):
    """A backend whose streams go through `spoilt`, blocking and async alike."""

    def spoilt(self, chunks: Iterator[ChatChunk]) -> Iterator[ChatChunk]:
        raise NotImplementedError

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        return self.spoilt(iter(super().stream(request, call)))

    async def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        chunks = [chunk async for chunk in super().astream(request, call)]
        for chunk in self.spoilt(iter(chunks)):
            yield chunk


# -- how they come ----------------------------------------------------------------------------------------------------


@breaks("stream.pieces")
class SendsAllThatCameSoFar(Spoils):
    def spoilt(self, chunks: Iterator[ChatChunk]) -> Iterator[ChatChunk]:
        text = ""
        for chunk in chunks:
            text += chunk.text
            yield msgspec.structs.replace(chunk, text=text) if chunk.text else chunk


@breaks("stream.pieces")
class SendsOnePiece(Spoils):
    def spoilt(self, chunks: Iterator[ChatChunk]) -> Iterator[ChatChunk]:
        response = collect(chunks)
        yield ChatChunk(text=response.text, finish_reason=response.finish_reason, usage=response.usage)


@breaks("stream.one-end")
class EndsTwice(Spoils):
    def spoilt(self, chunks: Iterator[ChatChunk]) -> Iterator[ChatChunk]:
        yield from chunks
        yield ChatChunk(finish_reason="stop")


@breaks("stream.one-end")
class NeverSaysWhyItEnds(Spoils):
    def spoilt(self, chunks: Iterator[ChatChunk]) -> Iterator[ChatChunk]:
        for chunk in chunks:
            yield msgspec.structs.replace(chunk, finish_reason=None)


@breaks("stream.one-end")
class GoesOnAfterItsEnd(Spoils):
    def spoilt(self, chunks: Iterator[ChatChunk]) -> Iterator[ChatChunk]:
        yield from chunks
        yield ChatChunk(text="And by the way")


@breaks("stream.arrives")
class CollectsFirst(Spoils):
    def spoilt(self, chunks: Iterator[ChatChunk]) -> Iterator[ChatChunk]:
        yield from list(chunks)


class Decodes(VLLMDialect):
    """A dialect with a decoder of its own."""

    decoder: type[OpenAIStreamDecoder]

    def decode_stream(self, request: ChatRequest) -> Any:
        return self.decoder(n=request.n, model=request.model)


@breaks("stream.split")
class TakesEachReadForWholeLines(Decodes):
    class decoder(OpenAIStreamDecoder):  # noqa: N801
        def feed(self, data: bytes) -> list[ChatChunk]:
            return super().feed(data) if data.endswith(b"\n") else []


@breaks("stream.split")
class DecodesEachReadByItself(Decodes):
    class decoder(OpenAIStreamDecoder):  # noqa: N801
        def feed(self, data: bytes) -> list[ChatChunk]:
            return super().feed(data.decode(errors="replace").encode())


@breaks("stream.long-line")
class HasASmallBuffer(Decodes):
    class decoder(OpenAIStreamDecoder):  # noqa: N801
        seen = 0

        def feed(self, data: bytes) -> list[ChatChunk]:
            self.seen += len(data)
            if self.seen > 65536:
                raise ProtocolError("the answer is too long")
            return super().feed(data)


# -- how they must not end --------------------------------------------------------------------------------------------


class Swallows(HttpBackend):
    """A backend that takes some errors in the midst of a stream for its end."""

    swallowed: tuple[type[Exception], ...] = (BackendError,)

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        try:
            yield from super().stream(request, call)
        except self.swallowed:
            yield ChatChunk(finish_reason="stop")

    async def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        try:
            async for chunk in super().astream(request, call):
                yield chunk
        except self.swallowed:
            yield ChatChunk(finish_reason="stop")


@breaks("stream.error-midway", "stream.garbage", "stream.cut-off", "stream.no-end-mark", "stream.error-first")
class SwallowsEveryError(Swallows):
    pass


@breaks("stream.no-end-mark", "stream.cut-off")
class TakesAPartForTheWhole(Swallows):
    swallowed = (StreamInterrupted, ConnectionLost)


@breaks("stream.garbage")
class SkipsWhatItCannotRead(Decodes):
    class decoder(OpenAIStreamDecoder):  # noqa: N801
        def feed(self, data: bytes) -> list[ChatChunk]:
            try:
                data.decode()
            except UnicodeDecodeError:
                return []
            return super().feed(data)


@breaks("stream.error-first")
class InterruptsWhatHasNotBegun(HttpBackend):
    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        try:
            yield from super().stream(request, call)
        except BackendError as error:
            raise StreamInterrupted(error.message, backend=error.backend) from error


class Patient(HttpBackend):
    """A backend that keeps no deadline of a stage."""

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        return super().stream(request, Call(timeout=call.timeout, timeouts=Timeouts(), cancel=call.cancel))


@breaks("stream.between-tokens")
class WaitsForEver(Patient):
    pass


@breaks("stream.deadline-total")
class IgnoresTheCallersDeadline(HttpBackend):
    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        return super().stream(request, Call(timeouts=call.timeouts, cancel=call.cancel))


# -- giving up --------------------------------------------------------------------------------------------------------


@breaks("stream.cancelled")
class IsDeafWhileItStreams(HttpBackend):
    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        return super().stream(request, Call(timeout=call.timeout, timeouts=call.timeouts))


class Detached:
    """Reads a stream in a thread of its own, which nothing ends."""

    def __init__(self, chunks: Iterator[ChatChunk], bound: int) -> None:
        self.found: queue.Queue[ChatChunk | None] = queue.Queue(bound)
        threading.Thread(target=self.read, args=(chunks,), daemon=True).start()

    def read(self, chunks: Iterator[ChatChunk]) -> None:
        try:
            for chunk in chunks:
                self.found.put(chunk)
        except BackendError:
            pass
        self.found.put(None)

    def __iter__(self) -> Iterator[ChatChunk]:
        return self

    def __next__(self) -> ChatChunk:
        chunk = self.found.get()
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        """It goes on."""


@breaks("stream.closed", "stream.dropped")
class GoesOnWhenItIsClosed(HttpBackend):
    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        limited = Call(timeout=4.0, timeouts=call.timeouts)  # so that the test's own threads end
        return Detached(super().stream(request, limited), bound=8)


@breaks("stream.back-pressure")
class ReadsAhead(HttpBackend):
    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        limited = Call(timeout=4.0, timeouts=call.timeouts)
        return Detached(super().stream(request, limited), bound=0)


@breaks("stream.dropped")
class BeginsBeforeItIsAsked(HttpBackend):
    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        chunks = super().stream(request, call)
        first = next(chunks)

        def rest() -> Iterator[ChatChunk]:
            yield first
            yield from chunks

        return rest()


@breaks("stream.mixed")
class HasOneDecoder(VLLMDialect):
    """The decoder of the last stream is that of every stream."""

    kept: Any = None

    def decode_stream(self, request: ChatRequest) -> Any:
        if self.kept is None or self.kept.done:
            self.kept = OpenAIStreamDecoder(n=request.n, model=request.model)
        return self.kept


# -- engines ----------------------------------------------------------------------------------------------------------


class TinyEngine:
    """The kit's model of rules, as an engine in the process; a right one."""

    features = frozenset({Feature.SYSTEM})
    pause = 0.002

    def __init__(self) -> None:
        self.model = TinyModel()
        self.loaded: bool = False
        self.stop = threading.Event()

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return (ModelInfo(name="tiny", loaded=self.loaded, context_length=2048),)

    def load(self, model: str | None, call: Call) -> None:
        if model not in (None, "tiny"):
            raise ModelNotFound(f"there is no model {model!r}", model=model, available=("tiny",))
        self.loaded = True

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        if model not in (None, "tiny") and rung > Rung.ALIVE:
            return Probe(rung=Rung.ALIVE, wanted=rung, detail=f"there is no model {model!r}")
        self.loaded = self.loaded or rung >= Rung.LOADED
        return Probe(rung=rung, wanted=rung)

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        turns = [Turn(role=one.role, text=one.text) for one in request.messages]
        prompt = Prompt(turns=turns, stop=request.stop, max_tokens=request.max_tokens)
        made = self.model.generate(prompt)
        if made.prompt_tokens > 2048:
            raise ContextOverflow("the prompt is too long", tokens=made.prompt_tokens, limit=2048)
        for piece in made.pieces:
            if self.heard(call):
                return
            self.stop.wait(self.pause)
            yield ChatChunk(text=piece.text)
        usage = Usage(prompt_tokens=made.prompt_tokens, completion_tokens=made.tokens)
        yield ChatChunk(finish_reason=made.finish, usage=usage)

    def heard(self, call: Call) -> bool:
        return call.cancelled

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        return collect(self.stream(request, call))

    def close(self) -> None:
        self.stop.set()


class InProcess(TextRequirements):
    """The right engine."""

    model = "tiny"
    exact = True


def engine(part: Any) -> object:
    manifest = PluginManifest(api_version="1.0", summary="an engine for tests", features=TinyEngine.features)
    return Parts(Capability.TEXT, manifest, lambda config, context: part(config.name))


ENGINES = Mutants(InProcess, engine)


def right(name: str) -> EngineBackend:
    return EngineBackend(TinyEngine(), name=name, workers=2)


class Busy(TinyEngine):
    """Does not look whether anybody still waits, and takes its time."""

    def heard(self, call: Call) -> bool:
        return False

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        self.pause = 0.001 if "capital" in request.messages[-1].text else 0.03
        yield from super().stream(request, call)


class Deaf(Busy):
    """Hands its pieces out, and swallows what tells it to stop, as a native library that is called back may."""

    chat = None  # type: ignore[assignment]

    def generate(self, request: ChatRequest, call: Call, emit: Callable[[ChatChunk], None]) -> None:
        for chunk in super().stream(request, call):
            try:
                emit(chunk)
            except BaseException:
                continue


@ENGINES.breaks("cancel.engine", patience=1.0)
def goes_on_for_nobody(name: str) -> EngineBackend:
    """One worker, which a call that was given up keeps, so that the next one waits for it."""
    return EngineBackend(Busy(), name=name, workers=1)


@ENGINES.breaks("stream.engine-closed", patience=1.0)
def goes_on_when_it_is_closed(name: str) -> EngineBackend:
    return EngineBackend(Deaf(), name=name, workers=1)


# -- the tests --------------------------------------------------------------------------------------------------------

CASES: Sequence[Any] = [*MUTANTS.cases, *ENGINES.cases]


@pytest.mark.parametrize(("rule", "name", "wrong"), CASES, ids=[*MUTANTS.ids, *ENGINES.ids])
def test_the_rule_that_it_breaks_catches_it(rule: str, name: str, wrong: TextRequirements) -> None:
    caught(wrong, rule, patience=9.0 if name == "ReadsAhead" else 1.0)


def test_every_rule_has_a_mutant() -> None:
    assert MUTANTS.without([text_streams.RULES, text_giving_up.RULES]) <= {rule for rule, _, _ in ENGINES.cases}


def test_the_right_engine_keeps_every_rule() -> None:
    class Requirements(InProcess):
        plugin = engine(right)

    report = run_suite(Requirements)
    assert report.ok, str(report)
    assert not report.of(Outcome.UNDECLARED, Outcome.MENDED)
    assert len(report.of(Outcome.PASSED)) > 30
