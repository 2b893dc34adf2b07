"""One suite for every server: the fakes, a real llama.cpp server process, the engine in the process, and the real Ollama and
vLLM that the environment names.

`LLM_HUB_TEST_OLLAMA_URL` and `LLM_HUB_TEST_VLLM_URL` are addresses, `LLM_HUB_TEST_OLLAMA_MODEL` and
`LLM_HUB_TEST_VLLM_MODEL` the models to ask (hub-test-vlm, whose answers are exact; of others only the form is looked at).
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llm_hub import CancelToken, Feature, Hub, ImagePart, Message, ResponseFormat, TextPart, Tool, hookimpl
from llm_hub.capabilities import Capability, Rung
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import Cancelled, ContextOverflow, ModelNotFound, UnsupportedFeature
from llm_hub.http_backend import HttpBackend
from llm_hub.manifest import PluginManifest
from llm_hub.messages import ChatResponse
from llm_hub.openai_dialect import OpenAIDialect, server_root
from llm_hub.testing import FakeOllama, FakeVLLM, draw

MODELS = Path(__file__).parent / "data" / "models" / "hub-test-vlm"
TEXT_MODEL, PROJECTOR = MODELS / "hub-test-vlm-f16.gguf", MODELS / "mmproj-hub-test-vlm-f16.gguf"

WEATHER = Tool(
    name="get_weather",
    description="Get the weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


class OpenAIServer:
    """A plugin for any server that speaks the OpenAI API: a few declarations."""

    dialect = OpenAIDialect(health_path="/health", models_are_loaded=True)

    @hookimpl
    def llm_hub_manifest(self) -> PluginManifest:
        return PluginManifest(api_version="1.0", features=self.dialect.features)

    @hookimpl
    def llm_hub_text(self, config: BackendConfig, context: BuildContext) -> HttpBackend:
        return HttpBackend(self.dialect, config=server_root(config), context=context, capability=Capability.TEXT)


class Server(NamedTuple):
    """A hub on one server. `exact`: the model is hub-test-vlm, whose greedy answers are known."""

    hub: Hub
    exact: bool
    model: str

    @property
    def features(self) -> frozenset[Feature]:
        return self.hub.runtime.manifest(self.hub.explain("text").backend).features


@contextmanager
def llama_server() -> Iterator[str]:
    """The llamacpp server process on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llm_hub_llamacpp", "--model", str(TEXT_MODEL), "--mmproj", str(PROJECTOR)]
    process = subprocess.Popen([*command, "--alias", "hub-test-vlm", "--port", str(port), "--n-ctx", "2048"])
    try:
        for _ in range(400):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
                    if reply.status == 200:
                        break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(10) == 0


def _real(stack: ExitStack, plugin: str) -> Server:
    prefix = plugin.upper()
    url = os.environ.get(f"LLM_HUB_TEST_{prefix}_URL")
    if not url:
        pytest.skip(f"needs a real server: set LLM_HUB_TEST_{prefix}_URL and LLM_HUB_TEST_{prefix}_MODEL")
    model = os.environ.get(f"LLM_HUB_TEST_{prefix}_MODEL", "hub-test-vlm")
    environ = {"LLM_PROVIDER": plugin, f"{prefix}_BASE_URL": url, f"{prefix}_MODEL": model}
    return Server(stack.enter_context(Hub.from_env(environ)), "hub-test-vlm" in model, model)


