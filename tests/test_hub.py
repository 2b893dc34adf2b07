"""The hub with real plugins on fake servers that answer as the recorded ones did, in both worlds."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm_hub import (
    CancelToken,
    ChatChunk,
    ChatRequest,
    Feature,
    Hub,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
    hookimpl,
)
from llm_hub.call import Call
from llm_hub.capabilities import ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import (
    BackendError,
    BackendFailed,
    BackendUnreachable,
    Cancelled,
    DeadlineExceeded,
    HubClosed,
    InvalidRequest,
    ModelNotFound,
    RequestError,
    StreamInterrupted,
    UnknownBackend,
    UnsupportedFeature,
)
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatResponse
from llm_hub.testing import FakeOllama, FakeVLLM, Fault

WEATHER = Tool(
    name="get_weather",
    description="Get the weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)

Ask = Callable[..., ChatResponse]


@pytest.fixture
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM() as server:
        yield server


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture
def environ(vllm: FakeVLLM, ollama: FakeOllama) -> dict[str, str]:
    return {
        "VLLM_BASE_URL": vllm.url,
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": "hub-test-vlm",
        "VLLM_MODEL": "hub-test-vlm",
    }


@pytest.fixture(params=["vllm", "ollama"])
def hub(request: pytest.FixtureRequest, environ: dict[str, str]) -> Iterator[Hub]:
    with Hub.from_env({**environ, "LLM_PROVIDER": request.param}) as made:
        yield made


@pytest.fixture(params=["chat", "achat", "stream", "astream"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask in each of the four ways; the whole answer."""

    def go(hub: Hub, prompt: Any, *, handle: dict[str, Any] | None = None, **options: Any) -> ChatResponse:
        text = hub.text(**(handle or {}))
        if request.param == "chat":
            return text.chat(prompt, **options)
        if request.param == "stream":
            with text.stream(prompt, **options) as stream:
                assert "".join(chunk.text for chunk in stream if chunk.index == 0) == stream.text
                return stream.response

        async def later() -> ChatResponse:
            if request.param == "achat":
                return await text.achat(prompt, **options)
            async with text.astream(prompt, **options) as stream:
                async for _ in stream:
                    pass
                return stream.response

        return asyncio.run(later())

    return go


def test_an_answer_says_who_gave_it_what_it_used_and_how_it_ended(hub: Hub, ask: Ask) -> None:
    response = ask(hub, "What is the capital of France?")
    assert response.text == "The capital of France is Paris."
    assert response.finish_reason == "stop"
    served = response.served_by
    assert served is not None
    assert (served.backend, served.model, served.epoch, served.attempts, served.fallback) == (
        served.plugin,
        "hub-test-vlm",
        1,
        1,
        False,
    )
    assert response.usage.prompt_tokens
    assert response.usage.completion_tokens
    assert response.timings.total
    assert response.timings.total > 0


def test_tools_are_called_and_their_results_used(hub: Hub, ask: Ask) -> None:
    question = Message(role="user", content="What is the weather in Paris?")
    response = ask(hub, [question], tools=[WEATHER])
    (call,) = response.tool_calls
    assert (call.name, call.parsed(), response.finish_reason) == ("get_weather", {"city": "Paris"}, "tool_calls")
    result = Message(role="tool", tool_call_id=call.id, name=call.name, content="18C and sunny")
    answer = ask(hub, [question, response.message, result], tools=[WEATHER])
    assert answer.text == "It is 18C and sunny in Paris."


def test_a_schema_is_followed(hub: Hub, ask: Ask) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "country": {"type": "string"}}}
    response = ask(hub, "Give the capital of France as JSON.", response_format=ResponseFormat.json_schema(schema))
    assert response.text.replace(" ", "").startswith("{")


def test_an_answer_is_cut_at_max_tokens_and_says_so(hub: Hub, ask: Ask) -> None:
    response = ask(hub, "Count from 1 to 20.", max_tokens=5)
    assert response.finish_reason == "length"
    assert response.usage.completion_tokens == 5


def test_several_choices_come_apart(environ: dict[str, str], ask: Ask) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm"}) as hub:
        response = ask(hub, "ping", n=3)
        assert [choice.message.text for choice in response.choices] == ["pong"] * 3


def test_what_the_dialect_cannot_do_is_refused_before_anything_is_sent(
    environ: dict[str, str], ollama: FakeOllama, ask: Ask
) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "ollama"}) as hub:
        with pytest.raises(UnsupportedFeature, match="ollama: .*multiple_choices"):
            ask(hub, "ping", n=2)
        assert not ollama.requests


