"""A streamed answer is decoded the same however its bytes are cut, and ends exactly once: properly or with an error."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    BackendFailed,
    BackendOverloaded,
    ContextOverflow,
    HubError,
    ProtocolError,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, Message, Tool, ToolCall, ToolCallDelta, Usage
from llm_hub.streaming import MAX_LINE
from llm_hub.testing import Recording
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.settings import OllamaSettings

REQUEST = ChatRequest(messages=(Message(role="user", content="Hello"),), model="m")
END = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", "eval_count": 2}


def line(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", **fields}) + b"\n"


def said(text: str, **fields: Any) -> bytes:
    return line(message={"role": "assistant", "content": text, **fields}, done=False)


def called(name: str, arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **fields}


def read(
    pieces: list[bytes], request: ChatRequest = REQUEST, dialect: OllamaDialect | None = None
) -> tuple[list[ChatChunk], HubError | None]:
    """All chunks, and the error that ended them."""
    decoder = (dialect or OllamaDialect()).decode_stream(request)
    chunks: list[ChatChunk] = []
    try:
        for piece in pieces:
            if decoder.done:
                break
            chunks += decoder.feed(piece)
        chunks += decoder.finish()
    except HubError as error:
        return chunks, error
    return chunks, None


def whole(request: ChatRequest = REQUEST, **fields: Any) -> ChatResponse:
    body = line(**{**END, **fields})
    return OllamaDialect().decode_chat(request, HttpReply(200, {}, body))


def test_the_line_that_is_done_ends_the_stream_and_what_follows_is_not_read() -> None:
    chunks, error = read([said("Hi") + line(**END) + said("more") + b"garbage\n"])
    assert error is None
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("Hi", None), ("", "stop")]
    assert chunks[-1].usage == Usage(completion_tokens=2)


def test_nothing_is_read_after_the_end() -> None:
    decoder = OllamaDialect().decode_stream(REQUEST)
    decoder.feed(line(**END))
    assert decoder.done
    assert decoder.feed(b"garbage\n") == []
    assert decoder.finish() == []


def test_the_last_line_may_hold_content_and_lack_its_newline() -> None:
    last = line(message={"content": "Hi"}, done=True, done_reason="length").rstrip()
    chunks, error = read([last])
    assert error is None
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("Hi", "length")]


def test_lines_without_anything_in_them_make_no_chunks_and_null_is_nothing() -> None:
    empty = line(message={"role": "assistant", "content": None, "thinking": None, "tool_calls": None}, done=False)
    chunks, error = read([empty, b"\n", said("Hi"), b"\r\n", line(**END)])
    assert error is None
    assert [chunk.text for chunk in chunks] == ["Hi", ""]


def test_a_stream_that_ends_without_its_mark_is_interrupted_with_the_text_so_far() -> None:
    chunks, error = read([said("The "), said("sky", thinking="hm")])
    assert [chunk.text for chunk in chunks] == ["The ", "sky"]
    assert type(error) is StreamInterrupted
    assert error.partial == "The sky"
    assert "middle" not in error.message


def test_a_stream_that_ends_within_a_line_says_so() -> None:
    _, error = read([said("The ") + said("sky")[:20]])
    assert type(error) is StreamInterrupted
    assert error.partial == "The "
    assert "in the middle of a line" in error.message


@pytest.mark.parametrize("body", [b"", b"\n\n", b'{"model":"m"'])
def test_a_stream_without_a_whole_line_is_interrupted(body: bytes) -> None:
    _, error = read([body])
    assert type(error) is StreamInterrupted
    assert error.partial == ""


def test_an_error_as_the_first_line_is_that_error() -> None:
    chunks, error = read([line(error="server busy, please try again.  maximum pending requests exceeded")])
    assert chunks == []
    assert type(error) is BackendOverloaded


def test_an_error_after_content_interrupts_the_stream_and_is_its_cause() -> None:
    text = "llama runner process has terminated: out of memory"
    chunks, error = read([said("The "), line(error=text)])
    assert [chunk.text for chunk in chunks] == ["The "]
    assert type(error) is StreamInterrupted
    assert (error.partial, error.status) == ("The ", 500)
    assert text in error.message
    assert type(error.__cause__) is BackendFailed


@pytest.mark.parametrize(
    "first", [said("", thinking="Hm"), said("", tool_calls=[called("now", {})])], ids=["reasoning", "tool call"]
)
def test_reasoning_and_tool_calls_are_content_too(first: bytes) -> None:
    chunks, error = read([first + line(error="gone")])
    assert len(chunks) == 1
    assert type(error) is StreamInterrupted
    assert error.partial == ""


def test_an_error_that_comes_with_content_does_not_take_it_along() -> None:
    decoder = OllamaDialect().decode_stream(REQUEST)
    assert [chunk.text for chunk in decoder.feed(said("The ") + said("sky") + line(error="gone"))] == ["The ", "sky"]
    assert decoder.done
    with pytest.raises(StreamInterrupted, match="gone"):
        decoder.feed(said("more"))
    with pytest.raises(StreamInterrupted, match="gone"):
        decoder.finish()


def test_garbage_is_a_protocol_error_and_after_content_an_interruption() -> None:
    _, error = read([b"<html>\n<head>"])
    assert type(error) is ProtocolError
    assert "'<html>'" in error.message
    _, error = read([b"<html><head>"])
    assert type(error) is ProtocolError
    _, error = read([said("The ") + b"<html>\n"])
    assert type(error) is StreamInterrupted
    assert error.partial == "The "
    assert type(error.__cause__) is ProtocolError


@pytest.mark.parametrize(
    "bad",
    [
        b'{"model":"m"}\n',
        b"[]\n",
        b'{"message":{"content":1}}\n',
        b'{"message":{"content":"\xff"}}\n',
        b'{"message":{"tool_calls":[{"function":{}}]}}\n',
        b'{"message":{"content":""},"done":true,"eval_count":' + b"9" * 400 + b"}\n",
        b'{"message":{"content":""},"done":true,"done_reason":"because"}\n',
        b'{"x":' + b"[" * 100_000 + b"\n",
        b"\x00\n",
    ],
)
def test_a_line_that_is_not_an_answer_is_a_protocol_error(bad: bytes) -> None:
    _, error = read([bad])
    assert type(error) is ProtocolError
    assert len(str(error)) < 500
    with pytest.raises(ProtocolError):
        OllamaDialect().decode_chat(REQUEST, HttpReply(200, {}, bad.rstrip()))


def test_long_lines_are_read_in_any_pieces_and_endless_ones_are_cut_off() -> None:
    text = "word " * 200_000
    body = said(text) + line(**END)
    chunks, error = read([body[start : start + 65_536] for start in range(0, len(body), 65_536)])
    assert error is None
    assert chunks[0].text == text
    _, error = read([b'{"message":{"content":"' + b"x" * MAX_LINE])
    assert type(error) is ProtocolError
    assert "8 MiB" in error.message


def test_tool_calls_are_numbered_through_the_stream_and_keep_the_order_of_their_arguments() -> None:
    chunks, error = read(
        [
            said("", tool_calls=[called("a", {"z": 1, "b": "ü<"}, id="call_x")]),
            said("", tool_calls=[called("b", {}), called("c", None)]),
            line(**END),
        ]
    )
    assert error is None
    assert [chunk.tool_calls for chunk in chunks] == [
        (ToolCallDelta(0, "call_x", "a", '{"z":1,"b":"ü<"}'),),
        (ToolCallDelta(1, "call_1", "b", "{}"), ToolCallDelta(2, "call_2", "c", "{}")),
        (),
    ]
    assert chunks[-1].finish_reason == "tool_calls"


def test_the_ids_that_an_old_server_does_not_give_are_the_same_each_time_and_new_in_the_conversation() -> None:
    earlier = Message(role="assistant", tool_calls=(ToolCall(id="call_0", name="a"), ToolCall(id="call_1", name="b")))
    request = msgspec.structs.replace(REQUEST, messages=(*REQUEST.messages, earlier))
    for _ in range(2):
        response = whole(request, message={"content": "", "tool_calls": [called("a", {}), called("a", '{"x":1}')]})
        assert [call.id for call in response.tool_calls] == ["call_2", "call_3"]
        assert response.tool_calls[1].arguments == '{"x":1}'
    chunks, _ = read([said("", tool_calls=[called("a", {})]), line(**END)], request)
    assert chunks[0].tool_calls[0].id == "call_2"


def test_an_answer_that_was_cut_short_after_a_tool_call_ended_for_its_length() -> None:
    response = whole(message={"content": "", "tool_calls": [called("a", {})]}, done_reason="length")
    assert response.finish_reason == "length"


def test_an_answer_that_is_not_done_is_not_whole() -> None:
    with pytest.raises(ProtocolError, match="not finished"):
        whole(done=False)


def test_an_error_in_an_answer_of_status_200_is_that_error() -> None:
    with pytest.raises(BackendFailed, match="gone"):
        OllamaDialect().decode_chat(REQUEST, HttpReply(200, {}, line(error="gone")))


def test_a_page_in_place_of_an_answer_is_shown_by_its_first_words() -> None:
    with pytest.raises(ProtocolError, match="<!DOCTYPE html> <html>") as raised:
        OllamaDialect().decode_chat(REQUEST, HttpReply(200, {}, b"<!DOCTYPE html>\n<html>" + b"x" * 10_000))
    assert len(str(raised.value)) < 400


def test_log_probabilities_that_were_asked_for_and_are_missing_are_an_error() -> None:
    request = msgspec.structs.replace(REQUEST, logprobs=True)
    with pytest.raises(UnsupportedFeature) as raised:
        whole(request, message={"content": "Hi"})
    assert raised.value.features == ("logprobs",)
    _, error = read([said("Hi"), line(**END)], request)
    assert type(error) is StreamInterrupted
    assert type(error.__cause__) is UnsupportedFeature
    token = {"token": "Hi", "logprob": -0.5}
    assert whole(request, message={"content": "Hi"}, logprobs=[token]).choices[0].logprobs is not None
    # While it looks for tool calls the server sends the log probabilities ahead of the text, in lines of their own.
    chunks, error = read(
        [line(message={"content": ""}, done=False, logprobs=[token]), said("Hi"), line(**END)], request
    )
    assert error is None
    assert chunks[0].logprobs is not None
    assert not chunks[0].has_content


def test_cached_tokens_are_reported_where_the_server_counts_them() -> None:
    usage = whole(prompt_eval_count=10, prompt_eval_cached_count=8).usage
    assert usage == Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=8)


LONG = msgspec.structs.replace(REQUEST, messages=(Message(role="user", content="word " * 100),))


def test_a_stream_whose_prompt_was_cut_ends_with_an_error() -> None:
    dialect = OllamaDialect(OllamaSettings(num_ctx=64))
    end = line(**END, prompt_eval_count=40)
    chunks, error = read([said("Hi") + end], LONG, dialect)
    assert [chunk.text for chunk in chunks] == ["Hi"]
    assert type(error) is StreamInterrupted
    assert error.partial == "Hi"
    assert isinstance(error.__cause__, ContextOverflow)
    assert (error.__cause__.tokens, error.__cause__.limit) == (100, 64)
    _, error = read([end], LONG, dialect)
    assert type(error) is ContextOverflow


LINES = st.lists(
    st.sampled_from(
        [
            said("The "),
            said("größer 😀"),
            said("", thinking="Hm"),
            said("", tool_calls=[called("now", {"a": [1, {"b": None}]})]),
            line(message={"content": ""}, done=False, logprobs=[{"token": "x", "logprob": -1.0}]),
            line(error="gone"),
            line(error='{"error":{"code":400,"message":"bad","type":"invalid_request_error"}}'),
            line(**END),
            b"\n",
            b"\r\n",
            b"garbage\n",
            b'{"model":"m"}\n',
            b"\xff\n",
        ]
    ),
    max_size=6,
).map(b"".join)


@given(body=LINES, end=st.integers(0, 10), cuts=st.lists(st.integers(0, 600), max_size=8))
def test_cutting_the_bytes_anywhere_changes_nothing(body: bytes, end: int, cuts: list[int]) -> None:
    body = body[: len(body) - end] if end else body
    places = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    pieces = [body[start:stop] for start, stop in itertools.pairwise(places)]
    chunks, error = read([body])
    again, same = read(pieces)
    assert again == chunks
    assert (type(same), str(same)) == (type(error), str(error))
    # Exactly one outcome: an error, or one finish reason at the very end.
    finished = [chunk.finish_reason for chunk in chunks if chunk.finish_reason is not None]
    assert len(finished) == (1 if error is None else 0)


@given(pieces=st.lists(st.binary(max_size=60), max_size=6))
def test_garbage_is_a_typed_error_and_nothing_else(pieces: list[bytes]) -> None:
    chunks, error = read(pieces)
    assert isinstance(error, HubError)
    assert chunks == []


@settings(max_examples=300)
@given(data=st.data())
def test_a_damaged_recording_is_decoded_or_a_typed_error(data: st.DataObject, recordings: dict[str, Recording]) -> None:
    name = data.draw(st.sampled_from(["chat_logprobs", "hubtest_think_tool_call_stream", "hubtest_tool_call_stream"]))
    body = bytearray(recordings[name].body)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        damage: Callable[[], None] = data.draw(
            st.sampled_from(
                [
                    lambda at=at: body.__delitem__(at),
                    lambda at=at: body.__setitem__(at, 0x39),
                    lambda at=at: body.insert(at, 0x7D),
                    lambda at=at: body.__setitem__(at, 0xFF),
                    lambda at=at: body.insert(at, 0x0A),
                ]
            )
        )
        damage()
    request = msgspec.structs.replace(REQUEST, logprobs="logprobs" in name)
    _, error = read([bytes(body)], request)
    assert error is None or isinstance(error, HubError)
    with contextlib.suppress(HubError):
        OllamaDialect().decode_chat(request, HttpReply(200, {}, bytes(body)))


FORCED = msgspec.structs.replace(REQUEST, tools=(Tool(name="now"),), tool_choice="required")


def test_a_forced_call_comes_whole_and_never_as_text() -> None:
    pieces = [said('{"name": "now", '), said('"arguments": {"zone": "Zürich"}}'), line(**END)]
    chunks, error = read(pieces, FORCED)
    assert error is None
    assert "".join(chunk.text for chunk in chunks) == ""
    (last,) = chunks
    assert last.finish_reason == "tool_calls"
    assert [(call.name, call.arguments) for call in last.tool_calls] == [("now", '{"zone":"Zürich"}')]
    whole = {**END, "message": {"role": "assistant", "content": '{"name": "now", "arguments": {"zone": "Zürich"}}'}}
    response = OllamaDialect().decode_chat(FORCED, HttpReply(200, {}, line(**whole)))
    assert response.finish_reason == "tool_calls"
    assert response.text == ""
    assert response.tool_calls == (ToolCall(id="call_0", name="now", arguments='{"zone":"Zürich"}'),)


def test_a_forced_call_that_the_server_found_itself_is_taken_as_it_is() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [called("now", {})]}
    chunks, error = read([line(message=message, done=False), line(**END)], FORCED)
    assert error is None
    assert [call.name for chunk in chunks for call in chunk.tool_calls] == ["now"]
    assert chunks[-1].finish_reason == "tool_calls"


def test_a_forced_call_that_was_cut_says_so_and_one_that_is_none_is_an_error() -> None:
    chunks, error = read([said('{"name": "no'), line(**{**END, "done_reason": "length"})], FORCED)
    assert error is None
    assert (chunks[-1].finish_reason, chunks[-1].tool_calls) == ("length", ())
    assert chunks[-1].text == '{"name": "no'
    chunks, error = read([said("It is noon."), line(**END)], FORCED)
    assert isinstance(error, ProtocolError)
    assert "a tool call was forced" in str(error)
