"""Every recording of a route that the plugin calls is decoded to exactly what it says, whole and cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    BackendFailed,
    ContextOverflow,
    HubError,
    InvalidRequest,
    ModelNotFound,
    StreamInterrupted,
    UnsupportedFeature,
)
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, FinishReason, Timings, TokenLogprob, Usage
from llm_hub.streams import collect
from llm_hub.testing import Recording
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.settings import OllamaSettings, Profile
from llm_hub_ollama.wire import RunningModels, Shown, StoredModels, Version, decode

Build = Callable[[Recording], ChatRequest]


@dataclass(frozen=True)
class Answered:
    """What an answer must be decoded to. `calls` are (id, name, arguments); `pieces` counts a stream's chunks with text."""

    text: str
    finish: FinishReason = "stop"
    reasoning: str | None = None
    calls: tuple[tuple[str, str, str], ...] = ()
    tokens: tuple[int | None, int | None] = (None, None)
    nanoseconds: tuple[int | None, int | None, int | None] = (None, None, None)
    pieces: int = 0


@dataclass(frozen=True)
class Failed:
    """What a failure must be decoded to. `cause` is the type behind a stream that was interrupted."""

    kind: type[HubError]
    says: str
    attributes: dict[str, Any] = field(default_factory=dict)
    cause: type[HubError] | None = None