def test_what_the_known_model_cannot_do_is_refused_before_anything_is_sent(
    environ: dict[str, str], ollama: FakeOllama, ask: Ask
) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "ollama", "OLLAMA_MODEL": "smollm2:135m"}) as hub:
        hub.models("ollama")
        sent = len(ollama.requests)
        with pytest.raises(UnsupportedFeature, match="model 'smollm2:135m' has no support for tools"):
            ask(hub, "ping", tools=[WEATHER])
        assert len(ollama.requests) == sent


def test_the_backends_own_refusal_is_the_same_error(environ: dict[str, str], ask: Ask) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "ollama", "OLLAMA_MODEL": "smollm2:135m"}) as hub:
        with pytest.raises(UnsupportedFeature, match="tools"):
            ask(hub, "ping", tools=[WEATHER])


def test_an_unknown_model_lists_what_there_is_and_how_to_get_it(hub: Hub, ask: Ask) -> None:
    with pytest.raises(ModelNotFound) as caught:
        ask(hub, "ping", handle={"model": "nope"})
    assert any("hub-test-vlm" in name for name in caught.value.available)
    assert "hub-test-vlm" in str(caught.value)
    if caught.value.backend == "ollama":
        assert "ollama pull nope" in str(caught.value)


def test_several_models_and_none_chosen_is_an_error_and_never_a_guess(environ: dict[str, str], ask: Ask) -> None:
    environ = {**environ, "LLM_PROVIDER": "ollama"}
    del environ["OLLAMA_MODEL"]
    with Hub.from_env(environ) as hub:
        with pytest.raises(ModelNotFound, match="none is chosen: .*smollm2:135m.*OLLAMA_MODEL"):
            ask(hub, "ping")


def test_an_unknown_backend_is_named_with_the_known_ones(hub: Hub, ask: Ask) -> None:
    with pytest.raises(UnknownBackend, match="'vlm'.*ollama, .*vllm"):
        ask(hub, "ping", handle={"backend": "vlm"})


def test_a_server_that_is_down_is_unreachable_and_nothing_falls_back_silently(
    hub: Hub, vllm: FakeVLLM, ollama: FakeOllama, ask: Ask
) -> None:
    chosen = hub.explain("text").backend
    down, other = (vllm, ollama) if chosen == "vllm" else (ollama, vllm)
    ask(hub, "ping")
    down.stop()
    with pytest.raises(BackendUnreachable, match=f"{chosen}: .*refused the connection"):
        ask(hub, "ping")
    assert not other.requests
    down.start()
    assert ask(hub, "ping").text == "pong"


def test_a_declared_fallback_serves_and_the_answer_says_so(
    environ: dict[str, str], vllm: FakeVLLM, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    with Hub.from_env(
        {**environ, "LLM_PROVIDER": "vllm", "VLLM_MODEL": "hub-test-vlm", "LLM_FALLBACK": "ollama"}
    ) as hub:
        vllm.stop()
        response = ask(hub, "ping")
        assert response.text == "pong"
        assert response.served_by is not None
        assert (response.served_by.backend, response.served_by.attempts, response.served_by.fallback) == (
            "ollama",
            2,
            True,
        )
        assert "falling back to ollama" in caplog.text


def test_when_all_fail_the_error_tells_of_each(
    environ: dict[str, str], vllm: FakeVLLM, ollama: FakeOllama, ask: Ask
) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "VLLM_MODEL": "m", "LLM_FALLBACK": "ollama"}) as hub:
        vllm.stop()
        ollama.stop()
        with pytest.raises(BackendUnreachable) as caught:
            ask(hub, "ping")
        assert caught.value.backend == "ollama"
        assert [error.backend for error in caught.value.earlier] == ["vllm"]
        assert "Before that: vllm:" in str(caught.value)


def test_a_bad_request_is_not_passed_on(environ: dict[str, str], ollama: FakeOllama, ask: Ask) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as hub:
        with pytest.raises(RequestError):
            ask(hub, "ping", max_tokens=10_000_000)
        assert not ollama.requests


@pytest.mark.parametrize("world", ["sync", "async"])
def test_a_stream_that_breaks_keeps_what_arrived_and_never_changes_the_backend(
    world: str, environ: dict[str, str], vllm: FakeVLLM, ollama: FakeOllama
) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as hub:
        hub.text().chat("ping")
        vllm.fault(Fault.END_WITHOUT_MARK, after=3)
        with pytest.raises(StreamInterrupted) as caught:
            _read(hub, world, "Count from 1 to 20.")
        assert caught.value.partial.startswith("1")
        assert caught.value.backend == "vllm"
        assert not ollama.requests


