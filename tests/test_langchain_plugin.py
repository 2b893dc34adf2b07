"""`from_langchain`: LangChain's classes as plugins: what is declared, how they are built, what becomes of their errors."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI

from llm_hub import Capability, Feature, Hub, Message, ResponseFormat, Settings, Timeouts, Tool, errors, from_langchain
from llm_hub.call import Call, CancelToken
from llm_hub.capabilities import ModelInfo, Rung
from llm_hub.config import BackendConfig, BuildContext, Secret
from llm_hub.engine import EngineBackend
from llm_hub.langchain.as_plugin import LangChainPlugin
from llm_hub.langchain.failures import to_error
from llm_hub.messages import ChatRequest, EmbedRequest
from llm_hub.registry import PluginStatus, Registry
from llm_hub.testing import FakeOllama, FakeVLLM, Fault, draw
from llm_hub.transport import Transport

F = Feature
COUNT = ChatRequest(messages=(Message(role="user", content="Count from 1 to 60."),), model="hub-test-vlm")
SHORT = Timeouts(first_token=0.3, between_tokens=0.3, whole=0.3, connect=0.5)
OLLAMA = from_langchain(
    "langchain_ollama:ChatOllama",
    embeddings="langchain_ollama:OllamaEmbeddings",
    features={F.SYSTEM, F.TOOLS, F.JSON_SCHEMA, F.JSON_OBJECT, F.IMAGES, F.REASONING, F.SEED, F.DIMENSIONS},
)


def at_v1(config: BackendConfig) -> dict[str, Any]:
    """Addresses as the hub has them, without /v1; and a key, without which ChatOpenAI does not begin."""
    key = {} if config.api_key else {"api_key": "none"}
    return {"base_url": f"{config.base_url(Capability.TEXT)}/v1", **key}


VLLM = from_langchain(
    ChatOpenAI,
    features={F.SYSTEM, F.TOOLS, F.TOOL_CHOICE, F.JSON_SCHEMA, F.IMAGES, F.LOGPROBS, F.MULTIPLE_CHOICES, F.SEED},
    arguments=at_v1,
)


def backend(plugin: LangChainPlugin, url: str | None = None, **more: Any) -> EngineBackend:
    capability = more.pop("capability", plugin.capabilities[0])
    urls: dict[Capability | None, str] = {} if url is None else {None: url}
    config = BackendConfig(name="acme", plugin="acme", base_urls=urls, **more)
    made = plugin.backend(capability, config, BuildContext(transport=TRANSPORT))
    OPEN.append(made)
    return made


OPEN: list[EngineBackend] = []
TRANSPORT = Transport()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close the backends of a test."""
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, FakeOllama | FakeVLLM]]:
    with FakeOllama() as ollama, FakeVLLM() as vllm:
        yield {"ollama": ollama, "vllm": vllm}


@pytest.fixture(scope="module")
def hub(servers: dict[str, FakeOllama | FakeVLLM]) -> Iterator[Hub]:
    settings = Settings.from_toml(
        f"""
        [backends.ollama]
        base_url = "{servers["ollama"].url}"
        models = {{ text = "hub-test-vlm", vision = "hub-test-vlm", embedding = "all-minilm:22m" }}
        [backends.ollama.arguments]
        num_ctx = 2048
        [backends.vllm]
        base_url = "{servers["vllm"].url}"
        models = {{ text = "hub-test-vlm", vision = "hub-test-vlm" }}
        """,
        plugins=("ollama", "vllm"),
    )
    with Hub(settings, plugins={"ollama": OLLAMA, "vllm": VLLM}) as hub:
        yield hub


