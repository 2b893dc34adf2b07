"""Models, the health ladder, metrics and token counts, as conversations without I/O."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import pytest

from llm_hub.capabilities import Probe, Rung
from llm_hub.dialect import Conversation, HttpReply
from llm_hub.errors import (
    AuthenticationFailed,
    BackendError,
    BackendUnreachable,
    DeadlineExceeded,
    ModelNotFound,
    ProtocolError,
)
from llm_hub.messages import ChatRequest, Message, TokenCount, Tool
from llm_hub.testing import Recording
from llm_hub_vllm.dialect import VLLMDialect
from llm_hub_vllm.metrics import Load, parse_load

T = TypeVar("T")
Recordings = dict[str, Recording]
Served = dict[str, HttpReply | BackendError]

CHAT = "/v1/chat/completions"


def reply(recording: Recording) -> HttpReply:
    assert recording.response.status is not None
    return HttpReply(recording.response.status, recording.headers, recording.body)


def json(value: object, status: int = 200) -> HttpReply:
    return HttpReply(status, {"content-type": "application/json"}, msgspec.json.encode(value))


@pytest.fixture
def alive(recordings: Recordings) -> Served:
    """What a healthy server answers."""
    return {
        "/health": reply(recordings["health"]),
        "/version": reply(recordings["version"]),
        "/metrics": reply(recordings["metrics"]),
        "/v1/models": reply(recordings["models"]),
        CHAT: reply(recordings["chat_length"]),
    }


def carry_out(talk: Conversation[T], served: Served) -> tuple[T, list[str]]:
    """Answer a conversation: its result, and the paths that it asked for."""
    asked: list[str] = []
    answer: HttpReply | BackendError | None = None
    try:
        while True:
            if isinstance(answer, BackendError):
                request = talk.throw(answer)
            else:
                request = next(talk) if answer is None else talk.send(answer)
            asked.append(request.path)
            answer = served[request.path]
    except StopIteration as stop:
        return stop.value, asked


# -- the ladder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rung", "reached", "asked"),
    [
        (Rung.ALIVE, Rung.ALIVE, ["/health", "/version"]),
        (Rung.MODEL_PRESENT, Rung.LOADED, ["/health", "/version", "/v1/models"]),
        (Rung.LOADED, Rung.LOADED, ["/health", "/version", "/metrics", "/v1/models"]),
        (Rung.GENERATING, Rung.GENERATING, ["/health", "/version", "/metrics", "/v1/models", CHAT]),
    ],
)
def test_a_healthy_server_reaches_every_rung_with_no_more_questions_than_needed(
    rung: Rung, reached: Rung, asked: list[str], alive: Served
) -> None:
    probe, paths = carry_out(VLLMDialect().probe(rung, "smollm2"), alive)
    detail = "0 running, 0 waiting, KV cache 0% full" if rung >= Rung.LOADED else ""
    assert probe == Probe(rung=reached, wanted=rung, version="0.32.0", detail=detail)
    assert probe.ok
    assert paths == asked


def test_the_generating_rung_asks_for_one_token_of_the_model_that_is_there(alive: Served) -> None:
    talk = VLLMDialect().probe(Rung.GENERATING, None)
    request = next(talk)
    while request.path != CHAT:
        answer = alive[request.path]
        assert isinstance(answer, HttpReply)
        request = talk.send(answer)
    body = msgspec.json.decode(request.body or b"")
    assert body == {"model": "smollm2", "messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}


def test_a_dead_engine_is_not_alive_although_its_server_answers(recordings: Recordings, alive: Served) -> None:
    alive["/health"] = reply(recordings["fault_health_after_engine_death"])
    probe, paths = carry_out(VLLMDialect().probe(Rung.GENERATING, "smollm2"), alive)
    assert (probe.rung, probe.ok, paths) == (None, False, ["/health"])
    assert probe.detail == "its engine is dead (/health says 503)"


def test_a_server_whose_metadata_is_fine_but_that_cannot_generate_stays_below_that_rung(alive: Served) -> None:
    alive[CHAT] = json({"error": {"message": "EngineCore encountered an issue.", "code": 500}}, 500)
    probe, _ = carry_out(VLLMDialect().probe(Rung.GENERATING, "smollm2"), alive)
    assert (probe.rung, probe.ok) == (Rung.LOADED, False)
    assert "EngineCore encountered an issue" in probe.detail


def test_a_model_that_is_missing_is_named_with_those_that_are_there_and_the_command(alive: Served) -> None:
    probe, _ = carry_out(VLLMDialect().probe(Rung.MODEL_PRESENT, "llama"), alive)
    assert (probe.rung, probe.ok, probe.version) == (Rung.ALIVE, False, "0.32.0")
    assert probe.detail == "it does not have the model 'llama'"
    assert probe.hint == "It has: smollm2. To serve it: vllm serve llama"


def test_a_server_that_wants_a_key_is_alive_but_has_no_model_to_show(alive: Served) -> None:
    alive["/v1/models"] = json({"error": "Unauthorized"}, 401)
    probe, _ = carry_out(VLLMDialect().probe(Rung.MODEL_PRESENT, None), alive)
    assert (probe.rung, probe.ok) == (Rung.ALIVE, False)
    assert "refuses the API key" in probe.detail


@pytest.mark.parametrize("lost", ["/version", "/metrics"])
def test_a_probe_can_do_without_version_and_metrics(lost: str, alive: Served) -> None:
    for answer in (HttpReply(404, {}, b""), HttpReply(200, {}, b"<html>"), BackendUnreachable("gone")):
        alive[lost] = answer
        probe, _ = carry_out(VLLMDialect().probe(Rung.GENERATING, "smollm2"), alive)
        assert probe.rung is Rung.GENERATING


def test_a_server_that_does_not_answer_is_at_no_rung() -> None:
    probe, _ = carry_out(
        VLLMDialect().probe(Rung.LOADED, None), {"/health": BackendUnreachable("refused", hint="Start it.")}
    )
    assert probe == Probe(rung=None, wanted=Rung.LOADED, detail="refused", hint="Start it.")


def test_the_callers_own_deadline_ends_a_probe(alive: Served) -> None:
    for path in ("/health", "/version", "/v1/models"):
        served: Served = {**alive, path: DeadlineExceeded("too late", stage="total")}
        with pytest.raises(DeadlineExceeded):
            carry_out(VLLMDialect().probe(Rung.GENERATING, "smollm2"), served)


# -- models -----------------------------------------------------------------------------------------------------------


def test_a_list_of_models_that_is_none_is_a_protocol_error() -> None:
    for body in (b"<html><body>Welcome</body></html>", b'{"data": 3}', b""):
        with pytest.raises(ProtocolError, match="its list of models is none"):
            carry_out(VLLMDialect().models(), {"/v1/models": HttpReply(200, {}, body)})


def test_the_models_of_a_server_that_wants_another_key_are_an_error() -> None:
    with pytest.raises(AuthenticationFailed):
        carry_out(VLLMDialect().models(), {"/v1/models": json({"error": "Unauthorized"}, 401)})


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_the_tokens_of_a_conversation_are_counted_with_its_tools_and_template() -> None:
    request = ChatRequest(
        messages=(Message(role="user", content="hi"),),
        model="smollm2",
        tools=(Tool(name="f"),),
        temperature=0,
        max_tokens=5,
        reasoning=True,
    )
    talk = VLLMDialect().count_tokens(request)
    wire = next(talk)
    assert (wire.method, wire.path) == ("POST", "/tokenize")
    assert msgspec.json.decode(wire.body or b"") == {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "chat_template_kwargs": {"enable_thinking": True},
    }
    with pytest.raises(StopIteration) as stop:
        talk.send(json({"count": 12, "max_model_len": 2048, "tokens": []}))
    assert stop.value.value == TokenCount(tokens=12, limit=2048)


def test_the_recorded_question_about_tokens_is_asked_in_the_same_words(recordings: Recordings) -> None:
    wire = next(VLLMDialect().count_text_tokens("hello world", "smollm2"))
    assert msgspec.json.decode(wire.body or b"") == recordings["tokenize"].request.json


def test_a_count_of_tokens_that_fails_is_a_typed_error() -> None:
    missing = json({"error": {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}}, 404)
    with pytest.raises(ModelNotFound, match="it does not have the model 'x'"):
        carry_out(VLLMDialect().count_text_tokens("a", "x"), {"/tokenize": missing})
    with pytest.raises(ProtocolError, match="its answer is no count of tokens"):
        carry_out(VLLMDialect().count_text_tokens("a", "x"), {"/tokenize": HttpReply(200, {}, b"[]")})


# -- metrics ----------------------------------------------------------------------------------------------------------

BUSY = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 2.0
vllm:num_requests_running{engine="0",model_name="b"} 1.0
vllm:num_requests_waiting{engine="0",model_name="a"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="a",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.5
"""