def _read(hub: Hub, world: str, prompt: str, **options: Any) -> ChatResponse:
    if world == "sync":
        with hub.text().stream(prompt, **options) as stream:
            for _ in stream:
                pass
            return stream.response

    async def go() -> ChatResponse:
        async with hub.text().astream(prompt, **options) as stream:
            async for _ in stream:
                pass
            return stream.response

    return asyncio.run(go())


@pytest.mark.parametrize("world", ["sync", "async"])
def test_a_stream_that_hangs_between_tokens_is_interrupted_at_that_deadline(
    world: str, vllm: FakeVLLM, tmp_path: Any
) -> None:
    config = tmp_path / "llm-hub.toml"
    config.write_text(f'[backends.vllm]\nbase_url = "{vllm.url}"\ntimeouts = {{ between_tokens = 0.3 }}\n')
    with Hub.from_env({"LLM_PROVIDER": "vllm"}, config=config) as hub:
        hub.text().chat("ping")
        vllm.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)
        began = time.monotonic()
        with pytest.raises(StreamInterrupted) as caught:
            _read(hub, world, "Count from 1 to 20.")
        assert isinstance(caught.value.__cause__, DeadlineExceeded)
        assert caught.value.__cause__.stage == "between tokens"
        assert caught.value.partial.startswith("1")
        assert time.monotonic() - began < 2


def test_leaving_a_stream_early_tells_the_backend_at_once(hub: Hub, vllm: FakeVLLM, ollama: FakeOllama) -> None:
    server: Any = vllm if hub.explain("text").backend == "vllm" else ollama
    server.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)
    with hub.text().stream("Count from 1 to 20.") as stream:
        next(stream)
    server.wait_for_connections(0, timeout=0.5)
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = stream.response


def test_a_cancelled_task_tells_the_backend_at_once(hub: Hub, vllm: FakeVLLM, ollama: FakeOllama) -> None:
    server: Any = vllm if hub.explain("text").backend == "vllm" else ollama
    hub.text().chat("ping")

    async def go() -> None:
        server.fault(Fault.HANG_BEFORE_HEADERS)
        sent = len(server.requests)
        task = asyncio.create_task(hub.text().achat("ping"))
        await asyncio.to_thread(server.wait_for_requests, sent + 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    request = server.requests[-1]
    assert request.wait(0.5)
    assert request.gone_early


def test_a_token_cancels_a_stream_with_what_arrived(hub: Hub) -> None:
    token = CancelToken()
    stream = hub.text().stream("Count from 1 to 20.", cancel=token)
    with pytest.raises(Cancelled) as caught:
        for number, _ in enumerate(stream):
            if number == 2:
                token.cancel()
    assert caught.value.partial.startswith("1")


def test_a_dropped_stream_returns_its_lease(hub: Hub) -> None:
    stream = hub.text().stream("Count from 1 to 20.")
    next(stream)
    epoch: Any = hub._epochs.current
    assert epoch.tokens
    del stream
    gc.collect()
    assert not epoch.tokens


def test_images_are_sent_as_the_backend_wants_them(hub: Hub, vllm: FakeVLLM, ollama: FakeOllama) -> None:
    from llm_hub.testing import draw

    picture = ImagePart(draw("red", "circle"))
    message = Message(role="user", content=(picture, TextPart("What is in this picture?")))
    assert hub.text().chat([message]).text == "A red circle on a white background."


def test_threads_and_loops_share_one_hub_side_by_side_and_one_after_another(hub: Hub) -> None:
    def blocking(number: int) -> str:
        return hub.text().chat("ping").text

    def loop(number: int) -> str:
        async def many() -> list[ChatResponse]:
            calls: list[Awaitable[ChatResponse]] = [hub.text().achat("ping") for _ in range(5)]
            return list(await asyncio.gather(*calls))

        return "".join({response.text for response in asyncio.run(many())})

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(blocking, range(20)), *pool.map(loop, range(8)), *pool.map(blocking, range(20))]
    assert set(found) == {"pong"}


def test_a_hub_survives_a_fork(hub: Hub) -> None:
    assert hub.text().chat("ping").text == "pong"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if hub.text().chat("ping").text == "pong" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert hub.text().chat("ping").text == "pong"