BOTH = pytest.mark.parametrize("name", ["ollama", "vllm"])
WEATHER = Tool(
    name="get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "country": {"type": "string"}}}


# -- as a plugin ------------------------------------------------------------------------------------------------------


def test_a_class_by_name_costs_no_import_until_it_is_asked() -> None:
    code = (
        "import sys, llm_hub\n"
        "from llm_hub.config import BackendConfig, BuildContext\n"
        "context = BuildContext(transport=type('T', (), {'sync_port': None}))\n"
        "plugin = llm_hub.from_langchain('langchain_ollama:ChatOllama', embeddings='langchain_ollama:OllamaEmbeddings')\n"
        "plugin.llm_hub_text(BackendConfig(name='a', plugin='a'), context)\n"
        "assert not [name for name in sys.modules if name.startswith(('langchain', 'pydantic', 'httpx', 'ollama'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_has_the_hooks_of_what_it_offers_and_is_valid() -> None:
    assert VLLM.capabilities == (Capability.TEXT, Capability.VISION)
    assert OLLAMA.capabilities == (Capability.TEXT, Capability.EMBEDDING, Capability.VISION)
    registry = Registry([], plugins={"chat": VLLM, "both": OLLAMA, "embeds": from_langchain(OllamaEmbeddings)})
    reports = {report.name: report for report in registry.reports(load=True)}
    assert {report.status for report in reports.values()} == {PluginStatus.AVAILABLE}
    assert reports["embeds"].capabilities == {Capability.EMBEDDING}
    assert reports["both"].summary == "ChatOllama and OllamaEmbeddings of LangChain."


def test_features_are_computed_of_a_class_and_only_those_that_are_sure() -> None:
    assert from_langchain(ChatOllama).manifest.features == {F.SYSTEM, F.TOOLS, F.JSON_SCHEMA, F.JSON_OBJECT}
    assert from_langchain("langchain_ollama:ChatOllama").manifest.features == {F.SYSTEM}
    assert from_langchain(FakeListChatModel).manifest.features == {F.SYSTEM}
    assert from_langchain(OllamaEmbeddings).manifest.features == frozenset()


@pytest.mark.parametrize("source", [dict, "langchain_ollama", "langchain_ollama:", 3, None])
def test_what_is_no_langchain_class_is_refused_at_once(source: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match="LangChain"):
        from_langchain(source)


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(errors.ConfigurationError, match="pip install langchain-acme"):
        backend(from_langchain("langchain_acme:ChatAcme"))
    with pytest.raises(errors.ConfigurationError, match="langchain_ollama has no ChatNothing"):
        backend(from_langchain("langchain_ollama:ChatNothing")).chat(COUNT, Call())


# -- from the settings of a backend -----------------------------------------------------------------------------------


def made(plugin: LangChainPlugin, model: str | None = "m", **config: Any) -> Any:
    """The LangChain object that a backend asks."""
    engine: Any = backend(plugin, **config).engine
    return engine._object(model)


def test_address_key_and_model_go_to_the_constructor_and_its_retries_are_off() -> None:
    plugin = from_langchain(ChatOpenAI)
    model = made(plugin, url="http://127.0.0.1:9/v1", api_key=Secret("s3cret"))
    assert (model.model_name, model.openai_api_base, model.max_retries) == ("m", "http://127.0.0.1:9/v1", 0)
    assert model.openai_api_key.get_secret_value() == "s3cret"
    assert model.stream_usage
    assert made(from_langchain(ChatOllama, default_url="http://127.0.0.1:8")).base_url == "http://127.0.0.1:8"
    adapted = made(from_langchain(ChatOpenAI, default_url="http://127.0.0.1:8", arguments=at_v1))
    assert adapted.openai_api_base == "http://127.0.0.1:8/v1"


def test_arguments_of_the_operator_win_over_those_of_the_author() -> None:
    plugin = from_langchain(ChatOllama, arguments={"num_ctx": 1, "temperature": 0.5})
    options = plugin.manifest.settings
    assert options is not None
    model = made(plugin, options=msgspec.convert({"arguments": {"num_ctx": 2}}, options))
    assert (model.num_ctx, model.temperature) == (2, 0.5)


def test_settings_of_the_authors_own_are_arguments_too() -> None:
    class Acme(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        num_ctx: int | None = None
        keep_alive: str = "5m"

    model = made(from_langchain(ChatOllama, settings=Acme), options=Acme(keep_alive="1h"))
    assert (model.num_ctx, model.keep_alive) == (None, "1h")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_ctxx": 1}, "Did you mean num_ctx?"),
        ({"base_url": "http://elsewhere"}, "settings of their own"),
        ({"model": "m"}, "settings of their own"),
        ({"num_ctx": "many"}, "num_ctx: Input should be a valid integer"),
    ],
)
def test_wrong_arguments_are_settings_errors_that_say_how(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.SettingsError, match=says):
        made(from_langchain(ChatOllama), options={"arguments": arguments})


def test_a_key_or_an_address_that_the_class_has_no_place_for_is_an_error() -> None:
    with pytest.raises(errors.SettingsError, match="no parameter for the api_key"):
        made(from_langchain(ChatOllama), api_key=Secret("s3cret"))
    with pytest.raises(errors.SettingsError, match="no parameter for the base_url"):
        made(from_langchain(FakeListChatModel, arguments={"responses": ["a"]}), model=None, url="http://x")


def test_the_key_shows_in_no_error() -> None:
    class ChatPicky(FakeListChatModel):
        api_key: int

    with pytest.raises(errors.SettingsError) as caught:
        made(from_langchain(ChatPicky, arguments={"responses": []}), model=None, api_key=Secret("s3cret"))
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None

    error = to_error(ValueError("refused: s3cret"), secret="s3cret")
    assert "s3cret" not in str(error)
    assert "***" in str(error)


def test_objects_and_functions_serve_as_well() -> None:
    model = FakeListChatModel(responses=["one", "two"])
    assert backend(from_langchain(model, says_why=False)).chat(request(), Call()).text == "one"
    with pytest.raises(errors.SettingsError, match="configured already"):
        made(from_langchain(model), model=None, url="http://x")

    def make(config: BackendConfig, model: str | None) -> FakeListChatModel:
        return FakeListChatModel(responses=[f"{config.name} {model}"])

    assert backend(from_langchain(make, says_why=False)).chat(request(model="m"), Call()).text == "acme m"


def request(text: str = "Hi", **more: Any) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), **more)