@pytest.mark.parametrize(
    ("text", "model", "expected"),
    [
        (BUSY, None, Load(6, 7, 0.5)),
        (BUSY, "b", Load(1, 0, None)),
        (BUSY, "c", None),
        ("vllm:num_requests_running 1.0\nvllm:gpu_cache_usage_perc 0.1\n", None, Load(1, 0, 0.1)),
        ("vllm:num_requests_running NaN\nvllm:num_requests_waiting x\n", None, None),
        ("<html>", None, None),
        ("", None, None),
    ],
    ids=["all models", "one model", "another model", "the older name", "no numbers", "no metrics", "nothing"],
)
def test_the_metrics_say_how_busy_the_server_is(text: str, model: str | None, expected: Load | None) -> None:
    assert parse_load(text, model=model) == expected


def test_a_load_reads_as_a_sentence() -> None:
    assert str(Load(5, 7, 0.5)) == "5 running, 7 waiting, KV cache 50% full"
    assert str(Load(5, 7)) == "5 running, 7 waiting"


def test_the_version_is_none_where_the_server_does_not_say() -> None:
    served: dict[str, Any] = {"/version": HttpReply(200, {}, b"[]")}
    assert carry_out(VLLMDialect().about(Rung.ALIVE), served)[0] == (None, "")