def test_a_closed_hub_says_so_and_may_be_closed_again(hub: Hub, ask: Ask) -> None:
    hub.close()
    hub.close()
    with pytest.raises(HubClosed):
        ask(hub, "ping")


def test_closing_from_another_thread_ends_a_call_that_waits(environ: dict[str, str], vllm: FakeVLLM) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "VLLM_MODEL": "hub-test-vlm"}) as hub:
        vllm.fault(Fault.HANG_BEFORE_HEADERS)
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                hub.text().chat("ping", timeout=10)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        vllm.wait_for_requests(1)
        hub.close()
        thread.join(2)
        assert not thread.is_alive()
        assert failed


def test_where_nothing_is_configured_ollama_serves_if_it_answers(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_hub.settings import Settings

    with Hub(Settings.of(backends={"ollama": {"base_url": ollama.url, "models": {"text": "hub-test-vlm"}}})) as hub:
        assert hub.text().chat("ping").served_by.backend == "ollama"  # type: ignore[union-attr]


def test_prompts_and_keys_are_in_no_log_and_no_repr(
    environ: dict[str, str], vllm: FakeVLLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret, prompt = "sk-very-secret", "my-private-question"
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "VLLM_API_KEY": secret, "LLM_FALLBACK": "ollama"}) as hub:
        hub.text().chat(prompt)
        vllm.stop()
        hub.text().chat(prompt)
        shown = caplog.text + repr(hub.settings) + repr(hub.text()) + repr(hub.status())
        assert secret not in shown
        assert prompt not in shown
    assert vllm.requests[-1].headers["authorization"] == f"Bearer {secret}"


def test_a_whole_request_may_name_its_model(hub: Hub) -> None:
    request = ChatRequest(messages=(Message(role="user", content="ping"),), model="hub-test-vlm")
    assert hub.text().chat(request).text == "pong"
    with pytest.raises(ModelNotFound):
        hub.text().chat(ChatRequest(messages=request.messages, model="nope"))


def test_a_prompt_of_50_mb_is_a_clear_error(hub: Hub) -> None:
    from llm_hub.errors import ContextOverflow

    with pytest.raises(ContextOverflow) as caught:
        hub.text().chat("word " * 10_000_000)
    assert caught.value.limit


def test_tokens_are_counted_where_the_backend_can_and_else_estimated_and_said_so(hub: Hub, vllm: FakeVLLM) -> None:
    for counted in (
        hub.text().count_tokens("What is the capital of France?"),
        asyncio.run(hub.text().acount_tokens("ping pong")),
    ):
        assert counted.tokens > 1
        assert counted.exact == (hub.explain("text").backend == "vllm")
    if hub.explain("text").backend == "vllm":
        whole = hub.text().chat("What is the capital of France?")
        assert hub.text().count_tokens("What is the capital of France?").tokens == whole.usage.prompt_tokens


class Careless:
    """A plugin that fails as foreign code does: with an error of its own, before or after it has produced something."""

    def __init__(self, *, late: bool) -> None:
        self.late = late

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(api_version="1.0")

    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> Any:
        return EngineLike(late=self.late)


class EngineLike:
    """The backend of `Careless`."""

    features: frozenset[Feature] = frozenset()

    def __init__(self, *, late: bool) -> None:
        self.late = late

    def chat(self, request: ChatRequest, call: Call) -> ChatResponse:
        raise KeyError("oops")

    async def achat(self, request: ChatRequest, call: Call) -> ChatResponse:
        raise KeyError("oops")

    def stream(self, request: ChatRequest, call: Call) -> Iterator[ChatChunk]:
        if self.late:
            yield ChatChunk("some")
        raise KeyError("oops")

    async def astream(self, request: ChatRequest, call: Call) -> AsyncIterator[ChatChunk]:
        for chunk in self.stream(request, call):
            yield chunk

    def models(self, call: Call) -> tuple[ModelInfo, ...]:
        return (ModelInfo(name="m"),)

    async def amodels(self, call: Call) -> tuple[ModelInfo, ...]:
        return self.models(call)

    def probe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return Probe(rung=rung, wanted=rung)

    async def aprobe(self, rung: Rung, model: str | None, call: Call) -> Probe:
        return self.probe(rung, model, call)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("late", [False, True])
