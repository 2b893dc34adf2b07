"""The OpenAI dialect as a whole: streams from bytes to chunks, models, and the health ladder."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_hub.capabilities import Feature, ModelInfo, Probe, Rung
from llm_hub.config import BackendConfig
from llm_hub.dialect import Dialect, HttpReply, HttpRequest
from llm_hub.errors import (
    BackendFailed,
    BackendLoading,
    BackendOverloaded,
    ContextOverflow,
    HubError,
    InvalidRequest,
    ProtocolError,
    StreamInterrupted,
)
from llm_hub.messages import (
    ChatChunk,
    ToolCallDelta,
    Usage,
)
from llm_hub.openai_dialect import (
    OpenAIDialect,
    OpenAIStreamDecoder,
    server_root,
)


def completion(message: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    one = {"index": 0, "message": {"role": "assistant", "content": "x"} if message is None else message}
    return {"id": "1", "object": "chat.completion", "choices": [{**one, "finish_reason": "stop", **choice}]}


def reply(body: Any, status: int = 200, **headers: str) -> HttpReply:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    kind = "text/html" if raw.startswith(b"<") else "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpReply(status, {"content-type": kind, **named}, raw)


def test_the_dialect_fulfils_the_protocol() -> None:
    dialect: Dialect = OpenAIDialect()
    assert Feature.TOOLS in dialect.features


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h:1", "http://h:1"),
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        ("http://h/api/v1", "http://h/api"),
        ("http://h/v12", "http://h/v12"),
    ],
)
def test_an_address_is_taken_with_the_prefix_and_without(url: str, root: str) -> None:
    config = server_root(BackendConfig(name="x", plugin="y", base_urls={None: url}))
    assert config.base_urls == {None: root}


# -- streams ----------------------------------------------------------------------------------------------------------


def event(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    return b"data: " + msgspec.json.encode({"id": "1", "model": "m", "choices": choices, **more}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
FIRST = event({"role": "assistant", "content": ""})
ERROR = b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n'


def read(*pieces: bytes, n: int = 1) -> tuple[list[ChatChunk], HubError | None, OpenAIStreamDecoder]:
    """The chunks of a body in these pieces, the error that ended it, and the decoder."""
    decoder = OpenAIStreamDecoder(n=n, model="m")
    chunks: list[ChatChunk] = []
    try:
        for piece in pieces:
            chunks += decoder.feed(piece)
        chunks += decoder.finish()
    except HubError as error:
        return chunks, error, decoder
    return chunks, None, decoder


def chunk(text: str = "", **fields: Any) -> ChatChunk:
    return ChatChunk(text, id="1", model="m", **fields)


def test_a_stream_ends_with_its_finish_reason_and_usage_in_one_last_chunk() -> None:
    usage = event(None, usage={"prompt_tokens": 1, "completion_tokens": 2})
    chunks, error, decoder = read(FIRST, event({"content": "a"}), event({"content": "b"}, "stop"), usage, DONE)
    assert error is None
    assert decoder.done
    assert chunks == [
        chunk("a"),
        chunk("b"),
        chunk(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=2)),
    ]


def test_nothing_is_called_finished_before_the_end_mark() -> None:
    decoder = OpenAIStreamDecoder()
    assert decoder.feed(event({"content": "a"}, "stop")) == [chunk("a")]
    assert decoder.feed(event(None, usage={"prompt_tokens": 1})) == []
    assert not decoder.done
    (last,) = decoder.feed(DONE)
    assert last.finish_reason == "stop"
    assert decoder.finish() == []


def test_what_follows_the_end_mark_is_not_read() -> None:
    chunks, error, _ = read(event({"content": "a"}, "stop") + DONE + event({"content": "b"}), ERROR)
    assert error is None
    assert "".join(each.text for each in chunks) == "a"


def test_the_pieces_of_tool_calls_and_reasoning_are_handed_on() -> None:
    chunks, error, _ = read(
        event({"reasoning": "h"}),
        event({"reasoning_content": "m"}),
        event(
            {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]}
        ),
        event({"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}),
        event({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}, {"index": 1, "id": "b"}]}),
        event({"tool_calls": [{"function": {"name": "g", "arguments": {"y": 2}}}]}),
        event({}, "stop"),
        DONE,
    )
    assert error is None
    assert [each.reasoning for each in chunks[:2]] == ["h", "m"]
    assert [each.tool_calls for each in chunks[2:-1]] == [
        (ToolCallDelta(0, "a", "f", ""),),
        (ToolCallDelta(0, None, None, '{"x"'),),
        (ToolCallDelta(0, None, None, ":1}"), ToolCallDelta(1, "b", None, "")),
        (ToolCallDelta(0, None, "g", '{"y":2}'),),
    ]
    assert chunks[-1].finish_reason == "tool_calls"


def test_several_choices_each_have_an_end() -> None:
    pieces = [
        event({"content": "a"}),
        event({"content": "b"}, index=1),
        event({}, "stop"),
        event({}, "length", index=1),
    ]
    chunks, error, _ = read(*pieces, event(None, usage={"prompt_tokens": 1}), DONE, n=2)
    assert error is None
    assert [(each.index, each.text, each.finish_reason) for each in chunks] == [
        (0, "a", None),
        (1, "b", None),
        (0, "", "stop"),
        (1, "", "length"),
    ]
    assert [each.usage for each in chunks] == [None, None, None, Usage(prompt_tokens=1)]


def test_a_choice_without_an_end_interrupts_the_stream_for_all() -> None:
    chunks, error, _ = read(event({"content": "a"}, "stop"), event({"content": "b"}, index=1), DONE, n=2)
    assert isinstance(error, StreamInterrupted)
    assert "without a finish reason for choice 1" in error.message
    assert error.partial == "a"
    assert [each.text for each in chunks] == ["a", "b"]


@pytest.mark.parametrize("cut", ["", "data: [DO", '{"choices"', "\n"])
def test_a_stream_without_its_end_mark_is_interrupted_with_what_had_come(cut: str) -> None:
    chunks, error, decoder = read(event({"content": "a"}), event({"content": "b"}, "stop"), cut.encode())
    assert isinstance(error, StreamInterrupted)
    assert error.partial == "ab"
    assert [each.finish_reason for each in chunks] == [None, None]
    assert decoder.done


def test_an_end_mark_without_a_finish_reason_is_no_end() -> None:
    _, error, _ = read(event({"content": "a"}), DONE)
    assert isinstance(error, StreamInterrupted)
    assert "without a finish reason for choice 0" in error.message


@pytest.mark.parametrize("mark", [b"data: [DONE]", b"data: [DONE]\n", b"data:[DONE]\r\n\r\n"])
def test_an_end_mark_may_lack_the_empty_line(mark: bytes) -> None:
    chunks, error, _ = read(event({"content": "a"}, "stop"), mark)
    assert error is None
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize("before", [(), (FIRST,)])
def test_an_error_as_the_first_event_is_that_error(before: tuple[bytes, ...]) -> None:
    _, error, _ = read(*before, ERROR, DONE)
    assert type(error) is BackendFailed
    assert "EngineCore" in error.message
    _, error, _ = read(*before, ERROR.removesuffix(b"\n\n"))
    assert type(error) is BackendFailed


def test_an_error_after_content_is_an_interruption_that_was_caused_by_it() -> None:
    for pieces in ([event({"content": "a"}), ERROR, DONE], [event({"content": "a"}) + ERROR + DONE]):
        chunks, error, decoder = read(*pieces)
        assert [each.text for each in chunks] == ["a"]
        assert type(error) is StreamInterrupted
        assert (error.partial, error.status) == ("a", 500)
        assert type(error.__cause__) is BackendFailed
        assert decoder.done


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'data: {"error": {"message": "x", "code": 503, "type": "Loading model"}}\n\n', BackendOverloaded),
        (b'data: {"error": {"message": "Loading model", "code": 503}}\n\n', BackendLoading),
        (b'data: {"error": "no more memory"}\n\n', BackendFailed),
        (b'data: {"object": "error", "message": "too many", "code": 429}\n\n', BackendOverloaded),
        (b'event: error\ndata: {"message": "x", "type": "overloaded", "code": 429}\n\n', BackendOverloaded),
        (
            (
                b'data: {"error": {"code": 400, "message": "request (5031 tokens) exceeds the available context size (1024 '
                b'tokens), try increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 5031, "n_ctx": 1024}}\n\n'
            ),
            ContextOverflow,
        ),
    ],
)
def test_errors_in_streams_are_typed_however_they_are_spelt(body: bytes, kind: type[HubError]) -> None:
    _, error, _ = read(body)
    assert type(error) is kind


@pytest.mark.parametrize(
    "garbage", [b"data: {\n\n", b"data: hello\n\n", b'data: {"choices": 3}\n\n', b"data: \xff\n\n"]
)
def test_garbage_is_a_protocol_error_and_after_content_an_interruption(garbage: bytes) -> None:
    _, error, _ = read(garbage)
    assert type(error) is ProtocolError
    _, error, _ = read(event({"content": "a"}) + garbage)
    assert type(error) is StreamInterrupted
    assert type(error.__cause__) is ProtocolError


def test_invalid_utf8_within_text_is_garbage() -> None:
    _, error, _ = read(b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n')
    assert type(error) is ProtocolError


def test_an_endless_line_is_cut_off() -> None:
    _, error, _ = read(*([b"data: " + b"x" * 1_000_000] * 9))
    assert type(error) is ProtocolError
    assert "more than 8 MiB" in error.message


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"<html><body>Welcome to nginx</body></html>", ProtocolError, "it begins '<html><body>Welcome to nginx"),
        (b'{"error": {"message": "no such thing", "code": 400}}', InvalidRequest, "no such thing"),
        (b'{"choices": []}', ProtocolError, "no stream of events"),
        (b"", StreamInterrupted, "ended without its end mark"),
        (b": ping\n\n", StreamInterrupted, "ended without its end mark"),
        (b'data: {"id"', StreamInterrupted, "ended without its end mark"),
    ],
)
def test_a_body_that_is_no_stream_says_what_it_is_instead(body: bytes, kind: type[HubError], says: str) -> None:
    for pieces in ([body], [bytes([byte]) for byte in body]):
        _, error, _ = read(*pieces)
        assert type(error) is kind
        assert says in error.message


def test_giving_up_in_a_stream_is_no_end() -> None:
    _, error, _ = read(event({"content": "a"}), event({}, "abort"), DONE)
    assert type(error) is StreamInterrupted
    assert type(error.__cause__) is BackendFailed


# -- control ----------------------------------------------------------------------------------------------------------


def test_models_are_listed_with_what_each_kind_of_server_tells() -> None:
    body = {
        "object": "list",
        "data": [
            {"id": "vllm", "max_model_len": 2048},
            {"id": "llama", "meta": {"n_ctx": 4096, "n_params": 1}, "aliases": ["l"]},
            {"id": "plain", "object": "model", "created": 1, "owned_by": "me"},
        ],
    }
    talk = OpenAIDialect().models()
    assert next(talk) == HttpRequest("GET", "/v1/models")
    with pytest.raises(StopIteration) as stop:
        talk.send(reply(body))
    assert stop.value.value == (
        ModelInfo(name="vllm", context_length=2048),
        ModelInfo(name="llama", context_length=4096, aliases=("l",)),
        ModelInfo(name="plain"),
    )


def probe(dialect: OpenAIDialect, rung: Rung, model: str | None, *replies: HttpReply) -> tuple[Probe, list[str]]:
    talk = dialect.probe(rung, model)
    asked = [next(talk).path]
    try:
        for each in replies:
            asked.append(talk.send(each).path)
    except StopIteration as stop:
        return stop.value, asked
    raise AssertionError(f"it goes on to ask {asked[-1]}")


MODELS = reply({"data": [{"id": "m", "aliases": ["alias"]}]})


def test_without_a_route_for_health_the_list_of_models_proves_life() -> None:
    found, asked = probe(OpenAIDialect(), Rung.ALIVE, None, MODELS)
    assert found == Probe(rung=Rung.ALIVE, wanted=Rung.ALIVE)
    assert asked == ["/v1/models"]


def test_a_model_is_present_under_its_name_and_its_aliases() -> None:
    for model in (None, "m", "alias"):
        found, _ = probe(OpenAIDialect(), Rung.MODEL_PRESENT, model, MODELS)
        assert found.rung is Rung.MODEL_PRESENT
    found, _ = probe(OpenAIDialect(), Rung.MODEL_PRESENT, "x", MODELS)
    assert found == Probe(
        rung=Rung.ALIVE, wanted=Rung.MODEL_PRESENT, detail="it does not have the model 'x'", hint="It has: m."
    )
    found, _ = probe(OpenAIDialect(), Rung.MODEL_PRESENT, None, reply({"data": []}))
    assert (found.rung, found.detail) == (Rung.ALIVE, "it has no model")


def test_only_generating_proves_that_a_model_is_loaded_where_lists_show_all_there_are() -> None:
    found, asked = probe(OpenAIDialect(), Rung.LOADED, "alias", MODELS, reply(completion(finish_reason="length")))
    assert found == Probe(rung=Rung.GENERATING, wanted=Rung.LOADED)
    assert asked == ["/v1/models", "/v1/chat/completions"]


def test_a_server_that_loads_is_alive_and_says_so() -> None:
    loading = reply({"error": {"message": "Loading model", "code": 503}}, 503)
    found, _ = probe(OpenAIDialect(health_path="/health"), Rung.LOADED, "m", loading)
    assert (found.rung, found.ok) == (Rung.ALIVE, False)
    assert found.detail == "it is loading the model: Loading model"


def test_an_answer_that_is_no_model_server_is_not_alive() -> None:
    found, _ = probe(OpenAIDialect(), Rung.MODEL_PRESENT, "m", reply(b"<html>Welcome"))
    assert found.rung is None
    assert "it begins '<html>Welcome'" in found.detail
