"""The plugin over real sockets: recordings replayed with their boundaries, a live fake, and a real Ollama where set."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, Rung, TextBackend
from llm_hub.config import BackendConfig, BuildContext, Secret
from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    AuthenticationFailed,
    BackendOverloaded,
    BackendUnreachable,
    ConnectionLost,
    ContextOverflow,
    HubError,
    ModelNotFound,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
)
from llm_hub.streams import collect
from llm_hub.testing import FakeOllama, FakeServer, Recording, Reply, Request, draw
from llm_hub.transport import Transport
from llm_hub_ollama import plugin
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.settings import OllamaSettings, Profile

Build = Callable[..., TextBackend]


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds the plugin's backend for an address."""
    transport = Transport()

    def make(url: str, settings: OllamaSettings | None = None, key: str | None = None) -> TextBackend:
        config = BackendConfig(
            name="ollama",
            plugin="ollama",
            base_urls={None: url},
            api_key=Secret(key) if key else None,
            options=settings or OllamaSettings(),
        )
        return plugin.llm_hub_text(config, BuildContext(transport=transport))

    yield make
    transport.close()


def call() -> Call:
    return Call(timeout=20)


Outcome = tuple[list[ChatChunk] | ChatResponse | None, HubError | None]


def ask_sync(backend: TextBackend, request: ChatRequest, *, stream: bool) -> Outcome:
    chunks: list[ChatChunk] = []
    try:
        if not stream:
            return backend.chat(request, call()), None
        chunks.extend(backend.stream(request, call()))
    except HubError as error:
        return chunks if stream else None, error
    return chunks, None


async def ask_async(backend: TextBackend, request: ChatRequest, *, stream: bool) -> Outcome:
    chunks: list[ChatChunk] = []
    try:
        if not stream:
            return await backend.achat(request, call()), None
        async for chunk in backend.astream(request, call()):
            chunks.append(chunk)
    except HubError as error:
        return chunks if stream else None, error
    return chunks, None


# -- recordings -----------------------------------------------------------------------------------------------------


def expected(request: ChatRequest, recorded: Recording, *, stream: bool) -> Outcome:
    """What the dialect makes of the whole body; test_recordings.py proves that right."""
    dialect = OllamaDialect()
    reply = HttpReply(recorded.response.status or 0, recorded.headers, recorded.body)
    chunks: list[ChatChunk] = []
    try:
        if reply.status != 200:
            raise dialect.error(reply, model=request.model)
        if not stream:
            return dialect.decode_chat(request, reply), None
        decoder = dialect.decode_stream(request)
        chunks += decoder.feed(reply.body)
        chunks += decoder.finish()
    except HubError as error:
        return chunks if stream else None, error
    return chunks, None


def split(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [None, 5], ids=["as recorded", "five bytes a send"])
def test_every_recorded_chat_comes_over_a_socket_as_it_was_recorded(
    size: int | None,
    recordings: dict[str, Recording],
    canonical: Callable[[Recording], ChatRequest],
    build: Build,
) -> None:
    chats = {name: one for name, one in recordings.items() if one.request.path == "/api/chat"}

    def answer(request: Request) -> Reply:
        recorded = chats[request.path.split("/")[1]]
        chunks = [chunk.data for chunk in recorded.response.chunks]
        steps = chunks if size is None else [piece for chunk in chunks for piece in split(chunk, size)]
        return Reply(recorded.response.status or 0, recorded.headers, steps)

    async def ask_all(url: str) -> dict[str, Outcome]:
        return {
            name: await ask_async(build(f"{url}/{name}"), asked(one), stream=streams(one))
            for name, one in chats.items()
        }

    def asked(one: Recording) -> ChatRequest:
        request = canonical(one)
        return request if request.model else msgspec.structs.replace(request, model="m")

    def streams(one: Recording) -> bool:
        # What a client that wants a stream gets is recorded where it asked for one, or got an error before it began.
        return one.streamed or "_stream" in one.name

    with FakeServer(answer) as server:
        found = {
            name: ask_sync(build(f"{server.url}/{name}"), asked(one), stream=streams(one))
            for name, one in chats.items()
        }
        found_async = asyncio.run(ask_all(server.url))
    assert len(found) == 51
    for name, one in chats.items():
        wanted, failure = expected(asked(one), one, stream=streams(one))
        for got, error in (found[name], found_async[name]):
            assert got == wanted, name
            assert type(error) is type(failure), name
            if error is not None and failure is not None:
                assert error.backend == "ollama"
                assert failure.message in error.message
                assert getattr(error, "partial", None) == getattr(failure, "partial", None)