def test_what_a_plugin_raises_is_a_failure_of_its_backend_with_its_cause(late: bool, ask: Ask, request: Any) -> None:
    streamed = "stream" in request.node.name
    with Hub.from_env({"LLM_PROVIDER": "careless"}, plugins={"careless": Careless(late=late)}) as hub:
        with pytest.raises(BackendError, match="careless: .*its plugin 'careless' raised KeyError: 'oops'") as caught:
            ask(hub, "ping")
        assert isinstance(caught.value, StreamInterrupted if late and streamed else BackendFailed)
        assert isinstance(caught.value.__cause__, KeyError)
        if isinstance(caught.value, StreamInterrupted):
            assert caught.value.partial == "some"


@pytest.mark.parametrize("timeout", [0, -1, "5"])
def test_a_timeout_is_a_number_above_nothing(hub: Hub, ask: Ask, timeout: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be a number of seconds above 0"):
        ask(hub, "ping", timeout=timeout)


def test_an_unknown_feature_is_refused_with_those_that_there_are(hub: Hub) -> None:
    with pytest.raises(InvalidRequest, match="no feature 'levitation'.*tools"):
        hub.text(features={"levitation"})


def test_a_stream_that_is_dropped_half_read_tells_the_backend_at_once_and_takes_no_lock(
    hub: Hub, vllm: FakeVLLM, ollama: FakeOllama
) -> None:
    server: Any = vllm if hub.explain("text").backend == "vllm" else ollama
    server.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)
    stream = hub.text().stream("Count from 1 to 20.")
    next(stream)
    pool: Any = next(iter(hub._transport._pools.values()))
    with pool._optional_thread_lock:  # as if the collector ran while this thread was in the pool
        del stream
        gc.collect()
    assert server.requests[-1].wait(1.0)
    assert server.requests[-1].gone_early
    server.clear_faults()
    assert hub.text().chat("ping", timeout=5).text == "pong"


def test_a_stream_can_be_closed_while_another_thread_waits_for_it(hub: Hub, vllm: FakeVLLM, ollama: FakeOllama) -> None:
    server: Any = vllm if hub.explain("text").backend == "vllm" else ollama
    server.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)
    stream = hub.text().stream("Count from 1 to 20.")
    caught: list[BaseException] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    server.wait_for_requests(1)
    time.sleep(0.1)
    stream.close()
    thread.join(2)
    assert not thread.is_alive()
    assert isinstance(caught[0], Cancelled)
    epoch: Any = hub._epochs.current
    assert not epoch.tokens


def test_a_stream_can_be_closed_while_another_task_waits_for_it(hub: Hub, vllm: FakeVLLM, ollama: FakeOllama) -> None:
    server: Any = vllm if hub.explain("text").backend == "vllm" else ollama
    server.fault(Fault.HANG_BETWEEN_CHUNKS, after=3)

    async def go() -> None:
        stream = hub.text().astream("Count from 1 to 20.")

        async def read() -> None:
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.2)
        await stream.aclose()
        with pytest.raises(Cancelled):
            await asyncio.wait_for(task, 2)

    asyncio.run(go())


def test_closing_the_hub_wakes_the_calls_of_a_loop_that_does_not_run_just_now(
    environ: dict[str, str], vllm: FakeVLLM
) -> None:
    hub = Hub.from_env({**environ, "LLM_PROVIDER": "vllm"})
    vllm.fault(Fault.HANG_BEFORE_HEADERS)
    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(hub.text().achat("ping", timeout=20))
        loop.run_until_complete(asyncio.sleep(0.2))
        hub.close()
        with pytest.raises(BackendError):
            loop.run_until_complete(asyncio.wait_for(task, 2))
    finally:
        loop.close()


def test_a_backend_that_hangs_is_part_of_the_status_and_not_the_end_of_it(
    environ: dict[str, str], vllm: FakeVLLM
) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as hub:
        vllm.fault(Fault.HANG_BEFORE_HEADERS)
        status = hub.status(timeout=0.3)
        assert {one.name: one.probe.ok for one in status.backends} == {"vllm": False, "ollama": True}
        assert status.ready, "the fallback serves"


def test_the_deadline_that_passes_at_the_first_backend_names_it(
    environ: dict[str, str], vllm: FakeVLLM, ask: Ask
) -> None:
    with Hub.from_env({**environ, "LLM_PROVIDER": "vllm", "LLM_FALLBACK": "ollama"}) as hub:
        vllm.fault(Fault.HANG_BEFORE_HEADERS)
        with pytest.raises(DeadlineExceeded) as caught:
            ask(hub, "ping", timeout=0.2)
        assert (caught.value.backend, caught.value.stage) == ("vllm", "total")
