"""What HubChatModel and HubLLM do beyond LangChain's standard tests: routes, switches, options, schemas, secrets, async."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumps, load
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel

import llm_hub
from llm_hub import CancelToken, Hub, ImagePart
from llm_hub.errors import (
    BackendUnreachable,
    Cancelled,
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.langchain import HubChatModel, HubLLM
from llm_hub.testing import FakeModel, FakeOllama, FakeVLLM, Fault, Speed, draw

SECRET = "sk-very-secret"
PARIS = "The capital of France is Paris."
QUESTION = "What is the capital of France?"
THINKS = FakeModel(name="hub-test-vlm", capabilities=("completion", "tools", "vision", "thinking"))


class Capital(BaseModel):
    """A city and its country."""

    city: str
    country: str


class CapitalDict(TypedDict):
    """A city and its country."""

    city: str
    country: str


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return f"18C in {city}"


@tool
def now() -> str:
    """Tell the time."""
    return "noon"


@pytest.fixture(scope="module")
def vllm() -> Iterator[FakeVLLM]:
    with FakeVLLM(THINKS, api_key=SECRET) as server:
        yield server


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama() as server:
        yield server


@pytest.fixture(scope="module")
def environ(vllm: FakeVLLM, ollama: FakeOllama) -> dict[str, str]:
    return {
        "LLM_PROVIDER": "vllm",
        "VLLM_BASE_URL": vllm.url,
        "VLLM_API_KEY": SECRET,
        "OLLAMA_BASE_URL": ollama.url,
        "OLLAMA_MODEL": "hub-test-vlm",
    }


@pytest.fixture(scope="module")
def hub(environ: dict[str, str]) -> Iterator[Hub]:
    with Hub.from_env(environ) as made:
        yield made


@pytest.fixture
def model(hub: Hub) -> HubChatModel:
    return HubChatModel(hub, temperature=0)


def served(message: AIMessage) -> str:
    return str(message.response_metadata["served_by"]["backend"])


# -- imports ----------------------------------------------------------------------------------------------------------


def test_only_the_langchain_objects_import_langchain() -> None:
    package = Path(llm_hub.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) langchain", path.read_text("utf-8"), re.MULTILINE)
    }
    assert found
    assert all(path.startswith("langchain/") for path in found)


def test_importing_the_chat_model_adds_next_to_nothing_to_langchains_own_base() -> None:
    code = """
import sys
import langchain_core.language_models.chat_models
before = set(sys.modules)
from llm_hub.langchain import HubChatModel
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "llm_hub",
        "llm_hub.errors",
        "llm_hub.langchain",
        "llm_hub.langchain.chat",
        "llm_hub.langchain.common",
    ]


# -- routes -----------------------------------------------------------------------------------------------------------


def test_the_hub_chooses_unless_the_model_or_the_call_names_a_backend(hub: Hub, model: HubChatModel) -> None:
    assert served(model.invoke("ping")) == "vllm"
    assert served(HubChatModel(hub, backend="ollama").invoke("ping")) == "ollama"
    assert served(model.invoke("ping", backend="ollama")) == "ollama"
    assert served(model.bind(backend="ollama").invoke("ping")) == "ollama"


def test_the_route_is_resolved_on_each_call(environ: dict[str, str], hub: Hub) -> None:
    with Hub.from_env(environ) as mine:
        model, llm = HubChatModel(mine), HubLLM(mine)
        assert served(model.invoke("ping")) == "vllm"
        other = Hub.from_env({**environ, "LLM_PROVIDER": "ollama"})
        mine._epochs.publish(mine._epochs.next_epoch(other.runtime, lambda _: None))
        assert served(model.invoke("ping")) == "ollama"
        assert llm.generate(["ping"]).generations[0][0].generation_info["served_by"]["backend"] == "ollama"  # type: ignore[index]
        other.close()


def test_a_model_that_is_not_there_is_the_hubs_error(model: HubChatModel) -> None:
    with pytest.raises(ModelNotFound, match="hub-test-vlm"):
        model.invoke("ping", model="nonesuch")


