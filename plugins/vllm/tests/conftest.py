"""The recordings of a real vLLM, the canonical requests that they are answers to, and backends over memory."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpcore
import pytest

from llm_hub.capabilities import TextBackend
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.messages import ChatRequest, ImagePart, Message, Part, ResponseFormat, TextPart, Tool, ToolCall
from llm_hub.testing import Recording, load_folder
from llm_hub.transport import Transport
from llm_hub_vllm.plugin import llm_hub_text

WIRE = Path(__file__).parents[3] / "tests" / "data" / "wire" / "vllm"
_DATA = "data:image/"


@pytest.fixture(scope="session")
def recordings() -> dict[str, Recording]:
    """Every recording by its name."""
    return {recording.name: recording for recording in load_folder(WIRE)}


def _part(wire: dict[str, Any]) -> Part:
    if wire["type"] == "text":
        return TextPart(wire["text"])
    head, _, data = wire["image_url"]["url"].partition(";base64,")
    if not head.startswith(_DATA):
        raise LookupError("an image that is no data: URI")
    return ImagePart(base64.b64decode(data), head.removeprefix("data:"))


def _message(wire: dict[str, Any]) -> Message:
    content = wire["content"] or ""
    return Message(
        role=wire["role"],
        content=content if isinstance(content, str) else tuple(_part(part) for part in content),
        tool_calls=tuple(
            ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
            for call in wire.get("tool_calls", ())
        ),
        tool_call_id=wire.get("tool_call_id"),
    )


def _format(wire: dict[str, Any]) -> tuple[ResponseFormat | None, dict[str, Any]]:
    """The canonical response format; a schema under `structured_outputs` is an option, for it has two spellings."""
    if (format_ := wire.get("response_format")) is not None:
        if format_["type"] == "json_object":
            return ResponseFormat.json_object(), {}
        schema = format_["json_schema"]
        return ResponseFormat.json_schema(schema["schema"], name=schema["name"], strict=schema.get("strict")), {}
    outputs = wire.get("structured_outputs", {})
    if "choice" in outputs:
        return ResponseFormat.choice(outputs["choice"]), {}
    return None, {"structured_outputs": outputs} if outputs else {}


def canonical_request(wire: dict[str, Any] | None) -> ChatRequest:
    """The canonical request that a recorded body is the encoding of. Raises LookupError if there is none."""
    if wire is None:
        raise LookupError("a body that is no JSON")
    response_format, options = _format(wire)
    choice = wire.get("tool_choice")
    expressed = set(ChatRequest.__struct_fields__) | {"stream", "request_id", "structured_outputs"}
    template = wire.get("chat_template_kwargs", {})
    for name in wire.keys() - expressed - {"chat_template_kwargs", "priority", "stream_options"}:
        raise LookupError(name)
    if wire.get("stream_options", {"include_usage": True}) != {"include_usage": True}:
        raise LookupError("stream_options")
    if "priority" in wire:
        options["priority"] = wire["priority"]
    return ChatRequest(
        messages=tuple(_message(message) for message in wire["messages"]),
        model=wire["model"],
        tools=tuple(Tool(**tool["function"]) for tool in wire.get("tools", ())),
        tool_choice=choice["function"]["name"] if isinstance(choice, dict) else choice,
        response_format=response_format,
        temperature=wire.get("temperature"),
        max_tokens=wire.get("max_tokens"),
        stop=tuple(wire.get("stop", ())),
        seed=wire.get("seed"),
        n=wire.get("n", 1),
        logprobs=wire.get("logprobs", False),
        top_logprobs=wire.get("top_logprobs"),
        reasoning=template.get("enable_thinking"),
        options=options,
    )


@pytest.fixture(scope="session")
def canonical() -> Callable[[dict[str, Any] | None], ChatRequest]:
    """Builds the canonical request of a recorded body."""
    return canonical_request


class _Memory(httpcore.ConnectionPool):
    """Answers every request with one status, headers and a body in given pieces."""

    def __init__(self, status: int, headers: dict[str, str], pieces: Sequence[bytes]) -> None:
        self.answer = (status, [(name.encode(), value.encode()) for name, value in headers.items()], pieces)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        status, headers, pieces = self.answer
        return httpcore.Response(status, headers=headers, content=iter(pieces))


OverMemory = Callable[[Recording, Sequence[bytes]], TextBackend]


@pytest.fixture(scope="session")
def over_memory() -> OverMemory:
    """Builds a backend whose transport answers from memory: the recording's status and headers, and these pieces."""

    def build(recording: Recording, pieces: Sequence[bytes]) -> TextBackend:
        assert recording.response.status is not None
        pool = _Memory(recording.response.status, recording.headers, pieces)
        config = BackendConfig(name="vllm", plugin="vllm")
        return llm_hub_text(config, BuildContext(transport=Transport(pool=pool)))

    return build