# -- asked through the hub --------------------------------------------------------------------------------------------


@BOTH
def test_answers_usage_and_the_reason_of_the_end(hub: Hub, name: str) -> None:
    text = hub.text(backend=name)
    answer = text.chat("What is the capital of France?", system="Be brief.", temperature=0)
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")
    assert answer.served_by is not None
    assert answer.served_by.plugin == name
    cut = text.chat("Count from 1 to 60.", max_tokens=5)
    assert (cut.text, cut.finish_reason, cut.usage.completion_tokens) == ("1 2 3 4 5", "length", 5)


@BOTH
def test_streams_stop_where_they_are_told_and_say_what_they_cost(hub: Hub, name: str) -> None:
    with hub.text(backend=name).stream("Count from 1 to 60.", stop=["7"]) as stream:
        assert [chunk.text for chunk in stream if chunk.text.strip()] == ["1", " 2", " 3", " 4", " 5", " 6"]
    assert stream.response.finish_reason == "stop"
    assert stream.response.usage.prompt_tokens


@BOTH
def test_tools_are_called_whole_and_in_streams_and_their_results_go_back(hub: Hub, name: str) -> None:
    text = hub.text(backend=name)
    first = Message(role="user", content="What is the weather in Paris?")
    answer = text.chat([first], tools=[WEATHER])
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.tool_calls
    assert (call.name, call.parsed()) == ("get_weather", {"city": "Paris"})
    result = Message(role="tool", content="18C and sunny", tool_call_id=call.id)
    assert text.chat([first, answer.message, result], tools=[WEATHER]).text == "It is 18C and sunny in Paris."
    with text.stream([first], tools=[WEATHER]) as stream:
        list(stream)
    assert stream.response.tool_calls[0].parsed() == {"city": "Paris"}
    assert not text.chat([first], tools=[WEATHER], parallel_tool_calls=True).text