def test_a_fallback_is_said(vllm: FakeVLLM, environ: dict[str, str]) -> None:
    broken = {**environ, "VLLM_BASE_URL": "http://127.0.0.1:9", "VLLM_MODEL": "m", "LLM_FALLBACK": "ollama"}
    with Hub.from_env(broken) as hub:
        message = HubChatModel(hub).invoke("ping")
        assert message.response_metadata["served_by"]["fallback"] is True
        assert served(message) == "ollama"
    with Hub.from_env({**broken, "LLM_FALLBACK": ""}) as hub, pytest.raises(BackendUnreachable):
        HubChatModel(hub).invoke("ping")


def test_without_a_hub_that_of_the_environment_is_asked(environ: dict[str, str]) -> None:
    code = f"""
from llm_hub.langchain import HubChatModel, HubLLM
assert HubChatModel().invoke("ping").content == "pong"
assert HubLLM().invoke({QUESTION!r}) == {PARIS!r}
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**environ, "PATH": ""}
    )
    assert done.returncode == 0, done.stderr


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_chain_of_prompt_model_and_parser_answers(model: HubChatModel) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "What is the capital of {country}?")])
    chain = prompt | model | StrOutputParser()
    assert chain.invoke({"country": "France"}) == PARIS
    assert "".join(chain.stream({"country": "France"})) == PARIS
    assert asyncio.run(chain.ainvoke({"country": "France"})) == PARIS
    answers = chain.batch([{"country": "France"}, {"country": "Japan"}])
    assert answers == [PARIS, "The capital of Japan is Tokyo."]


def test_an_answer_tells_who_gave_it_why_it_ended_and_what_it_cost(model: HubChatModel) -> None:
    whole = model.invoke(QUESTION)
    chunks = list(model.stream(QUESTION))
    assert [chunk.chunk_position for chunk in chunks].count("last") == 1
    full: AIMessageChunk | None = None
    for chunk in chunks:
        full = chunk if full is None else full + chunk
    assert full is not None
    for message in (whole, full):
        metadata = message.response_metadata
        assert message.content == PARIS
        assert (metadata["finish_reason"], metadata["model_name"], metadata["model_provider"]) == (
            "stop",
            "hub-test-vlm",
            "llm_hub",
        )
        assert metadata["served_by"] == {
            "backend": "vllm",
            "plugin": "vllm",
            "model": "hub-test-vlm",
            "epoch": 1,
            "attempts": 1,
            "fallback": False,
        }
        assert metadata["timings"]["total"] > 0
        assert message.usage_metadata is not None
        assert message.usage_metadata["input_tokens"] == 18
        assert message.usage_metadata["output_tokens"] == 8
    assert full.response_metadata["timings"]["first_chunk"] > 0


def test_reasoning_comes_apart_as_a_block_also_in_pieces(model: HubChatModel) -> None:
    whole = model.invoke("What is the capital of Japan?", reasoning=True)
    full: AIMessageChunk | None = None
    for chunk in model.stream("What is the capital of Japan?", reasoning=True):
        full = chunk if full is None else full + chunk
    assert full is not None
    for message in (whole, full):
        assert "Tokyo" in message.additional_kwargs["reasoning_content"]
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["reasoning", "text"]
        assert message.text.strip() == "The capital of Japan is Tokyo."
    assert not model.invoke("What is the capital of Japan?", reasoning=False).additional_kwargs
    again = model.invoke([HumanMessage(QUESTION), whole, HumanMessage("ping")])
    assert again.content == "pong"


def test_images_are_seen_and_on_the_route_of_vision_too(hub: Hub) -> None:
    import base64

    picture: Any = {
        "type": "image",
        "base64": base64.b64encode(draw("blue", "square")).decode(),
        "mime_type": "image/png",
    }
    message = HumanMessage(content_blocks=[picture, {"type": "text", "text": "What is in this picture?"}])
    for backend in ("vllm", "ollama"):
        for capability in ("text", "vision"):
            model = HubChatModel(hub, capability=capability, backend=backend, model="hub-test-vlm", temperature=0)
            assert model.invoke([message]).content == "A blue square on a white background."


def test_stop_is_a_default_that_a_call_may_set_anew(hub: Hub) -> None:
    model = HubChatModel(hub, stop=["5"], temperature=0)
    assert model.invoke("Count from 1 to 9.").text.split() == ["1", "2", "3", "4"]
    assert model.invoke("Count from 1 to 9.", stop=["3"]).text.split() == ["1", "2"]
    assert HubChatModel(hub, stop="7").invoke("Count from 1 to 9.").text.split()[-1] == "6"


def test_several_answers_are_several_generations_and_no_stream(model: HubChatModel) -> None:
    result = model.generate([[HumanMessage("ping")]], n=2)
    assert [generation.text for generation in result.generations[0]] == ["pong", "pong"]
    messages = [generation.message for generation in result.generations[0]]  # type: ignore[union-attr]
    assert [message.usage_metadata is None for message in messages if isinstance(message, AIMessage)] == [False, True]
    with pytest.raises(InvalidRequest, match="cannot be streamed"):
        list(model.stream("ping", n=2))


def test_log_probabilities_belong_to_the_tokens(model: HubChatModel) -> None:
    whole = model.invoke("ping", logprobs=True, top_logprobs=2).response_metadata["logprobs"]["content"]
    full: AIMessageChunk | None = None
    for chunk in model.stream("ping", logprobs=True, top_logprobs=2):
        full = chunk if full is None else full + chunk
    assert full is not None
    assert full.response_metadata["logprobs"]["content"] == whole
    assert all(len(token["top_logprobs"]) == 2 for token in whole)


def test_tokens_are_counted_by_the_backend(hub: Hub, model: HubChatModel) -> None:
    assert model.get_num_tokens_from_messages([HumanMessage(QUESTION)]) == 18
    with_tools = model.get_num_tokens_from_messages([SystemMessage("Be brief."), HumanMessage(QUESTION)], [get_weather])
    assert with_tools > 60
    assert HubLLM(hub).get_num_tokens(QUESTION) == 18


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("api_key", "Keys belong to the hub"),
        ("base_url", "Addresses belong to the hub"),
        ("num_predict", "It is called max_tokens"),
        ("max_retries", "The hub retries"),
        ("tempurature", "There are: .*temperature"),
    ],
)
def test_an_option_that_there_is_not_is_refused_with_where_it_belongs(
    model: HubChatModel, option: str, hint: str
) -> None:
    given: Any = {option: 1}
    with pytest.raises(ConfigurationError, match=hint):
        HubChatModel(**given)
    with pytest.raises(InvalidRequest, match=hint):
        model.invoke("ping", **given)


def test_what_is_no_hub_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="takes a Hub, not str"):
        HubChatModel("llama3.2")  # type: ignore[arg-type]


def test_what_the_backend_cannot_do_is_unsupported_and_named(hub: Hub) -> None:
    model = HubChatModel(hub, backend="ollama")
    with pytest.raises(UnsupportedFeature, match="multiple_choices"):
        model.invoke("ping", n=2)


def test_a_timeout_is_for_the_whole_call(environ: dict[str, str]) -> None:
    with FakeVLLM(speed=Speed(first_token=5.0)) as slow, Hub.from_env({**environ, "VLLM_BASE_URL": slow.url}) as hub:
        with pytest.raises(DeadlineExceeded):
            HubChatModel(hub, timeout=0.2).invoke("ping")
        with pytest.raises(DeadlineExceeded):
            asyncio.run(HubLLM(hub).ainvoke("ping", timeout=0.2))


def test_a_call_can_be_cancelled_from_elsewhere(environ: dict[str, str]) -> None:
    with FakeVLLM(speed=Speed(first_token=5.0)) as slow, Hub.from_env({**environ, "VLLM_BASE_URL": slow.url}) as hub:
        token = CancelToken()
        threading.Timer(0.2, token.cancel).start()
        with pytest.raises(Cancelled):
            HubChatModel(hub).invoke("ping", cancel=token)


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_that_breaks_off_is_interrupted_and_says_what_came(environ: dict[str, str]) -> None:
    with FakeVLLM() as server, Hub.from_env({**environ, "VLLM_BASE_URL": server.url}) as hub:
        server.fault(Fault.CLOSE_MID_BODY, after=4, path="/v1/chat/completions")
        errors: list[BaseException] = []

        class Watch(BaseCallbackHandler):
            def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
                errors.append(error)

        with pytest.raises(StreamInterrupted) as caught:
            for _ in HubChatModel(hub).stream("Count from 1 to 30.", config={"callbacks": [Watch()]}):
                pass
        assert caught.value.partial.startswith("1 2")
        assert errors == [caught.value]


def test_a_stream_that_is_left_frees_its_place_at_once(environ: dict[str, str]) -> None:
    with (
        FakeVLLM(speed=Speed(token=0.02), parallel=1) as server,
        Hub.from_env({**environ, "VLLM_BASE_URL": server.url}) as hub,
    ):
        model = HubChatModel(hub, timeout=5.0)
        for _ in model.stream("Count from 1 to 60."):
            break

        async def leave() -> None:
            stream = model.astream("Count from 1 to 60.")
            async for _ in stream:
                break
            await stream.aclose()  # type: ignore[attr-defined]
            assert (await model.ainvoke("ping")).content == "pong"

        assert model.invoke("ping").content == "pong"
        asyncio.run(leave())


def test_async_calls_use_no_threads(model: HubChatModel, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    submit = ThreadPoolExecutor.submit

    def watched(self: ThreadPoolExecutor, work: Any, *args: Any, **options: Any) -> Any:
        given.append(getattr(work, "__name__", repr(work)))
        return submit(self, work, *args, **options)

    async def go() -> None:
        await asyncio.gather(*(model.ainvoke("ping") for _ in range(8)), HubLLM(hub).abatch(["ping"] * 4))
        async for _ in model.astream(QUESTION):
            pass

    model.invoke("ping")
    monkeypatch.setattr(ThreadPoolExecutor, "submit", watched)
    asyncio.run(go())
    assert set(given) <= {"getaddrinfo"}  # the event loop's own way to look a host up


def test_events_come_with_their_pieces(model: HubChatModel) -> None:
    async def go() -> list[str]:
        chain = model | StrOutputParser()
        events = [event async for event in chain.astream_events(QUESTION, version="v2")]
        kinds = {event["event"] for event in events}
        assert {"on_chat_model_start", "on_chat_model_stream", "on_chat_model_end", "on_parser_stream"} <= kinds
        return [event["data"]["chunk"].text for event in events if event["event"] == "on_chat_model_stream"]

    assert "".join(asyncio.run(go())) == PARIS


# -- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["vllm", "ollama"])
@pytest.mark.parametrize(
    ("choice", "called"),
    [
        (None, []),
        ("auto", []),
        ("none", []),
        (False, []),
        ("any", ["get_weather"]),
        ("required", ["get_weather"]),
        (True, ["get_weather"]),
        ("now", ["now"]),
        ({"type": "function", "function": {"name": "now"}}, ["now"]),
        ({"type": "tool", "name": "now"}, ["now"]),
        ({"type": "any"}, ["get_weather"]),
    ],
    ids=repr,
)
def test_a_tool_choice_is_enforced_however_it_is_written(
    hub: Hub, backend: str, choice: Any, called: list[str]
) -> None:
    model = HubChatModel(hub, backend=backend, model="hub-test-vlm", temperature=0)
    bound = model.bind_tools([get_weather, now], tool_choice=choice)
    assert [call["name"] for call in bound.invoke("Hello").tool_calls] == called
    full: Any = None
    for chunk in bound.stream("Hello"):
        full = chunk if full is None else full + chunk
    assert [call["name"] for call in full.tool_calls] == called


def test_a_tool_is_called_and_its_answer_used(model: HubChatModel) -> None:
    bound = model.bind_tools([get_weather], parallel_tool_calls=True)
    question = HumanMessage("What is the weather in Paris?")
    answer = bound.invoke([question])
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    result = get_weather.invoke(call)
    assert bound.invoke([question, answer, result]).content == "It is 18C in Paris in Paris."


@pytest.mark.parametrize(
    ("tools", "choice", "says"),
    [
        ([42], None, r"tools\[0\] is no tool"),
        ([get_weather, {"name": "x", "parameters": 3}], None, r"tools\[1\]|parameters"),
        ([{"type": "web_search_20250305", "name": "web_search"}], None, "only its own provider can run"),
        ([get_weather], "nonesuch", "tool_choice is 'nonesuch', and the tools are"),
        ([get_weather], {"type": "function", "function": {"name": "nonesuch"}}, "names 'nonesuch'"),
        ([get_weather], 3.5, "tool_choice is 3.5"),
    ],
    ids=["number", "parameters", "of a provider", "unknown name", "unknown dict", "nonsense"],
)
def test_a_bad_tool_or_choice_is_refused_before_anything_is_sent(
    model: HubChatModel, tools: list[Any], choice: Any, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        model.bind_tools(tools, tool_choice=choice).invoke("Hello")


# -- schemas ----------------------------------------------------------------------------------------------------------

JSON_SCHEMA = Capital.model_json_schema()
UNTITLED = {name: value for name, value in JSON_SCHEMA.items() if name != "title"}


@pytest.mark.parametrize("backend", ["vllm", "ollama"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize(
    "schema", [Capital, CapitalDict, JSON_SCHEMA, UNTITLED], ids=["class", "dict", "json", "untitled"]
)
def test_answers_follow_a_schema(hub: Hub, backend: str, method: Any, schema: Any) -> None:
    model = HubChatModel(hub, backend=backend, model="hub-test-vlm", temperature=0)
    question = "Give the capital of France as JSON."
    chain = model.with_structured_output(schema, method=method)
    raw = model.with_structured_output(schema, method=method, include_raw=True).invoke(question)
    answer = chain.invoke(question)
    if schema is Capital:
        assert isinstance(answer, Capital)
    elif method != "function_calling":
        assert answer == {"city": "Paris", "country": "France"}
    assert set(dict(answer)) == {"city", "country"}
    assert (raw["parsed"], raw["parsing_error"]) == (answer, None)
    assert isinstance(raw["raw"], AIMessage)
    assert list(chain.stream(question))[-1] == answer
    assert asyncio.run(chain.ainvoke(question)) == answer


def test_an_answer_that_was_cut_is_an_error_and_not_completed_by_guessing(model: HubChatModel) -> None:
    for schema in (Capital, CapitalDict):
        for method in ("json_schema", "function_calling", "json_mode"):
            chain = model.with_structured_output(schema, method=method, max_tokens=6)
            with pytest.raises(OutputParserException, match="was cut by max_tokens"):
                chain.invoke("Give the capital of France as JSON.")
    raw = model.with_structured_output(Capital, include_raw=True, max_tokens=6).invoke(
        "Give the capital of France as JSON."
    )
    assert raw["parsed"] is None
    assert "was cut" in str(raw["parsing_error"])
    assert raw["raw"].response_metadata["finish_reason"] == "length"


def test_an_answer_that_ignores_the_schema_is_an_error_that_says_what_to_do(model: HubChatModel) -> None:
    for schema in (Capital, CapitalDict):
        with pytest.raises(OutputParserException, match=r"city"):
            model.with_structured_output(schema, method="json_mode").invoke("ping")
    with pytest.raises(OutputParserException, match="ignored what was asked for"):
        from llm_hub.langchain.structured import structured

        chain = structured(model, CapitalDict, method="json_mode", include_raw=False, strict=None, options={})
        chain.invoke("ping", response_format=None)
    with pytest.raises(OutputParserException, match="did not call the tool"):
        model.with_structured_output(Capital, method="function_calling").invoke("ping", tool_choice="none")


@pytest.mark.parametrize("schema", [None, 42, "Capital", int], ids=repr)
def test_a_bad_schema_is_refused(model: HubChatModel, schema: Any) -> None:
    for method in ("json_schema", "function_calling", "json_mode"):
        with pytest.raises(InvalidRequest):
            model.with_structured_output(schema, method=method)


def test_a_method_that_there_is_not_is_refused(model: HubChatModel) -> None:
    with pytest.raises(InvalidRequest, match="telepathy"):
        model.with_structured_output(Capital, method="telepathy")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="strict means nothing"):
        model.with_structured_output(Capital, method="json_mode", strict=True)


# -- secrets and copies -----------------------------------------------------------------------------------------------


def test_nothing_that_is_written_holds_the_key_or_the_hub(hub: Hub, vllm: FakeVLLM) -> None:
    model, llm = HubChatModel(hub, temperature=0.5, stop=["x"]), HubLLM(hub, system="Be brief.")
    answer = model.invoke("ping")
    bound = model.bind_tools([get_weather])
    for one in (model, llm, bound, model.with_structured_output(Capital), answer):
        for written in (repr(one), str(one), dumps(one)):
            assert SECRET not in written
            assert vllm.url not in written
    for one in (model, llm, answer):
        assert SECRET.encode() not in pickle.dumps(one)
    assert SECRET not in str(model.model_dump()) + model.model_dump_json() + str(model.asdict())


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_what_was_written_asks_the_hub_of_where_it_is_read(hub: Hub) -> None:
    model = HubChatModel(hub, temperature=0.5, backend="vllm", stop=["x"], options={"top_k": 3})
    llm = HubLLM(hub, system="Be brief.")
    for one in (model, llm):
        for copied in (
            pickle.loads(pickle.dumps(one)),
            load(json.loads(dumps(one)), allowed_objects=[HubChatModel, HubLLM], valid_namespaces=["llm_hub"]),
        ):
            assert type(copied) is type(one)
            assert copied.hub is None
            assert copied.asdict() == one.asdict()


def test_a_copy_asks_the_same_hub(hub: Hub, model: HubChatModel) -> None:
    for copied in (copy.copy(model), copy.deepcopy(model), model.model_copy(), model.model_copy(deep=True)):
        assert copied.hub is hub
        assert copied.invoke("ping").content == "pong"


def test_a_cache_does_not_take_the_answer_of_one_backend_for_that_of_another(hub: Hub) -> None:
    cache = InMemoryCache()
    one = HubChatModel(hub, cache=cache)
    assert served(one.invoke("ping")) == "vllm"
    first = one.invoke("ping").response_metadata["timings"]
    assert one.invoke("ping").response_metadata["timings"] == first  # from the cache
    assert served(one.invoke("ping", backend="ollama")) == "ollama"
    two = HubLLM(hub, cache=cache)
    assert two.invoke("ping") == two.invoke("ping") == "pong"


# -- strings ----------------------------------------------------------------------------------------------------------


def test_a_model_of_strings_takes_and_gives_strings(hub: Hub) -> None:
    llm = HubLLM(hub, temperature=0)
    assert llm.invoke(QUESTION) == PARIS
    assert llm.batch([QUESTION, "ping"]) == [PARIS, "pong"]
    assert "".join(llm.stream(QUESTION)) == PARIS

    async def go() -> None:
        assert await llm.ainvoke(QUESTION) == PARIS
        assert await llm.abatch([QUESTION, "ping"]) == [PARIS, "pong"]
        assert "".join([piece async for piece in llm.astream(QUESTION)]) == PARIS

    asyncio.run(go())
    result = llm.generate([QUESTION, "ping"])
    info = result.generations[0][0].generation_info
    assert info is not None
    assert (info["finish_reason"], info["usage_metadata"]["input_tokens"]) == ("stop", 18)


def test_one_of_several_prompts_that_fails_is_the_hubs_error(hub: Hub) -> None:
    async def go() -> None:
        await HubLLM(hub).agenerate(["ping", ""])

    with pytest.raises(InvalidRequest, match="empty"):
        asyncio.run(go())


def test_an_image_part_is_no_prompt_for_a_model_of_strings(hub: Hub) -> None:
    with pytest.raises(ValueError, match="Invalid input type"):
        HubLLM(hub).invoke(ImagePart(b""))  # type: ignore[arg-type]