@pytest.fixture(
    scope="module",
    params=[
        "fake-vllm",
        "fake-ollama",
        "llamacpp-server",
        "llamacpp-in-process",
        pytest.param("vllm", marks=pytest.mark.vllm),
        pytest.param("ollama", marks=pytest.mark.ollama),
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind: str = request.param
    with ExitStack() as stack:
        if kind in ("vllm", "ollama"):
            yield _real(stack, kind)
            return
        plugins: dict[str, object] = {}
        if kind == "fake-vllm":
            environ = {"LLM_PROVIDER": "vllm", "VLLM_BASE_URL": stack.enter_context(FakeVLLM()).url}
        elif kind == "fake-ollama":
            environ = {"LLM_PROVIDER": "ollama", "OLLAMA_BASE_URL": stack.enter_context(FakeOllama()).url}
            environ["OLLAMA_MODEL"] = "hub-test-vlm"
        elif kind == "llamacpp-server":
            plugins["openai"] = OpenAIServer()
            environ = {"LLM_PROVIDER": "openai", "OPENAI_BASE_URL": stack.enter_context(llama_server()) + "/v1"}
        else:
            folder = request.getfixturevalue("tmp_path_factory").mktemp("config")
            config = folder / "llm-hub.toml"
            config.write_text(f'[backends.llamacpp]\nmodels = {{ text = "{TEXT_MODEL}" }}\nmmproj = "{PROJECTOR}"\n')
            environ = {"LLM_PROVIDER": "llamacpp", "LLM_HUB_CONFIG": str(config)}
        hub = stack.enter_context(Hub.from_env(environ, plugins=plugins))
        yield Server(hub, True, "hub-test-vlm")


Ask = Callable[..., ChatResponse]


@pytest.fixture(params=["chat", "achat", "stream", "astream"])
def ask(request: pytest.FixtureRequest, server: Server) -> Ask:
    """Ask in each of the four ways, greedily; the whole answer."""

    def go(prompt: Any, **options: Any) -> ChatResponse:
        text = server.hub.text()
        options = {"temperature": 0.0, "max_tokens": 200, **options}
        if request.param == "chat":
            return text.chat(prompt, **options)
        if request.param == "stream":
            with text.stream(prompt, **options) as stream:
                for _ in stream:
                    pass
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


def needs(server: Server, *features: Feature) -> None:
    if missing := set(features) - server.features:
        pytest.skip(f"the backend declares no {', '.join(sorted(missing))}; that it refuses it is tested below")


def test_a_question_is_answered(server: Server, ask: Ask) -> None:
    response = ask("What is the capital of France?")
    assert response.text == "The capital of France is Paris." if server.exact else response.text
    assert response.finish_reason == "stop"
    assert response.usage.prompt_tokens
    assert response.usage.completion_tokens
    assert response.served_by is not None


def test_a_conversation_is_continued(server: Server, ask: Ask) -> None:
    response = ask(
        [
            Message(role="system", content="Be brief."),
            Message(role="user", content="What is the capital of France?"),
            Message(role="assistant", content="The capital of France is Paris."),
            Message(role="user", content="What is the capital of Japan?"),
        ]
    )
    assert response.text == "The capital of Japan is Tokyo." if server.exact else response.text


def test_max_tokens_cuts_and_stop_stops(server: Server, ask: Ask) -> None:
    cut = ask("Count from 1 to 60.", max_tokens=7)
    assert (cut.finish_reason, cut.usage.completion_tokens) == ("length", 7)
    stopped = ask("Count from 1 to 60.", stop="5")
    assert stopped.finish_reason == "stop"
    assert "5" not in stopped.text
    if server.exact:
        assert stopped.text.strip() == "1 2 3 4"


def test_a_long_answer_comes_complete_and_in_order(server: Server, ask: Ask) -> None:
    response = ask("Count from 1 to 60.")
    if server.exact:
        assert response.text.split() == [str(number) for number in range(1, 61)]


def test_json_is_json_and_follows_a_schema(server: Server, ask: Ask) -> None:
    import json

    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    for wanted in (ResponseFormat.json_object(), ResponseFormat.json_schema(schema, name="capital")):
        answer = json.loads(ask("Give the capital of France as JSON.", response_format=wanted).text)
        assert answer == {"city": "Paris", "country": "France"} if server.exact else isinstance(answer, dict)


def test_tools_are_called_and_their_results_used(server: Server, ask: Ask) -> None:
    question = Message(role="user", content="What is the weather in Paris?")
    response = ask([question], tools=[WEATHER])
    if not server.exact:
        return
    (call,) = response.tool_calls
    assert (call.name, call.parsed(), response.finish_reason) == ("get_weather", {"city": "Paris"}, "tool_calls")
    assert call.id
    result = Message(role="tool", tool_call_id=call.id, name=call.name, content="18C and sunny")
    assert ask([question, response.message, result], tools=[WEATHER]).text == "It is 18C and sunny in Paris."


def test_two_tools_calls_come_apart_and_no_call_is_an_answer(server: Server, ask: Ask) -> None:
    response = ask("What is the weather in Paris and London?", tools=[WEATHER])
    if server.exact:
        assert sorted(call.parsed()["city"] for call in response.tool_calls) == ["London", "Paris"]
        assert len({call.id for call in response.tool_calls}) == 2
    plain = ask("What is the capital of France?", tools=[WEATHER])
    assert not plain.tool_calls
    assert plain.finish_reason == "stop"


def test_a_tool_can_be_required(server: Server, ask: Ask) -> None:
    needs(server, Feature.TOOL_CHOICE)
    for choice in ("required", "get_weather"):
        response = ask("What is the weather in Paris?", tools=[WEATHER], tool_choice=choice)
        assert [call.name for call in response.tool_calls] == ["get_weather"]


def test_several_choices_come_apart(server: Server, ask: Ask) -> None:
    needs(server, Feature.MULTIPLE_CHOICES)
    response = ask("What is the capital of France?", n=2)
    assert [choice.index for choice in response.choices] == [0, 1]
    if server.exact:
        assert {choice.message.text for choice in response.choices} == {"The capital of France is Paris."}


def test_log_probabilities_belong_to_the_tokens(server: Server, ask: Ask) -> None:
    needs(server, Feature.LOGPROBS)
    response = ask("What is the capital of France?", logprobs=True, top_logprobs=2)
    found = response.choices[0].logprobs
    assert found
    assert all(one.logprob <= 0 and len(one.top) == 2 for one in found)
    assert "".join(one.token for one in found).startswith(response.text[:10])


def test_a_seed_makes_sampling_repeatable(server: Server, ask: Ask) -> None:
    needs(server, Feature.SEED)
    first, second = (ask("Tell me a joke.", temperature=1.0, seed=7, max_tokens=12).text for _ in range(2))
    assert first == second


def test_reasoning_comes_apart_from_the_answer(server: Server, ask: Ask) -> None:
    needs(server, Feature.REASONING)
    if server.hub.explain("text").backend == "ollama" and "think" not in server.model:
        with pytest.raises(UnsupportedFeature):
            ask("What is the capital of Japan?", reasoning=True)
        return
    response = ask("What is the capital of Japan?", reasoning=True)
    if server.exact:
        assert (response.reasoning or "").strip() == "I need the capital of Japan. It is Tokyo."
        assert response.text.strip() == "The capital of Japan is Tokyo."
        assert not ask("What is the capital of Japan?", reasoning=False).reasoning


def test_images_are_seen(server: Server, ask: Ask) -> None:
    needs(server, Feature.IMAGES)
    message = Message(role="user", content=(ImagePart(draw("blue", "square")), TextPart("What is in this picture?")))
    if server.exact:
        assert ask([message]).text == "A blue square on a white background."


def test_what_is_not_declared_is_refused(server: Server, ask: Ask) -> None:
    cases: dict[Feature, dict[str, Any]] = {
        Feature.MULTIPLE_CHOICES: {"n": 2},
        Feature.REGEX: {"response_format": ResponseFormat.regex("a+")},
        Feature.TOOL_CHOICE: {"tools": [WEATHER], "tool_choice": "required"},
    }
    for feature, options in cases.items():
        if feature not in server.features:
            with pytest.raises(UnsupportedFeature, match=str(feature)):
                ask("ping", **options)


def test_an_unknown_model_is_an_error_that_lists_what_there_is(server: Server) -> None:
    if server.hub.explain("text").backend == "openai":
        pytest.skip("llama.cpp's server serves its one model under any name")
    with pytest.raises(ModelNotFound) as caught:
        server.hub.text(model="no-such-model").chat("ping")
    assert caught.value.available


def test_a_prompt_over_the_context_is_an_error_with_both_numbers(server: Server, ask: Ask) -> None:
    with pytest.raises(ContextOverflow) as caught:
        ask("The quick brown fox jumps over the lazy dog. " * 4000)
    assert caught.value.limit
    assert caught.value.tokens is None or caught.value.tokens > caught.value.limit


def test_a_cancelled_stream_stops_at_once_and_the_next_call_is_served(server: Server) -> None:
    token = CancelToken()
    stream = server.hub.text().stream("Count from 1 to 60.", temperature=0.0, cancel=token)
    next(stream)
    began = time.monotonic()
    token.cancel()
    with pytest.raises(Cancelled):
        for _ in stream:
            pass
    assert time.monotonic() - began < 0.5
    assert server.hub.text().chat("ping", max_tokens=5).text


def test_many_at_once_are_all_answered_rightly(server: Server) -> None:
    async def go() -> list[ChatResponse]:
        text = server.hub.text()
        calls = [text.achat(f"Count from 1 to {number}.", temperature=0.0, max_tokens=60) for number in range(2, 10)]
        return list(await asyncio.gather(*calls))

    for number, response in enumerate(asyncio.run(go()), 2):
        if server.exact:
            assert response.text.split() == [str(one) for one in range(1, number + 1)]


def test_models_and_health_are_told(server: Server) -> None:
    name = server.hub.explain("text").backend
    models = server.hub.models(name)
    assert models
    status = server.hub.status(rung=Rung.GENERATING, timeout=60)
    assert status.ready, status
