"""What the conformance suites need to know of the plugin, and a small server that speaks its protocol.

It is part of the package, so that whoever installs the plugin can check it: `llm-hub check example-http`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from llm_hub.testing import FakeServer, Prompt, Reply, Request, TinyModel, Turn, WireForm
from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub.testing.text import TextRequirements
from llm_hub.testing.vectors import embed

MODEL, CONTEXT = "small", 2048


class FakeExampleHttp(FakeServer):
    """Speaks the protocol of `dialect.py`, with the answers of the kit's `TinyModel`. The kit makes it misbehave.

    (Record a real server instead, once you have one: docs/reference/testing.md of llm-hub.)
    """

    def respond(self, request: Request) -> Reply:
        """Answer a request."""
        if request.method == "GET":
            answers = {"/health": {}, "/models": {"models": [{"name": MODEL, "context": CONTEXT}]}}
            found = answers.get(request.path)
            return Reply.of_json(found) if found is not None else _refused(404, "not found")
        body = request.json
        if body.get("model") != MODEL:
            return _refused(404, f"model {body.get('model')!r} not found")
        if request.path == "/embed":
            return self._embed(body)
        if request.path == "/generate":
            return self._answer(body)
        return _refused(404, "not found")

    def _embed(self, body: Any) -> Reply:
        count = [TinyModel().count(Prompt(turns=[Turn(role="user", text=text)])) for text in body["texts"]]
        if max(count, default=0) > CONTEXT:
            return _refused(400, f"the context length is {CONTEXT} tokens, and a prompt contains {max(count)} tokens")
        vectors = [embed(text, dimension=64) for text in body["texts"]]
        return Reply.of_json({"embeddings": vectors, "read": sum(count)})

    def _answer(self, body: Any) -> Reply:
        prompt = Prompt(
            turns=[Turn(role=turn["role"], text=turn["text"]) for turn in body["turns"]],
            stop=body.get("stop", ()),
            max_tokens=body.get("limit"),
            temperature=body.get("temperature", 1.0),
        )
        made = TinyModel().generate(prompt)
        if made.prompt_tokens > CONTEXT:
            words = f"the context length is {CONTEXT} tokens, and the prompt contains {made.prompt_tokens} tokens"
            return _refused(400, words)
        end = {"end": made.finish, "read": made.prompt_tokens, "wrote": made.tokens}
        if not body["stream"]:
            return Reply.of_json({"text": made.text("content"), **end})
        pieces = [{"text": piece.text} for piece in made.pieces]
        return Reply(200, {"content-type": "text/event-stream"}, _events([*pieces, end]))


class Form(WireForm):
    """How this protocol says what the kit's faults need said: all else is as OpenAI has it."""

    def stream_event(self, request: Request, text: str) -> bytes:
        """One piece of a stream."""
        return _event({"text": text})


def _event(said: Any) -> bytes:
    return b"data: " + msgspec.json.encode(said) + b"\n\n"


def _events(said: list[Any]) -> Iterator[bytes]:
    for one in said:
        yield _event(one)


def _refused(status: int, words: str) -> Reply:
    return Reply.of_json({"error": words}, status=status)


class Text(TextRequirements):
    """Each feature that you declare in `plugin.py` is held against the backend; `tools = True` here claims one as well."""

    plugin = "example-http"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    model = MODEL
    exact = True  # the answers are those of TinyModel

    def server(self) -> FakeExampleHttp:
        """A new server, which the suite starts, and makes misbehave. A small buffer lets it feel a slow reader soon."""
        return FakeExampleHttp(form=Form(), send_buffer=65536)


class Embedding(EmbeddingRequirements):
    """What the embedding suite needs to know."""

    plugin = "example-http"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    model = MODEL
    truncates = False

    def server(self) -> FakeExampleHttp:
        """A new server."""
        return FakeExampleHttp(form=Form())
