"""What is sent to an OpenAI-compatible server, and what is refused before it is sent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_hub.capabilities import Feature
from llm_hub.errors import (
    InvalidRequest,
    UnsupportedFeature,
)
from llm_hub.messages import (
    ChatRequest,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from llm_hub.openai_dialect import (
    OpenAIDialect,
    encode_body,
)

USER = Message(role="user", content="hi")


def ask(*messages: Message, **fields: Any) -> ChatRequest:
    return ChatRequest(messages=messages or (USER,), **fields)


def test_every_field_of_a_request_has_its_place_in_the_body() -> None:
    tool = Tool(name="f", description="does f", parameters={"type": "object"}, strict=True)
    request = ask(
        Message(role="system", content="Be brief."),
        Message(role="user", content="hi", name="ann"),
        model="m",
        tools=(tool,),
        tool_choice="f",
        parallel_tool_calls=False,
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop=("a", "b"),
        seed=3,
        n=2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logprobs=True,
        top_logprobs=4,
        options={"top_k": 5},
    )
    wire = OpenAIDialect().encode_chat(request, stream=True, request_id="hub-1")
    assert (wire.method, wire.path) == ("POST", "/v1/chat/completions")
    assert wire.headers == {"accept": "text/event-stream", "x-request-id": "hub-1"}
    assert msgspec.json.decode(wire.body or b"") == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi", "name": "ann"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "stop": ["a", "b"],
        "seed": 3,
        "n": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logprobs": True,
        "top_logprobs": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 5,
    }


def test_what_a_request_does_not_say_is_not_sent() -> None:
    assert encode_body(ask()) == {"messages": [{"role": "user", "content": "hi"}]}


def test_zero_is_something_that_a_request_says() -> None:
    body = encode_body(ask(temperature=0.0, seed=0, max_tokens=0, presence_penalty=0.0, top_logprobs=0))
    assert {key: body[key] for key in body.keys() - {"messages"}} == {
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": 0,
        "presence_penalty": 0.0,
        "logprobs": True,
        "top_logprobs": 0,
    }


def test_tool_calls_and_their_results_go_back_into_the_conversation() -> None:
    calls = (ToolCall(id="1", name="f", arguments='{"a":1}'), ToolCall(id="2", name="g"))
    messages = encode_body(
        ask(
            USER,
            Message(role="assistant", tool_calls=calls),
            Message(role="tool", content="18C", tool_call_id="1", name="f"),
            Message(role="tool", content="", tool_call_id="2"),
            Message(role="assistant", content="I call.", tool_calls=calls[:1]),
            tools=(Tool(name="f"), Tool(name="g")),
        )
    )["messages"]
    assert messages[1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                {"id": "2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "18C", "tool_call_id": "1", "name": "f"},
        {"role": "tool", "content": "", "tool_call_id": "2"},
        {
            "role": "assistant",
            "content": "I call.",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
    ]


def test_images_are_sent_as_their_bytes_in_data_uris() -> None:
    content = (TextPart("look"), ImagePart(b"\x89PNG", "image/png"), ImagePart(b"\xff\xd8", "image/jpeg"))
    (message,) = encode_body(ask(Message(role="user", content=content)))["messages"]
    assert message["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9g="}},
    ]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ResponseFormat.json_object(), {"type": "json_object"}),
        (
            ResponseFormat.json_schema({"type": "object"}, name="place", strict=True),
            {"type": "json_schema", "json_schema": {"name": "place", "schema": {"type": "object"}, "strict": True}},
        ),
        (
            ResponseFormat.json_schema({"type": "object"}),
            {"type": "json_schema", "json_schema": {"name": "response", "schema": {"type": "object"}}},
        ),
    ],
)
def test_json_is_asked_for_by_the_response_format(wanted: ResponseFormat, expected: dict[str, Any]) -> None:
    assert encode_body(ask(response_format=wanted))["response_format"] == expected


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_tool_choice_is_one_of_three_words_or_a_name(choice: str) -> None:
    assert encode_body(ask(tools=(Tool(name="f"),), tool_choice=choice))["tool_choice"] == choice


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_choice_among_no_tools_that_changes_nothing_is_left_out(choice: str) -> None:
    assert "tool_choice" not in encode_body(ask(tool_choice=choice))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (ChatRequest(messages=()), "the conversation is empty"),
        (ask(tool_choice="required"), "no tools are offered"),
        (ask(tools=(Tool(name="f"), Tool(name="g")), tool_choice="h"), "the tools are f, g"),
        (ask(Message(role="tool", content="x")), "does not say which call it answers"),
        (ask(options={"temperature": 1, "seed": 2}), "options may not set seed, temperature"),
        (ask(options={"max_completion_tokens": 1}), "options may not set max_completion_tokens"),
        (ask(options={"f": object()}), "something that JSON cannot"),
        (ask(Message(role="user", content="\ud800")), "not valid Unicode"),
    ],
)
def test_a_malformed_request_is_refused_before_it_is_sent(request_: ChatRequest, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        OpenAIDialect().encode_chat(request_, stream=False)


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({"response_format": ResponseFormat.regex("a")}, ("regex",)),
        ({"response_format": ResponseFormat.choice(["a"])}, ("choice",)),
        ({"reasoning": "high"}, ("reasoning", "reasoning_effort")),
    ],
)
def test_what_the_format_cannot_express_is_refused_before_it_is_sent(
    fields: dict[str, Any], features: tuple[str, ...]
) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        OpenAIDialect().encode_chat(ask(**fields), stream=False)
    assert caught.value.features == features


def test_a_server_with_fewer_features_is_asked_for_no_more() -> None:
    dialect = OpenAIDialect(features=frozenset({Feature.SYSTEM}))
    dialect.encode_chat(ask(Message(role="system", content="x"), USER), stream=False)
    with pytest.raises(UnsupportedFeature, match="cannot be asked for images, seed, tools"):
        image = Message(role="user", content=(ImagePart(b"x"),))
        dialect.encode_chat(ask(image, tools=(Tool(name="f"),), seed=1), stream=False)


def test_a_server_that_differs_is_a_few_declarations() -> None:
    dialect = OpenAIDialect(
        features=frozenset({Feature.SYSTEM, Feature.REASONING, Feature.REASONING_EFFORT}),
        prefix="/openai",
        max_tokens_field="max_completion_tokens",
        reasoning_field="reasoning_content",
        request_id_header=None,
    )
    thought = Message(role="assistant", content="4", reasoning="2+2")
    wire = dialect.encode_chat(ask(thought, USER, max_tokens=9, reasoning="low"), stream=False, request_id="x")
    assert (wire.path, wire.headers) == ("/openai/chat/completions", {"accept": "application/json"})
    assert msgspec.json.decode(wire.body or b"") == {
        "messages": [
            {"role": "assistant", "content": "4", "reasoning_content": "2+2"},
            {"role": "user", "content": "hi"},
        ],
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
    }


@pytest.mark.parametrize(("reasoning", "effort"), [(False, "none"), (True, None), ("medium", "medium"), (None, None)])
def test_an_effort_is_how_openai_servers_are_asked_to_think(reasoning: Any, effort: str | None) -> None:
    dialect = OpenAIDialect(features=frozenset({Feature.REASONING, Feature.REASONING_EFFORT}))
    wire = dialect.encode_chat(ask(reasoning=reasoning), stream=False)
    assert msgspec.json.decode(wire.body or b"").get("reasoning_effort") == effort
