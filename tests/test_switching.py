"""Switching in one process: proven before it is published, one epoch or none, and no stream cut by it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm_hub import Hub, Settings
from llm_hub.capabilities import Capability
from llm_hub.errors import HubClosed, InvalidRequest, SwitchRefused
from llm_hub.messages import ChatResponse
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, Fault, Speed

MODEL = "hub-test-vlm"
MINILM = FakeModel(name="all-minilm", capabilities=("embedding",), context=512)
OTHER = FakeModel(name="all-minilm", capabilities=("embedding",), context=512, space="another")
LONG = "Count from 1 to 20."


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama([FakeModel(name=MODEL), MINILM], speed=Speed(token=0.004)) as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM(speed=Speed(token=0.004)) as server:
        yield server


@pytest.fixture(scope="module")
def same() -> Iterator[FakeVLLM]:
    with FakeVLLM(MINILM) as server:
        yield server


@pytest.fixture(scope="module")
def other() -> Iterator[FakeVLLM]:
    with FakeVLLM(OTHER) as server:
        yield server


@pytest.fixture
def settings(ollama: FakeOllama, vllm: FakeVLLM, same: FakeVLLM, other: FakeVLLM) -> Settings:
    return Settings.of(
        provider="ollama",
        backends={
            "ollama": {"base_url": ollama.url, "models": {"text": MODEL, "embedding": "all-minilm"}},
            "vllm": {"base_url": vllm.url, "models": {"text": MODEL}},
            "same": {"plugin": "vllm", "base_url": same.url, "models": {"embedding": "all-minilm"}},
            "other": {"plugin": "vllm", "base_url": other.url, "models": {"embedding": "all-minilm"}},
        },
    )


@pytest.fixture
def hub(settings: Settings, ollama: FakeOllama, vllm: FakeVLLM) -> Iterator[Hub]:
    with Hub(settings) as made:
        yield made
    for server in (ollama, vllm):
        server.clear_faults()


def served(response: ChatResponse) -> tuple[str, int]:
    assert response.served_by is not None
    return response.served_by.backend, response.served_by.epoch


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


# -- taking effect ----------------------------------------------------------------------------------------------------


def test_a_switch_takes_effect_with_the_next_call_and_a_rollback_undoes_it(hub: Hub) -> None:
    text = hub.text()
    assert served(text.chat("ping")) == ("ollama", 1)
    switched = hub.use(text="vllm")
    assert (switched.previous, switched.epoch, hub.epoch) == (1, 2, 2)
    assert served(text.chat("ping")) == ("vllm", 2)
    assert served(asyncio.run(text.achat("ping"))) == ("vllm", 2)
    assert hub.rollback().epoch == 3
    assert served(text.chat("ping")) == ("ollama", 3)


def test_a_name_alone_stands_for_all_that_the_backend_has_a_model_for(hub: Hub) -> None:
    switched = hub.use("vllm")
    assert set(switched.changed) == {"text"}
    assert any("not embedding: no model" in note for note in switched.notes)
    assert set(hub.use("ollama").changed) == {"text", "embedding"}
    mixed = hub.use("ollama", text="vllm")
    assert {key: str(targets[0]) for key, targets in mixed.changed.items()} == {"text": "vllm", "embedding": "ollama"}


def test_a_model_may_be_named_and_fallbacks_too(hub: Hub, vllm: FakeVLLM) -> None:
    hub.use(text=f"vllm/{MODEL},ollama")
    decision = hub.explain("text")
    assert (decision.backend, decision.model, [str(one) for one in decision.fallbacks]) == (
        "vllm",
        MODEL,
        [f"ollama/{MODEL}"],
    )
    with vllm.fault(Fault.REFUSE):
        response = hub.text().chat("ping")
    assert served(response) == ("ollama", 2)
    vllm.start()


def test_reading_and_describing_are_switched_apart_or_together(hub: Hub) -> None:
    hub.use(vision_describe="vllm/hub-test-vlm", vision_read="tesseract")
    assert hub.explain("vision").backend == "vllm"
    assert hub.explain("vision", operation="read").backend == "tesseract"
    switched = hub.use(vision=f"ollama/{MODEL}")  # which describes, and so takes the place of what described
    assert set(switched.bindings) == {"vision", "vision.read"}
    assert hub.explain("vision").backend == "ollama"
    assert hub.explain("vision", operation="read").backend == "tesseract"
    hub.reset()
    hub.use(vision=f"ollama/{MODEL}")  # what it cannot do is left to the other rules
    assert hub.explain("vision", operation="read").rule == 7


def test_a_decision_says_which_switch_it_comes_from(hub: Hub) -> None:
    hub.use(text="vllm")
    hub.use(embedding="same")
    decision = hub.explain("text")
    assert (decision.backend, decision.rule) == ("vllm", 2)
    assert "switch 2 by " in decision.source
    assert hub.explain("text", backend="ollama").rule == 1
    hub.reset()
    assert hub.explain("text").rule == 4


def test_rolling_back_again_goes_further_back_and_never_forth(hub: Hub) -> None:
    hub.use(text="vllm")  # 2
    hub.use(text="ollama")  # 3
    assert hub.rollback().bindings["text"][0].backend == "vllm"  # 4, as 2
    assert hub.rollback().bindings == {}  # 5, as 1
    with pytest.raises(SwitchRefused, match="nothing to roll back to"):
        hub.rollback()
    assert hub.rollback(3).bindings["text"][0].backend == "ollama"  # 6
    assert hub.rollback().bindings["text"][0].backend == "vllm"  # as 2, which was before 3
    with pytest.raises(SwitchRefused, match="epoch 99 is not in the history, which holds 1 to 7"):
        hub.rollback(99)
    assert [one.action for one in hub.history()] == ["start", "use", "use", *["rollback"] * 4]


def test_async_twins(hub: Hub) -> None:
    async def go() -> list[int]:
        return [(await hub.ause(text="vllm")).epoch, (await hub.arollback()).epoch, (await hub.areset()).epoch]

    assert asyncio.run(go()) == [2, 3, 4]


# -- the proof --------------------------------------------------------------------------------------------------------


def test_what_fails_its_proof_changes_nothing(hub: Hub, vllm: FakeVLLM) -> None:
    vllm.stop()
    try:
        with pytest.raises(SwitchRefused, match="nothing has changed: text by vllm.*refused the connection") as caught:
            hub.use(text="vllm")
        assert caught.value.problems.keys() == {"text"}
    finally:
        vllm.start()
    assert (hub.epoch, served(hub.text().chat("ping"))) == (1, ("ollama", 1))
    assert len(hub.history()) == 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"text": "vllm", "embedding": "vllm/nope"}, "embedding by vllm/nope: .*nope"),
        ({"text": "vllm/nope"}, "text by vllm/nope: it does not have the model 'nope'. It has: hub-test-vlm"),
        ({"text": "vlm"}, "'vlm', which nothing defines"),
        ({"text": "wordllama"}, "'wordllama' offers embedding, not text"),
        ({"vision_read": "vllm"}, "cannot read the text on images"),
        ({"embedding": "vllm"}, "embedding by vllm"),
    ],
)
def test_all_of_it_is_one_epoch_or_none(hub: Hub, wanted: Any, said: str) -> None:
    with pytest.raises(SwitchRefused, match=said):
        hub.use(**wanted)
    assert (hub.epoch, hub.explain("text").backend) == (1, "ollama")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"speech": "vllm"}, "'speech' to switch.*vision.read"),
        ({}, "nothing to switch"),
        ({"text": "/m"}, "no backend"),
    ],
)
def test_what_cannot_be_meant_is_refused(hub: Hub, wanted: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        hub.use(**wanted)


def test_a_warm_switch_has_the_model_loaded_first(hub: Hub, ollama: FakeOllama) -> None:
    switched = hub.use(text="ollama", warm=True)
    assert switched.proofs[0].rung == "loaded"
    assert hub.models("ollama")[0].loaded
    assert hub.history()[-1].warm


def test_a_pinned_process_refuses(settings: Settings) -> None:
    import msgspec

    with Hub(msgspec.structs.replace(settings, pinned=True)) as hub:
        with pytest.raises(SwitchRefused, match="pinned"):
            hub.use(text="vllm")
        with pytest.raises(SwitchRefused, match="pinned"):
            hub.rollback()
        with pytest.raises(SwitchRefused, match="pinned"):
            hub.reset()


def test_a_hub_that_is_closed_is_not_switched(hub: Hub) -> None:
    hub.close()
    with pytest.raises(HubClosed):
        hub.use(text="vllm")


# -- embedding spaces -------------------------------------------------------------------------------------------------


def test_embeddings_may_move_to_another_server_of_the_same_space(hub: Hub) -> None:
    before = hub.embedding().embed(["one"]).vectors[0]
    switched = hub.use(embedding="same")
    assert "the same space" in str(switched.proofs[0].space)
    after = hub.embedding().embed(["one"])
    assert after.served_by is not None
    assert (after.served_by.backend, after.served_by.epoch) == ("same", 2)
    assert after.vectors[0] == pytest.approx(before, abs=1e-3)


def test_another_space_is_refused_unless_it_is_meant(hub: Hub) -> None:
    with pytest.raises(SwitchRefused, match="another space than that of ollama.*--new-space"):
        hub.use(embedding="other")
    assert hub.epoch == 1
    first = hub.use(embedding="other", new_space=True)
    assert "a new space" in str(first.proofs[0].space)
    with pytest.raises(SwitchRefused, match="another space"):  # the space on record is now that one
        hub.use(embedding="ollama")
    hub.rollback()
    assert hub.use(embedding="same").proofs[0].ok  # and after the rollback it is the first again


def test_with_no_record_of_a_space_that_cannot_be_asked_it_is_said_what_to_do(hub: Hub, ollama: FakeOllama) -> None:
    with ollama.fault(Fault.SERVER_ERROR):
        with pytest.raises(SwitchRefused, match="no record of its space.*Start 'ollama' and switch again.*--new-space"):
            hub.use(embedding="same")


def test_a_record_that_was_kept_serves_when_the_old_backend_is_down(hub: Hub, ollama: FakeOllama) -> None:
    hub.use(embedding="ollama")
    with ollama.fault(Fault.SERVER_ERROR):
        assert "on record" not in str(hub.use(embedding="same").proofs[0].problem)
    assert hub.epoch == 3


# -- what is shared and what is closed ----------------------------------------------------------------------------------


def test_changing_one_capability_rebuilds_only_what_changed(hub: Hub) -> None:
    hub.embedding().embed(["one"])
    hub.text().chat("ping")
    runtime = hub.runtime
    kept = runtime.backend("ollama", Capability.EMBEDDING)
    hub.use(text="vllm")
    assert hub.runtime is not runtime
    assert hub.runtime.backend("ollama", Capability.EMBEDDING) is kept
    assert hub.runtime.known == runtime.known or hub.runtime.known


def test_a_backend_closes_when_it_is_in_no_epoch_and_its_last_lease_is_back(hub: Hub) -> None:
    closed = _closings(hub)
    stream = hub.text().stream(LONG)
    next(stream)
    hub.use(text="vllm")
    time.sleep(0.05)
    assert closed == []
    assert "20" in stream.text + "".join(chunk.text for chunk in stream)
    assert wait_until(lambda: closed == ["ollama"])
    assert hub.text().chat("ping").text == "pong"


def _closings(hub: Hub) -> list[str]:
    """The names of text backends as they are closed."""
    closed: list[str] = []
    backend: Any = hub.runtime.backend("ollama", Capability.TEXT)
    hub.text().chat("ping")
    backend.close = lambda: closed.append("ollama")
    return closed


@pytest.mark.parametrize("how", ["dropped", "closed", "other thread"])
def test_streams_that_are_abandoned_hold_no_epoch(hub: Hub, how: str) -> None:
    closed = _closings(hub)
    stream: Any = hub.text().stream(LONG)
    next(stream)
    hub.use(text="vllm")
    if how == "dropped":
        del stream
        gc.collect()
    elif how == "closed":
        stream.close()
    else:
        thread = threading.Thread(target=stream.close)
        thread.start()
        thread.join()
    assert wait_until(lambda: closed == ["ollama"])


def test_async_streams_that_are_abandoned_hold_no_epoch(hub: Hub) -> None:
    closed = _closings(hub)

    async def go() -> None:
        stream = hub.text().astream(LONG)
        await anext(stream)
        await hub.ause(text="vllm")

    asyncio.run(go())
    gc.collect()
    assert wait_until(lambda: closed == ["ollama"])


def test_a_stream_in_a_cycle_is_collected_while_a_lock_of_the_connections_is_held(hub: Hub, ollama: FakeOllama) -> None:
    """The garbage collector runs in any thread, anywhere, and must not wait for what that thread holds."""

    class Holder:
        """As many a service has it: an object that knows itself, and a stream."""

    holder: Any = Holder()
    holder.itself, holder.stream = holder, hub.text().stream(LONG)
    next(holder.stream)
    closed = _closings(hub)
    with hub._transport.pool("http")._optional_thread_lock:
        del holder
        gc.collect()
    hub.use(text="vllm")
    hub.text().chat("ping")
    assert wait_until(lambda: closed == ["ollama"])
    assert wait_until(lambda: any(one.gone_early for one in ollama.requests))


def test_a_stream_that_came_by_a_fallback_is_gone_as_soon_as_it_is_dropped(hub: Hub, vllm: FakeVLLM) -> None:
    hub.use(text="vllm,ollama")
    closed = _closings(hub)
    gc.disable()
    try:
        with vllm.fault(Fault.SERVER_ERROR):
            stream = hub.text().stream(LONG)
            next(stream)
        assert stream.served_by is not None
        assert stream.served_by.fallback
        hub.use(text="vllm")
        del stream
        assert wait_until(lambda: closed == ["ollama"])
    finally:
        gc.enable()


def test_a_stream_that_was_never_started_begins_on_the_epoch_of_its_first_chunk(hub: Hub) -> None:
    stream = hub.text().stream("ping")
    hub.use(text="vllm")
    for _ in stream:
        pass
    assert served(stream.response) == ("vllm", 2)


# -- rows 27 and 28: switches in mid-flight ---------------------------------------------------------------------------


def test_streams_end_where_they_began_and_new_calls_go_to_the_new_backend(hub: Hub) -> None:
    """Row 27, threads."""
    text = hub.text()

    def stream_one(begun: threading.Barrier) -> ChatResponse:
        stream = text.stream(LONG)
        next(stream)
        begun.wait(10)
        for _ in stream:
            pass
        return stream.response

    with ThreadPoolExecutor(8) as pool:
        begun = threading.Barrier(9)
        streams = [pool.submit(stream_one, begun) for _ in range(8)]
        begun.wait(10)
        hub.use(text="vllm")
        new = text.chat("ping")
        hub.rollback()
        newest = text.chat("ping")
        answers = [one.result() for one in streams]
    assert {served(one) for one in answers} == {("ollama", 1)}
    assert len({one.text for one in answers}) == 1
    assert answers[0].text.endswith("20")
    assert (served(new), served(newest)) == (("vllm", 2), ("ollama", 3))


def test_tasks_stream_through_switches_too(hub: Hub) -> None:
    """Row 27, tasks."""

    async def one() -> ChatResponse:
        async with hub.text().astream(LONG) as stream:
            async for _ in stream:
                pass
            return stream.response

    async def go() -> list[ChatResponse]:
        tasks = [asyncio.ensure_future(one()) for _ in range(8)]
        await asyncio.sleep(0.03)
        await hub.ause(text="vllm")
        later = await one()
        return [*await asyncio.gather(*tasks), later]

    *early, later = asyncio.run(go())
    assert {served(answer) for answer in early} == {("ollama", 1)}
    assert {answer.text for answer in early} == {later.text}
    assert served(later) == ("vllm", 2)


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.NOT_FOUND, Fault.HTML_PAGE, Fault.UNAUTHORIZED])
def test_a_target_that_is_not_well_is_not_switched_to(hub: Hub, vllm: FakeVLLM, fault: Fault) -> None:
    """Row 28."""
    with vllm.fault(fault), pytest.raises(SwitchRefused, match="nothing has changed: text by vllm"):
        hub.use(text="vllm", timeout=2)
    assert hub.epoch == 1
    assert hub.text().chat("ping").text == "pong"


def test_calls_in_threads_and_tasks_are_not_lost_in_many_switches(hub: Hub) -> None:
    stop = threading.Event()
    epochs: set[int] = set()
    failures: list[BaseException] = []

    def call(ask: Callable[[], ChatResponse]) -> None:
        while not stop.is_set():
            try:
                epochs.add(served(ask())[1])
            except BaseException as error:
                failures.append(error)
                return

    text = hub.text()
    threads = [
        threading.Thread(target=call, args=(ask,))
        for ask in (lambda: text.chat("ping"), lambda: asyncio.run(text.achat("ping"))) * 3
    ]
    for thread in threads:
        thread.start()
    for number in range(10):
        hub.use(text="vllm" if number % 2 else "ollama")
        hub.rollback()
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not failures
    assert hub.epoch == 21
    assert len(epochs) > 3