CHATS: dict[str, Answered] = {
    "chat": Answered(
        text="The capital of France is Paris.", tokens=(16, 8), nanoseconds=(5147777, 751939000, 384035000)
    ),
    "chat_bad_role": Answered(
        text='The name of the wizard is "Lavisar" and he is a wizard who specializes in the art',
        finish="length",
        tokens=(11, 24),
        nanoseconds=(16058740, 1574133000, 3366465000),
    ),
    "chat_json_mode": Answered(
        text='{\n  "name": "Paris",\n  "population": 1,\n  "capital": "Paris",\n  "population_density": 1,\n  "population_density_per_square_mile": 1,\n  "population_density_per_square_kilometer": ',
        finish="length",
        tokens=(17, 60),
        nanoseconds=(2663471, 160930000, 2480943000),
    ),
    "chat_json_schema": Answered(
        text='{\n  "city": "Paris",\n  "country": "FRANCE"\n}',
        tokens=(17, 19),
        nanoseconds=(1485714, 641744000, 579304000),
    ),
    "chat_length": Answered(
        text='The story of the "', finish="length", tokens=(15, 5), nanoseconds=(2057955, 399772000, 140568000)
    ),
    "chat_load": Answered(text="", tokens=(None, None), nanoseconds=(None, None, None)),
    "chat_logprobs": Answered(
        text="The capital of", finish="length", tokens=(16, 3), nanoseconds=(812342082, 271847000, 80162000)
    ),
    "chat_stop": Answered(text="The ", tokens=(16, 2), nanoseconds=(3636714, 20648000, 31952000)),
    "chat_stream": Answered(
        text="The capital of France is Paris.", tokens=(16, 8), nanoseconds=(1132902, 59551000, 263241000), pieces=7
    ),
    "chat_system_multi": Answered(text="5", tokens=(41, 2), nanoseconds=(1732028, 515312000, 22766000)),
    "chat_tools_prose": Answered(
        text='You can use the following code to get the weather of Paris:\n```\nimport json\n\ndef get_weather_city(city):\n    return json.dumps({"city":city})\n\ndef get_weather_city(city):\n    return json.dumps({"city":city})',
        finish="length",
        tokens=(90, 60),
        nanoseconds=(51562351, 1610545000, 11955030000),
    ),
    "chat_unload": Answered(text="", tokens=(None, None), nanoseconds=(None, None, None)),
    "fault_runner_killed_before": Answered(
        text="The capital of France is Paris.", tokens=(16, 8), nanoseconds=(785218171, 613423000, 83385000)
    ),
    "hubtest_chat": Answered(
        text="The capital of France is Paris.", tokens=(18, 8), nanoseconds=(1439031, 21538000, 4045000)
    ),
    "hubtest_count_stream": Answered(
        text=" ".join(map(str, range(1, 61))), tokens=(17, 61), nanoseconds=(3055570, 2896000, 30288000), pieces=60
    ),
    "hubtest_json_mode": Answered(
        text='{"city": "Paris", "country": "France"}', tokens=(19, 13), nanoseconds=(1433980, 1165000, 7175000)
    ),
    "hubtest_json_schema": Answered(
        text='{"city": "Paris", "country": "France"}', tokens=(19, 13), nanoseconds=(1269053, 23340000, 7020000)
    ),
    "hubtest_think": Answered(
        text="The capital of Japan is Tokyo.",
        reasoning="I need the capital of Japan. It is Tokyo.\n",
        tokens=(20, 25),
        nanoseconds=(3728301, 2571000, 11255000),
    ),
    "hubtest_think_false": Answered(
        text="The capital of Japan is Tokyo.", tokens=(18, 8), nanoseconds=(1457984, 1969000, 2981000)
    ),
    "hubtest_think_stream": Answered(
        text="The capital of Japan is Tokyo.",
        reasoning="I need the capital of Japan. It is Tokyo.\n",
        tokens=(20, 25),
        nanoseconds=(1924653, 1466000, 9127000),
        pieces=19,
    ),
    "hubtest_think_tool_call": Answered(
        text="",
        finish="tool_calls",
        reasoning="I call get_weather.\n",
        calls=(("call_8kokm62y", "get_weather", '{"city":"Paris"}'),),
        tokens=(102, 34),
        nanoseconds=(1241688, 2131000, 12163000),
    ),
    "hubtest_think_tool_call_stream": Answered(
        text="",
        finish="tool_calls",
        reasoning="I call get_weather.\n",
        calls=(("call_ogl0v83f", "get_weather", '{"city":"Paris"}'),),
        tokens=(102, 34),
        nanoseconds=(1181828, 929000, 14500000),
        pieces=8,
    ),
    "hubtest_think_unset": Answered(
        text="The capital of Japan is Tokyo.",
        reasoning="I need the capital of Japan. It is Tokyo.\n",
        tokens=(20, 25),
        nanoseconds=(1916971, 1303000, 9386000),
    ),
    "hubtest_think_vision": Answered(
        text="A red circle on a white background.",
        reasoning="I look at the image. A red circle on a white background.\n",
        tokens=(35, 29),
        nanoseconds=(1405012, 2326000, 10464000),
    ),
    "hubtest_tool_call": Answered(
        text="",
        finish="tool_calls",
        calls=(("call_5zlvsbzy", "get_weather", '{"city":"Paris"}'),),
        tokens=(100, 22),
        nanoseconds=(1823705, 4446000, 7714000),
    ),
    "hubtest_tool_call_stream": Answered(
        text="",
        finish="tool_calls",
        calls=(("call_3exaw6yk", "get_weather", '{"city":"Paris"}'),),
        tokens=(100, 22),
        nanoseconds=(3815575, 934000, 9061000),
        pieces=1,
    ),
    "hubtest_tool_not_used": Answered(
        text="The capital of France is Paris.", tokens=(100, 8), nanoseconds=(1549353, 17035000, 4173000)
    ),
    "hubtest_tool_not_used_stream": Answered(
        text="The capital of France is Paris.", tokens=(100, 8), nanoseconds=(1537892, 1048000, 5062000), pieces=7
    ),
    "hubtest_tool_result": Answered(
        text="It is 18C and sunny in Paris.", tokens=(138, 10), nanoseconds=(1659937, 4956000, 5579000)
    ),
    "hubtest_tool_two_calls": Answered(
        text="",
        finish="tool_calls",
        calls=(
            ("call_var5ubn4", "get_weather", '{"city":"London"}'),
            ("call_jy0dla0n", "get_weather", '{"city":"Paris"}'),
        ),
        tokens=(102, 44),
        nanoseconds=(1956866, 2183000, 17872000),
    ),
    "hubtest_vision_chat": Answered(
        text="A red circle on a white background.", tokens=(33, 9), nanoseconds=(1251626, 19357000, 3807000)
    ),
    "hubtest_vision_chat_stream": Answered(
        text="A red circle on a white background.", tokens=(33, 9), nanoseconds=(1357584, 613000, 5035000), pieces=8
    ),
    "hubtest_vision_colour": Answered(text="Green.", tokens=(32, 3), nanoseconds=(2108879, 4405000, 1062000)),
    "hubtest_vision_json_schema": Answered(
        text='{"color": "red", "shape": "circle", "background": "white"}',
        tokens=(33, 19),
        nanoseconds=(1156709, 2021000, 10065000),
    ),
    "hubtest_vision_two_images": Answered(
        text="First: A red circle on a white background. Second: A blue square on a white background.",
        tokens=(47, 21),
        nanoseconds=(1451606, 6442000, 13851000),
    ),
}

