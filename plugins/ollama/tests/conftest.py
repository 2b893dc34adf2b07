"""The recordings of a real Ollama, and the canonical requests that they are answers to."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpcore
import msgspec
import pytest

from llm_hub.capabilities import EmbeddingBackend
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.messages import (
    ChatRequest,
    ImagePart,
    Message,
    Part,
    Reasoning,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from llm_hub.testing import Recording, load, load_folder
from llm_hub.transport import Transport
from llm_hub_ollama.plugin import llm_hub_embedding

WIRE = Path(__file__).parents[3] / "tests" / "data" / "wire" / "ollama"
IMAGE = b"\x89PNG\r\n\x1a\n"


def _message(wire: dict[str, Any]) -> Message:
    content: str | tuple[Part, ...] = wire["content"]
    if images := wire.get("images"):
        content = (TextPart(wire["content"]), *(ImagePart(_image(image)) for image in images))
    return Message(
        role=wire["role"],
        content=content,
        tool_calls=tuple(
            ToolCall(
                id="",
                name=call["function"]["name"],
                arguments=msgspec.json.encode(call["function"]["arguments"]).decode(),
            )
            for call in wire.get("tool_calls", ())
        ),
        name=wire.get("tool_name"),
    )


def _image(text: str) -> bytes:
    # A data: URI, which no canonical request would send, is recorded too: what came back is what matters there.
    return base64.b64decode(text) if not text.startswith("data:") else IMAGE


def canonical_request(wire: dict[str, Any]) -> ChatRequest:
    """The canonical request that a recorded body is the encoding of."""
    options = wire.get("options", {})
    schema = wire.get("format")
    response_format = None
    if schema is not None:
        response_format = (
            ResponseFormat.json_object() if schema == "json" else ResponseFormat.json_schema(schema, strict=True)
        )
    reasoning: Reasoning | None = wire.get("think")
    return ChatRequest(
        messages=tuple(_message(message) for message in wire["messages"]),
        model=wire.get("model"),
        tools=tuple(Tool(**tool["function"]) for tool in wire.get("tools", ())),
        response_format=response_format,
        temperature=options.get("temperature"),
        seed=options.get("seed"),
        max_tokens=options.get("num_predict"),
        stop=tuple(options.get("stop", ())),
        logprobs=wire.get("logprobs", False),
        top_logprobs=wire.get("top_logprobs"),
        reasoning=reasoning,
    )


@pytest.fixture(scope="session")
def canonical() -> Callable[[Recording], ChatRequest]:
    """Builds the canonical request of a recording; a placeholder where the recorded body is not one."""

    def build(recording: Recording) -> ChatRequest:
        body = recording.request.json
        if not isinstance(body, dict) or not body.get("messages"):
            return ChatRequest(messages=(Message(role="user", content="Hello"),), model=(body or {}).get("model"))
        return canonical_request(body)

    return build


@pytest.fixture(scope="session")
def recordings() -> dict[str, Recording]:
    """All recordings of Ollama, by name."""
    return {recording.name: recording for recording in load_folder(WIRE)}


@pytest.fixture
def recording() -> Callable[[str], Recording]:
    """Loads one recording by its name."""
    return lambda name: load(WIRE / f"{name}.json")


class _Memory(httpcore.ConnectionPool):
    """Answers every request with one status, headers and a body in given pieces."""

    def __init__(self, status: int, headers: dict[str, str], pieces: Sequence[bytes]) -> None:
        self.answer = (status, [(name.encode(), value.encode()) for name, value in headers.items()], pieces)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        status, headers, pieces = self.answer
        return httpcore.Response(status, headers=headers, content=iter(pieces))


OverMemory = Callable[[Recording, Sequence[bytes]], EmbeddingBackend]


@pytest.fixture(scope="session")
def over_memory() -> OverMemory:
    """Builds an embedding backend whose transport answers from memory: a recording's status and headers, in these pieces."""

    def build(recording: Recording, pieces: Sequence[bytes]) -> EmbeddingBackend:
        assert recording.response.status is not None
        pool = _Memory(recording.response.status, recording.headers, pieces)
        config = BackendConfig(name="ollama", plugin="ollama")
        return llm_hub_embedding(config, BuildContext(transport=Transport(pool=pool)))

    return build
