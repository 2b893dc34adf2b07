"""`WireForm`: how a server says what the faults need said: errors, events of a stream, and which requests make it work."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from llm_hub.testing.exchange import Reply, Request
from llm_hub.testing.faults import GENERATES, Fault

__all__ = ["STATUSES", "WireForm"]

STATUSES: Mapping[Fault, int] = {
    Fault.BAD_REQUEST: 400,
    Fault.UNAUTHORIZED: 401,
    Fault.FORBIDDEN: 403,
    Fault.NOT_FOUND: 404,
    Fault.RATE_LIMITED: 429,
    Fault.LOADING: 503,
    Fault.QUEUE_FULL: 503,
    Fault.OUT_OF_MEMORY: 500,
    Fault.SERVER_ERROR: 500,
    Fault.ENGINE_DEAD: 500,
}
"""The faults that are a status with an error in its body, and the usual status."""

# For Ollama and for OpenAI's form, with the type of the latter: recorded, or from the servers' sources.
_TEXTS: Mapping[Fault, tuple[str, str, str]] = {
    Fault.BAD_REQUEST: ("invalid options: num_ctx", "Invalid value for temperature", "BadRequestError"),
    Fault.UNAUTHORIZED: ("unauthorized", "Unauthorized", "AuthenticationError"),
    Fault.FORBIDDEN: ("forbidden", "Forbidden", "PermissionDeniedError"),
    Fault.NOT_FOUND: ("model '{model}' not found", "The model `{model}` does not exist.", "NotFoundError"),
    Fault.RATE_LIMITED: ("too many requests", "Rate limit exceeded", "RateLimitError"),
    Fault.LOADING: ("llm server loading model", "Loading model", "unavailable_error"),
    Fault.QUEUE_FULL: (
        "server busy, please try again.  maximum pending requests exceeded",
        "The server is overloaded: too many requests are waiting.",
        "ServiceUnavailableError",
    ),
    Fault.OUT_OF_MEMORY: (
        "llama runner process has terminated: cudaMalloc failed: out of memory",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "InternalServerError",
    ),
    Fault.SERVER_ERROR: ("internal error", "Internal Server Error", "InternalServerError"),
    Fault.ENGINE_DEAD: (
        "llama runner process has terminated: exit status 2",
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "InternalServerError",
    ),
    Fault.ERROR_IN_STREAM: (
        "an error was encountered while running the model: unexpected EOF",
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
        "InternalServerError",
    ),
}


class WireForm:
    """The form of Ollama's native API for paths below /api/, and of OpenAI's API for all others.

    For the faults of a server with an API of its own, subclass this, override what is different, and pass it to the server:
    `FakeServer(handler, form=MyForm())`, `RecordingProxy(target, form=MyForm())`.
    """

    def generates(self, path: str) -> bool:
        """Does a request to this path make the model work (ENGINE_DEAD, GENERATION_HANGS)? `path` has no query."""
        return GENERATES.search(path) is not None

    def is_health(self, path: str) -> bool:
        """Does this path ask whether the engine is well (ENGINE_DEAD)?"""
        return path == "/health"

    def embeds(self, path: str) -> bool:
        """Does a request to this path give vectors (EMBED_WRONG_COUNT and the like)?"""
        return re.search(r"/(embed|embeddings)$", path) is not None

    def error(self, request: Request, fault: Fault, *, status: int, message: str | None) -> Reply:
        """The answer with this status that says what the fault is. `message` None: in the server's own words."""
        text = message or self.words(request, fault)
        if _is_native(request):
            return Reply.of_json({"error": text}, status=status)
        if fault is Fault.UNAUTHORIZED:
            return Reply.of_json({"error": text}, status=status)
        kind = _TEXTS[fault][2]
        param = "model" if fault is Fault.NOT_FOUND else None
        return Reply.of_json({"error": {"message": text, "type": kind, "param": param, "code": status}}, status=status)

    def words(self, request: Request, fault: Fault) -> str:
        """What the server says of a fault, where nothing else was asked for."""
        native, openai, _ = _TEXTS[fault]
        try:
            model = request.json.get("model", "")
        except (ValueError, AttributeError):
            model = ""
        return (native if _is_native(request) else openai).replace("{model}", str(model))

    def stream_headers(self, request: Request) -> dict[str, str]:
        """The headers of a stream."""
        kind = "application/x-ndjson" if _is_native(request) else "text/event-stream; charset=utf-8"
        return {"content-type": kind}

    def stream_event(self, request: Request, text: str) -> bytes:
        """An event of a stream with this text in it (LONG_LINE)."""
        if _is_native(request):
            said: dict[str, Any] = (
                {"response": text}
                if request.path == "/api/generate"
                else {"message": {"role": "assistant", "content": text}}
            )
            line = {"model": "long", "created_at": "2026-01-01T00:00:00Z", **said, "done": False}
            return json.dumps(line).encode() + b"\n"
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        event = {"id": "long", "object": "chat.completion.chunk", "created": 1, "model": "long", "choices": [choice]}
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    def stream_error(self, request: Request, message: str | None) -> list[bytes]:
        """How a stream goes on and ends whose engine dies: Ollama's error line; vLLM's error event, then its end mark."""
        text = message or self.words(request, Fault.ERROR_IN_STREAM)
        if _is_native(request):
            return [json.dumps({"error": text}).encode() + b"\n"]
        error = {"message": text, "type": "InternalServerError", "param": None, "code": 500}
        return [b"data: " + json.dumps({"error": error}).encode() + b"\n\n", b"data: [DONE]\n\n"]

    def stream_garbage(self, request: Request) -> bytes:
        """Something framed like an event that is none: neither UTF-8 nor JSON."""
        return b"\xff\xfe{nothing: good\n" if _is_native(request) else b"data: \xff\xfe{nothing: good\n\n"

    def vectors(self, answer: Any) -> tuple[list[Any], str | None] | None:
        """Where the vectors are in a decoded answer: a list of them (and None), or a list of objects and their key.

        What it gives is changed in place. None: there are none in this answer.
        """
        if not isinstance(answer, dict):
            return None
        if answer.get("embeddings"):
            return answer["embeddings"], None
        return (answer["data"], "embedding") if answer.get("data") else None


def _is_native(request: Request) -> bool:
    return request.path.startswith("/api/")
