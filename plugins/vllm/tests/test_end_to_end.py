"""The plugin over real sockets: every recorded chat, a live fake, and the real server that the environment names.

`LLM_HUB_TEST_VLLM_URL` is the address of a vLLM, or of any server that speaks the OpenAI API, and
`LLM_HUB_TEST_VLLM_MODEL` the model to ask there (hub-test-vlm).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Rung
from llm_hub.config import BackendConfig, BuildContext, Secret
from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    ContextOverflow,
    HubError,
    InvalidRequest,
    ModelNotFound,
    UnsupportedFeature,
)
from llm_hub.http_backend import HttpBackend
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, ImagePart, Message, TextPart
from llm_hub.testing import FakeModel, FakeServer, FakeVLLM, Recording, Reply, Request, draw
from llm_hub.transport import Transport
from llm_hub_vllm import plugin
from llm_hub_vllm.dialect import VLLMDialect
from llm_hub_vllm.settings import VLLMSettings

Canonical = Callable[[dict[str, Any] | None], ChatRequest]
Build = Callable[..., HttpBackend]
Outcome = tuple[list[ChatChunk] | ChatResponse | None, HubError | None]


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds the plugin's backend for an address."""
    transport = Transport()

    def make(url: str, settings: VLLMSettings | None = None, key: str | None = None) -> HttpBackend:
        config = BackendConfig(
            name="vllm",
            plugin="vllm",
            base_urls={None: url},
            api_key=Secret(key) if key else None,
            options=settings or VLLMSettings(),
        )
        backend = plugin.llm_hub_text(config, BuildContext(transport=transport))
        assert isinstance(backend, HttpBackend)
        return backend

    yield make
    transport.close()


def call() -> Call:
    return Call(timeout=20)


def ask_sync(backend: HttpBackend, request: ChatRequest, *, stream: bool) -> Outcome:
    chunks: list[ChatChunk] = []
    try:
        if not stream:
            return backend.chat(request, call()), None
        for chunk in backend.stream(request, call()):
            chunks.append(chunk)
    except HubError as error:
        return chunks if stream else None, error
    return chunks, None


async def ask_async(backend: HttpBackend, request: ChatRequest, *, stream: bool) -> Outcome:
    chunks: list[ChatChunk] = []
    try:
        if not stream:
            return await backend.achat(request, call()), None
        async for chunk in backend.astream(request, call()):
            chunks.append(chunk)
    except HubError as error:
        return chunks if stream else None, error
    return chunks, None


# -- recordings -------------------------------------------------------------------------------------------------------

ANY = ChatRequest(messages=(Message(role="user", content="?"),), model="nope")


def expected(request: ChatRequest, recorded: Recording) -> Outcome:
    """What the dialect makes of the whole body; test_recordings.py proves that right."""
    dialect = VLLMDialect()
    reply = HttpReply(recorded.response.status or 0, recorded.headers, recorded.body)
    chunks: list[ChatChunk] = []
    try:
        if reply.status != 200:
            raise dialect.error(reply, model=request.model)
        if not recorded.streamed:
            return dialect.decode_chat(request, reply), None
        decoder = dialect.decode_stream(request)
        chunks += decoder.feed(reply.body)
        chunks += decoder.finish()
    except HubError as error:
        return chunks if recorded.streamed else None, error
    return chunks, None


@pytest.mark.parametrize("size", [None, 5], ids=["as recorded", "five bytes a send"])
def test_every_recorded_chat_comes_over_a_socket_as_it_was_recorded(
    size: int | None, recordings: dict[str, Recording], canonical: Canonical, build: Build
) -> None:
    chats = {
        name: one
        for name, one in recordings.items()
        if one.request.path == "/v1/chat/completions" and one.response.status is not None
    }

    def asked(one: Recording) -> ChatRequest:
        try:
            return canonical(one.request.json)
        except LookupError:
            return ANY

    def answer(request: Request) -> Reply:
        recorded = chats[request.path.split("/")[1]]
        steps = [chunk.data for chunk in recorded.response.chunks]
        if size is not None:
            steps = [piece[start : start + size] for piece in steps for start in range(0, len(piece), size)]
        return Reply(recorded.response.status or 0, recorded.headers, steps)

    async def ask_all(url: str) -> dict[str, Outcome]:
        return {
            name: await ask_async(build(f"{url}/{name}"), asked(one), stream=one.streamed)
            for name, one in chats.items()
        }

    with FakeServer(answer) as server:
        found = {
            name: ask_sync(build(f"{server.url}/{name}"), asked(one), stream=one.streamed)
            for name, one in chats.items()
        }
        found_async = asyncio.run(ask_all(server.url))
    assert len(found) == 63
    for name, one in chats.items():
        wanted, failure = expected(asked(one), one)
        for got, error in (found[name], found_async[name]):
            assert got == wanted, name
            assert type(error) is type(failure), name
            if error is not None and failure is not None:
                assert error.backend == "vllm"
                assert failure.message in error.message
                assert getattr(error, "partial", None) == getattr(failure, "partial", None)