FAILURES: dict[str, Failed] = {
    "chat_bad_json": Failed(InvalidRequest, "unexpected EOF"),
    "chat_image_bad_base64": Failed(InvalidRequest, "illegal base64 data at input byte 4"),
    "chat_image_unsupported": Failed(
        UnsupportedFeature, "does not support multimodal requests", {"features": ("images",)}
    ),
    "chat_no_model": Failed(InvalidRequest, "model is required"),
    "chat_think_unsupported": Failed(
        UnsupportedFeature, '"smollm2:135m" does not support thinking', {"features": ("reasoning",)}
    ),
    "chat_tools_unsupported": Failed(UnsupportedFeature, "does not support tools", {"features": ("tools",)}),
    "chat_truncate_false": Failed(
        ContextOverflow,
        "request (6675 tokens) exceeds the available context size (512 tokens)",
        {"tokens": 6675, "limit": 512},
    ),
    # 6,003 words were sent, so at least as many tokens; the server counted 13. The recording was made with num_ctx 512.
    "chat_truncated": Failed(
        ContextOverflow, "at least 6003 tokens, of which the server read 13", {"tokens": 6003, "limit": 512}
    ),
    "chat_unknown_model": Failed(
        ModelNotFound, "model 'nope' not found", {"model": "nope", "hint": "Fetch it: ollama pull nope"}
    ),
    "chat_unknown_model_stream": Failed(
        ModelNotFound, "model 'nope' not found", {"model": "nope", "hint": "Fetch it: ollama pull nope"}
    ),
    "fault_runner_killed_mid_stream": Failed(
        StreamInterrupted,
        "an error was encountered while running the model: unexpected EOF",
        {"partial": "123", "status": 500},
        cause=BackendFailed,
    ),
    "hubtest_think_unsupported": Failed(
        UnsupportedFeature, '"hub-test-vlm" does not support thinking', {"features": ("reasoning",)}
    ),
    "hubtest_vision_bad_image": Failed(InvalidRequest, "Failed to load image or audio file"),
    "hubtest_vision_bad_image_stream": Failed(InvalidRequest, "Failed to load image or audio file"),
    "hubtest_vision_data_uri": Failed(InvalidRequest, "illegal base64 data at input byte 4"),
    "hubtest_vision_truncated_image": Failed(InvalidRequest, "Failed to load image or audio file"),
    "show_unknown": Failed(ModelNotFound, "model 'nope:latest' not found", {"model": "nope"}),
}

# What the questions about models and health are answered with; test_models.py shows what is made of it.
QUESTIONS: dict[str, type] = {
    "hubtest_show": Shown,
    "hubtest_show_think": Shown,
    "ps_empty": RunningModels,
    "ps_loaded": RunningModels,
    "show_embedding": Shown,
    "show_text": Shown,
    "tags": StoredModels,
    "version": Version,
}

ELSEWHERE = {"/api/embed": "test_embedding.py decodes them"}

