"""Every recording of a route that the plugin calls is decoded to exactly what it says, whole and cut anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_hub.call import Call
from llm_hub.capabilities import ModelInfo, Rung, TextBackend
from llm_hub.dialect import Conversation, HttpReply
from llm_hub.errors import (
    BackendFailed,
    ContextOverflow,
    HubError,
    InvalidRequest,
    ModelNotFound,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    FinishReason,
    Message,
    TokenCount,
    TokenLogprob,
    Usage,
)
from llm_hub.streams import collect
from llm_hub.testing import Recording
from llm_hub_vllm.dialect import VLLMDialect
from llm_hub_vllm.metrics import Load, parse_load

Recordings = dict[str, Recording]
Canonical = Callable[[dict[str, Any] | None], ChatRequest]
OverMemory = Callable[[Recording, Sequence[bytes]], TextBackend]


@dataclass(frozen=True)
class Answered:
    """What an answer must be decoded to. `tokens` are prompt, answer and reasoning; `calls` are (id, name, arguments).

    `pieces` counts the chunks with content of a stream, 0 for an answer that came whole.
    """

    text: str
    tokens: tuple[int, int, int | None] | None
    finish: FinishReason = "stop"
    reasoning: str | None = None
    calls: tuple[tuple[str, str, str], ...] = ()
    others: tuple[str, ...] = ()
    pieces: int = 0


@dataclass(frozen=True)
class Failed:
    """What a failure must be decoded to. `cause` is the type of error behind a stream that was interrupted."""

    kind: type[HubError]
    says: str
    attributes: dict[str, Any] = field(default_factory=dict)
    cause: type[HubError] | None = None


PARIS = "The capital of France is Paris."
PARIS_JSON = '{"city": "Paris", "country": "France"}'
PARIS_CALL = '{"city": "Paris"}'
CALLED = ("get_weather", PARIS_CALL)
SIXTY = " ".join(str(number) for number in range(1, 61))
CIRCLE = "A red circle on a white background."
NO_IMAGE = Failed(InvalidRequest, "Failed to load image: cannot identify image file")
TOO_MANY_IMAGES = Failed(InvalidRequest, "At most 2 image(s) may be provided in one prompt. (parameter=image)")
NO_MODEL = Failed(ModelNotFound, "it does not have the model 'nope'", {"model": "nope", "available": ("smollm2",)})

CHATS: dict[str, Answered | Failed] = {
    "chat": Answered(PARIS, (37, 8, None)),
    "chat_bad_json": Failed(InvalidRequest, "it refuses the request (400): body.34: JSON decode error"),
    "chat_choice": Answered("no", (35, 2, None)),
    "chat_context_overflow": Failed(ContextOverflow, "maximum context length", {"tokens": 2049, "limit": 2048}),
    "chat_guided_json_ignored": Answered(
        '```json\n{\n  "name": "Paris",\n  "population": 1,\n  "capital": {\n    "name": "Paris",',
        (38, 30, None),
        finish="length",
    ),
    "chat_image_unsupported": Failed(UnsupportedFeature, "is not a multimodal model", {"features": ("images",)}),
    "chat_json_schema": Answered('{\n  "city": "Paris",\n  "country": "FRANCE"\n}', (38, 19, None)),
    "chat_length": Answered("I'm here to help", (36, 5, None), finish="length"),
    "chat_logprobs": Answered("The capital of", (37, 3, None), finish="length"),
    "chat_max_tokens_overflow": Failed(ContextOverflow, "max_tokens=100000", {"tokens": 100000, "limit": 2048}),
    "chat_n2": Answered(
        "The capital of France is Paris, also known as the City of Love. It's the largest metropolis in Europe, with",
        (37, 48, None),
        finish="length",
        others=(
            "Unsmalon, the Paris Region. This charming rambunctious city, known for its rich history and stunning",
        ),
    ),
    "chat_no_messages": Failed(InvalidRequest, "it refuses the request (400): body.messages: Field required"),
    "chat_priority_refused": Answered(PARIS, (37, 8, None)),
    "chat_request_id": Answered(PARIS, (37, 8, None)),
    "chat_stop": Answered("The ", (37, 2, None)),
    "chat_stream": Answered(PARIS, None, pieces=7),
    "chat_stream_continuous_usage": Answered(PARIS, (37, 8, None), pieces=7),
    "chat_stream_error": NO_MODEL,
    "chat_stream_usage": Answered(PARIS, (37, 8, None), pieces=7),
    "chat_structured_outputs": Answered('{\n  "city": "Paris",\n  "country": "FRANCE"\n}', (38, 19, None)),
    "chat_tools_auto": Answered(
        "Bienvenue, welcome to the City of Light! I'm your friendly AI, and I'm here to help you navigate the wonders of "
        "Paris. What brings you to this enchanting city? Are you looking for a romantic getaway, a culinary adventure, "
        "or perhaps a cultural experience?",
        (34, 58, None),
    ),
    # vLLM says `stop` for a tool that was forced by name; to the hub every answer that calls tools ends with tool_calls.
    "chat_tools_named_stream": Answered(
        "",
        None,
        finish="tool_calls",
        calls=(("chatcmpl-tool-bfeaf494e35b9b95", "get_weather", '"gaben"'),),
        pieces=6,
    ),
    "chat_tools_required": Answered(
        "",
        (34, 51, None),
        finish="tool_calls",
        calls=(("chatcmpl-tool-8aefcc1c8a9f140c", "get_weather", '"gaben"'),),
    ),
    "chat_unknown_model": NO_MODEL,
    "embed_chat_unsupported": Failed(UnsupportedFeature, "it does not serve this route", {"features": ("chat",)}),
    "fault_engine_killed_mid_stream": Failed(
        StreamInterrupted, "EngineCore encountered an issue", {"partial": "1.", "status": 500}, cause=BackendFailed
    ),
    "hubtest_chat": Answered(PARIS, (18, 8, 0)),
    "hubtest_count_stream": Answered(SIXTY, (17, 61, 0), pieces=60),
    "hubtest_json_object": Answered(PARIS_JSON, (19, 13, 0)),
    "hubtest_json_schema": Answered(PARIS_JSON, (19, 13, 0)),
    "hubtest_think": Answered(
        "\n\nThe capital of Japan is Tokyo.",
        (20, 25, 13),
        reasoning="\nI need the capital of Japan. It is Tokyo.\n",
    ),
    "hubtest_think_false": Answered("The capital of Japan is Tokyo.", (18, 8, 0)),
    "hubtest_think_length": Answered("", (20, 6, 5), finish="length", reasoning="\nI need the capital"),
    "hubtest_think_stream": Answered(
        "\n\nThe capital of Japan is Tokyo.",
        (20, 25, 13),
        reasoning="\nI need the capital of Japan. It is Tokyo.\n",
        pieces=22,
    ),
    "hubtest_think_tool_call": Answered(
        "",
        (117, 34, 8),
        finish="tool_calls",
        reasoning="\nI call get_weather.\n",
        calls=(("chatcmpl-tool-a65db85dcb453dba", *CALLED),),
    ),
    "hubtest_think_vision": Answered(f"\n\n{CIRCLE}", (35, 29, 16), reasoning=f"\nI look at the image. {CIRCLE}\n"),
    "hubtest_tool_call": Answered(
        "", (115, 22, 0), finish="tool_calls", calls=(("chatcmpl-tool-8d8cb66ce2362f56", *CALLED),)
    ),
    "hubtest_tool_call_stream": Answered(
        "", (115, 22, 0), finish="tool_calls", calls=(("chatcmpl-tool-a26cf331b5ab08a9", *CALLED),), pieces=7
    ),
    "hubtest_tool_named": Answered(
        "", (115, 22, 0), finish="tool_calls", calls=(("chatcmpl-tool-9c2eae8edd63aef5", *CALLED),)
    ),
    "hubtest_tool_none": Answered(
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>', (115, 22, 0)
    ),
    "hubtest_tool_not_used": Answered(PARIS, (115, 8, 0)),
    "hubtest_tool_not_used_stream": Answered(PARIS, (115, 8, 0), pieces=7),
    "hubtest_tool_required": Answered(
        "", (115, 22, 0), finish="tool_calls", calls=(("chatcmpl-tool-a378a5bde4d45fc1", *CALLED),)
    ),
    "hubtest_tool_result": Answered("It is 18C and sunny in Paris.", (154, 10, 0)),
    "hubtest_tool_two_calls": Answered(
        "",
        (117, 44, 0),
        finish="tool_calls",
        calls=(
            ("chatcmpl-tool-a4c5ec8872d61615", "get_weather", '{"city": "London"}'),
            ("chatcmpl-tool-b3c99ab6b8f33a51", *CALLED),
        ),
    ),
    "hubtest_tool_two_calls_stream": Answered(
        "",
        (117, 44, 0),
        finish="tool_calls",
        calls=(
            ("chatcmpl-tool-8d4dbd134d74899b", "get_weather", '{"city": "London"}'),
            ("chatcmpl-tool-a83c0b4f0b961eb1", *CALLED),
        ),
        pieces=14,
    ),
    "hubtest_vision_bad_image": NO_IMAGE,
    "hubtest_vision_bad_image_stream": NO_IMAGE,
    "hubtest_vision_chat": Answered(CIRCLE, (33, 9, 0)),
    "hubtest_vision_chat_stream": Answered(CIRCLE, (33, 9, 0), pieces=8),
    "hubtest_vision_colour": Answered("Green.", (32, 3, 0)),
    "hubtest_vision_json_schema": Answered('{"color": "red", "shape": "circle", "background": "white"}', (33, 19, 0)),
    "hubtest_vision_three_images": TOO_MANY_IMAGES,
    "hubtest_vision_truncated_image": Failed(InvalidRequest, "Failed to load image: image file is truncated"),
    "hubtest_vision_two_images": Answered(f"First: {CIRCLE} Second: A blue square on a white background.", (47, 21, 0)),
    "vision_chat": Answered(" amazeape leopards.')ria inventor distancing OR", (29, 8, None), finish="length"),
    "vision_chat_bare_base64": Failed(InvalidRequest, "The URL must be either a HTTP, data or file URL."),
    "vision_chat_not_an_image": NO_IMAGE,
    "vision_chat_stream": Answered(
        " amazeape leopards.')ria inventor distancing OR", (29, 8, None), finish="length", pieces=8
    ),
    "vision_chat_text_only": Answered("margin barred._Allow Ar Source Loan terrified", (10, 8, None), finish="length"),
    "vision_chat_too_many_images": TOO_MANY_IMAGES,
    "vision_chat_two_images": Answered(
        " radiotherapyoxinchal chilly ransomware jealousy Coptic pungent", (45, 8, None), finish="length"
    ),
    "vision_chat_unreachable_url": Failed(BackendFailed, "it failed (500): Cannot connect to host", {"status": 500}),
}

CONTROL: dict[str, Any] = {
    "embed_models": (ModelInfo(name="all-minilm", context_length=256, loaded=True),),
    "hubtest_models": (ModelInfo(name="hub-test-vlm", context_length=2048, loaded=True),),
    "models": (ModelInfo(name="smollm2", context_length=2048, loaded=True),),
    "vision_models": (ModelInfo(name="tiny-vlm", context_length=2048, loaded=True),),
    "health": Rung.ALIVE,
    "fault_health_after_engine_death": None,
    "version": "0.32.0",
    "tokenize": TokenCount(tokens=2, limit=2048),
    "metrics": Load(0, 0, 0.0),
}

ELSEWHERE = {
    "fault_chat_after_engine_death": "no answer at all: the connection is refused, in test_plugin.py",
}

EMBEDDINGS = "/v1/embeddings"
"""The route whose recordings test_embedding.py decodes."""

NOT_CALLED = {
    "/v1/completions": "the hub speaks in conversations; the server applies the chat template",
    "/rerank": "no capability of the hub",
    "/score": "no capability of the hub",
    "/load": "/metrics says the same and more",
    "/ping": "/health says the same",
    "/sleep": "a development route, which no reachable server may have",
}
"""The routes that nobody calls, and why."""


def test_every_recording_is_expected_to_be_something_or_is_of_a_route_that_nobody_calls(recordings: Recordings) -> None:
    uncalled = {name for name, recording in recordings.items() if recording.request.path in NOT_CALLED}
    embedded = [name for name, recording in recordings.items() if recording.request.path == EMBEDDINGS]
    assert embedded
    called = [*CHATS, *CONTROL, *ELSEWHERE, *embedded]
    assert len(called) == len(set(called))
    assert set(called) == recordings.keys() - uncalled
    assert {recordings[name].request.path for name in uncalled} == NOT_CALLED.keys()
    assert {recordings[name].request.path for name in CHATS} == {"/v1/chat/completions"}


# -- chats ------------------------------------------------------------------------------------------------------------

ANY = ChatRequest(messages=(Message(role="user", content="?"),))
"""Stands for the recorded requests that no canonical request can express."""


def asked(recording: Recording, canonical: Canonical) -> ChatRequest:
    try:
        return canonical(recording.request.json)
    except LookupError:
        return ANY


def check_answer(response: ChatResponse, expected: Answered) -> None:
    assert response.text == expected.text
    assert response.finish_reason == expected.finish
    assert response.reasoning == expected.reasoning
    assert tuple((call.id, call.name, call.arguments) for call in response.tool_calls) == expected.calls
    assert tuple(choice.message.text for choice in response.choices[1:]) == expected.others
    assert [choice.index for choice in response.choices] == list(range(1 + len(expected.others)))
    assert {choice.finish_reason for choice in response.choices} == {expected.finish}
    prompt, completion, reasoning = expected.tokens or (None, None, None)
    assert response.usage == Usage(
        prompt_tokens=prompt, completion_tokens=completion, reasoning_tokens=reasoning, cached_tokens=None
    )


def check_failure(error: HubError, expected: Failed) -> None:
    assert type(error) is expected.kind
    assert expected.says in error.message
    assert {name: getattr(error, name) for name in expected.attributes} == expected.attributes
    assert type(error.__cause__) is (expected.cause or type(None))


def outcome(expected: Answered | Failed, produce: Callable[[], ChatResponse]) -> None:
    """What is produced, answer or error, is what is expected."""
    if isinstance(expected, Answered):
        check_answer(produce(), expected)
        return
    with pytest.raises(HubError) as caught:
        produce()
    check_failure(caught.value, expected)


def cuts_of(body: bytes) -> Iterable[tuple[bytes, ...]]:
    """The body in one piece, in two pieces cut anywhere, and byte by byte."""
    yield (body,)
    for cut in range(1, len(body)):
        yield body[:cut], body[cut:]
    yield tuple(bytes([byte]) for byte in body)


def decoded(request: ChatRequest, pieces: Iterable[bytes]) -> tuple[list[ChatChunk], HubError | None]:
    """The chunks of a stream in these pieces, and the error that ended it."""
    decoder = VLLMDialect().decode_stream(request)
    chunks: list[ChatChunk] = []
    try:
        for piece in pieces:
            chunks += decoder.feed(piece)
            if decoder.done:
                break
        chunks += decoder.finish()
    except HubError as error:
        return chunks, error
    return chunks, None


@pytest.mark.parametrize("name", CHATS)
def test_a_recorded_answer_is_decoded_exactly(name: str, recordings: Recordings, canonical: Canonical) -> None:
    recording, expected = recordings[name], CHATS[name]
    request = asked(recording, canonical)
    dialect = VLLMDialect()

    def produce() -> ChatResponse:
        assert recording.response.status is not None
        reply = HttpReply(recording.response.status, recording.headers, recording.body)
        if reply.status != 200:
            raise dialect.error(reply, model=request.model)
        if not recording.streamed:
            return dialect.decode_chat(request, reply)
        chunks, error = decoded(request, [recording.body])
        if error is not None:
            raise error
        return collect(chunks)

    outcome(expected, produce)


STREAMS = [name for name in CHATS if name.startswith("fault_") or getattr(CHATS[name], "pieces", None)]


@pytest.mark.parametrize("name", [name for name in CHATS if name not in STREAMS])
def test_an_answer_is_the_same_with_its_bytes_cut_at_every_position(
    name: str, recordings: Recordings, canonical: Canonical, over_memory: OverMemory
) -> None:
    recording, expected = recordings[name], CHATS[name]
    assert not recording.streamed
    request = asked(recording, canonical)
    for pieces in cuts_of(recording.body):
        outcome(expected, partial(over_memory(recording, pieces).chat, request, Call()))


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_gives_the_same_chunks_with_its_bytes_cut_at_every_position(
    name: str, recordings: Recordings, canonical: Canonical
) -> None:
    recording, expected = recordings[name], CHATS[name]
    assert recording.streamed
    request = asked(recording, canonical)
    whole, failure = decoded(request, [recording.body])
    assert (failure is None) is isinstance(expected, Answered)
    if isinstance(expected, Answered):
        assert sum(chunk.has_content for chunk in whole) == expected.pieces
        assert [chunk.finish_reason for chunk in whole] == [None] * expected.pieces + [expected.finish]
    for pieces in cuts_of(recording.body):
        chunks, error = decoded(request, pieces)
        assert chunks == whole
        assert type(error) is type(failure)
        if isinstance(expected, Failed):
            assert error is not None
            check_failure(error, expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(STREAMS))
def test_a_stream_gives_the_same_chunks_in_any_pieces(
    data: st.DataObject, name: str, recordings: Recordings, canonical: Canonical
) -> None:
    recording = recordings[name]
    request = asked(recording, canonical)
    edges = sorted({0, len(recording.body), *data.draw(st.lists(st.integers(0, len(recording.body)), max_size=40))})
    pieces = [recording.body[start:end] for start, end in itertools.pairwise(edges)]
    whole, failure = decoded(request, [recording.body])
    chunks, error = decoded(request, pieces)
    assert chunks == whole
    assert type(error) is type(failure)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_cut_off_anywhere_is_never_taken_for_a_whole_one(
    name: str, recordings: Recordings, canonical: Canonical
) -> None:
    recording = recordings[name]
    request = asked(recording, canonical)
    whole, _ = decoded(request, [recording.body])
    end = recording.body.index(b"data: [DONE]")
    for cut in range(0, end, 7):
        chunks, error = decoded(request, [recording.body[:cut]])
        assert isinstance(error, StreamInterrupted)
        assert all(chunk.finish_reason is None for chunk in chunks)
        assert error.partial == "".join(chunk.text for chunk in chunks)
        assert chunks == whole[: len(chunks)]


def test_the_logprobs_of_a_recorded_answer_are_decoded_exactly(recordings: Recordings, canonical: Canonical) -> None:
    recording = recordings["chat_logprobs"]
    reply = HttpReply(200, recording.headers, recording.body)
    choice = VLLMDialect().decode_chat(canonical(recording.request.json), reply).choices[0]

    def token(text: str, logprob: float, *top: TokenLogprob) -> TokenLogprob:
        return TokenLogprob(token=text, logprob=logprob, bytes=tuple(text.encode()), top=top)

    expected = [
        (("The", -1.864304780960083), ("L", -1.9625866413116455)),
        ((" capital", -0.019827619194984436), (" Capital", -4.661609649658203)),
        ((" of", -0.011442393064498901), (" city", -4.757061004638672)),
    ]
    assert choice.logprobs == tuple(token(*best, token(*best), token(*next_)) for best, next_ in expected)


def test_an_answer_names_its_model_and_its_id(recordings: Recordings, canonical: Canonical) -> None:
    recording = recordings["chat_request_id"]
    reply = HttpReply(200, recording.headers, recording.body)
    response = VLLMDialect().decode_chat(canonical(recording.request.json), reply)
    assert (response.id, response.model) == ("chatcmpl-hub-123", "smollm2")
    stream = recordings["chat_stream"]
    chunks, _ = decoded(canonical(stream.request.json), [stream.body])
    assert {(chunk.id, chunk.model) for chunk in chunks} == {("chatcmpl-a0594cc5a6dfc42f", "smollm2")}


# -- models, health, version, tokens, metrics -------------------------------------------------------------------------


def answered(talk: Conversation[Any], recording: Recording) -> Any:
    """What a conversation of one exchange results in."""
    request = next(talk)
    assert (request.method, request.path) == (recording.request.method, recording.request.path)
    assert recording.response.status is not None
    with pytest.raises(StopIteration) as stop:
        talk.send(HttpReply(recording.response.status, recording.headers, recording.body))
    return stop.value.value


@pytest.mark.parametrize("name", CONTROL)
def test_a_recorded_answer_about_the_server_is_decoded_exactly(name: str, recordings: Recordings) -> None:
    recording, expected = recordings[name], CONTROL[name]
    dialect = VLLMDialect()
    assert recording.response.status is not None
    reply = HttpReply(recording.response.status, recording.headers, recording.body)
    match recording.request.path:
        case "/v1/models":
            assert answered(dialect.models(), recording) == expected
        case "/health" if expected is None:
            with pytest.raises(BackendFailed, match="its engine is dead"):
                dialect.check_health(reply)
        case "/health":
            dialect.check_health(reply)
        case "/version":
            assert answered(dialect.about(Rung.ALIVE), recording) == (expected, "")
        case "/tokenize":
            talk = dialect.count_text_tokens("hello world", "smollm2")
            assert answered(talk, recording) == expected
        case "/metrics":
            assert parse_load(recording.body.decode()) == expected
        case path:
            raise AssertionError(f"{path} is not tested")


@pytest.mark.parametrize("name", [name for name in CONTROL if name.endswith("models")])
def test_a_list_of_models_is_the_same_with_its_bytes_cut_at_every_position(
    name: str, recordings: Recordings, over_memory: OverMemory
) -> None:
    recording = recordings[name]
    for pieces in cuts_of(recording.body):
        assert over_memory(recording, pieces).models(Call()) == CONTROL[name]
