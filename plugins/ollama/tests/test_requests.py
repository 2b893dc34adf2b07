"""Canonical requests are written as the recorded ones were, and nothing that was asked for is left out."""

from __future__ import annotations

import base64
import types
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llm_hub.capabilities import Feature, required_features
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.messages import ChatRequest, ImagePart, Message, ResponseFormat, TextPart, Tool, ToolCall
from llm_hub.testing import Recording
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.request import ChatEncoder
from llm_hub_ollama.settings import OllamaSettings, Profile

# These hold what no canonical request does: broken JSON, no model, no messages, a data: URI among the images.
NOT_CANONICAL = {
    "chat_bad_json",
    "chat_image_bad_base64",
    "chat_load",
    "chat_no_model",
    "chat_unload",
    "hubtest_vision_data_uri",
}

WEATHER = Tool(
    name="get_weather",
    description="Get the weather of a city",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def ask(text: str = "Hello", **fields: Any) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=text),), **{"model": "llama3.2", **fields})


def body(request: ChatRequest, *, stream: bool = False, settings: OllamaSettings | None = None) -> dict[str, Any]:
    wire = OllamaDialect(settings).encode_chat(request, stream=stream, request_id="hub-1")
    assert (wire.method, wire.path) == ("POST", "/api/chat")
    assert wire.body is not None
    decoded: dict[str, Any] = msgspec.json.decode(wire.body)
    return decoded


def test_the_recorded_requests_are_reproduced(
    recordings: dict[str, Recording], canonical: Callable[[Recording], ChatRequest]
) -> None:
    compared = 0
    for name, recording in recordings.items():
        if recording.request.path != "/api/chat" or name in NOT_CANONICAL:
            continue
        recorded = {"stream": True, **recording.request.json}  # streaming is what Ollama does unless told otherwise
        num_ctx = recorded.get("options", {}).get("num_ctx")
        settings = OllamaSettings(num_ctx=num_ctx)
        wire = body(canonical(recording), stream=recorded["stream"], settings=settings)
        # The two things that the hub always says and the recorded client did not.
        assert wire.pop("truncate") is False
        assert wire.pop("shift") is False
        recorded.pop("truncate", None)
        assert wire == recorded, name
        compared += 1
    assert compared == 45


def test_a_model_is_loaded_by_the_recorded_request_with_the_options_of_its_profile(
    recording: Callable[[str], Recording],
) -> None:
    recorded = recording("chat_load").request.json
    encoder = ChatEncoder(OllamaSettings(num_ctx=2048, keep_alive="1h"))
    loads = msgspec.json.decode(encoder.load(recorded["model"]))
    assert recorded.items() <= loads.items()
    asks = msgspec.json.decode(encoder.encode(ask(model=recorded["model"]), stream=True))
    for name in ("options", "keep_alive", "shift"):
        assert loads[name] == asks[name]


def test_every_request_for_a_model_has_the_runner_options_of_its_profile_and_only_those() -> None:
    settings = OllamaSettings(
        num_ctx=4096,
        num_gpu=20,
        keep_alive="10m",
        profiles={"big:70b": Profile(num_ctx=8192, keep_alive=-1, shift=True)},
    )
    small = body(ask(), settings=settings)
    assert small["options"] == {"num_ctx": 4096, "num_gpu": 20}
    assert (small["keep_alive"], small["shift"]) == ("10m", False)
    big = body(ask(model="big:70b", temperature=0.5, options={"top_k": 40}), settings=settings)
    assert big["options"] == {"num_ctx": 8192, "num_gpu": 20, "temperature": 0.5, "top_k": 40}
    assert big["keep_alive"] == -1
    assert "shift" not in big


@pytest.mark.parametrize("name", ["llama3.2", "llama3.2:latest", "Llama3.2", "registry.ollama.ai/library/llama3.2"])
def test_a_profile_holds_for_every_way_of_writing_the_name(name: str) -> None:
    settings = OllamaSettings(profiles={"llama3.2": Profile(num_ctx=1024)})
    wire = body(ask(model=name), settings=settings)
    assert wire["model"] == name
    assert wire["options"] == {"num_ctx": 1024}
    assert "options" not in body(ask(model="llama3.2:1b"), settings=settings)


@pytest.mark.parametrize(
    "option", ["num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict", "shift"]
)
def test_an_option_that_would_reload_the_model_is_refused_and_the_profile_named(option: str) -> None:
    with pytest.raises(InvalidRequest, match="reloads the model") as raised:
        body(ask(options={option: 1}))
    assert raised.value.hint is not None
    assert f"profiles = {{ 'llama3.2' = {{ {option} = ... }} }}" in raised.value.hint


