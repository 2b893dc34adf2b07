"""Answers that break what the request made them promise are errors, and those that keep it are not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.errors import ProtocolError
from llm_hub.messages import ChatRequest, ChatResponse, Choice, FinishReason, Message, ResponseFormat, Tool, ToolCall
from llm_hub.promises import check_promises

CAPITAL = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "size": {"type": ["integer", "null"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["city"],
    "additionalProperties": False,
}


def check(text: str, wanted: ResponseFormat | None = None, *, finish: FinishReason = "stop", **more: Any) -> None:
    calls = more.pop("calls", ())
    request = ChatRequest(messages=(Message(role="user", content="x"),), response_format=wanted, **more)
    message = Message(role="assistant", content=text, tool_calls=calls)
    check_promises(request, ChatResponse(choices=(Choice(message=message, finish_reason=finish),)))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"city": "Paris", "size": 2, "tags": ["a"]}', ResponseFormat.json_schema(CAPITAL)),
        ('{"city": "Paris", "size": null}', ResponseFormat.json_schema(CAPITAL)),
        ('{"city": "Paris", "size": 2.0}', ResponseFormat.json_schema(CAPITAL)),
        ('{"a": 1}', ResponseFormat.json_object()),
        ("yes", ResponseFormat.choice(["yes", "no"])),
        ("aaa", ResponseFormat.regex("a+")),
        ("anything", ResponseFormat.grammar("root ::= x")),
        ("anything", None),
    ],
)
def test_a_promise_that_is_kept_passes(text: str, wanted: ResponseFormat | None) -> None:
    check(text, wanted)


@pytest.mark.parametrize(
    ("text", "wanted", "says"),
    [
        ("Sure! Paris.", ResponseFormat.json_schema(CAPITAL), "it is no JSON"),
        ('{"town": "Paris"}', ResponseFormat.json_schema(CAPITAL), r"\$ has no 'city'"),
        ('{"city": 5}', ResponseFormat.json_schema(CAPITAL), r"\$.city is no string"),
        ('{"city": "x", "size": true}', ResponseFormat.json_schema(CAPITAL), r"\$.size is no integer or null"),
        ('{"city": "x", "tags": ["c"]}', ResponseFormat.json_schema(CAPITAL), r"\$.tags\[0\] is none of"),
        ('{"city": "x", "more": 1}', ResponseFormat.json_schema(CAPITAL), "'more', which the schema does not allow"),
        ("[1]", ResponseFormat.json_object(), "no object"),
        ("perhaps", ResponseFormat.choice(["yes", "no"]), "none of the choices"),
        ("ab", ResponseFormat.regex("a+"), "does not match"),
    ],
)
def test_a_promise_that_is_broken_is_an_error_that_says_what_to_do(
    text: str, wanted: ResponseFormat, says: str
) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        check(text, wanted)
    assert "name a backend that does not" in str(caught.value)
    check(text, wanted, finish="length")  # cut off is said by the finish reason


def test_a_tool_that_had_to_be_called_and_was_not_is_an_error() -> None:
    tools = (Tool(name="f"),)
    with pytest.raises(ProtocolError, match="was to call a tool"):
        check("I would rather talk.", tools=tools, tool_choice="required")
    check("", tools=tools, tool_choice="f", calls=(ToolCall(id="1", name="f"),), finish="tool_calls")
    check("I may talk.", tools=tools, tool_choice="auto")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["type", "properties", "required", "items", "enum", "const"]), inner)
        ),
    ),
    st.text(),
)
def test_whatever_the_schema_and_the_answer_nothing_but_a_protocol_error_comes(schema: Any, text: str) -> None:
    wanted = ResponseFormat(type="json_schema", schema=schema if isinstance(schema, dict) else {})
    for answer in (text, msgspec.json.encode(schema).decode()):
        try:
            check(answer, wanted)
        except ProtocolError:
            continue  # any other exception fails the test
