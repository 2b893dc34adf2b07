"""The plugin over real sockets: every recorded chat, a live fake, and the real server that the environment names.

`LLM_HUB_TEST_VLLM_URL` is the address of a vLLM, or of any server that speaks the OpenAI API, and
`LLM_HUB_TEST_VLLM_MODEL` the model to ask there (hub-test-vlm).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Rung
from llm_hub.config import BackendConfig, BuildContext, Secret
from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    AuthenticationFailed,
    BackendOverloaded,
    BackendUnreachable,
    ConnectionLost,
    ContextOverflow,
    HubError,
    InvalidRequest,
    ModelNotFound,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.http_backend import HttpBackend
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, ImagePart, Message, ResponseFormat, TextPart, Tool
from llm_hub.streams import collect
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


def test_a_stream_that_breaks_off_is_interrupted_or_lost_by_whether_anything_had_come(build: Build) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"The"},"finish_reason":null}]}\n\n'

    def answer(request: Request) -> Reply:
        return Reply(200, {"content-type": "text/event-stream"}, [event] if "some" in request.path else [b"\n"])

    with FakeServer(answer) as server:
        chunks, error = ask_sync(build(f"{server.url}/some"), ANY, stream=True)
        assert isinstance(chunks, list)
        assert [chunk.text for chunk in chunks] == ["The"]
        assert isinstance(error, StreamInterrupted)
        assert error.partial == "The"
        _, error = ask_sync(build(f"{server.url}/none"), ANY, stream=True)
        assert isinstance(error, ConnectionLost)


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
        **{"model": live.model, "temperature": 0.0, "seed": 1, "max_tokens": 120, "reasoning": False, **fields},
    )


def both_ways(backend: HttpBackend, request: ChatRequest) -> Sequence[ChatResponse]:
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
        assert response.id


def test_a_long_answer_comes_whole(live: Live, build: Build) -> None:
    request = ask(live, "Count from 1 to 60.", Message(role="system", content="Be exact."))
    for response in both_ways(build(live.url), request):
        assert not live.exact or response.text == " ".join(str(number) for number in range(1, 61))


def test_an_answer_is_cut_at_the_number_of_tokens_that_was_asked_for(live: Live, build: Build) -> None:
    for response in both_ways(build(live.url), ask(live, "Count from 1 to 60.", max_tokens=4)):
        assert response.finish_reason == "length"
        assert response.usage.completion_tokens == 4


def test_an_answer_stops_at_a_text(live: Live, build: Build) -> None:
    for response in both_ways(build(live.url), ask(live, "What is the capital of France?", stop=("is",))):
        assert response.finish_reason == "stop"
        assert "is" not in response.text


def test_several_answers_come_to_one_question(live: Live, build: Build) -> None:
    try:
        responses = both_ways(build(live.url), ask(live, "What is the capital of France?", n=2))
    except InvalidRequest:
        only_vllm(live)  # llama.cpp gives as many as it has slots, which may be one
        raise
    for response in responses:
        assert [choice.index for choice in response.choices] == [0, 1]
        assert {choice.finish_reason for choice in response.choices} == {"stop"}
        assert not live.exact or {choice.message.text for choice in response.choices} == {response.text}


@pytest.mark.parametrize("wanted", [ResponseFormat.json_object(), ResponseFormat.json_schema(SCHEMA, strict=True)])
def test_an_answer_is_the_json_that_was_asked_for(wanted: ResponseFormat, live: Live, build: Build) -> None:
    for response in both_ways(
        build(live.url), ask(live, "Give the capital of France as JSON.", response_format=wanted)
    ):
        answer = msgspec.json.decode(response.text)
        assert isinstance(answer, dict)
        assert answer == {"city": "Paris", "country": "France"} or not live.exact


@pytest.mark.parametrize(
    "wanted",
    [
        ResponseFormat.regex(r"[A-Z][a-z]{2}\."),
        ResponseFormat.choice(["yes", "no"]),
        ResponseFormat.grammar('root ::= "yes" | "no"'),
    ],
    ids=lambda wanted: wanted.type,
)
def test_an_answer_has_the_form_that_was_asked_for(wanted: ResponseFormat, live: Live, build: Build) -> None:
    only_vllm(live)
    if wanted.type == "grammar" and live.fake:
        pytest.skip("grammars are beyond the fake model")
    pattern = wanted.pattern if wanted.type == "regex" else "yes|no"
    for response in both_ways(build(live.url), ask(live, "Is the sky blue?", response_format=wanted)):
        assert re.fullmatch(pattern or "", response.text)


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
        assert response.finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_a_tool_can_be_forced(choice: str, live: Live, build: Build) -> None:
    request = ask(live, "What is the weather in Paris?", tools=(WEATHER,), tool_choice=choice)
    if choice == "get_weather":
        only_vllm(live)  # llama.cpp takes the words only
    for response in both_ways(build(live.url), request):
        assert response.finish_reason == "tool_calls"
        assert [asked.name for asked in response.tool_calls] == ["get_weather"]


def test_a_picture_is_seen(live: Live, build: Build) -> None:
    picture = ImagePart(draw("red", "circle", "white"))
    message = Message(role="user", content=(TextPart("What is in this picture?"), picture))
    request = msgspec.structs.replace(ask(live, ""), messages=(message,))
    for response in both_ways(build(live.url), request):
        assert response.text == "A red circle on a white background." if live.exact else response.text


def test_bytes_that_are_no_picture_are_refused(live: Live, build: Build) -> None:
    message = Message(role="user", content=(TextPart("What is this?"), ImagePart(b"hello")))
    for stream in (False, True):
        request = msgspec.structs.replace(ask(live, ""), messages=(message,))
        _, error = ask_sync(build(live.url), request, stream=stream)
        assert isinstance(error, InvalidRequest), error


def test_reasoning_comes_apart_from_the_answer(live: Live, build: Build) -> None:
    if not live.exact:
        pytest.skip("this model may not think")
    request = ask(live, "What is the capital of Japan?", reasoning=True)
    for response in both_ways(build(live.url), request):
        assert response.reasoning
        assert response.reasoning.strip() == "I need the capital of Japan. It is Tokyo."
        assert response.text.strip() == "The capital of Japan is Tokyo."
    for response in both_ways(build(live.url), msgspec.structs.replace(request, reasoning=False)):
        assert response.reasoning is None


def test_log_probabilities_come_with_every_token(live: Live, build: Build) -> None:
    request = ask(live, "What is the capital of France?", logprobs=True, top_logprobs=2, max_tokens=3)
    for response in both_ways(build(live.url), request):
        logprobs = response.choices[0].logprobs
        assert logprobs is not None
        assert "".join(token.token for token in logprobs) == response.text
        assert all(len(token.top) == 2 and token.logprob <= 0 for token in logprobs)


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


def test_a_key_is_sent_and_its_refusal_does_not_show_it(build: Build) -> None:
    with FakeVLLM(api_key="right-key") as server:
        live = Live(server.url, "hub-test-vlm")
        assert build(server.url, key="right-key").chat(ask(live, "ping"), call()).text == "pong"
        _, error = ask_sync(build(server.url, key="wrong-key"), ask(live, "ping"), stream=False)
        assert isinstance(error, AuthenticationFailed)
        assert "wrong-key" not in str(error)


def test_a_full_queue_is_an_overload(build: Build) -> None:
    with FakeVLLM(parallel=1, max_queue=0) as server:
        backend = build(server.url)
        live = Live(server.url, "hub-test-vlm")

        async def crowd() -> list[Outcome]:
            asks = [ask_async(backend, ask(live, "Count from 1 to 60."), stream=True) for _ in range(20)]
            return await asyncio.gather(*asks)

        errors = [error for _, error in asyncio.run(crowd()) if error is not None]
    assert all(isinstance(error, BackendOverloaded) for error in errors)
    assert 0 < len(errors) < 20


def test_a_server_that_is_down_is_unreachable_and_on_no_rung(build: Build) -> None:
    with FakeVLLM() as server:
        server.stop()
        backend = build(server.url)
        _, error = ask_sync(backend, ANY, stream=False)
        assert isinstance(error, BackendUnreachable)
        assert server.url.removeprefix("http://") in error.message
        found = backend.probe(Rung.GENERATING, None, call())
        assert found.rung is None
        assert found.detail