def test_keep_alive_belongs_to_the_profile_too() -> None:
    with pytest.raises(InvalidRequest, match="keep_alive"):
        body(ask(options={"keep_alive": 0}))


def test_an_option_that_ollama_does_not_know_is_refused_because_it_would_ignore_it() -> None:
    with pytest.raises(InvalidRequest, match="'topk' may not be set") as raised:
        body(ask(options={"topk": 1}))
    assert raised.value.hint is not None
    assert "top_k" in raised.value.hint


def test_the_settings_say_which_options_a_request_may_give() -> None:
    narrow = OllamaSettings(request_options=frozenset({"top_k", "mirostat"}))
    assert body(ask(options={"mirostat": 2}), settings=narrow)["options"] == {"mirostat": 2}
    with pytest.raises(InvalidRequest, match="min_p"):
        body(ask(options={"min_p": 0.1}), settings=narrow)


def test_all_sampling_parameters_are_written_as_ollama_calls_them() -> None:
    request = ask(
        temperature=0.0,
        top_p=0.5,
        seed=0,
        max_tokens=7,
        stop=("a", "b"),
        presence_penalty=0.0,
        frequency_penalty=1.5,
        options={"repeat_penalty": 1.1},
    )
    assert body(request)["options"] == {
        "temperature": 0,
        "top_p": 0.5,
        "seed": 0,
        "num_predict": 7,
        "stop": ["a", "b"],
        "presence_penalty": 0,
        "frequency_penalty": 1.5,
        "repeat_penalty": 1.1,
    }


def test_a_parameter_given_twice_is_refused() -> None:
    assert body(ask(options={"temperature": 1.0}))["options"] == {"temperature": 1.0}
    with pytest.raises(InvalidRequest, match="temperature twice"):
        body(ask(temperature=0.0, options={"temperature": 1.0}))


def test_images_are_bare_base64_beside_the_text() -> None:
    first, second = b"\x89PNG one", b"\xff\xd8\xff two"
    message = Message(
        role="user",
        content=(TextPart("What is "), ImagePart(first), TextPart("this?"), ImagePart(second, media_type="image/jpeg")),
    )
    wire = body(ChatRequest(messages=(message,), model="llava"))["messages"][0]
    assert wire["content"] == "What is this?"
    assert [base64.b64decode(image, validate=True) for image in wire["images"]] == [first, second]


def test_tool_results_name_their_tool_even_where_only_the_call_did() -> None:
    messages = (
        Message(role="user", content="Weather in Paris?"),
        Message(
            role="assistant",
            reasoning="I call it.",
            tool_calls=(ToolCall(id="call_1", name="get_weather", arguments='{"city": "Paris", "n": 1.5}'),),
        ),
        Message(role="tool", content="18C", tool_call_id="call_1"),
        Message(role="tool", content="19C", name="get_weather"),
    )
    wire = body(ChatRequest(messages=messages, model="m", tools=(WEATHER,)))["messages"]
    assert wire[1] == {
        "role": "assistant",
        "content": "",
        "thinking": "I call it.",
        "tool_calls": [{"id": "call_1", "function": {"name": "get_weather", "arguments": {"city": "Paris", "n": 1.5}}}],
    }
    assert wire[2] == {"role": "tool", "content": "18C", "tool_name": "get_weather", "tool_call_id": "call_1"}
    assert wire[3] == {"role": "tool", "content": "19C", "tool_name": "get_weather"}


@pytest.mark.parametrize("arguments", ['{"city": "Par', '["Paris"]', '"Paris"', "[" * 100_000])
def test_arguments_that_are_no_object_are_refused_before_anything_is_sent(arguments: str) -> None:
    call = ToolCall(id="c", name="get_weather", arguments=arguments)
    with pytest.raises(InvalidRequest, match="'get_weather' whose arguments are no JSON object"):
        body(ChatRequest(messages=(Message(role="assistant", tool_calls=(call,)),), model="m"))


def test_a_tool_without_parameters_takes_an_object_without_properties() -> None:
    wire = body(ask(tools=(Tool(name="now"),)))["tools"]
    assert wire == [
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    ]


