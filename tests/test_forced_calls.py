"""A forced tool call is a text of one schema: whatever fits the schema is a call, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.errors import ProtocolError, UnsupportedFeature
from llm_hub.forced_calls import ForcedCalls, call_in, call_schema, is_forced
from llm_hub.messages import ChatChunk, ChatRequest, Message, ResponseFormat, Tool, ToolCallDelta
from llm_hub.streams import collect
from llm_hub.testing.schemas import minimal_instance

TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}},
    "required": ["root"],
    "$defs": {
        "Leaf": {"type": "string", "enum": ["leaf"]},
        "Node": {
            "type": "object",
            "properties": {
                "leaf": {"$ref": "#/$defs/Leaf"},
                "more": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
            "required": ["leaf"],
        },
    },
}
WEATHER = Tool(name="weather", parameters={"properties": {"city": {"type": "string"}}, "required": ["city"]})
GROW = Tool(name="grow", parameters=TREE)
NOW = Tool(name="now")


def ask(**fields: Any) -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content="Hi"),), **fields)


@pytest.mark.parametrize(
    ("choice", "forced"), [(None, False), ("auto", False), ("none", False), ("required", True), ("now", True)]
)
def test_a_call_is_forced_by_required_and_by_a_name(choice: str | None, forced: bool) -> None:
    assert is_forced(ask(tools=(NOW,), tool_choice=choice)) is forced


@pytest.mark.parametrize(("choice", "name"), [("weather", "weather"), ("grow", "grow"), ("now", "now")])
def test_what_fits_the_schema_is_a_call_of_the_tool_that_is_named(choice: str, name: str) -> None:
    schema = call_schema(ask(tools=(WEATHER, GROW, NOW), tool_choice=choice))
    call = call_in(json.dumps(minimal_instance(schema)), id="c")
    assert (call.id, call.name) == ("c", name)
    assert isinstance(call.parsed(), dict)


def test_required_allows_each_tool_and_definitions_stay_apart() -> None:
    twin = Tool(name="twin", parameters={**TREE, "$defs": {**TREE["$defs"], "Leaf": {"enum": ["other"]}}})  # type: ignore[dict-item]
    schema = call_schema(ask(tools=(GROW, twin), tool_choice="required"))
    one, other = schema["anyOf"]
    definitions = schema["$defs"]
    assert minimal_instance({**one, "$defs": definitions}) == {"name": "grow", "arguments": {"root": {"leaf": "leaf"}}}
    assert minimal_instance({**other, "$defs": definitions})["arguments"] == {"root": {"leaf": "other"}}


def test_parameters_are_not_changed_by_it() -> None:
    before = json.dumps(TREE)
    call_schema(ask(tools=(GROW,), tool_choice="required"))
    assert json.dumps(TREE) == before


@pytest.mark.parametrize(
    "text",
    ["", "It is noon.", "[]", '{"name": "now"}', '{"name": "now", "arguments": []}', '{"name": 1, "arguments": {}}'],
)
def test_what_is_no_call_is_an_error_that_shows_it(text: str) -> None:
    with pytest.raises(ProtocolError, match="a tool call was forced"):
        call_in(text, id="c")


def test_a_call_and_a_format_at_once_are_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="at once"):
        call_schema(ask(tools=(NOW,), tool_choice="now", response_format=ResponseFormat.json_object()))


# -- streams ----------------------------------------------------------------------------------------------------------

FORCED = ask(tools=(NOW,), tool_choice="required", n=2)
CALL = '{"name": "now", "arguments": {}}'


def passed(*chunks: ChatChunk) -> list[ChatChunk]:
    seen: list[ChatChunk] = []
    forced = ForcedCalls(FORCED, seen.append)
    for chunk in chunks:
        forced(chunk)
    return seen


@given(st.integers(0, len(CALL)), st.integers(0, len(CALL)))
def test_however_its_text_is_cut_a_forced_answer_is_a_call_and_no_text(one: int, other: int) -> None:
    first, last = sorted((one, other))
    pieces = [CALL[:first], CALL[first:last], CALL[last:]]
    chunks = [ChatChunk(text=piece, index=index) for piece in pieces for index in (0, 1)]
    answer = collect(passed(*chunks, *(ChatChunk(index=index, finish_reason="stop") for index in (0, 1))))
    assert [choice.finish_reason for choice in answer.choices] == ["tool_calls", "tool_calls"]
    assert [choice.message.text for choice in answer.choices] == ["", ""]
    assert [[call.name for call in choice.message.tool_calls] for choice in answer.choices] == [["now"], ["now"]]
    assert len({call.id for choice in answer.choices for call in choice.message.tool_calls}) == 2


def test_reasoning_is_passed_on_at_once() -> None:
    assert [chunk.reasoning for chunk in passed(ChatChunk(reasoning="Hm."), ChatChunk(text="{"))] == ["Hm.", ""]


def test_a_call_that_the_server_found_itself_is_passed_on() -> None:
    native = ChatChunk(tool_calls=(ToolCallDelta(0, "c", "now", "{}"),))
    assert passed(native, ChatChunk(finish_reason="tool_calls")) == [native, ChatChunk(finish_reason="tool_calls")]


def test_an_answer_that_was_cut_says_so_and_one_that_is_no_call_is_an_error() -> None:
    *_, last = passed(ChatChunk(text=CALL[:9]), ChatChunk(finish_reason="length"))
    assert (last.text, last.finish_reason, last.tool_calls) == (CALL[:9], "length", ())
    with pytest.raises(ProtocolError):
        passed(ChatChunk(text="It is noon."), ChatChunk(finish_reason="stop"))
