"""What is made of the refusals and failures of OpenAI-compatible servers."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import msgspec
import pytest

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
from llm_hub.openai_dialect import (
    OpenAIDialect,
    classify_error,
)


def reply(body: Any, status: int = 200, **headers: str) -> HttpReply:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    kind = "text/html" if raw.startswith(b"<") else "application/json"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpReply(status, {"content-type": kind, **named}, raw)


OVERFLOWS = [
    (
        (
            "This model's maximum context length is 4097 tokens. However, your messages resulted in 5000 tokens. Please "
            "reduce the length of the messages."
        ),
        5000,
        4097,
    ),
    (
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (8000 in the messages, "
            "1000 in the completion)."
        ),
        9000,
        8192,
    ),
    (
        (
            "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, "
            "which exceeds this limit even without any output tokens."
        ),
        2049,
        2048,
    ),
    (
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 3000. This model's maximum context length is 2048 tokens "
            "and your request has 37 input tokens (3000 > 2048 - 37)."
        ),
        3037,
        2048,
    ),
    ("max_tokens=100000 cannot be greater than max_model_len=2048. Please request fewer output tokens.", 100000, 2048),
    ("max_tokens=9 cannot be greater than max_model_len=max_total_tokens=8.", 9, 8),
    ("The decoder prompt (length 3000) is longer than the maximum model length of 2048.", 3000, 2048),
    ("The prompt (total length 700) is too long to fit into the model (context length 512).", 700, 512),
    ("request (5031 tokens) exceeds the available context size (1024 tokens), try increasing it", 5031, 1024),
    ("the request exceeds the available context size. try increasing the context size", None, None),
    ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", 5000, 4096),
    (
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5,000 "
            "tokens: 4900 tokens from the input messages and 100 tokens for the completion."
        ),
        5000,
        4096,
    ),
    ("Input validation error: `inputs` must have less than 512 tokens. Given: 600", 600, 512),
    (
        (
            "This model's maximum context length is 256 tokens. However, your prompt contains 40500 characters (more than "
            "4608 characters, which is the upper bound for 256 input tokens)."
        ),
        None,
        256,
    ),
]


@pytest.mark.parametrize(("message", "tokens", "limit"), OVERFLOWS)
def test_a_context_that_is_too_short_is_recognised_with_both_numbers(
    message: str, tokens: int | None, limit: int | None
) -> None:
    error = classify_error(400, message)
    assert isinstance(error, ContextOverflow)
    assert (error.tokens, error.limit) == (tokens, limit)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("The model `a/b-c` does not exist.", True),
        ("model 'x' not found", True),
        ("Model x is not loaded", True),
        ("No such model: x", True),
        ("This model's chat template is wrong: tool call not found", False),
        ("The model answered, but the tool does not exist", False),
    ],
)
def test_only_a_model_that_is_missing_is_a_missing_model(message: str, found: bool) -> None:
    assert isinstance(classify_error(404, message, model="m"), ModelNotFound) is found


@pytest.mark.parametrize(
    ("type_", "code", "kind"),
    [
        ("invalid_request_error", None, InvalidRequest),
        ("BadRequestError", "x", InvalidRequest),
        ("authentication_error", None, AuthenticationFailed),
        ("rate_limit_error", None, BackendOverloaded),
        ("server_error", None, BackendFailed),
        (None, 429, BackendOverloaded),
        (None, 7, BackendFailed),
    ],
)
def test_an_error_within_a_stream_is_told_by_its_code_or_else_its_type(
    type_: str | None, code: str | int | None, kind: type[HubError]
) -> None:
    assert type(classify_error(None, "no", type=type_, code=code)) is kind


def test_a_context_that_is_too_short_is_recognised_by_its_code_alone() -> None:
    assert isinstance(classify_error(400, "no", code="context_length_exceeded"), ContextOverflow)
    error = classify_error(400, "no", type="exceed_context_size_error", prompt_tokens=9, context=8)
    assert isinstance(error, ContextOverflow)
    assert (error.tokens, error.limit) == (9, 8)


@pytest.mark.parametrize(
    ("status", "body", "kind", "attributes"),
    [
        (400, {"error": {"message": "bad", "code": 400}}, InvalidRequest, {}),
        (422, {"detail": [{"loc": ["body", "n"], "msg": "too big", "input": "PROMPT"}]}, InvalidRequest, {}),
        (413, b"<html>413 Request Entity Too Large", InvalidRequest, {}),
        (400, {"error": {"message": "x is not a multimodal model"}}, UnsupportedFeature, {"features": ("images",)}),
        (
            500,
            {"error": {"message": "image input is not supported - hint: you may need to provide the mmproj"}},
            UnsupportedFeature,
            {"features": ("images",)},
        ),
        (
            400,
            {
                "error": {
                    "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
                }
            },
            UnsupportedFeature,
            {"features": ("tools",)},
        ),
        (501, {"error": {"message": "off", "type": "not_supported_error"}}, UnsupportedFeature, {}),
        (400, {"error": {"message": "logprobs is not supported with tools + stream"}}, UnsupportedFeature, {}),
        (
            404,
            {"error": {"message": "The model `y` does not exist. Valid aliases: a, b/c-1.5.", "code": 404}},
            ModelNotFound,
            {"available": ("a", "b/c-1.5"), "model": "y"},
        ),
        (404, {"error": {"message": "The model `y` does not exist."}}, ModelNotFound, {"available": (), "model": "y"}),
        (400, {"error": {"message": "no", "code": "model_not_found"}}, ModelNotFound, {"model": "y"}),
        (404, {"detail": "Not Found"}, UnsupportedFeature, {"features": ("chat",)}),
        (
            404,
            {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}},
            UnsupportedFeature,
            {"features": ("chat",)},
        ),
        (404, b"404 page not found", ProtocolError, {"status": 404}),
        (405, b"", ProtocolError, {"status": 405}),
        (401, {"error": "Unauthorized"}, AuthenticationFailed, {}),
        (403, b"<html>no", AuthenticationFailed, {}),
        (429, {"error": {"message": "slow down"}}, BackendOverloaded, {"retry_after": None, "status": 429}),
        (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, BackendLoading, {}),
        (503, {"error": {"message": "the queue is full"}}, BackendOverloaded, {"status": 503}),
        (503, {"error": {"message": "EngineCore is dead"}}, BackendFailed, {"status": 503}),
        (503, b"<html>Service Unavailable", BackendOverloaded, {"status": 503}),
        (500, {"error": {"message": "CUDA out of memory"}}, BackendFailed, {"status": 500}),
        (502, b"<html><h1>502 Bad Gateway</h1>", BackendFailed, {"status": 502}),
        (504, b"", BackendFailed, {"status": 504}),
        (408, b"", BackendFailed, {"status": 408}),
        (418, {"error": {"message": "short and stout"}}, InvalidRequest, {}),
        (204, b"", ProtocolError, {"status": 204}),
    ],
)
def test_an_answer_that_is_no_success_is_a_typed_error(
    status: int, body: Any, kind: type[HubError], attributes: dict[str, Any]
) -> None:
    error = OpenAIDialect().error(reply(body, status), model="y")
    assert type(error) is kind
    assert {name: getattr(error, name) for name in attributes} == attributes


def test_what_did_not_validate_is_named_without_the_input() -> None:
    body = {"detail": [{"loc": ["body", "messages", 0], "msg": "Field required", "input": "MY PROMPT"}]}
    assert (
        OpenAIDialect().error(reply(body, 422)).message
        == "it refuses the request (422): body.messages.0: Field required"
    )
    vllm = "1 validation error:\n  {'type': 'x', 'loc': 'body.n', 'msg': 'Too big', 'input': 'MY PROMPT'}"
    assert "MY PROMPT" not in str(classify_error(400, vllm))
    assert "body.n: Too big" in str(classify_error(400, vllm))


def test_the_words_of_a_server_are_cut_short_and_put_on_one_line() -> None:
    error = classify_error(400, "word\n" * 1000)
    assert len(error.message) < 500
    assert "\n" not in error.message


def test_the_key_is_not_in_an_error_though_the_server_repeats_it() -> None:
    error = OpenAIDialect().error(reply({"error": {"message": "Incorrect API key: sk-123"}}, 401))
    assert "sk-123" not in f"{error} {error.__dict__}"
    assert error.hint == "Check the backend's api_key or api_key_env."


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("", None), ("inf", None), ("nan", None)],
)
def test_seconds_to_wait_are_read_from_the_header(value: str, seconds: float | None) -> None:
    error = OpenAIDialect().error(reply({"error": "slow down"}, 429, retry_after=value))
    assert isinstance(error, BackendOverloaded)
    assert error.retry_after == seconds


def test_a_date_to_wait_for_is_read_from_the_header() -> None:
    error = OpenAIDialect().error(reply(b"", 503, retry_after=formatdate(time.time() + 30, usegmt=True)))
    assert isinstance(error, BackendOverloaded)
    assert error.retry_after == pytest.approx(30, abs=2)
    past = OpenAIDialect().error(reply(b"", 503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"))
    assert isinstance(past, BackendOverloaded)
    assert past.retry_after == 0


def test_a_redirect_is_named_and_not_followed() -> None:
    error = OpenAIDialect().error(reply(b"", 307, location="https://elsewhere/v1?token=x"))
    assert isinstance(error, ProtocolError)
    assert "it redirects (307) to https://elsewhere/v1, and redirects are not followed" in error.message