NOT_CALLED: dict[str, str] = {
    "/": "says only that Ollama runs; /api/version says that too, and which",
    "/api/embeddings": "was replaced by /api/embed",
    "/api/generate": "/api/chat does all it does, and knows roles, tools and images of several turns",
    "/v1/chat/completions": "loses errors in a stream (fault_v1_runner_killed_mid_stream); the native API does not",
    "/v1/embeddings": "the native API is used",
    "/v1/models": "/api/tags says more",
}


def test_every_recording_is_decoded_here_or_of_a_route_that_nobody_calls(recordings: dict[str, Recording]) -> None:
    decoded = CHATS.keys() | FAILURES.keys() | QUESTIONS.keys()
    assert len(decoded) == len(CHATS) + len(FAILURES) + len(QUESTIONS)
    not_called = {name for name, recording in recordings.items() if recording.request.path in NOT_CALLED}
    elsewhere = {name for name, recording in recordings.items() if recording.request.path in ELSEWHERE}
    assert elsewhere
    assert decoded | not_called | elsewhere == recordings.keys()
    assert not decoded & elsewhere
    assert not decoded & not_called
    assert NOT_CALLED.keys() == {recordings[name].request.path for name in not_called}


def dialect() -> OllamaDialect:
    # The two recordings of long prompts were made with this context.
    return OllamaDialect(OllamaSettings(profiles={"smollm2:135m": Profile(num_ctx=512)}))


def streamed(recording: Recording) -> bool:
    return recording.response.status == 200 and recording.streamed


def whole(request: ChatRequest, recording: Recording) -> ChatResponse:
    """What the HTTP backend makes of a whole body: by the status, an answer or an error."""
    assert recording.response.status is not None
    reply = HttpReply(recording.response.status, recording.headers, recording.body)
    if reply.status != 200:
        raise dialect().error(reply, model=request.model)
    return dialect().decode_chat(request, reply)


def stream(request: ChatRequest, pieces: list[bytes]) -> tuple[list[ChatChunk], HubError | None]:
    """What the HTTP backend makes of a streamed body that comes in these pieces."""
    decoder = dialect().decode_stream(request)
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


def seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


def assert_is(response: ChatResponse, expected: Answered, recording: Recording) -> None:
    assert response.text == expected.text
    assert response.reasoning == expected.reasoning
    assert response.finish_reason == expected.finish
    assert tuple((call.id, call.name, call.arguments) for call in response.tool_calls) == expected.calls
    assert response.usage == Usage(prompt_tokens=expected.tokens[0], completion_tokens=expected.tokens[1])
    load, prompt, generation = expected.nanoseconds
    assert response.timings == Timings(load=seconds(load), prompt=seconds(prompt), generation=seconds(generation))
    assert response.model == recording.request.json["model"]
    assert len(response.choices) == 1
    assert response.message.role == "assistant"


def assert_failed(error: BaseException | None, expected: Failed) -> None:
    assert type(error) is expected.kind
    assert expected.says in str(error)
    for name, value in expected.attributes.items():
        assert getattr(error, name) == value, name
    if expected.cause is not None:
        assert type(error.__cause__) is expected.cause


@pytest.mark.parametrize("name", CHATS)
def test_a_recorded_answer_is_decoded_exactly(
    name: str, recording: Callable[[str], Recording], canonical: Build
) -> None:
    recorded = recording(name)
    request = canonical(recorded)
    if not streamed(recorded):
        assert_is(whole(request, recorded), CHATS[name], recorded)
        return
    chunks, error = stream(request, [chunk.data for chunk in recorded.response.chunks])
    assert error is None
    assert_is(collect(chunks), CHATS[name], recorded)
    assert sum(chunk.has_content for chunk in chunks) == CHATS[name].pieces
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == CHATS[name].finish


