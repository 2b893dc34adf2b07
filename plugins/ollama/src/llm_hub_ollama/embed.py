"""Embeddings by `POST /api/embed`: requests written, answers read."""

from __future__ import annotations

from typing import Any

from llm_hub.errors import InvalidRequest, ProtocolError
from llm_hub.messages import EmbedRequest, EmbedResponse, Timings, Usage
from llm_hub_ollama.failures import error_of_line
from llm_hub_ollama.request import dump
from llm_hub_ollama.settings import OllamaSettings
from llm_hub_ollama.wire import Embeddings, decode, first_words

__all__ = ["EMBED", "encode_embed", "encode_embed_load", "read_embed"]

EMBED = "/api/embed"


def encode_embed(request: EmbedRequest, settings: OllamaSettings) -> bytes:
    """The body, with what the settings fix for the model, so that no request reloads it. Raises InvalidRequest."""
    if request.options:
        raise InvalidRequest(
            f"a request for embeddings may not set {', '.join(request.options)}: Ollama has only options that reload the model",
            hint=f"Set them once for the model: profiles = {{ {request.model!r} = {{ ... }} }} in the backend's settings.",
        )
    body = _start(request.model, settings)
    body["input"] = request.texts
    # Without this the server cuts what is too long, and says nothing.
    body["truncate"] = request.truncate
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return dump(body)


def encode_embed_load(model: str, settings: OllamaSettings) -> bytes:
    """The body that loads a model as requests will want it, and embeds nothing.

    (EmbedHandler in server/routes.go schedules the model before it looks whether there is any input.)
    """
    return dump({**_start(model, settings), "input": []})


def _start(model: str | None, settings: OllamaSettings) -> dict[str, Any]:
    if not model:
        raise InvalidRequest(
            "no model is named", hint="Name one: OLLAMA_EMBEDDING_MODEL=nomic-embed-text, or model= in the call."
        )
    profile = settings.profile(model)
    body: dict[str, Any] = {"model": model, **profile.body}
    body.pop("shift", None)  # what is not generated does not shift
    if profile.runner_options:
        body["options"] = profile.runner_options
    return body


def read_embed(request: EmbedRequest, body: bytes) -> EmbedResponse:
    """The vectors in a body of status 200. Raises ProtocolError, or the error that the body stands for."""
    answer = decode(body, Embeddings)
    if answer.error is not None:
        raise error_of_line(answer.error, model=request.model)
    if answer.embeddings is None:
        raise ProtocolError(f"its answer has no embeddings: {first_words(body)}", hint="See the log of Ollama.")
    return EmbedResponse(
        vectors=tuple(answer.embeddings),
        model=answer.model,
        usage=Usage(prompt_tokens=answer.prompt_eval_count),
        timings=Timings(load=None if answer.load_duration is None else answer.load_duration / 1e9),
    )