def test_a_stream_that_breaks_off_is_interrupted_or_lost_by_whether_anything_had_come(build: Build) -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":"The"},"done":false}\n'

    def answer(request: Request) -> Reply:
        return Reply(200, {"content-type": "application/x-ndjson"}, [line] if "some" in request.path else [b"\n"])

    request = ChatRequest(messages=(Message(role="user", content="Hi"),), model="m")
    with FakeServer(answer) as server:
        chunks, error = ask_sync(build(f"{server.url}/some"), request, stream=True)
        assert isinstance(chunks, list)
        assert [chunk.text for chunk in chunks] == ["The"]
        assert isinstance(error, StreamInterrupted)
        assert error.partial == "The"
        _, error = ask_sync(build(f"{server.url}/none"), request, stream=True)
        assert isinstance(error, ConnectionLost)


# -- a live server --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Live:
    """A server that answers, the model to ask (`thinking`: one that thinks), and whether its answers are known."""

    url: str
    model: str
    thinking: str | None
    exact: bool
    fake: FakeOllama | None = None


REAL = os.environ.get("LLM_HUB_TEST_OLLAMA_URL")


@pytest.fixture(params=["fake", *([pytest.param("real", marks=pytest.mark.ollama)] if REAL else [])])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    if REAL and request.param == "real":
        model = os.environ.get("LLM_HUB_TEST_OLLAMA_MODEL", "hub-test-vlm")
        thinking = os.environ.get("LLM_HUB_TEST_OLLAMA_THINKING_MODEL")
        yield Live(REAL, model, thinking, exact=model.startswith("hub-test-vlm"))
        return
    with FakeOllama() as server:
        yield Live(server.url, "hub-test-vlm", "hub-test-vlm-think", exact=True, fake=server)


