"""What Ollama, and what stands in front of it, says when it refuses or fails, becomes the right typed error."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.dialect import HttpReply
from llm_hub.errors import (
    AuthenticationFailed,
    BackendFailed,
    BackendLoading,
    BackendOverloaded,
    ContextOverflow,
    HubError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    UnsupportedFeature,
)
from llm_hub_ollama.failures import error_of_line, error_of_reply

HTML = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><center>nginx</center></body></html>"


def reply(status: int, error: Any = None, *, body: bytes | None = None, **headers: str) -> HttpReply:
    if body is None:
        body = msgspec.json.encode({"error": error})
    return HttpReply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


# The texts are those of Ollama's sources (server/sched.go, server/routes.go, llm/*.go, x/mlxrunner), of 0.12 to 0.33.
TEXTS: list[tuple[int, str, type[HubError], dict[str, Any]]] = [
    (404, 'model "nope" not found, try pulling it first', ModelNotFound, {"model": "m"}),
    (404, "model 'it's' not found", ModelNotFound, {}),
    (503, "server busy, please try again.  maximum pending requests exceeded", BackendOverloaded, {"status": 503}),
    (500, "no slots available after 10 retries", BackendOverloaded, {}),
    (500, "unexpected server status: llm server loading model", BackendLoading, {}),
    (503, '{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', BackendLoading, {}),
    (499, "request canceled", BackendLoading, {"status": 499}),
    (500, "model requires more system memory (24.5 GiB) than is available (7.7 GiB)", BackendFailed, {"status": 500}),
    (500, "llama runner process has terminated: cudaMalloc failed: out of memory", BackendFailed, {}),
    (
        500,
        "llama runner process has terminated: error loading model: unable to allocate CUDA0 buffer",
        BackendFailed,
        {},
    ),
    (500, "llama-server process has terminated: signal: killed", BackendFailed, {}),
    (500, "llama runner process has terminated: Deepseek2 does not support K-shift", BackendFailed, {}),
    (500, "model runner has unexpectedly stopped, this may be due to resource limitations", BackendFailed, {}),
    (500, "timed out waiting for llama runner to start - progress 0.10 - ", BackendFailed, {}),
    (500, "an error was encountered while running the model: CUDA error", BackendFailed, {}),
    (400, "the input length exceeds the context length", ContextOverflow, {"tokens": None, "limit": None}),
    (500, "the input length exceeds the context length", ContextOverflow, {}),
    (
        400,
        "the prompt is longer than the context length currently available to the model; shorten",
        ContextOverflow,
        {},
    ),
    (
        500,
        "input length (9000 tokens) exceeds the model's maximum context length (4096 tokens)",
        ContextOverflow,
        {"tokens": 9000, "limit": 4096},
    ),
    (
        400,
        "request (600 tokens) exceeds the available context size (512 tokens), try increasing it",
        ContextOverflow,
        {"tokens": 600, "limit": 512},
    ),
    (400, "registry.ollama.ai/library/x:latest does not support tools\nvision", UnsupportedFeature, {}),
    (400, '"all-minilm" does not support chat', UnsupportedFeature, {"features": ("chat",)}),
    (
        501,
        "This server does not support embeddings. Start it with `--embeddings`",
        UnsupportedFeature,
        {"features": ("embedding",)},
    ),
    (
        500,
        "this model only supports one image while more than one image requested",
        UnsupportedFeature,
        {"features": ("images",)},
    ),
    (500, 'unsupported Qwen3.8 reasoning effort "high"', UnsupportedFeature, {"features": ("reasoning_effort",)}),
    (500, 'invalid format: "x"; expected "json" or a valid JSON Schema object', InvalidRequest, {}),
    (400, "top_logprobs must be between 0 and 20", InvalidRequest, {}),
    (400, "missing request body", InvalidRequest, {}),
    (401, "unauthorized", AuthenticationFailed, {}),
    (403, "ollama cloud is disabled: remote model is unavailable", AuthenticationFailed, {}),
    (500, "something new", BackendFailed, {"status": 500}),
    (502, "upstream is gone", BackendFailed, {"status": 502}),
    (418, "I am a teapot", InvalidRequest, {}),
    (404, "page not found", ProtocolError, {}),
]


@pytest.mark.parametrize(("status", "text", "kind", "attributes"), TEXTS)
def test_a_refusal_is_the_error_that_it_says(
    status: int, text: str, kind: type[HubError], attributes: dict[str, Any]
) -> None:
    error = error_of_reply(reply(status, text), model="m")
    assert type(error) is kind
    for name, value in attributes.items():
        assert getattr(error, name) == value
    assert "\n" not in str(error)
    assert error.backend is None


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [(s, t, k) for s, t, k, _ in TEXTS if s in (400, 500, 501, 503) and k is not InvalidRequest],
)
def test_the_same_words_mean_the_same_in_a_stream_that_had_begun(status: int, text: str, kind: type[HubError]) -> None:
    assert type(error_of_line(text, model="m")) is kind


def test_both_features_that_a_model_lacks_are_named() -> None:
    error = error_of_reply(reply(400, "x does not support tools\nvision"))
    assert isinstance(error, UnsupportedFeature)
    assert error.features == ("tools", "images")


def test_a_name_with_latest_is_fetched_by_its_short_name() -> None:
    error = error_of_reply(reply(404, "model 'a:latest' not found"), model="a:latest")
    assert error.hint == "Fetch it: ollama pull a"


def test_what_the_process_of_the_model_printed_after_the_nested_error_is_kept() -> None:
    nested = '{"error":{"code":500,"message":"decode failed","type":"server_error"}}\nCUDA error: out of memory'
    error = error_of_reply(reply(500, nested))
    assert isinstance(error, BackendFailed)
    assert error.message == "decode failed CUDA error: out of memory"
    assert error.hint is not None
    assert "num_ctx" in error.hint


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"message": "bad", "code": 400}, "bad"),
        ('{"error":"bad"}', "bad"),
        ('{"error":"{\\"error\\":{\\"message\\":\\"bad\\"}}"}', "bad"),
        ("{bad", "{bad"),
        ({"nothing": 1}, '{"nothing": 1}'),
        (None, "null"),
        (17, "17"),
        ("", "it answered 400 without a word"),
        ("x" * 2000, "x" * 500 + "..."),
    ],
)
def test_an_error_may_be_text_or_an_object_or_hold_one(error: Any, message: str) -> None:
    found = error_of_reply(reply(400, error))
    assert isinstance(found, InvalidRequest)
    assert found.message == message


def test_a_full_queue_says_when_to_come_again() -> None:
    error = error_of_reply(reply(429, "slow down", retry_after="7"))
    assert isinstance(error, BackendOverloaded)
    assert (error.retry_after, error.status) == (7.0, 429)
    error = error_of_reply(reply(503, body=b"busy", retry_after="Wed, 21 Oct 2020 07:28:00 GMT"))
    assert isinstance(error, BackendOverloaded)
    assert error.retry_after == 0.0  # the clock of this machine is past that date


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (502, HTML, BackendFailed, "502 Bad Gateway"),
        (503, HTML, BackendOverloaded, "HTTP 503"),
        (404, b"404 page not found", ProtocolError, "does not serve Ollama's API"),
        (405, b"", ProtocolError, "HTTP 405, empty"),
        (401, HTML, AuthenticationFailed, "HTTP 401"),
        (403, b"", AuthenticationFailed, "HTTP 403"),
        (413, HTML, InvalidRequest, "too large"),
        (400, b"\xff\xfe", InvalidRequest, "HTTP 400"),
        (204, b"", ProtocolError, "HTTP 204"),
        (500, b"[" * 100_000, BackendFailed, "HTTP 500"),
        (500, b'{"detail": "Internal"}', BackendFailed, "detail"),
    ],
)
def test_what_is_not_ollama_s_json_is_shown_by_its_first_words(
    status: int, body: bytes, kind: type[HubError], says: str
) -> None:
    error = error_of_reply(reply(status, body=body))
    assert type(error) is kind
    assert says in error.message
    assert len(str(error)) < 500


def test_a_redirect_is_not_followed_and_its_target_is_shown_without_secrets() -> None:
    error = error_of_reply(reply(308, body=b"", location="https://user:secret@other.example/login?token=secret"))
    assert type(error) is ProtocolError
    assert "other.example/login" in error.message
    assert "secret" not in str(error)


def test_a_key_is_only_asked_for_where_a_proxy_wants_one() -> None:
    error = error_of_reply(
        reply(401, body=b'{"error":"unauthorized","signin_url":"https://x.example/connect?key=secret"}')
    )
    assert isinstance(error, AuthenticationFailed)
    assert error.hint == "Run `ollama signin` on the server."
    assert "secret" not in str(error)
    assert "api_key" in str(error_of_reply(reply(401, "no")))
    assert "api_key" not in str(error_of_reply(reply(403, "ollama cloud is disabled: remote model is unavailable")))


@given(status=st.integers(200, 599), body=st.binary(max_size=200), model=st.none() | st.text(max_size=20))
def test_any_reply_is_some_typed_error(status: int, body: bytes, model: str | None) -> None:
    assert isinstance(error_of_reply(HttpReply(status, {}, body), model=model), HubError)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "message", "code"]), inner),
    max_leaves=6,
)


@given(status=st.integers(200, 599), error=JSON)
def test_any_json_error_is_some_typed_error(status: int, error: Any) -> None:
    assert isinstance(error_of_reply(reply(status, error), model="m"), HubError)
    assert isinstance(error_of_line(error), HubError)
