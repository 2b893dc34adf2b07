"""The end of an old epoch: what still streams when its time is over, what came later into the settings, and forks."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub import CancelToken, Hub, Settings
from llm_hub.capabilities import Capability
from llm_hub.errors import StreamInterrupted
from llm_hub.messages import ChatResponse
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, Fault, Speed

MODEL = "hub-test-vlm"
LONG = "Count from 1 to 20."


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama([FakeModel(name=MODEL)], speed=Speed(token=0.004)) as server:
        yield server


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM(speed=Speed(token=0.004)) as server:
        yield server


@pytest.fixture
def hub(ollama: FakeOllama, vllm: FakeVLLM) -> Iterator[Hub]:
    servers = {"ollama": ollama, "vllm": vllm}
    backends = {name: {"base_url": server.url, "models": {"text": MODEL}} for name, server in servers.items()}
    with Hub(Settings.of(provider="ollama", backends=backends)) as made:
        yield made


def served(response: ChatResponse) -> tuple[str, int]:
    assert response.served_by is not None
    return response.served_by.backend, response.served_by.epoch


def soon(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 5
    while not true() and time.monotonic() < until:
        time.sleep(0.005)
    return true()


# -- draining ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [True, False])
def test_what_still_streams_at_the_drain_deadline_breaks_off_with_what_it_has(
    hub: Hub, ollama: FakeOllama, waiting: bool
) -> None:
    closed: list[str] = []
    backend: Any = hub.runtime.backend("ollama", Capability.TEXT)
    backend.close = lambda: closed.append("ollama")
    ollama.fault(Fault.HANG_BETWEEN_CHUNKS, after=4, seconds=30)
    stream = hub.text().stream(LONG)
    text = next(stream).text
    if not waiting:
        for _ in range(2):
            text += next(stream).text
    hub.use(text="vllm", drain=0.2)
    if not waiting:
        time.sleep(0.4)
    began = time.monotonic()
    with pytest.raises(StreamInterrupted, match="the switch to epoch 2 gave it 0.2 s to end") as caught:
        while True:
            text += next(stream).text
    assert time.monotonic() - began < 5
    assert (caught.value.partial, caught.value.backend) == (text, "ollama")
    assert soon(lambda: closed == ["ollama"])
    assert soon(lambda: ollama.requests[-1].gone_early)
    assert all(one.failures == 0 for one in hub.conditions() if one.name == "ollama")


def test_async_streams_break_off_at_the_drain_deadline_too(hub: Hub, ollama: FakeOllama) -> None:
    ollama.fault(Fault.HANG_BETWEEN_CHUNKS, after=4, seconds=30)

    async def go() -> StreamInterrupted:
        stream = hub.text().astream(LONG)
        await anext(stream)
        await hub.ause(text="vllm", drain=0.1)
        with pytest.raises(StreamInterrupted) as caught:
            async for _ in stream:
                pass
        return caught.value

    assert asyncio.run(go()).partial.startswith("1")


@pytest.mark.parametrize("world", ["thread", "task"])
def test_what_has_produced_nothing_by_the_deadline_begins_anew_on_the_new_epoch(
    hub: Hub, ollama: FakeOllama, world: str
) -> None:
    ollama.fault(Fault.HANG_BEFORE_HEADERS, seconds=30, path="/api/chat")
    timer = threading.Timer(0.1, lambda: hub.use(text="vllm", drain=0.1))
    timer.start()

    async def go() -> ChatResponse:
        async with hub.text().astream("ping") as stream:
            async for _ in stream:
                pass
        return stream.response

    if world == "task":
        response = asyncio.run(go())
    else:
        with hub.text().stream("ping") as stream:
            assert "".join(chunk.text for chunk in stream) == "pong"
        response = stream.response
    timer.join()
    assert served(response) == ("vllm", 2)


def test_a_stream_that_its_caller_closes_does_not_move_on(hub: Hub, ollama: FakeOllama, vllm: FakeVLLM) -> None:
    ollama.fault(Fault.HANG_BEFORE_HEADERS, seconds=30, path="/api/chat")
    stream = hub.text().stream("ping")
    caught: list[BaseException] = []

    def read() -> None:
        try:
            next(stream)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert soon(lambda: bool(ollama.requests) and ollama.requests[-1].path == "/api/chat")
    before = len([one for one in vllm.requests if one.path.endswith("/completions")])
    stream.close()
    hub.use(text="vllm", drain=0)
    thread.join(5)
    assert [type(error).__name__ for error in caught] == ["Cancelled"]
    assert len([one for one in vllm.requests if one.path.endswith("/completions")]) == before


def test_a_stream_that_moves_on_leaves_nothing_in_the_token_of_its_caller(hub: Hub, ollama: FakeOllama) -> None:
    ollama.fault(Fault.HANG_BEFORE_HEADERS, seconds=30, path="/api/chat")
    timer = threading.Timer(0.1, lambda: hub.use(text="vllm", drain=0.1))
    timer.start()
    token = CancelToken()
    with hub.text().stream("ping", cancel=token) as stream:
        assert "".join(chunk.text for chunk in stream) == "pong"
    timer.join()
    assert served(stream.response) == ("vllm", 2)
    assert not token._callbacks


@pytest.mark.parametrize("world", ["thread", "task"])
def test_a_whole_answer_is_waited_for_beyond_the_deadline(hub: Hub, ollama: FakeOllama, world: str) -> None:
    ollama.fault(Fault.HANG_BEFORE_HEADERS, seconds=0.6, path="/api/chat")
    old = hub.runtime
    timer = threading.Timer(0.1, lambda: hub.use(text="vllm", drain=0.05))
    timer.start()
    response = asyncio.run(hub.text().achat("ping")) if world == "task" else hub.text().chat("ping")
    assert served(response) == ("ollama", 1)
    assert soon(old.is_closed)
    timer.join()
    assert served(hub.text().chat("ping")) == ("vllm", 2)


def test_what_ends_in_time_is_not_disturbed_by_the_deadline(hub: Hub) -> None:
    stream = hub.text().stream(LONG)
    next(stream)
    hub.use(text="vllm", drain=20)
    for _ in stream:
        pass
    assert stream.response.text.endswith("20")


# -- the settings file, and forks -------------------------------------------------------------------------------------


def test_a_backend_that_came_into_the_settings_file_later_can_be_switched_to(
    tmp_path: Path, ollama: FakeOllama, vllm: FakeVLLM
) -> None:
    config = tmp_path / "llm-hub.toml"
    config.write_text(f'[backends.ollama]\nbase_url = "{ollama.url}"\nmodels = {{ text = "{MODEL}" }}\n')
    environ = {"LLM_HUB_CONFIG": str(config), "LLM_HUB_STATE": str(tmp_path / "control.json")}
    with Hub.from_env(environ) as hub:
        assert served(hub.text().chat("ping")) == ("ollama", 1)
        with config.open("a") as file:
            file.write(f'[backends.new]\nplugin = "vllm"\nbase_url = "{vllm.url}"\n[routes]\ntext = "new"\n')
        hub.use(text="new")
        assert served(hub.text().chat("ping")) == ("new", 2)
        config.write_text("[broken")
        hub.rollback()
        assert served(hub.text().chat("ping")) == ("ollama", 3)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_the_child_of_a_fork_switches_for_itself_and_closes_what_the_parent_had_leased(hub: Hub) -> None:
    hub.text().chat("ping")
    stream = hub.text().stream(LONG)
    next(stream)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            hub.use(text="vllm")
            code = 0 if served(hub.text().chat("ping")) == ("vllm", 2) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for _ in stream:
        pass
    assert stream.response.text.endswith("20")
    assert served(hub.text().chat("ping")) == ("ollama", 1)