WEATHER = Tool(
    name="get_weather",
    description="Get the weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}


def ask(live: Live, text: str, *before: Message, **fields: Any) -> ChatRequest:
    return ChatRequest(
        messages=(*before, Message(role="user", content=text)),
        **{"model": live.model, "temperature": 0.0, "seed": 1, "max_tokens": 120, **fields},
    )


def both_ways(backend: TextBackend, request: ChatRequest) -> Sequence[ChatResponse]:
    """The answer whole and streamed, from blocking and from async calls."""
    found: list[ChatResponse] = []
    for outcome in (
        ask_sync(backend, request, stream=False),
        ask_sync(backend, request, stream=True),
        asyncio.run(ask_async(backend, request, stream=False)),
        asyncio.run(ask_async(backend, request, stream=True)),
    ):
        answer, error = outcome
        if error is not None:
            raise error
        found.append(collect(answer) if isinstance(answer, list) else answer or pytest.fail("nothing came"))
    return found


def test_a_question_is_answered(live: Live, build: Build) -> None:
    for response in both_ways(build(live.url), ask(live, "What is the capital of France?")):
        assert response.text == "The capital of France is Paris." if live.exact else response.text
        assert response.finish_reason == "stop"
        assert response.usage.prompt_tokens
        assert response.usage.completion_tokens
        assert response.timings.generation is not None


def test_an_answer_is_cut_at_the_number_of_tokens_that_was_asked_for(live: Live, build: Build) -> None:
    for response in both_ways(build(live.url), ask(live, "Count from 1 to 60.", max_tokens=4)):
        assert response.finish_reason == "length"
        assert response.usage.completion_tokens == 4


def test_an_answer_follows_a_schema(live: Live, build: Build) -> None:
    request = ask(live, "Give the capital of France as JSON.", response_format=ResponseFormat.json_schema(SCHEMA))
    for response in both_ways(build(live.url), request):
        answer = msgspec.json.decode(response.text)
        assert set(answer) == {"city", "country"}
        assert answer == {"city": "Paris", "country": "France"} or not live.exact


def test_a_tool_is_called_and_its_result_is_used(live: Live, build: Build) -> None:
    backend = build(live.url)
    question = ask(live, "What is the weather in Paris?", tools=(WEATHER,))
    for response in both_ways(backend, question):
        assert response.finish_reason == "tool_calls"
        (asked,) = response.tool_calls
        assert asked.name == "get_weather"
        assert asked.parsed() == {"city": "Paris"}
        assert asked.id
    result = Message(role="tool", content="18C and sunny", tool_call_id=asked.id)
    told = msgspec.structs.replace(question, messages=(*question.messages, response.message, result))
    for response in both_ways(backend, told):
        assert response.text == "It is 18C and sunny in Paris." if live.exact else response.text


def test_a_picture_is_seen(live: Live, build: Build) -> None:
    picture = ImagePart(draw("red", "circle", "white"))
    message = Message(role="user", content=(TextPart("What is in this picture?"), picture))
    request = msgspec.structs.replace(ask(live, ""), messages=(message,))
    for response in both_ways(build(live.url), request):
        assert response.text == "A red circle on a white background." if live.exact else response.text


def test_reasoning_comes_apart_from_the_answer(live: Live, build: Build) -> None:
    if live.thinking is None:
        pytest.skip("LLM_HUB_TEST_OLLAMA_THINKING_MODEL is not set")
    request = ask(live, "What is the capital of Japan?", model=live.thinking, reasoning=True)
    for response in both_ways(build(live.url), request):
        assert response.reasoning
        assert response.reasoning not in response.text
    request = msgspec.structs.replace(request, reasoning=False)
    for response in both_ways(build(live.url), request):
        assert response.reasoning is None


def test_log_probabilities_come_with_every_token(live: Live, build: Build) -> None:
    request = ask(live, "What is the capital of France?", logprobs=True, top_logprobs=2, max_tokens=3)
    for response in both_ways(build(live.url), request):
        logprobs = response.choices[0].logprobs
        assert logprobs is not None
        assert "".join(token.token for token in logprobs) == response.text
        assert all(len(token.top) == 2 and token.logprob <= 0 for token in logprobs)


def test_a_prompt_over_the_context_is_refused_with_both_numbers(live: Live, build: Build) -> None:
    settings = OllamaSettings(profiles={live.model: Profile(num_ctx=256)})
    earlier = Message(role="user", content="The quick brown fox jumps over the lazy dog. " * 100)
    for stream in (False, True):
        _, error = ask_sync(build(live.url, settings), ask(live, "Why?", earlier), stream=stream)
        assert isinstance(error, ContextOverflow)
        assert error.limit == 256
        assert error.tokens is not None
        assert error.tokens > 900


def test_an_unknown_model_is_not_found_and_the_command_is_named(live: Live, build: Build) -> None:
    for stream in (False, True):
        _, error = ask_sync(build(live.url), ask(live, "Hi", model="no-such-model"), stream=stream)
        assert isinstance(error, ModelNotFound)
        assert str(error) == "ollama: model 'no-such-model' not found. Fetch it: ollama pull no-such-model"


def test_the_ladder_is_climbed_to_its_top_and_the_model_described(live: Live, build: Build) -> None:
    backend = build(live.url, OllamaSettings(num_ctx=512))
    found = backend.probe(Rung.GENERATING, live.model, call())
    assert found.ok, found.detail
    assert found.version
    assert asyncio.run(backend.aprobe(Rung.LOADED, live.model, call())).ok
    (model,) = [one for one in backend.models(call()) if live.model in (one.name, *one.aliases)]
    assert model.loaded
    assert model.context_length == 512
    assert model.digest
    assert model.capabilities is not None
    assert Capability.TEXT in model.capabilities
    assert asyncio.run(backend.amodels(call())) == backend.models(call())


# -- what only the fake shows ---------------------------------------------------------------------------------------


def test_a_model_is_loaded_once_whatever_is_asked_of_it(build: Build) -> None:
    with FakeOllama() as server:
        live = Live(server.url, "hub-test-vlm", None, exact=True)
        backend = build(server.url, OllamaSettings(profiles={"hub-test-vlm:latest": Profile(num_ctx=1024)}))
        assert backend.probe(Rung.LOADED, live.model, call()).ok
        for fields in ({}, {"tools": (WEATHER,)}, {"max_tokens": 5}, {"options": {"top_k": 1}}):
            backend.chat(ask(live, "What is the capital of France?", **fields), call())
        assert backend.probe(Rung.GENERATING, "hub-test-vlm:latest", call()).ok
        assert server.loads == [("hub-test-vlm:latest", 1024)]


def test_looking_at_models_and_health_loads_nothing(build: Build) -> None:
    with FakeOllama() as server:
        backend = build(server.url)
        found = {model.name: model for model in backend.models(call())}
        assert backend.probe(Rung.MODEL_PRESENT, "hub-test-vlm", call()).ok
        assert server.loads == []
        assert not any(model.loaded for model in found.values())
    embeds = found["all-minilm:22m"]
    assert embeds.capabilities == frozenset({Capability.EMBEDDING})
    assert embeds.embedding_dimension == 384
    thinks = found["hub-test-vlm-think:latest"]
    assert thinks.features is not None
    assert thinks.features >= {Feature.REASONING, Feature.IMAGES, Feature.TOOLS}


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"tools": (WEATHER,)}, "tools"),
        ({"reasoning": True}, "reasoning"),
        ({"messages": (Message(role="user", content=(ImagePart(draw("red", "circle", "white")),)),)}, "images"),
    ],
)
def test_what_a_model_cannot_do_is_an_unsupported_feature(fields: dict[str, Any], feature: str, build: Build) -> None:
    request = ChatRequest(messages=(Message(role="user", content="Hi"),), model="smollm2:135m")
    with FakeOllama() as server:
        for stream in (False, True):
            _, error = ask_sync(build(server.url), msgspec.structs.replace(request, **fields), stream=stream)
            assert isinstance(error, UnsupportedFeature)
            assert error.features == (feature,)


