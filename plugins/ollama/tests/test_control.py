"""The questions about models and health: what is asked, what is made of the answers, and that nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.capabilities import Capability, Feature, ModelInfo, Probe, Rung
from llm_hub.dialect import HttpReply, HttpRequest
from llm_hub.errors import (
    BackendFailed,
    BackendUnreachable,
    Cancelled,
    DeadlineExceeded,
    HubError,
    ProtocolError,
)
from llm_hub.testing import Recording
from llm_hub_ollama.dialect import OllamaDialect
from llm_hub_ollama.settings import OllamaSettings, Profile

T = TypeVar("T")
Answer = HttpReply | HubError
Server = Callable[[HttpRequest], Answer]

TEXT_FEATURES = {
    Feature.SYSTEM,
    Feature.JSON_OBJECT,
    Feature.JSON_SCHEMA,
    Feature.LOGPROBS,
    Feature.SEED,
    Feature.PENALTIES,
}


def converse(talk: Generator[HttpRequest, HttpReply, T], server: Server) -> tuple[T, list[str]]:
    """Carry a conversation out; the result, and the requests as "METHOD /path"."""
    asked: list[str] = []
    try:
        request = next(talk)
        while True:
            asked.append(f"{request.method} {request.path}")
            answer = server(request)
            request = talk.throw(answer) if isinstance(answer, HubError) else talk.send(answer)
    except StopIteration as stop:
        return stop.value, asked


def ok(value: Any, status: int = 200) -> HttpReply:
    return HttpReply(status, {}, msgspec.json.encode(value))


def replay(recordings: Iterable[Recording]) -> Server:
    """Answers each request as the recorded server did: the same method, path and, for /api/show, model."""
    known = {(one.request.method, one.request.path, (one.request.json or {}).get("model")): one for one in recordings}

    def server(request: HttpRequest) -> HttpReply:
        model = msgspec.json.decode(request.body)["model"] if request.body else None
        one = known[request.method, request.path, model]
        assert one.response.status is not None
        return HttpReply(one.response.status, one.headers, one.body)

    return server


def served(routes: dict[str, Answer | Callable[[HttpRequest], Answer]]) -> Server:
    def server(request: HttpRequest) -> Answer:
        answer = routes[request.path]
        return answer(request) if callable(answer) else answer

    return server


def stored(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "capabilities": ["completion", "tools"], "details": {"context_length": 8192}, **fields}


def models(server: Server, settings: OllamaSettings | None = None) -> dict[str, ModelInfo]:
    found, _ = converse(OllamaDialect(settings).models(), server)
    return {model.name: model for model in found}


def probe(
    rung: Rung, server: Server, model: str | None = "m", settings: OllamaSettings | None = None
) -> tuple[Probe, list[str]]:
    return converse(OllamaDialect(settings).probe(rung, model), server)


# -- models ---------------------------------------------------------------------------------------------------------


def test_of_the_configured_models_their_headers_are_asked_for(recordings: dict[str, Recording]) -> None:
    names = ("tags", "ps_loaded", "show_embedding", "show_text")
    dialect = OllamaDialect(configured=["smollm2-tools:135m"])
    show = msgspec.json.encode({"model_info": {"general.architecture": "llama", "llama.block_count": 30}})
    recorded = replay(recordings[name] for name in names)

    def server(request: HttpRequest) -> Answer:
        return HttpReply(200, {}, show) if b"smollm2-tools" in (request.body or b"") else recorded(request)

    found, asked = converse(dialect.models(), server)
    assert asked.count("POST /api/show") == 3
    assert found[0].header["llama.block_count"] == 30


def test_the_recorded_models_are_described_without_loading_any(recordings: dict[str, Recording]) -> None:
    names = ("tags", "ps_loaded", "show_embedding", "show_text")
    found, asked = converse(OllamaDialect().models(), replay(recordings[name] for name in names))
    # The list lacks the lengths of the embedding model and calls it "completion"; /api/show knows better. So both
    # models that it calls that and nothing more are looked at.
    assert asked == ["GET /api/tags", "GET /api/ps", "POST /api/show", "POST /api/show"]
    assert [one.header.get("general.architecture") for one in found] == [None, "bert", "llama"]
    assert not any(key.startswith("tokenizer.") for one in found for key in one.header)
    assert tuple(msgspec.structs.replace(one, header={}) for one in found) == (
        ModelInfo(
            name="smollm2-tools:135m",
            capabilities=frozenset({Capability.TEXT}),
            features=frozenset({*TEXT_FEATURES, Feature.TOOLS, Feature.TOOL_CHOICE}),
            context_length=8192,
            digest="599815f81ddc3f775be6996832576c149bf863dea0c314c9ff30e43689f55ac3",
            loaded=False,
            size=98363015,
        ),
        ModelInfo(
            name="all-minilm:22m",
            capabilities=frozenset({Capability.EMBEDDING}),
            features=frozenset({Feature.DIMENSIONS}),
            context_length=512,
            max_input=512,
            embedding_dimension=384,
            digest="3916e706937ab68937981d4bebf584c3ea8e2e9ab78cd6306bfa9741c77ddb9e",
            loaded=False,
            size=45949364,
        ),
        ModelInfo(
            name="smollm2:135m",
            capabilities=frozenset({Capability.TEXT}),
            features=frozenset(TEXT_FEATURES),
            context_length=2048,  # that of the loaded model, which is what a request gets
            digest="4910a4421a76154bb562dc690ec30b4fce47d73d66de200b238872088a83f8c9",
            loaded=True,
            size=98362745,
            degraded="the model runs on the CPU",
        ),
    )


@pytest.mark.parametrize("thinks", [False, True])
def test_a_model_that_sees_and_calls_tools_has_these_features(thinks: bool, recordings: dict[str, Recording]) -> None:
    shown = recordings["hubtest_show_think" if thinks else "hubtest_show"]
    routes: dict[str, Any] = {
        "/api/tags": ok({"models": [{"name": "hub-test-vlm:latest"}]}),
        "/api/ps": ok({"models": []}),
        "/api/show": HttpReply(200, {}, shown.body),
    }
    model = models(served(routes))["hub-test-vlm:latest"]
    assert model.aliases == ("hub-test-vlm",)
    assert model.capabilities == frozenset({Capability.TEXT, Capability.VISION})
    thinking = {Feature.REASONING, Feature.REASONING_EFFORT} if thinks else set()
    assert model.features == frozenset(TEXT_FEATURES | {Feature.TOOLS, Feature.TOOL_CHOICE, Feature.IMAGES} | thinking)
    assert model.context_length == 4096
    assert model.embedding_dimension is None


def test_the_context_is_that_of_the_profile_within_what_the_model_can() -> None:
    routes: dict[str, Any] = {
        "/api/tags": ok({"models": [stored("a:latest"), stored("b"), stored("c")]}),
        "/api/ps": ok({"models": [{"name": "a:latest", "context_length": 512}, {"name": "c", "context_length": 1024}]}),
    }
    settings = OllamaSettings(profiles={"a": Profile(num_ctx=2048), "b": Profile(num_ctx=99_999)})
    found = models(served(routes), settings)
    assert {name: model.context_length for name, model in found.items()} == {"a:latest": 2048, "b": 8192, "c": 1024}


@pytest.mark.parametrize(
    ("sizes", "degraded"),
    [
        ({"size": 1000, "size_vram": 1000}, None),
        ({"size": 1000, "size_vram": 250}, "75 % of the model runs on the CPU"),
        ({"size": 1000, "size_vram": 0}, "the model runs on the CPU"),
        ({"size": 1000}, None),
        ({}, None),
    ],
)
def test_a_model_that_does_not_fit_its_gpu_is_degraded(sizes: dict[str, int], degraded: str | None) -> None:
    routes: dict[str, Any] = {
        "/api/version": ok({"version": "0.32.15"}),
        "/api/tags": ok({"models": [stored("m:latest")]}),
        "/api/ps": ok({"models": [{"name": "m:latest", **sizes}]}),
    }
    assert models(served(routes))["m:latest"].degraded == degraded
    found, _ = probe(Rung.LOADED, served(routes))
    assert (found.rung, found.degraded) == (Rung.LOADED, degraded)


def test_a_model_that_another_server_runs_is_marked_and_not_asked_about() -> None:
    routes: dict[str, Any] = {
        "/api/version": ok({"version": "0.32.15"}),
        "/api/tags": ok({"models": [{"name": "big:cloud", "remote_host": "https://far.example:443"}]}),
        "/api/ps": ok({"models": None}),
    }
    model = models(served(routes))["big:cloud"]
    assert model.degraded == "another server runs it: https://far.example:443"
    assert model.loaded is None
    found, _ = probe(Rung.MODEL_PRESENT, served(routes), "big:cloud")
    assert found.ok
    assert found.degraded == "another server runs the model: https://far.example:443"


def test_a_server_that_tells_less_rules_nothing_out() -> None:
    routes: dict[str, Any] = {
        "/api/tags": ok({"models": [{"name": "m"}]}),
        "/api/ps": HttpReply(404, {}, b"404 page not found"),
        "/api/show": ok({"error": "model 'm' not found"}, 404),
    }
    assert models(served(routes)) == {"m": ModelInfo(name="m")}


@pytest.mark.parametrize("models_", [None, []])
def test_a_server_without_models_has_none(models_: Any) -> None:
    routes: dict[str, Any] = {"/api/tags": ok({"models": models_}), "/api/ps": ok({})}
    assert models(served(routes)) == {}


def test_a_server_that_is_not_ollama_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="begins '<html>'"):
        models(served({"/api/tags": HttpReply(200, {}, b"<html>")}))
    with pytest.raises(ProtocolError, match="does not serve Ollama's API"):
        models(served({"/api/tags": HttpReply(404, {}, b"Not Found")}))
    with pytest.raises(BackendFailed):
        models(served({"/api/tags": ok({"models": []}), "/api/ps": ok({"error": "broken"}, 500)}))


# -- health ---------------------------------------------------------------------------------------------------------

PRESENT: dict[str, Any] = {
    "/api/version": ok({"version": "0.32.15"}),
    "/api/tags": ok({"models": [stored("m:latest"), stored("other:1b")]}),
    "/api/ps": ok({"models": []}),
}


def test_the_ladder_asks_no_more_than_its_rung_needs(recordings: dict[str, Recording]) -> None:
    server = replay(recordings[name] for name in ("version", "tags", "ps_loaded"))
    alive, asked = probe(Rung.ALIVE, server, "smollm2:135m")
    assert alive == Probe(rung=Rung.ALIVE, wanted=Rung.ALIVE, version="0.32.15")
    assert asked == ["GET /api/version"]
    present, asked = probe(Rung.MODEL_PRESENT, server, "smollm2:135m")
    assert present.ok
    assert present.degraded == "the model runs on the CPU"
    assert present.digest
    assert asked == ["GET /api/version", "GET /api/tags", "GET /api/ps"]
    loaded, asked = probe(Rung.LOADED, server, "smollm2:135m")
    assert loaded == Probe(
        rung=Rung.LOADED,
        wanted=Rung.LOADED,
        version="0.32.15",
        degraded="the model runs on the CPU",
        digest=present.digest,
    )
    assert asked == ["GET /api/version", "GET /api/tags", "GET /api/ps"]


def test_a_model_that_is_missing_is_named_with_those_that_are_there() -> None:
    routes = {**PRESENT, "/api/show": ok({"error": "model 'nope:latest' not found"}, 404)}
    found, asked = probe(Rung.GENERATING, served(routes), "nope")
    assert found == Probe(
        rung=Rung.ALIVE,
        wanted=Rung.GENERATING,
        detail="it does not have the model 'nope'; it has m, other:1b",
        hint="Fetch it: ollama pull nope",
        version="0.32.15",
    )
    assert asked[-1] == "POST /api/show"


def test_a_model_that_the_list_writes_otherwise_is_still_found() -> None:
    found, _ = probe(Rung.MODEL_PRESENT, served({**PRESENT, "/api/show": ok({})}), "mirror.example/library/m")
    assert found.ok


@pytest.mark.parametrize("name", ["m", "M:latest", "library/m"])
def test_a_model_is_present_under_every_form_of_its_name(name: str) -> None:
    found, asked = probe(Rung.MODEL_PRESENT, served(PRESENT), name)
    assert found.ok
    assert asked == ["GET /api/version", "GET /api/tags", "GET /api/ps"]


def test_without_a_model_s_name_the_ladder_ends_below_it() -> None:
    found, _ = probe(Rung.MODEL_PRESENT, served(PRESENT), None)
    assert found.rung is Rung.ALIVE
    assert found.detail == "no model is named; it has m, other:1b"
    empty = {**PRESENT, "/api/tags": ok({"models": []})}
    found, _ = probe(Rung.MODEL_PRESENT, served(empty), None)
    assert found.hint == "Fetch one: ollama pull llama3.2"


def test_a_model_that_is_not_loaded_is_loaded_as_requests_will_want_it(recording: Callable[[str], Recording]) -> None:
    bodies: list[dict[str, Any]] = []

    def chat(request: HttpRequest) -> HttpReply:
        bodies.append(msgspec.json.decode(request.body or b""))
        return HttpReply(200, {}, recording("chat_load").body)

    def running(request: HttpRequest) -> HttpReply:
        return ok({"models": [{"name": "m:latest", "size": 9, "size_vram": 9}] if bodies else []})

    routes = {**PRESENT, "/api/chat": chat, "/api/ps": running}
    found, asked = probe(Rung.LOADED, served(routes), "m", OllamaSettings(num_ctx=2048, keep_alive=-1))
    assert found.rung is Rung.LOADED
    assert asked[2:] == ["GET /api/ps", "POST /api/chat", "GET /api/ps"]
    assert bodies == [
        {
            "model": "m",
            "messages": [],
            "stream": False,
            "shift": False,
            "keep_alive": -1,
            "options": {"num_ctx": 2048},
        }
    ]


def test_a_model_that_does_not_load_stays_below_the_rung() -> None:
    text = "model requires more system memory (24.5 GiB) than is available (7.7 GiB)"
    routes = {**PRESENT, "/api/ps": ok({"models": []}), "/api/chat": ok({"error": text}, 500)}
    found, _ = probe(Rung.LOADED, served(routes))
    assert (found.rung, found.detail) == (Rung.MODEL_PRESENT, text)
    assert found.hint is not None
    assert "num_ctx" in found.hint


def loaded(chat: Answer) -> Server:
    return served({**PRESENT, "/api/ps": ok({"models": [{"name": "m:latest"}]}), "/api/chat": chat})


def test_one_token_is_generated_at_the_top() -> None:
    def server(request: HttpRequest) -> Answer:
        if request.path == "/api/chat":
            body = msgspec.json.decode(request.body or b"")
            assert body["options"] == {"temperature": 0.0, "num_predict": 1}
            assert len(body["messages"]) == 1
        return loaded(ok({"message": {"content": "p"}, "done": True, "done_reason": "length", "eval_count": 1}))(
            request
        )

    found, asked = probe(Rung.GENERATING, server)
    assert found.ok
    assert asked.count("POST /api/chat") == 1


def test_an_engine_that_is_dead_behind_a_living_api_is_found_at_the_top() -> None:
    text = "llama runner process has terminated: signal: killed"
    found, _ = probe(Rung.GENERATING, loaded(ok({"error": text}, 500)))
    assert (found.rung, found.detail) == (Rung.LOADED, text)
    found, _ = probe(Rung.GENERATING, loaded(ok({"message": {"content": ""}, "done": True, "done_reason": "stop"})))
    assert (found.rung, found.detail) == (Rung.LOADED, "it was asked for a token and gave none")


def test_a_server_that_does_not_answer_is_on_no_rung() -> None:
    refused = BackendUnreachable("connection refused", hint="Is it running?")
    found, _ = probe(Rung.GENERATING, served({"/api/version": refused}))
    assert found == Probe(rung=None, wanted=Rung.GENERATING, detail="connection refused", hint="Is it running?")
    found, _ = probe(Rung.ALIVE, served({"/api/version": HttpReply(200, {}, b"<html>hello")}))
    assert found.rung is None
    assert "begins '<html>hello'" in found.detail


def test_a_deadline_of_the_hub_is_a_finding_and_one_of_the_caller_is_raised() -> None:
    slow = DeadlineExceeded("no answer within 10 s", stage="whole", seconds=10)
    found, _ = probe(Rung.MODEL_PRESENT, served({**PRESENT, "/api/tags": slow}))
    assert (found.rung, found.detail, found.version) == (Rung.ALIVE, "no answer within 10 s", "0.32.15")
    with pytest.raises(DeadlineExceeded):
        probe(Rung.ALIVE, served({"/api/version": DeadlineExceeded("over", stage="total")}))
    with pytest.raises(Cancelled):
        probe(Rung.ALIVE, served({"/api/version": Cancelled()}))


GARBAGE = st.binary(max_size=40) | st.sampled_from(
    [
        b"{}",
        b"[]",
        b"null",
        b'{"models":[{}]}',
        b'{"models":[{"name":1}]}',
        b'{"version":3}',
        b'{"models":[{"name":""}]}',
    ]
)


@given(
    status=st.sampled_from([200, 404, 500]),
    body=GARBAGE,
    route=st.sampled_from(["version", "tags", "ps", "show", "chat"]),
)
def test_whatever_a_server_answers_a_probe_is_a_finding(status: int, body: bytes, route: str) -> None:
    routes = {**PRESENT, "/api/ps": ok({"models": []}), "/api/chat": ok({}), "/api/show": ok({})}
    routes[f"/api/{route}"] = HttpReply(status, {}, body)
    found, _ = probe(Rung.GENERATING, served(routes), "nope")
    assert isinstance(found, Probe)
    assert found.detail


@given(status=st.sampled_from([200, 404, 500]), body=GARBAGE, route=st.sampled_from(["tags", "ps", "show"]))
def test_whatever_a_server_answers_its_models_are_models_or_a_typed_error(status: int, body: bytes, route: str) -> None:
    routes = {"/api/tags": ok({"models": [{"name": "m"}]}), "/api/ps": ok({"models": []}), "/api/show": ok({})}
    routes[f"/api/{route}"] = HttpReply(status, {}, body)
    try:
        found, _ = converse(OllamaDialect().models(), served({**routes}))
    except HubError:
        return
    assert all(isinstance(model, ModelInfo) for model in found)
