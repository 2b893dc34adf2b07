"""What is made of the answers of OpenAI-compatible servers, whole, in events, and parsed already."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    BackendFailed,
    ContextOverflow,
    ModelNotFound,
    ProtocolError,
    StreamInterrupted,
)
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    Message,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from llm_hub.openai_dialect import (
    ChunkStream,
    OpenAIDialect,
    decode_chunk,
    decode_completion,
    finish_reason,
)


def ask(*messages: Message, **fields: Any) -> ChatRequest:
    return ChatRequest(messages=messages or (Message(role="user", content="hi"),), **fields)


def completion(message: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    one = {"index": 0, "message": {"role": "assistant", "content": "x"} if message is None else message}
    return {"id": "1", "object": "chat.completion", "choices": [{**one, "finish_reason": "stop", **choice}]}


def reply(body: Any, status: int = 200, **headers: str) -> HttpReply:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    kind = "text/html" if raw.startswith(b"<") else "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpReply(status, {"content-type": kind, **named}, raw)


def test_dicts_and_bytes_are_decoded_alike() -> None:
    obj = {
        "id": "chatcmpl-1",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "content": "hi",
                    "reasoning_content": "hm",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                "logprobs": {"content": [{"token": "h", "logprob": -0.5, "bytes": [104], "top_logprobs": []}]},
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
        "timings": {"prompt_ms": 500, "predicted_ms": 250.0, "prompt_n": 3},
        "unknown": {"fields": [1]},
    }
    answer = decode_completion(obj)
    assert answer == OpenAIDialect().decode_chat(ask(), reply(obj))
    assert (answer.id, answer.model, answer.text, answer.reasoning) == ("chatcmpl-1", "m", "hi", "hm")
    assert answer.tool_calls == (ToolCall(id="a", name="f", arguments="{}"),)
    assert answer.usage == Usage(prompt_tokens=3, completion_tokens=4, reasoning_tokens=1, cached_tokens=2)
    assert answer.timings == Timings(prompt=0.5, generation=0.25)
    assert answer.choices[0].logprobs == (TokenLogprob(token="h", logprob=-0.5, bytes=(104,)),)


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": None}, "", None),
        ({"content": "a", "reasoning": "r"}, "a", "r"),
        ({"content": "a", "reasoning": None, "reasoning_content": "r"}, "a", "r"),
        ({"content": "a", "reasoning": "r", "reasoning_content": "r"}, "a", "r"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab", None),
        ({"content": None, "refusal": "I must not."}, "I must not.", None),
    ],
)
def test_text_and_reasoning_are_found_under_all_their_names(
    message: dict[str, Any], text: str, reasoning: str | None
) -> None:
    answer = decode_completion(completion(message))
    assert (answer.text, answer.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"id": "a", "function": {"name": "f", "arguments": ""}}, ToolCall(id="a", name="f", arguments="{}")),
        ({"id": "a", "function": {"name": "f"}}, ToolCall(id="a", name="f", arguments="{}")),
        ({"function": {"name": "f", "arguments": {"x": 1}}}, ToolCall(id="call_0", name="f", arguments='{"x":1}')),
        ({"id": "a", "function": {"name": "f", "arguments": "{x"}}, ToolCall(id="a", name="f", arguments="{x")),
    ],
)
def test_tool_calls_of_careless_servers_are_put_right(call: dict[str, Any], expected: ToolCall) -> None:
    answer = decode_completion(completion({"content": None, "tool_calls": [call]}))
    assert answer.tool_calls == (expected,)
    assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("function_call", "tool_calls"),
        ("eos_token", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("repetition", "length"),
        ("who knows", "stop"),
    ],
)
def test_every_word_for_an_end_is_a_finish_reason(word: str, reason: str) -> None:
    assert finish_reason(word) == reason


def test_a_stop_with_tool_calls_means_that_tools_were_called_and_a_length_stays_one() -> None:
    assert finish_reason("stop", called=True) == "tool_calls"
    assert finish_reason("length", called=True) == "length"


@pytest.mark.parametrize("word", ["abort", "error"])
def test_a_word_for_giving_up_is_a_failure(word: str) -> None:
    with pytest.raises(BackendFailed, match="gave up within the answer"):
        decode_completion(completion(finish_reason=word))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            b"<html>\n<body>502 Bad\nGateway",
            r"no chat completion \(text/html\); it begins '<html> <body>502 Bad Gateway'",
        ),
        (b"", "no chat completion"),
        (b"[]", "no chat completion"),
        (b'{"choices": [{"message": {"content": 3}}]}', "no chat completion"),
        (b'{"choices": [{"message": {"content": "\xff"}, "finish_reason": "stop"}]}', "no chat completion"),
        (b'{"choices": []}', "it holds no choices"),
        (b'{"hello": "world"}', "it holds no choices"),
        (b'{"choices": [{"finish_reason": "stop"}]}', "choice 0 holds no message"),
        (b'{"choices": [{"message": {"content": "a"}}]}', "choice 0 has no finish reason"),
        (b'data: {"choices": []}\n\n', "no chat completion"),
    ],
)
def test_an_answer_that_is_none_is_a_protocol_error_that_shows_how_it_begins(body: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        OpenAIDialect().decode_chat(ask(), reply(body))


def test_fewer_answers_than_were_asked_for_are_an_error() -> None:
    with pytest.raises(ProtocolError, match="1 of the 2 answers"):
        OpenAIDialect().decode_chat(ask(n=2), reply(completion()))


def test_an_error_that_comes_with_status_200_is_that_error() -> None:
    body = {"error": {"message": "The model `x` does not exist.", "code": 404}}
    with pytest.raises(ModelNotFound):
        OpenAIDialect().decode_chat(ask(model="x"), reply(body))
    with pytest.raises(BackendFailed, match="out of memory"):
        decode_completion({"error": "CUDA out of memory"})
    with pytest.raises(ProtocolError, match="no chat completion"):
        decode_completion({"choices": 3})


def test_logprobs_come_with_their_chunk() -> None:
    choice = {
        "index": 0,
        "delta": {"content": "a"},
        "logprobs": {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": -2.0}]}]},
    }
    (first,) = decode_chunk({"choices": [choice]})
    assert first.logprobs == (TokenLogprob(token="a", logprob=-1.0, top=(TokenLogprob(token="b", logprob=-2.0),)),)


def test_chunks_that_were_parsed_already_are_decoded_alike() -> None:
    objects: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "timings": {"predicted_ms": 1000.0}},
    ]
    stream = ChunkStream()
    chunks = [each for obj in objects for each in stream.add_object(obj)] + stream.end()
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    assert chunks == [
        ChatChunk("a"),
        ChatChunk(finish_reason="length", usage=usage, timings=Timings(generation=1.0)),
    ]
    assert [decode_chunk(obj) for obj in objects[1:3]] == [[ChatChunk("a")], [ChatChunk(finish_reason="length")]]
    with pytest.raises(StreamInterrupted):
        ChunkStream().end()
    with pytest.raises(ContextOverflow):
        stream.add_object({"error": {"type": "exceed_context_size_error", "message": "too long", "code": 400}})
    with pytest.raises(ProtocolError, match="no chunk"):
        stream.add_object({"choices": "x"})