def test_a_key_is_sent_and_its_refusal_does_not_show_it(build: Build) -> None:
    with FakeOllama(api_key="right-key") as server:
        live = Live(server.url, "hub-test-vlm", None, exact=True)
        assert build(server.url, key="right-key").chat(ask(live, "ping"), call()).text == "pong"
        _, error = ask_sync(build(server.url, key="wrong-key"), ask(live, "ping"), stream=False)
        assert isinstance(error, AuthenticationFailed)
        assert "wrong-key" not in str(error)


def test_a_full_queue_is_an_overload(build: Build) -> None:
    with FakeOllama(parallel=1, max_queue=0) as server:
        backend = build(server.url)
        live = Live(server.url, "hub-test-vlm", None, exact=True)

        async def crowd() -> list[Outcome]:
            asks = [ask_async(backend, ask(live, "Count from 1 to 60."), stream=True) for _ in range(20)]
            return await asyncio.gather(*asks)

        outcomes = asyncio.run(crowd())
    errors = [error for _, error in outcomes if error is not None]
    assert all(isinstance(error, BackendOverloaded) for error in errors)
    assert errors
    assert len(errors) < 20


def test_a_server_that_is_down_is_unreachable_and_on_no_rung(build: Build) -> None:
    with FakeOllama() as server:
        url = server.url
        server.stop()
        backend = build(url)
        live = Live(url, "hub-test-vlm", None, exact=True)
        _, error = ask_sync(backend, ask(live, "ping"), stream=False)
        assert isinstance(error, BackendUnreachable)
        assert url.removeprefix("http://") in error.message
        found = backend.probe(Rung.GENERATING, live.model, call())
        assert found.rung is None
        assert found.detail
