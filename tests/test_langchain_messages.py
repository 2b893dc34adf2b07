"""LangChain's messages and the hub's say the same, in both directions."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.langchain.answers import from_chunk, from_response, from_usage, last_chunk, to_response, to_usage
from llm_hub.langchain.messages import from_message, to_message, to_messages
from llm_hub.messages import (
    ChatChunk,
    ChatResponse,
    Choice,
    ImagePart,
    Message,
    ServedBy,
    TextPart,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from llm_hub.streams import collect
from llm_hub.testing import draw

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
parts = st.one_of(
    st.builds(TextPart, texts), st.builds(ImagePart, st.binary(), st.sampled_from(["image/png", "image/jpeg"]))
)
content = st.one_of(texts, st.lists(parts, max_size=4).map(tuple))
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), texts)
arguments = st.dictionaries(
    texts, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5), max_size=3
)
calls = st.builds(
    ToolCall,
    id=st.uuids().map(str),
    name=names,
    arguments=arguments.map(lambda value: json.dumps(value, ensure_ascii=False)),
)
broken_calls = st.builds(
    ToolCall, id=st.uuids().map(str), name=names, arguments=st.sampled_from(["{", "[1]", "", "no"])
)
said = st.one_of(texts, st.lists(parts, max_size=3).map(tuple))
canonical = st.one_of(
    st.builds(Message, role=st.sampled_from(["user", "system"]), content=content),
    st.builds(Message, role=st.just("tool"), content=content, tool_call_id=names, name=names),
    st.builds(
        lambda said, valid, broken, thought: Message(
            role="assistant", content=said, tool_calls=(*valid, *broken), reasoning=thought
        ),
        said,
        st.lists(calls, max_size=3),
        st.lists(broken_calls, max_size=2),
        st.none() | texts,
    ),
)


@given(canonical)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    there = from_message(message)
    assert isinstance(there, BaseMessage)
    assert to_message(there) == message


@given(st.lists(canonical, max_size=5))
def test_a_conversation_comes_back_as_it_was(messages: list[Message]) -> None:
    assert to_messages([from_message(message) for message in messages]) == tuple(messages)


@given(canonical)
def test_a_message_that_was_stored_as_json_comes_back_as_it_was(message: Message) -> None:
    from langchain_core.messages import messages_from_dict, messages_to_dict

    stored = json.dumps(messages_to_dict([from_message(message)]))
    (loaded,) = messages_from_dict(json.loads(stored))
    assert to_message(loaded) == message


PICTURE = draw("red", "circle")
BASE64 = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "base64": BASE64, "mime_type": "image/png"},
        {"type": "image", "base64": BASE64},
        {"type": "image", "url": f"data:image/png;base64,{BASE64}"},
        {"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/png"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}", "detail": "low"}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{BASE64}"},
        {"type": "file", "base64": BASE64, "mime_type": "image/png"},
    ],
    ids=["standard", "standard without type", "data URI", "v0", "Anthropic", "OpenAI", "OpenAI, short", "file"],
)
def test_an_image_is_its_bytes_however_it_is_written(block: dict[str, Any]) -> None:
    message = to_message(HumanMessage([block, "and ", {"type": "text", "text": "this"}]))
    assert message.content == (ImagePart(PICTURE, "image/png"), TextPart("and "), TextPart("this"))


@pytest.mark.parametrize(
    "url",
    ["https://example.com/a.png", "file:///etc/passwd", "http://169.254.169.254/latest", "data:image/png,raw", None],
)
def test_an_image_by_url_is_refused_with_the_reason(url: str | None) -> None:
    for block in ({"type": "image_url", "image_url": {"url": url}}, {"type": "image", "url": url or "ftp://x"}):
        with pytest.raises(
            InvalidRequest, match=r"messages\[1\]\.content\[0\] is an image by URL.*Read the image yourself"
        ):
            to_messages([SystemMessage("Hi"), HumanMessage([block])])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "file", "base64": "JVBERi0=", "mime_type": "application/pdf"},
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "video", "url": "https://example.com/v.mp4"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "text-plain", "url": "https://example.com/a.txt", "mime_type": "text/plain"},
    ],
    ids=lambda block: str(block["type"]),
)
def test_what_no_backend_takes_is_unsupported_and_named(block: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedFeature, match=r"messages\[0\]\.content\[1\] is of type.*text and images"):
        to_messages([HumanMessage(["Look:", block])])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image"},
        {"type": "image", "base64": "!!!"},
        {"type": "hologram"},
        {"text": "no type"},
        {"type": "text"},
    ],
    ids=str,
)
def test_a_block_that_is_none_is_invalid_and_named(block: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[0\]"):
        to_messages([HumanMessage([block])])


@pytest.mark.parametrize(
    "message",
    [RemoveMessage(id="1"), FunctionMessage(content="18C", name="weather"), ChatMessage(content="Hi", role="narrator")],
    ids=repr,
)
def test_a_message_that_no_backend_knows_is_invalid_and_named(message: BaseMessage) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[0\] is a (RemoveMessage|FunctionMessage|ChatMessage)"):
        to_messages([message])


def test_the_roles_of_others_are_known() -> None:
    roles = ("user", "assistant", "system", "developer")
    made = to_messages([ChatMessage(content="Hi", role=role) for role in roles])
    assert [message.role for message in made] == ["user", "assistant", "system", "system"]


def test_names_of_participants_stay_labels() -> None:
    made = to_messages([HumanMessage("Hi", name="Ann"), AIMessage("Hello", name="researcher")])
    assert [message.name for message in made] == [None, None]


def test_the_answer_of_a_tool_gets_the_name_of_its_tool() -> None:
    call = {"name": "weather", "args": {"city": "Paris"}, "id": "c1", "type": "tool_call"}
    made = to_messages([AIMessage("", tool_calls=[call]), ToolMessage("18C", tool_call_id="c1")])
    assert (made[1].name, made[1].tool_call_id) == ("weather", "c1")


def test_calls_within_the_content_are_taken_once() -> None:
    call = {"name": "weather", "args": {"city": "Paris"}, "id": "c1", "type": "tool_call"}
    block = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Paris"}}
    thought = {"type": "thinking", "thinking": "I look.", "signature": "x"}
    for message in (
        AIMessage([thought, "Wait. ", block], tool_calls=[call]),
        AIMessage([thought, "Wait. ", block]),
        AIMessage([thought, "Wait. "], tool_calls=[call]),
    ):
        made = to_message(message)
        assert made.content == (TextPart("Wait. "),)
        assert made.reasoning == "I look."
        assert [(one.id, one.name, one.parsed()) for one in made.tool_calls] == [("c1", "weather", {"city": "Paris"})]


def test_what_json_cannot_hold_is_invalid() -> None:
    message = AIMessage("", tool_calls=[{"name": "f", "args": {"x": object()}, "id": "1", "type": "tool_call"}])
    with pytest.raises(InvalidRequest, match="JSON cannot"):
        to_message(message)


# -- answers ----------------------------------------------------------------------------------------------------------

counts = st.none() | st.integers(0, 10**6)
usages = st.builds(Usage, prompt_tokens=counts, completion_tokens=counts, reasoning_tokens=counts, cached_tokens=counts)
logprobs = st.builds(
    TokenLogprob,
    token=texts,
    logprob=st.floats(-50, 0),
    bytes=st.none() | st.binary(max_size=4).map(tuple),
    top=st.lists(st.builds(TokenLogprob, token=texts, logprob=st.floats(-50, 0)), max_size=2).map(tuple),
)
answers = st.builds(
    ChatResponse,
    choices=st.builds(
        Choice,
        message=st.builds(
            Message,
            role=st.just("assistant"),
            content=texts,
            tool_calls=st.lists(calls, max_size=2).map(tuple),
            reasoning=st.none() | texts.filter(bool),
        ),
        finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
        logprobs=st.none() | st.lists(logprobs, min_size=1, max_size=3).map(tuple),
    ).map(lambda choice: (choice,)),
    id=st.none() | names,
    model=names,
    usage=usages.filter(lambda usage: usage.total_tokens is not None),
    timings=st.builds(Timings, total=st.none() | st.floats(0, 9)),
    served_by=st.none()
    | st.builds(
        ServedBy,
        backend=names,
        plugin=names,
        model=st.none() | names,
        epoch=st.integers(1, 9),
        attempts=st.integers(1, 3),
        fallback=st.booleans(),
    ),
)


@given(answers)
def test_an_answer_comes_back_as_it_was(answer: ChatResponse) -> None:
    (generation,) = from_response(answer).generations
    message = generation.message
    assert isinstance(message, AIMessage)
    assert to_response(message) == answer
    json.dumps(message.model_dump()["response_metadata"])


@given(usages)
def test_tokens_are_told_only_where_both_were_counted(usage: Usage) -> None:
    metadata = from_usage(usage)
    if usage.total_tokens is None:
        assert metadata is None
    else:
        assert metadata is not None
        assert metadata["total_tokens"] == usage.total_tokens
        assert to_usage(metadata) == usage


@st.composite
def streams(draw: Any) -> tuple[list[ChatChunk], ChatResponse]:
    """An answer, and the pieces it came in, cut anywhere."""
    answer: ChatResponse = draw(answers)
    choice = answer.choices[0]

    def cut(text: str) -> list[str]:
        places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        ends = [0, *places, len(text)]
        return [text[a:b] for a, b in itertools.pairwise(ends)]

    chunks = [ChatChunk(reasoning=piece) for piece in cut(choice.message.reasoning or "")]
    chunks += [ChatChunk(text=piece) for piece in cut(choice.message.text)]
    for index, call in enumerate(choice.message.tool_calls):
        chunks.append(ChatChunk(tool_calls=(ToolCallDelta(index, call.id, call.name),)))
        chunks += [
            ChatChunk(tool_calls=(ToolCallDelta(index, arguments=piece),)) for piece in cut(call.arguments) if piece
        ]
    for one in choice.logprobs or ():
        chunks.append(ChatChunk(logprobs=(one,)))
    chunks.append(ChatChunk(finish_reason=choice.finish_reason))
    return chunks, answer


@given(streams())
def test_the_pieces_of_a_stream_add_up_to_the_answer(stream: tuple[list[ChatChunk], ChatResponse]) -> None:
    chunks, answer = stream
    assert collect(chunks).choices == answer.choices
    generation = from_chunk(ChatChunk())
    for chunk in chunks:
        generation += from_chunk(chunk)
    generation += last_chunk(answer)
    message = generation.message
    assert isinstance(message, AIMessage)
    assert to_response(message) == answer