# -- a live server ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Live:
    """A server that answers, the model to ask, whether its answers are known, and whether it is a vLLM."""

    url: str
    model: str
    exact: bool = True
    vllm: bool = True
    fake: bool = True


REAL = os.environ.get("LLM_HUB_TEST_VLLM_URL")


@pytest.fixture(params=["fake", *([pytest.param("real", marks=pytest.mark.vllm)] if REAL else [])])
def live(request: pytest.FixtureRequest, build: Build) -> Iterator[Live]:
    if REAL and request.param == "real":
        model = os.environ.get("LLM_HUB_TEST_VLLM_MODEL", "hub-test-vlm")
        version = build(REAL).probe(Rung.ALIVE, None, call()).version
        yield Live(REAL, model, exact="hub-test-vlm" in model, vllm=version is not None, fake=False)
        return
    with FakeVLLM() as server:
        yield Live(server.url, "hub-test-vlm")


def only_vllm(live: Live) -> None:
    if not live.vllm:
        pytest.skip("this server speaks the OpenAI API, but is no vLLM")


def ask(live: Live, text: str, *before: Message, **fields: Any) -> ChatRequest:
    return ChatRequest(
        messages=(*before, Message(role="user", content=text)),
        **{"model": live.model, "temperature": 0.0, "seed": 1, "max_tokens": 120, "reasoning": False, **fields},
    )


def test_bytes_that_are_no_picture_are_refused(live: Live, build: Build) -> None:
    message = Message(role="user", content=(TextPart("What is this?"), ImagePart(b"hello")))
    for stream in (False, True):
        request = msgspec.structs.replace(ask(live, ""), messages=(message,))
        _, error = ask_sync(build(live.url), request, stream=stream)
        assert isinstance(error, InvalidRequest), error


def test_a_prompt_over_the_context_is_refused_with_both_numbers(live: Live, build: Build) -> None:
    backend = build(live.url)
    (limit,) = {model.context_length for model in backend.models(call())}
    assert limit is not None
    earlier = Message(role="user", content="The quick brown fox jumps over the lazy dog. " * (limit // 5))
    for stream in (False, True):
        _, error = ask_sync(backend, ask(live, "Why?", earlier), stream=stream)
        assert isinstance(error, ContextOverflow)
        assert error.limit == limit
        assert error.tokens is not None
        assert error.tokens > limit


def test_an_unknown_model_is_not_found_and_those_that_are_there_are_named(live: Live, build: Build) -> None:
    only_vllm(live)  # llama.cpp answers to any name
    for stream in (False, True):
        _, error = ask_sync(build(live.url), ask(live, "Hi", model="no-such-model"), stream=stream)
        assert isinstance(error, ModelNotFound)
        assert "To serve it: vllm serve no-such-model" in str(error)
        assert error.available == () or live.model in error.available


def test_the_ladder_is_climbed_to_its_top_and_the_model_described(live: Live, build: Build) -> None:
    backend = build(live.url)
    models = backend.models(call())
    assert asyncio.run(backend.amodels(call())) == models
    model = next((one for one in models if live.model in (one.name, *one.aliases)), models[0])
    assert model.context_length
    found = backend.probe(Rung.GENERATING, model.name, call())
    assert found.ok, found.detail
    assert asyncio.run(backend.aprobe(Rung.LOADED, model.name, call())).ok
    assert not backend.probe(Rung.MODEL_PRESENT, "no-such-model", call()).ok
    if live.vllm:
        assert found.version
        assert "running" in found.detail


def test_tokens_are_counted_as_they_are_billed(live: Live, build: Build) -> None:
    only_vllm(live)
    backend = build(live.url)
    request = ask(live, "What is the capital of France?")
    assert isinstance(backend.dialect, VLLMDialect)
    counted = backend.converse(backend.dialect.count_tokens(request), call())
    assert counted.tokens == backend.chat(request, call()).usage.prompt_tokens
    assert counted.limit == backend.models(call())[0].context_length


# -- what only the fake shows -----------------------------------------------------------------------------------------


def test_a_picture_for_a_model_that_sees_none_is_an_unsupported_feature(build: Build) -> None:
    message = Message(role="user", content=(ImagePart(draw("red", "circle", "white")),))
    request = ChatRequest(messages=(message,), model="smollm2")
    with FakeVLLM(FakeModel(name="smollm2", capabilities=("completion",))) as server:
        for stream in (False, True):
            _, error = ask_sync(build(server.url), request, stream=stream)
            assert isinstance(error, UnsupportedFeature)
            assert error.features == ("images",)


def test_a_server_of_embeddings_says_plainly_that_it_does_not_chat(build: Build) -> None:
    with FakeVLLM(FakeModel(name="all-minilm", capabilities=("embedding",))) as server:
        for stream in (False, True):
            request = msgspec.structs.replace(ANY, model="all-minilm")
            _, error = ask_sync(build(server.url), request, stream=stream)
            assert isinstance(error, UnsupportedFeature)
            assert "it does not serve this route" in str(error)
