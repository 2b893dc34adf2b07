"""EngineBackend, over engines that really block, stall, ignore, fail and flood."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_hub.call import Call, CancelToken, Timeouts
from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung, TextBackend
from llm_hub.engine import EngineBackend
from llm_hub.errors import (
    BackendFailed,
    BackendOverloaded,
    Cancelled,
    ContextOverflow,
    DeadlineExceeded,
    HubClosed,
    HubError,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, Choice, Message, Usage

SOON = 0.1  # within which an engine must be told to stop, in seconds


def ask(text: str = "count", **options: Any) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), **options)


class Counter:
    """Counts: `tokens` chunks, `delay` seconds before each. Says when it was told to stop, and when it did."""

    features = frozenset({Feature.SYSTEM, Feature.MULTIPLE_CHOICES})

    def __init__(self, tokens: int = 5, *, delay: float = 0.0, deaf: bool = False, load_delay: float = 0.0) -> None:
        self.tokens = tokens
        self.delay = delay
        self.deaf = deaf
        self.load_delay = load_delay
        self.made = 0
        self.lock = threading.Lock()
        self.running = 0
        self.closed = 0
        self.loads = 0
        self.begun = threading.Event()
        self.stopped = threading.Event()
        self.release = threading.Event()
        self.fail: BaseException | None = None
        self.fail_at = 0
        self.finish = True

    def _pause(self, seconds: float, call: Call) -> None:
        if self.deaf:
            self.release.wait(seconds)
            return
        woken = threading.Event()
        call.cancellation().subscribe(self, woken.set)
        woken.wait(seconds)
        call.cancellation().unsubscribe(self)
        call.check()

    def pieces(self, call: Call) -> Iterator[ChatChunk]:
        with self.lock:
            self.running += 1
        self.begun.set()
        try:
            for number in range(self.tokens):
                if self.fail is not None and number == self.fail_at:
                    raise self.fail
                if self.delay:
                    self._pause(self.delay, call)
                self.made += 1
                yield ChatChunk(text=f"{number} ")
            if self.finish:
                yield ChatChunk(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=self.tokens))
        finally:
            with self.lock:
                self.running -= 1
            self.stopped.set()

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        if self.load_delay:
            self._pause(self.load_delay, call)
        return (ModelInfo(name="counter", capabilities=frozenset({Capability.TEXT})),)

    def load(self, model: str | None, call: Call) -> None:
        self.loads += 1
        if self.load_delay:
            self._pause(self.load_delay, call)

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        if self.fail is not None:
            raise self.fail
        if self.load_delay:
            self._pause(self.load_delay, call)
        return Probe(rung=rung, wanted=rung)

    def close(self) -> None:
        self.closed += 1


class PullEngine(Counter):
    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        text = "".join(chunk.text for chunk in self.pieces(call))
        return ChatResponse(
            choices=(Choice(message=Message(role="assistant", content=text), finish_reason="stop"),),
            usage=Usage(completion_tokens=self.tokens),
        )

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        return self.pieces(call)


class PushEngine(Counter):
    def generate(self, request: ChatRequest, call: Call, emit: Callable[[ChatChunk], None]) -> None:
        pieces = self.pieces(call)
        try:
            for chunk in pieces:
                emit(chunk)
        finally:
            pieces.close()  # type: ignore[attr-defined]


class Blocking:
    """Calls a backend from this thread."""

    name = "blocking"

    def chat(self, backend: EngineBackend, call: Call, request: ChatRequest | None = None) -> ChatResponse:
        return backend.chat(request or ask(), call)

    def stream(self, backend: EngineBackend, call: Call, request: ChatRequest | None = None) -> list[ChatChunk]:
        return list(backend.stream(request or ask(), call))

    def models(self, backend: EngineBackend, call: Call) -> tuple[ModelInfo, ...]:
        return backend.models(call)

    def probe(self, backend: EngineBackend, rung: Rung, call: Call) -> Probe:
        return backend.probe(rung, None, call)

    def taking(self, backend: EngineBackend, call: Call, number: int, *, pause: float = 0.0) -> list[ChatChunk]:
        """The first so many chunks, slowly, then close."""
        chunks = backend.stream(ask(), call)
        taken = []
        for _ in range(number):
            time.sleep(pause)
            chunk = next(chunks, None)
            if chunk is None:
                break
            taken.append(chunk)
        time.sleep(pause)
        chunks.close()  # type: ignore[attr-defined]
        return taken


class Looping:
    """Calls a backend from a task of an event loop of its own."""

    name = "looping"

    def chat(self, backend: EngineBackend, call: Call, request: ChatRequest | None = None) -> ChatResponse:
        return asyncio.run(backend.achat(request or ask(), call))

    def stream(self, backend: EngineBackend, call: Call, request: ChatRequest | None = None) -> list[ChatChunk]:
        async def run() -> list[ChatChunk]:
            return [chunk async for chunk in backend.astream(request or ask(), call)]

        return asyncio.run(run())

    def models(self, backend: EngineBackend, call: Call) -> tuple[ModelInfo, ...]:
        return asyncio.run(backend.amodels(call))

    def probe(self, backend: EngineBackend, rung: Rung, call: Call) -> Probe:
        return asyncio.run(backend.aprobe(rung, None, call))

    def taking(self, backend: EngineBackend, call: Call, number: int, *, pause: float = 0.0) -> list[ChatChunk]:
        async def run() -> list[ChatChunk]:
            chunks = backend.astream(ask(), call)
            taken = []
            for _ in range(number):
                await asyncio.sleep(pause)
                chunk = await anext(chunks, None)
                if chunk is None:
                    break
                taken.append(chunk)
            await asyncio.sleep(pause)
            await chunks.aclose()  # type: ignore[attr-defined]
            return taken

        return asyncio.run(run())


World = Blocking | Looping
AnyEngine = PullEngine | PushEngine


@pytest.fixture(params=[Blocking(), Looping()], ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    found: World = request.param
    return found


@pytest.fixture(params=[PullEngine, PushEngine])
def kind(request: pytest.FixtureRequest) -> type[AnyEngine]:
    found: type[AnyEngine] = request.param
    return found


@pytest.fixture
def made() -> Iterator[Callable[..., EngineBackend]]:
    """Makes backends, closes them, and sees that no thread is left."""
    backends: list[EngineBackend] = []

    def make(engine: AnyEngine, **options: Any) -> EngineBackend:
        backend = EngineBackend(engine, name="box", **options)
        backends.append(backend)
        return backend

    yield make
    for backend in backends:
        assert isinstance(backend.engine, Counter)
        backend.engine.release.set()
        backend.close()
    assert threads() == []


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llm-hub-box")]


Make = Callable[..., EngineBackend]


def text(chunks: list[ChatChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def eventually(true: Callable[[], bool], *, within: float = 2.0) -> bool:
    until = time.monotonic() + within
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_backend_fulfils_the_protocol(made: Make) -> None:
    assert isinstance(made(PullEngine()), TextBackend.__mro__[1])


def test_an_answer_comes_whole(made: Make, kind: type[AnyEngine], world: World) -> None:
    response = world.chat(made(kind(3)), Call())
    assert response.text == "0 1 2 "
    assert response.finish_reason == "stop"
    assert response.usage.completion_tokens == 3


def test_an_answer_comes_in_pieces_and_in_order(made: Make, kind: type[AnyEngine], world: World) -> None:
    chunks = world.stream(made(kind(300)), Call())
    assert [chunk.text for chunk in chunks[:-1]] == [f"{number} " for number in range(300)]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None


def test_a_stream_does_nothing_before_its_first_chunk_is_asked_for(made: Make) -> None:
    engine = PullEngine()
    backend = made(engine)
    backend.stream(ask(), Call())
    backend.astream(ask(), Call())
    assert engine.loads == 0
    assert threads() == []


def test_an_ended_stream_stays_ended(made: Make) -> None:
    chunks = made(PullEngine(1)).stream(ask(), Call())
    assert len(list(chunks)) == 2
    assert next(chunks, None) is None
    chunks.close()  # type: ignore[attr-defined]
    assert next(chunks, None) is None


def test_the_model_is_loaded_before_each_answer(made: Make) -> None:
    engine = PullEngine()
    backend = made(engine)
    backend.chat(ask(), Call())
    list(backend.stream(ask(), Call()))
    assert engine.loads == 2


def test_what_the_engine_has_not_declared_is_refused_before_it_is_asked(made: Make, world: World) -> None:
    engine = PullEngine()
    backend = made(engine)
    for way in (world.chat, world.stream):
        with pytest.raises(UnsupportedFeature, match="box: it cannot be asked for seed") as caught:
            way(backend, Call(), ask(seed=1))
        assert caught.value.features == ("seed",)
    assert engine.loads == 0


@given(tokens=st.integers(0, 200), taken=st.integers(0, 220), looping=st.booleans(), push=st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_is_taken_is_what_came_first_and_the_engine_is_never_far_ahead(
    tokens: int, taken: int, looping: bool, push: bool
) -> None:
    engine = (PushEngine if push else PullEngine)(tokens)
    backend = EngineBackend(engine, name="box")
    try:
        chunks = (Looping() if looping else Blocking()).taking(backend, Call(), taken)
        assert text(chunks) == text([ChatChunk(f"{number} ") for number in range(min(tokens, taken))])
        assert engine.made <= taken + 2 * 64
        assert eventually(lambda: engine.running == 0)
    finally:
        backend.close()
    assert threads() == []


# -- back-pressure ----------------------------------------------------------------------------------------------------


def test_the_engine_waits_for_a_slow_consumer(made: Make, kind: type[AnyEngine], world: World) -> None:
    engine = kind(100_000)
    world.taking(made(engine), Call(), 3, pause=0.05)
    assert 64 <= engine.made <= 3 + 2 * 64
    assert engine.stopped.wait(SOON)


def test_time_that_the_consumer_takes_is_not_time_between_tokens(made: Make, world: World) -> None:
    call = Call(timeouts=Timeouts(between_tokens=0.05, first_token=0.05))
    assert len(world.taking(made(PullEngine(300)), call, 3, pause=0.1)) == 3


def test_an_engine_that_waits_for_a_consumer_who_never_comes_back_ends_at_the_deadline(made: Make) -> None:
    engine = PullEngine(100_000)
    chunks = made(engine).stream(ask(), Call(timeout=0.15))
    next(chunks)
    assert engine.stopped.wait(0.15 + SOON)
    with pytest.raises(DeadlineExceeded) as caught:
        list(chunks)
    assert caught.value.stage == "total"


# -- giving up --------------------------------------------------------------------------------------------------------


def test_a_cancelled_task_stops_the_engine(made: Make, kind: type[AnyEngine]) -> None:
    engine = kind(delay=5)
    backend = made(engine)

    async def run() -> None:
        for work in (backend.achat(ask(), Call()), anext(backend.astream(ask(), Call()))):
            engine.begun.clear()
            engine.stopped.clear()
            task: asyncio.Future[Any] = asyncio.ensure_future(work)
            await asyncio.to_thread(engine.begun.wait, 2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(engine.stopped.wait, SOON)

    asyncio.run(run())


def test_a_closed_stream_stops_the_engine(made: Make, kind: type[AnyEngine], world: World) -> None:
    engine = kind(100, delay=0.001)
    assert len(world.taking(made(engine), Call(), 2)) == 2
    assert engine.stopped.wait(SOON)
    assert engine.made < 100


def test_a_dropped_stream_stops_the_engine(made: Make, kind: type[AnyEngine]) -> None:
    engine = kind(1000, delay=0.002)
    backend = made(engine)
    chunks = backend.stream(ask(), Call())
    next(chunks)
    del chunks
    gc.collect()
    assert engine.stopped.wait(SOON)
    engine.stopped.clear()

    async def run() -> None:
        chunks = backend.astream(ask(), Call())
        await anext(chunks)
        del chunks
        gc.collect()
        assert await asyncio.to_thread(engine.stopped.wait, SOON)

    asyncio.run(run())


@pytest.mark.parametrize("way", ["chat", "stream", "models"])
def test_a_call_is_cancelled_from_another_thread(made: Make, kind: type[AnyEngine], world: World, way: str) -> None:
    engine = kind(delay=5, load_delay=5 if way == "models" else 0)
    token = CancelToken()
    timer = threading.Timer(0.05, token.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled, match="box: cancelled"):
        getattr(world, way)(made(engine), Call(cancel=token))
    assert time.monotonic() - began < 0.05 + SOON
    assert engine.stopped.wait(SOON) or way == "models"
    timer.join()


def test_a_token_made_after_the_call_began_cancels_it_too(made: Make) -> None:
    call = Call()
    chunks = made(PullEngine(1000, delay=0.002)).stream(ask(), call)
    next(chunks)
    call.cancellation().cancel()
    with pytest.raises(Cancelled):
        list(chunks)


def test_a_call_that_was_cancelled_before_it_began_reaches_no_engine(made: Make, world: World) -> None:
    engine = PullEngine()
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        world.chat(made(engine), Call(cancel=token))
    assert engine.loads == 0


def test_an_engine_that_ignores_everything_holds_up_nobody_but_itself(made: Make, world: World) -> None:
    engine = PullEngine(1, delay=30, deaf=True)
    backend = made(engine, workers=1)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        world.chat(backend, Call(timeout=0.05))
    assert time.monotonic() - began < 0.05 + SOON
    assert engine.running == 1  # it has not noticed yet, and keeps its worker
    with pytest.raises(DeadlineExceeded):
        world.chat(backend, Call(timeout=0.05))
    engine.release.set()
    assert world.chat(backend, Call(timeout=5)).text == "0 "


# -- deadlines --------------------------------------------------------------------------------------------------------


def test_the_total_deadline_ends_an_answer(made: Make, kind: type[AnyEngine], world: World) -> None:
    engine = kind(1000, delay=0.01)
    for way in (world.chat, world.stream):
        engine.stopped.clear()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"box: the call's deadline of 0.1 s passed") as caught:
            way(made(engine), Call(timeout=0.1))
        assert caught.value.stage == "total"
        assert time.monotonic() - began < 0.1 + SOON
        assert engine.stopped.wait(SOON)


@pytest.mark.parametrize(
    ("stage", "way", "engine"),
    [
        ("first token", "stream", PullEngine(delay=5)),
        ("between tokens", "stream", PullEngine(3, delay=0.12)),
        ("whole", "chat", PushEngine(delay=5)),
        ("load", "stream", PullEngine(load_delay=5)),
        ("load", "chat", PushEngine(load_delay=5)),
    ],
)
def test_each_stage_has_its_deadline(made: Make, world: World, stage: str, way: str, engine: AnyEngine) -> None:
    engine.stopped.clear()
    # The first token of the second engine takes 0.12 s too, and may.
    timeouts = Timeouts(**{stage.replace(" ", "_"): 0.06})
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="box: .* took more than 0.06 s") as caught:
        getattr(world, way)(made(engine), Call(timeouts=timeouts))
    assert caught.value.stage == stage
    assert caught.value.seconds == 0.06
    assert time.monotonic() - began < 0.2 + SOON
    if stage != "load":
        assert engine.stopped.wait(SOON)


def test_loading_does_not_use_up_the_time_for_the_first_token(made: Make, world: World) -> None:
    engine = PullEngine(2, load_delay=0.15, delay=0.01)
    assert text(world.stream(made(engine), Call(timeouts=Timeouts(first_token=0.1)))) == "0 1 "


def test_many_chunks_with_pauses_need_one_timer_only(made: Make) -> None:
    armed = 0

    class Watching(asyncio.SelectorEventLoop):
        def call_later(  # type: ignore[override]  # handed on as it is
            self, *arguments: Any, **options: Any
        ) -> asyncio.TimerHandle:
            nonlocal armed
            armed += 1
            return super().call_later(*arguments, **options)

    backend = made(PullEngine(100, delay=0.001))

    async def run() -> int:
        return len([chunk async for chunk in backend.astream(ask(), Call())])

    with asyncio.Runner(loop_factory=Watching) as runner:
        assert runner.run(run()) == 101
    assert armed <= 3


# -- load -------------------------------------------------------------------------------------------------------------


def test_calls_beyond_the_workers_wait_and_beyond_the_queue_are_refused(made: Make) -> None:
    engine = PullEngine(1, delay=30, deaf=True)
    backend = made(engine, workers=2, queue=3)
    answers: list[str] = []
    callers = [threading.Thread(target=lambda: answers.append(backend.chat(ask(), Call()).text)) for _ in range(5)]
    for caller in callers:
        caller.start()
    assert eventually(lambda: len(backend._calls._waiting) == 3 and engine.running == 2)
    with pytest.raises(BackendOverloaded, match="box: 2 calls run and 3 wait already"):
        backend.chat(ask(), Call())
    with pytest.raises(BackendOverloaded):
        asyncio.run(backend.achat(ask(), Call()))
    assert backend.probe(Rung.ALIVE, None, Call()).ok  # health can be asked all the same
    engine.release.set()
    for caller in callers:
        caller.join()
    assert answers == ["0 "] * 5


def test_who_gives_up_waiting_makes_room_for_another(made: Make) -> None:
    engine = PullEngine(1, delay=30, deaf=True)
    backend = made(engine, workers=1, queue=1)
    first = threading.Thread(target=lambda: backend.chat(ask(), Call()))
    first.start()
    assert eventually(lambda: engine.running == 1)
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            backend.chat(ask(), Call(timeout=0.01))
    engine.release.set()
    first.join()
    assert engine.loads == 1


def test_many_calls_at_once_each_get_their_own_answer(made: Make) -> None:
    backend = made(PullEngine(50), workers=4, queue=200)

    async def one() -> str:
        return text([chunk async for chunk in backend.astream(ask(), Call())])

    async def run() -> list[str]:
        return await asyncio.gather(*(one() for _ in range(100)))

    expected = text([ChatChunk(f"{number} ") for number in range(50)])
    assert asyncio.run(run()) == [expected] * 100
    assert len(threads()) <= 4


def test_event_loops_side_by_side_and_threads_share_a_backend(made: Make) -> None:
    backend = made(PullEngine(20, delay=0.001), workers=4)
    answers: list[str] = []

    def loops() -> None:
        answers.append(text(Looping().stream(backend, Call())))
        answers.append(Looping().chat(backend, Call()).text)

    def blocks() -> None:
        answers.append(text(Blocking().stream(backend, Call())))

    callers = [threading.Thread(target=target) for target in (loops, blocks) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(answers) == 12
    assert len(set(answers)) == 1


def test_a_loop_that_was_closed_in_mid_stream_stops_the_engine_and_hurts_nobody(made: Make) -> None:
    engine = PullEngine(10_000, delay=0.002)
    backend = made(engine)
    kept: list[AsyncIterator[ChatChunk]] = []

    async def begin() -> None:
        chunks = backend.astream(ask(), Call())
        kept.append(chunks)
        await anext(chunks)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    stuck = loop.create_task(anext(kept[0]))  # type: ignore[arg-type, var-annotated]
    loop.run_until_complete(asyncio.sleep(0))
    while stuck.done():  # it may have found a chunk ready
        stuck = loop.create_task(anext(kept[0]))  # type: ignore[arg-type]
        loop.run_until_complete(asyncio.sleep(0))
    loop._ready.clear()  # type: ignore[attr-defined]
    stuck._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert engine.stopped.wait(SOON)
    assert Looping().chat(made(PullEngine(1)), Call()).text == "0 "


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_typed_error_of_the_engine_arrives_with_the_backends_name(
    made: Make, kind: type[AnyEngine], world: World
) -> None:
    engine = kind()
    for way in (world.chat, world.stream):
        engine.fail = ContextOverflow("too long", tokens=10, limit=5)
        with pytest.raises(ContextOverflow, match="box: too long") as caught:
            way(made(engine), Call())
        assert (caught.value.tokens, caught.value.limit) == (10, 5)


@pytest.mark.parametrize(
    "fault", [ZeroDivisionError("by nothing"), SystemExit(3), MemoryError("full"), StopIteration()]
)
def test_any_other_failure_becomes_a_failed_backend(
    made: Make, kind: type[AnyEngine], world: World, fault: BaseException
) -> None:
    engine = kind()
    engine.fail = fault
    with pytest.raises(BackendFailed, match="box: its engine failed") as caught:
        world.stream(made(engine), Call())
    cause: BaseException | None = caught.value.__cause__
    assert cause is fault or (cause is not None and cause.__cause__ is fault)  # PEP 479 wraps a StopIteration


def test_what_was_made_before_a_failure_arrives_first(made: Make, world: World) -> None:
    engine = PullEngine(10)
    engine.fail, engine.fail_at = BackendFailed("out of memory"), 4
    backend = made(engine)
    assert text(world.taking(backend, Call(), 4)) == "0 1 2 3 "
    with pytest.raises(BackendFailed, match="out of memory"):
        world.taking(backend, Call(), 5)


def test_a_stream_that_failed_is_over(made: Make) -> None:
    engine = PullEngine(10)
    engine.fail, engine.fail_at = BackendFailed("out of memory"), 1
    chunks = made(engine).stream(ask(), Call())
    with pytest.raises(BackendFailed):
        list(chunks)
    assert next(chunks, None) is None


def test_an_answer_without_its_end_is_never_taken_for_the_whole(made: Make, world: World) -> None:
    engine = PushEngine(3)
    engine.finish = False
    with pytest.raises(StreamInterrupted, match="0 of 1 answers"):
        world.stream(made(engine), Call())
    with pytest.raises(BackendFailed, match="0 of 1 answers"):
        world.chat(made(engine), Call())
    engine.finish = True
    with pytest.raises(StreamInterrupted, match="1 of 2 answers"):
        world.stream(made(engine), Call(), ask(n=2))


# -- control ----------------------------------------------------------------------------------------------------------


def test_models_and_health_are_asked_in_either_world(made: Make, world: World) -> None:
    backend = made(PullEngine())
    assert [model.name for model in world.models(backend, Call())] == ["counter"]
    assert world.probe(backend, Rung.GENERATING, Call()).ok


def test_an_unhealthy_engine_is_an_answer(made: Make, world: World) -> None:
    engine = PullEngine()
    engine.fail = BackendFailed("no memory", hint="Buy some.")
    probe = world.probe(made(engine), Rung.LOADED, Call())
    assert not probe.ok
    assert (probe.detail, probe.hint) == ("no memory", "Buy some.")


def test_a_probe_whose_load_takes_too_long_is_an_answer_and_one_past_the_calls_deadline_an_error(
    made: Make, world: World
) -> None:
    backend = made(PullEngine(load_delay=5))
    probe = world.probe(backend, Rung.LOADED, Call(timeouts=Timeouts(load=0.05)))
    assert not probe.ok
    assert "loading the model took more than 0.05 s" in probe.detail
    with pytest.raises(DeadlineExceeded):
        world.probe(backend, Rung.LOADED, Call(timeout=0.05))


# -- the end ----------------------------------------------------------------------------------------------------------


def test_closing_fails_what_runs_and_what_waits_and_ends_the_threads(made: Make, kind: type[AnyEngine]) -> None:
    engine = kind(1000, delay=0.01)
    backend = made(engine, workers=1)
    failed: list[HubError] = []

    def call(world: World) -> None:
        try:
            world.stream(backend, Call())
        except HubError as error:
            failed.append(error)

    callers = [threading.Thread(target=call, args=(world,)) for world in (Blocking(), Looping(), Blocking())]
    for caller in callers:
        caller.start()
    assert eventually(lambda: engine.made > 2)
    backend.close()
    for caller in callers:
        caller.join(1)
    assert [type(error) for error in failed] == [BackendFailed] * 3
    assert {error.backend for error in failed} == {"box"}
    assert threads() == []
    assert engine.closed == 1
    backend.close()
    assert engine.closed == 1


def test_a_closed_backend_says_so(made: Make, world: World) -> None:
    backend = made(PullEngine())
    backend.close()
    with pytest.raises(HubClosed):
        world.chat(backend, Call())
    assert not world.probe(backend, Rung.ALIVE, Call()).ok


def test_a_backend_that_nobody_closed_takes_its_threads_along() -> None:
    backend = EngineBackend(PullEngine(), name="box")
    backend.chat(ask(), Call())
    assert len(threads()) == 1
    del backend
    gc.collect()
    assert eventually(lambda: threads() == [])


def test_an_idle_backend_keeps_no_conversation_in_memory(made: Make) -> None:
    class Weak(list[int]):
        pass

    backend = made(PullEngine())
    secret = Weak([1])
    backend.chat(ask(options={"kept": secret}), Call())
    gc.collect()
    assert eventually(lambda: len(gc.get_referrers(secret)) <= 1)  # the frame of this test


# -- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_backend_serves_on_in_the_child_of_a_fork(made: Make) -> None:
    engine = PullEngine(1000, delay=0.001)
    backend = made(engine)
    inherited = backend.stream(ask(), Call())
    next(inherited)
    told: list[bool] = []
    engine.forked = lambda: told.append(True)  # type: ignore[attr-defined]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            try:
                list(inherited)
            except BackendFailed as error:
                engine.tokens = 2
                fine = (
                    "forked" in str(error)
                    and told == [True]
                    and backend.chat(ask(), Call()).text == "0 1 "
                    and text(Looping().stream(backend, Call())) == "0 1 "
                )
                backend.close()
                code = 0 if fine else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert told == []
    assert len(list(inherited)) == 1000  # the parent's goes on: one was taken, and the end is one more


def test_a_process_that_forgets_to_close_ends_at_once_all_the_same() -> None:
    program = textwrap.dedent(
        """
        import threading, time
        from llm_hub.call import Call
        from llm_hub.engine import EngineBackend
        from llm_hub.messages import ChatChunk, ChatRequest, Message

        class Endless:
            features = frozenset()
            def load(self, model, call): pass
            def close(self): print("closed", flush=True)
            def stream(self, request, call):
                while True:
                    time.sleep(0.001)
                    yield ChatChunk("x")

        backend = EngineBackend(Endless(), name="box")
        chunks = backend.stream(ChatRequest(messages=(Message(role="user", content="hi"),)), Call())
        print(next(chunks).text, flush=True)
        """
    )
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == ["x", "closed"]
    assert ended.stderr == ""
    assert time.monotonic() - began < 5