@pytest.mark.parametrize("name", FAILURES)
def test_a_recorded_failure_is_the_right_error(
    name: str, recording: Callable[[str], Recording], canonical: Build
) -> None:
    recorded = recording(name)
    request = canonical(recorded)
    if streamed(recorded):
        _, error = stream(request, [chunk.data for chunk in recorded.response.chunks])
        assert_failed(error, FAILURES[name])
    else:
        with pytest.raises(HubError) as raised:
            whole(request, recorded)
        assert_failed(raised.value, FAILURES[name])


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_recorded_answer_to_a_question_is_read(name: str, recording: Callable[[str], Recording]) -> None:
    body: object = decode(recording(name).body, QUESTIONS[name])
    if isinstance(body, Version):
        assert body.version == "0.32.15"
    elif isinstance(body, RunningModels):
        assert [model.name for model in body.models or ()] == (["smollm2:135m"] if name == "ps_loaded" else [])
    elif isinstance(body, StoredModels):
        assert [model.name for model in body.models or ()] == ["smollm2-tools:135m", "all-minilm:22m", "smollm2:135m"]
    else:
        assert isinstance(body, Shown)
        expected = {
            "hubtest_show": (["completion", "vision", "tools"], 4096, 128),
            "hubtest_show_think": (["completion", "vision", "tools", "thinking"], 4096, 128),
            "show_embedding": (["embedding"], 512, 384),
            "show_text": (["completion"], 8192, 576),
        }[name]
        assert (body.capabilities, body.length("context_length"), body.length("embedding_length")) == expected


STREAMS = [name for name in (*CHATS, *FAILURES) if "stream" in name and FAILURES.get(name) is None] + [
    "fault_runner_killed_mid_stream"
]


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_the_same_wherever_its_bytes_are_cut(
    name: str, recording: Callable[[str], Recording], canonical: Build
) -> None:
    recorded = recording(name)
    assert streamed(recorded)
    request = canonical(recorded)
    body = recorded.body
    expected, failure = stream(request, [body])
    cuts = [[body[index : index + 1] for index in range(len(body))]]
    cuts += [[body[:index], body[index:]] for index in range(1, len(body))]
    for pieces in cuts:
        chunks, error = stream(request, pieces)
        assert chunks == expected
        assert type(error) is type(failure)
        assert str(error) == str(failure)
        assert getattr(error, "partial", None) == getattr(failure, "partial", None)


def test_every_recorded_stream_is_cut(recordings: dict[str, Recording]) -> None:
    called = [recorded for recorded in recordings.values() if recorded.request.path == "/api/chat"]
    assert sorted(STREAMS) == sorted(recorded.name for recorded in called if streamed(recorded))


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_that_ends_early_anywhere_is_never_taken_for_a_whole_one(
    name: str, recording: Callable[[str], Recording], canonical: Build
) -> None:
    recorded = recording(name)
    request = canonical(recorded)
    body = recorded.body.rstrip(b"\n")  # the line with the end mark is whole without the newline after it
    for end in range(0, len(body), 7):
        chunks, error = stream(request, [body[:end]])
        assert isinstance(error, StreamInterrupted)
        # All that came in whole lines, also where the last of them lacks its end and so was not handed out.
        lines = [
            line for line in body[:end].split(b"\n") if line.endswith(b"}") and line.count(b"{") == line.count(b"}")
        ]
        assert error.partial == "".join(json.loads(line).get("message", {}).get("content", "") for line in lines)
        assert all(chunk.finish_reason is None for chunk in chunks)


def test_recorded_log_probabilities_come_with_their_bytes_and_alternatives(
    recording: Callable[[str], Recording], canonical: Build
) -> None:
    recorded = recording("chat_logprobs")
    logprobs = whole(canonical(recorded), recorded).choices[0].logprobs
    assert logprobs is not None
    assert [token.token for token in logprobs] == ["The", " capital", " of"]
    assert logprobs[0] == TokenLogprob(
        token="The",
        logprob=-0.5529907941818237,
        bytes=(84, 104, 101),
        top=(
            TokenLogprob(token="The", logprob=-0.5529907941818237, bytes=(84, 104, 101)),
            TokenLogprob(token="L", logprob=-2.3126630783081055, bytes=(76,)),
        ),
    )
    assert logprobs[2].top[1] == TokenLogprob(token=" city", logprob=-5.394315242767334, bytes=(32, 99, 105, 116, 121))