def test_a_choice_of_tools_is_passed_on_and_one_call_at_a_time_only_where_the_class_has_it(hub: Hub) -> None:
    forced = hub.text(backend="vllm").chat("Hello", tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert forced.tool_calls[0].name == "get_weather"
    assert not hub.text(backend="vllm").chat("Call get_weather.", tools=[WEATHER], tool_choice="none").tool_calls
    with pytest.raises(errors.UnsupportedFeature, match="one call at a time"):
        hub.text(backend="ollama").chat("Hello", tools=[WEATHER], parallel_tool_calls=False)


@BOTH
def test_schemas_hold_the_answer(hub: Hub, name: str) -> None:
    text = hub.text(backend=name)
    wanted = ResponseFormat.json_schema(CITY)
    assert "Paris" in text.chat("Give the capital of France as JSON.", response_format=wanted).text
    with text.stream("Give the capital of France as JSON.", response_format=wanted) as stream:
        list(stream)
    assert '"city": "Paris"' in stream.response.text


@BOTH
def test_images_are_seen(hub: Hub, name: str) -> None:
    picture = draw("red", "circle", "white")
    assert hub.vision(backend=name).describe(picture, "What is in this picture?").text.startswith("A red circle")


def test_reasoning_comes_apart(hub: Hub) -> None:
    text = hub.text(backend="ollama", model="hub-test-vlm-think")
    answer = text.chat("What is the capital of Japan?", reasoning=True)
    assert (answer.reasoning or "").strip() == "I need the capital of Japan. It is Tokyo."
    assert answer.text == "The capital of Japan is Tokyo."
    with text.stream("What is the capital of Japan?", reasoning=True) as stream:
        list(stream)
    assert stream.response.reasoning == answer.reasoning


def test_several_answers_and_log_probabilities(hub: Hub) -> None:
    answer = hub.text(backend="vllm").chat("Hello", n=2, logprobs=True, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].logprobs
    assert answer.choices[1].logprobs[0].logprob <= 0
    with hub.text(backend="vllm").stream("Hello", n=2, logprobs=True) as stream:
        list(stream)
    assert len(stream.response.choices) == 2


def test_an_option_that_the_class_does_not_have_is_refused_or_named_by_the_author(servers: Any) -> None:
    url = servers["ollama"].url
    plain = backend(from_langchain(ChatOllama, features={F.SYSTEM, F.PENALTIES}), url)
    with pytest.raises(errors.UnsupportedFeature, match="ChatOllama has no parameter for presence_penalty"):
        plain.chat(msgspec.structs.replace(COUNT, presence_penalty=0.5), Call())
    named = from_langchain(
        ChatOllama,
        features={F.SYSTEM, F.PENALTIES},
        parameters={"presence_penalty": lambda value: {"repeat_penalty": 1 + value}},
    )
    backend(named, url).chat(msgspec.structs.replace(COUNT, presence_penalty=0.5, options={"top_k": 3}), Call())
    sent = servers["ollama"].requests[-1].json["options"]
    assert (sent["repeat_penalty"], sent["top_k"]) == (1.5, 3)
    with pytest.raises(errors.InvalidRequest, match="options may not set base_url"):
        plain.chat(msgspec.structs.replace(COUNT, options={"base_url": "http://elsewhere"}), Call())
    with pytest.raises(errors.InvalidRequest, match="does not know the option 'top_kk'"):
        plain.chat(msgspec.structs.replace(COUNT, options={"top_kk": 3}), Call())


def test_embeddings_come_in_order_for_documents_and_queries(hub: Hub) -> None:
    embedding = hub.embedding(backend="ollama")
    both = embedding.embed(["the cat", "a dog"])
    assert embedding.embed(["a dog"], kind="query")[0] == pytest.approx(both[1])
    with pytest.raises(errors.UnsupportedFeature, match="truncate|cut texts"):
        embedding.embed(["a dog"], truncate=True)

    fake = from_langchain(DeterministicFakeEmbedding, arguments={"size": 8})
    vectors = backend(fake).embed(EmbedRequest(texts=("a", "b")), Call()).vectors
    assert [len(vector) for vector in vectors] == [8, 8]
    assert vectors[0] != vectors[1]


def test_event_loops_come_and_go_side_by_side(hub: Hub) -> None:
    async def ask() -> str:
        async with hub.text(backend="vllm").astream("Count from 1 to 60.") as stream:
            async for _ in stream:
                pass
        return stream.response.text[-5:]

    async def many() -> list[str]:
        return await asyncio.gather(*(ask() for _ in range(5)))

    threads = [threading.Thread(target=lambda: found.extend(asyncio.run(many()))) for _ in range(3)]
    found: list[str] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["59 60"] * 15
    assert asyncio.run(many()) == ["59 60"] * 5


# -- when things go wrong ---------------------------------------------------------------------------------------------

FAILURES = [
    (Fault.REFUSE, errors.BackendUnreachable, errors.BackendUnreachable),
    (Fault.HANG_BEFORE_HEADERS, errors.DeadlineExceeded, errors.DeadlineExceeded),
    (Fault.HANG_BETWEEN_CHUNKS, errors.DeadlineExceeded, errors.DeadlineExceeded),
    (Fault.CLOSE_BEFORE_HEADERS, errors.ConnectionLost, errors.ConnectionLost),
    (Fault.CLOSE_MID_BODY, errors.ConnectionLost, errors.StreamInterrupted),
    (Fault.END_WITHOUT_MARK, errors.ProtocolError, errors.StreamInterrupted),
    (Fault.ERROR_IN_STREAM, errors.BackendError, errors.StreamInterrupted),
    (Fault.GARBAGE_IN_STREAM, errors.ProtocolError, errors.StreamInterrupted),
    (Fault.HTML_PAGE, errors.ProtocolError, errors.ProtocolError),
    (Fault.EMPTY_BODY, errors.ProtocolError, errors.ProtocolError),
    (Fault.BAD_REQUEST, errors.InvalidRequest, errors.InvalidRequest),
    (Fault.UNAUTHORIZED, errors.AuthenticationFailed, errors.AuthenticationFailed),
    (Fault.NOT_FOUND, errors.ModelNotFound, errors.ModelNotFound),
    (Fault.RATE_LIMITED, errors.BackendOverloaded, errors.BackendOverloaded),
    (Fault.LOADING, errors.BackendLoading, errors.BackendLoading),
    (Fault.OUT_OF_MEMORY, errors.BackendFailed, errors.BackendFailed),
]


@BOTH
@pytest.mark.parametrize(("fault", "whole", "streamed"), FAILURES, ids=[fault.name for fault, _, _ in FAILURES])
def test_faults_become_the_typed_errors(
    servers: Any, name: str, fault: Fault, whole: type[errors.HubError], streamed: type[errors.HubError]
) -> None:
    plugin = OLLAMA if name == "ollama" else VLLM
    server = servers[name]
    with server.fault(fault):
        one = backend(plugin, server.url)
        with pytest.raises(whole) as caught:
            one.chat(COUNT, Call(timeout=2, timeouts=SHORT))
        assert caught.value.backend == "acme"
        with pytest.raises(streamed) as caught:
            list(one.stream(COUNT, Call(timeout=2, timeouts=SHORT)))
        if isinstance(caught.value, errors.StreamInterrupted):
            assert caught.value.partial.startswith("1 2")


@BOTH
def test_the_wait_that_a_server_asks_for_is_kept(servers: Any, name: str) -> None:
    with servers[name].fault(Fault.RATE_LIMITED, retry_after=2), pytest.raises(errors.BackendOverloaded) as caught:
        backend(OLLAMA if name == "ollama" else VLLM, servers[name].url).chat(COUNT, Call())
    assert caught.value.retry_after == 2


@BOTH
@pytest.mark.parametrize("streamed", [True, False])
def test_a_cancelled_call_is_over_at_once_and_the_server_sees_it(servers: Any, name: str, streamed: bool) -> None:
    server = servers[name]
    one = backend(OLLAMA if name == "ollama" else VLLM, server.url)
    token = CancelToken()
    one.chat(msgspec.structs.replace(COUNT, max_tokens=1), Call())  # LangChain is imported now
    with server.fault(Fault.HANG_BETWEEN_CHUNKS):
        threading.Timer(0.2, token.cancel).start()
        began = time.monotonic()
        with pytest.raises(errors.Cancelled):
            call = Call(timeout=20, cancel=token)
            list(one.stream(COUNT, call)) if streamed else one.chat(COUNT, call)
        assert time.monotonic() - began < 5
        assert server.requests[-1].wait()
        assert server.requests[-1].gone_early


def test_a_stream_that_is_dropped_ends_at_the_server(servers: Any) -> None:
    stream = backend(VLLM, servers["vllm"].url).stream(COUNT, Call())
    with servers["vllm"].fault(Fault.HANG_BETWEEN_CHUNKS):
        next(iter(stream))
        stream.close()  # type: ignore[attr-defined]
        assert servers["vllm"].requests[-1].wait()
    assert servers["vllm"].requests[-1].gone_early


def test_blocking_classes_run_in_threads_and_errors_of_theirs_interrupt(servers: Any) -> None:
    slow = from_langchain(GenericFakeChatModel(messages=iter([AIMessage("a b"), AIMessage("c")])), says_why=False)
    one = backend(slow)
    assert [chunk.text for chunk in one.stream(request(), Call())] == ["a", " ", "b", ""]
    assert one.chat(request(), Call()).text == "c"
    breaks = from_langchain(FakeListChatModel(responses=["abc"], error_on_chunk_number=2), says_why=False)
    with pytest.raises(errors.StreamInterrupted) as caught:
        list(backend(breaks).stream(request(), Call()))
    assert caught.value.partial == "ab"


def test_an_answer_that_says_no_reason_is_no_answer_unless_the_author_said_so() -> None:
    model = FakeListChatModel(responses=["abc"])
    with pytest.raises(errors.StreamInterrupted, match="says_why=False"):
        list(backend(from_langchain(model)).stream(request(), Call()))
    with pytest.raises(errors.ProtocolError, match="says_why=False"):
        backend(from_langchain(model)).chat(request(), Call())


# -- health -----------------------------------------------------------------------------------------------------------


def test_the_ladder_is_climbed_as_far_as_it_can_be_seen(servers: Any) -> None:
    one = backend(OLLAMA, servers["ollama"].url, models={Capability.TEXT: "hub-test-vlm"})
    assert one.models(Call()) == (ModelInfo(name="hub-test-vlm"),)
    probe = one.probe(Rung.MODEL_PRESENT, None, Call())
    assert probe.ok
    assert "no way to ask" in probe.detail
    assert one.probe(Rung.GENERATING, None, Call()).ok
    missing = one.probe(Rung.GENERATING, "nope", Call())
    assert (missing.ok, missing.rung) == (False, Rung.MODEL_PRESENT)
    with servers["ollama"].fault(Fault.REFUSE):
        dead = one.probe(Rung.ALIVE, None, Call())
    assert (dead.rung, dead.ok) == (None, False)
    embeds = backend(OLLAMA, servers["ollama"].url, capability=Capability.EMBEDDING)
    assert embeds.probe(Rung.GENERATING, "all-minilm:22m", Call()).ok


def test_models_are_listed_where_the_author_says_how() -> None:
    plugin = from_langchain(
        FakeListChatModel(responses=["a"]), says_why=False, list_models=lambda config: ["a", ModelInfo(name="b")]
    )
    one = backend(plugin)
    assert [info.name for info in one.models(Call())] == ["a", "b"]
    assert one.probe(Rung.MODEL_PRESENT, "b", Call()).ok
    assert one.probe(Rung.MODEL_PRESENT, "c", Call()).rung is Rung.ALIVE
