"""What callers pass as a prompt."""

from __future__ import annotations

import base64
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.errors import InvalidRequest
from llm_hub.image_headers import image_media_type
from llm_hub.messages import ChatRequest, ImagePart, Message, ResponseFormat, TextPart, Tool, ToolCall
from llm_hub.prompts import build_request

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


def test_text_is_one_user_message() -> None:
    assert build_request("Hi", {}).messages == (Message(role="user", content="Hi"),)


def test_a_system_text_goes_first() -> None:
    assert [message.role for message in build_request("Hi", {"system": "Be brief"}).messages] == ["system", "user"]


def test_a_conversation_in_the_shape_of_openai_becomes_messages() -> None:
    request = build_request(
        [
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, _image_part(PNG)]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "done"},
        ],
        {},
    )
    assert request.messages == (
        Message(role="system", content="Be brief"),
        Message(role="user", content=(TextPart("What is it?"), ImagePart(PNG, "image/png"))),
        Message(role="assistant", tool_calls=(ToolCall(id="c1", name="f", arguments='{"a": 1}'),)),
        Message(role="tool", tool_call_id="c1", content="done"),
    )


def test_options_become_canonical() -> None:
    request = build_request(
        "Hi",
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": "f",
            "stop": "END",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        },
    )
    assert request.tools == (Tool(name="f", parameters={"type": "object"}),)
    assert request.stop == ("END",)
    assert request.response_format == ResponseFormat.json_schema({"type": "object"}, name="n")


def test_options_override_those_of_a_whole_request() -> None:
    given_request = ChatRequest(messages=(Message(role="user", content="Hi"),), temperature=1.0, seed=3)
    request = build_request(given_request, {"temperature": 0.0})
    assert (request.temperature, request.seed) == (0.0, 3)


def test_any_kind_of_number_is_taken_for_a_number() -> None:
    request = build_request("a", {"temperature": Fraction(1, 2), "top_p": 1})  # type: ignore[typeddict-item]
    assert (request.temperature, type(request.temperature), type(request.top_p)) == (0.5, float, float)


def _image_part(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "the prompt is empty"),
        (" \n\t", {}, "the prompt is empty"),
        ([], {}, "the conversation is empty"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": ""}], {}, r"messages\[1\] \(user\) is empty"),
        ([{"role": "system", "content": "a"}], {}, "only a system message"),
        ([{"role": "robot", "content": "a"}], {}, r"messages\[0\] has the role 'robot'"),
        ([{"role": "user", "contents": "a"}], {}, r"unknown keys \['contents'\]"),
        ([{"role": "user", "content": 5}], {}, r"messages\[0\].content is a int"),
        ([{"role": "user", "content": [{"type": "video"}]}], {}, "no part that is known"),
        ([{"role": "tool", "content": "a"}], {}, "answers no call"),
        ([7], {}, r"messages\[0\] is a int"),
        (b"bytes", {}, "not bytes"),
        (7, {}, "not int"),
        ("a\udc80b", {}, "lone surrogate at position 1"),
        ([Message(role="user", content="\udc80")], {}, "lone surrogate"),
        (
            [{"role": "user", "content": [_image_part(b"") | {"image_url": {"url": "http://h/a.png"}}]}],
            {},
            "fetches no URLs",
        ),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png,x"}]}], {}, "not base64"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "data:;base64,%"}]}], {}, "not valid base64"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], {"system": "c"}, "already"),
        ("a", {"system": 5}, "system must be text"),
        ("a", {"max_tokens": 0}, "max_tokens must be at least 1"),
        ("a", {"n": 0}, "n must be at least 1"),
        ("a", {"temperature": "hot"}, r"temperature must be a number, not str \('hot'\)"),
        ("a", {"max_tokens": 5.5}, "max_tokens must be a whole number, not float"),
        ("a", {"seed": True}, "seed must be a whole number, not bool"),
        ("a", {"temperature": -1.0}, "temperature must not be negative"),
        ("a", {"top_p": 0.0}, "top_p"),
        ("a", {"colour": "red"}, "colour"),
        ("a", {"tools": [TOOL, TOOL]}, "same name"),
        ("a", {"tools": [{}]}, r"tools\[0\] has no name"),
        ("a", {"tools": [Tool(name="")]}, "empty name"),
        ("a", {"tools": [Tool(name="f", parameters={"type": "string"})]}, "no JSON schema of an object"),
        ("a", {"tool_choice": "required"}, "no tools are offered"),
        ("a", {"tool_choice": "g", "tools": [TOOL]}, "names 'g', which is not among"),
        ("a", {"response_format": {"type": "xml"}}, "'xml' is not known"),
    ],
)
def test_what_is_wrong_is_named(prompt: Any, options: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        build_request(prompt, options)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["role", "content", "type", "text", "image_url", "url", "tool_calls"]),
                inner | st.sampled_from(["user", "tool", "assistant", "text", "image_url"]),
            )
        ),
    )
)
def test_whatever_is_passed_is_a_request_or_an_invalid_request(value: Any) -> None:
    try:
        assert build_request(value, {}).messages
    except InvalidRequest:
        return  # anything else fails the test


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\0\0\0\0WEBP", "image/webp"),
        (b"BM", "image/bmp"),
        (b"II*\0", "image/tiff"),
        (b"<svg>", None),
        (b"", None),
    ],
)
def test_an_image_is_known_by_its_first_bytes(data: bytes, media_type: str | None) -> None:
    assert image_media_type(data) == media_type
