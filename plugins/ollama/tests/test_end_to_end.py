"""The plugin over real sockets: recordings replayed with their boundaries, a live fake, and a real Ollama where set."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature, Rung, TextBackend
from llm_hub.config import BackendConfig, BuildContext, Secret
from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    ContextOverflow,
    HubError,
    ModelNotFound,
    UnsupportedFeature,
)
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    ImagePart,
    Message,
    Tool,
)
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


def ask(live: Live, text: str, *before: Message, **fields: Any) -> ChatRequest:
    return ChatRequest(
        messages=(*before, Message(role="user", content=text)),
        **{"model": live.model, "temperature": 0.0, "seed": 1, "max_tokens": 120, **fields},
    )


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