def test_schemas_may_be_any_mapping() -> None:
    schema = types.MappingProxyType({"type": "object", "properties": types.MappingProxyType({})})
    request = ask(response_format=ResponseFormat.json_schema(schema), tools=(Tool(name="now", parameters=schema),))
    assert body(request)["format"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("reasoning", [True, False, "low", "medium", "high"])
def test_thinking_is_asked_for_as_given(reasoning: Any) -> None:
    assert body(ask(reasoning=reasoning))["think"] == reasoning
    assert "think" not in body(ask())


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"n": 2}, Feature.MULTIPLE_CHOICES),
        ({"response_format": ResponseFormat.regex("[0-9]+")}, Feature.REGEX),
        ({"response_format": ResponseFormat.choice(["a", "b"])}, Feature.CHOICE),
        ({"response_format": ResponseFormat.grammar("root ::= 'a'")}, Feature.GRAMMAR),
    ],
)
def test_what_the_api_cannot_say_is_unsupported_and_not_among_its_features(
    fields: dict[str, Any], feature: Feature
) -> None:
    request = ask(**fields)
    with pytest.raises(UnsupportedFeature) as raised:
        body(request)
    assert raised.value.features == (feature.value,)
    assert raised.value.hint
    assert feature not in OllamaDialect().features
    assert feature in required_features(request)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": (Tool(name="now", strict=True),)}, "strict tools"),
        ({"messages": (Message(role="user", content="Hi", name="Ann"),)}, "message name"),
    ],
)
def test_details_that_would_be_dropped_are_unsupported(fields: dict[str, Any], named: str) -> None:
    request = msgspec.structs.replace(ask(), **fields)
    with pytest.raises(UnsupportedFeature) as raised:
        body(request)
    assert raised.value.features == (named,)


def test_a_forced_call_is_forced_by_a_schema_and_none_leaves_the_tools_out() -> None:
    other = Tool(name="now")
    for choice in ("required", "get_weather"):
        wire = body(ask(tools=(WEATHER,), tool_choice=choice))
        assert wire["tools"][0]["function"]["name"] == "get_weather"
        assert wire["format"]["properties"]["name"]["enum"] == ["get_weather"]
        assert wire["format"]["properties"]["arguments"] == WEATHER.parameters
    assert len(body(ask(tools=(WEATHER, other), tool_choice="required"))["format"]["anyOf"]) == 2
    assert body(ask(tools=(WEATHER, other), tool_choice="now"))["format"]["properties"]["name"]["enum"] == ["now"]
    wire = body(ask(tools=(WEATHER,), tool_choice="none"))
    assert "tools" not in wire
    assert "format" not in wire


def test_auto_and_parallel_calls_are_what_ollama_does_anyway() -> None:
    wire = body(ask(tools=(WEATHER,), tool_choice="auto", parallel_tool_calls=True))
    assert "tool_choice" not in wire


def test_every_feature_of_the_dialect_is_written_into_a_request() -> None:
    requests = {
        Feature.SYSTEM: ChatRequest(messages=(Message(role="system", content="Be brief"), *ask().messages), model="m"),
        Feature.TOOLS: ask(tools=(WEATHER,)),
        Feature.TOOL_CHOICE: ask(tools=(WEATHER,), tool_choice="required"),
        Feature.JSON_OBJECT: ask(response_format=ResponseFormat.json_object()),
        Feature.JSON_SCHEMA: ask(response_format=ResponseFormat.json_schema({"type": "object"})),
        Feature.IMAGES: ChatRequest(messages=(Message(role="user", content=(ImagePart(b"x"),)),), model="m"),
        Feature.REASONING: ask(reasoning=True),
        Feature.REASONING_EFFORT: ask(reasoning="low"),
        Feature.LOGPROBS: ask(logprobs=True),
        Feature.SEED: ask(seed=1),
        Feature.PENALTIES: ask(presence_penalty=1.0),
    }
    assert requests.keys() == OllamaDialect().features
    plain = body(ask())
    for feature, request in requests.items():
        assert feature in required_features(request)
        assert body(request) != plain


def test_alternatives_ask_for_log_probabilities_as_well() -> None:
    wire = body(ask(top_logprobs=3))
    assert (wire["logprobs"], wire["top_logprobs"]) == (True, 3)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ask(model=None), "no model is named"),
        (ChatRequest(messages=(), model="m"), "the conversation is empty"),
        (ask("\ud800"), "not valid Unicode"),
        (ask(options={"top_k": object()}), "cannot be written as JSON"),
    ],
)
def test_a_request_that_cannot_be_sent_is_invalid(request_: ChatRequest, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        body(request_)
