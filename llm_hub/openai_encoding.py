"""Canonical requests encoded as the bodies of OpenAI chat completions."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from typing import Any

import msgspec

from llm_hub.capabilities import Feature, required_features
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.messages import ChatRequest, Message, ResponseFormat, TextPart, Tool, ToolCall

__all__ = ["RESERVED", "check_features", "encode_body", "encode_message", "encode_tool", "merge_options", "to_json"]

RESERVED = frozenset(
    {
        "frequency_penalty",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "n",
        "parallel_tool_calls",
        "presence_penalty",
        "response_format",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
    }
)
"""Parameters that have a field of their own in ChatRequest, or belong to the dialect: options may not set them."""


def check_features(request: ChatRequest, features: frozenset[Feature]) -> None:
    """Raise UnsupportedFeature if the request needs a feature that is not among these."""
    missing = required_features(request) - features
    if missing:
        names = sorted(missing)
        raise UnsupportedFeature(
            f"it cannot be asked for {', '.join(names)}",
            features=names,
            hint="See what each backend can do: llm-hub plugins",
        )


def encode_body(
    request: ChatRequest,
    *,
    stream: bool = False,
    max_tokens_field: str = "max_tokens",
    reasoning_field: str | None = None,
    reserved: frozenset[str] = RESERVED,
) -> dict[str, Any]:
    """The body of a chat completion, as a dict that is ready for JSON.

    `max_tokens_field` is what the server calls the limit of the answer (OpenAI's own newer models:
    `max_completion_tokens`). `reasoning_field` is the name under which the reasoning of earlier turns is sent back; None
    leaves it out, as most chat templates do. Of the response formats it writes the JSON ones; `reasoning` it leaves to
    the dialect, since servers have no common way to ask for it. Raises InvalidRequest.
    """
    if not request.messages:
        raise InvalidRequest("the conversation is empty", hint="Send at least one message.")
    body: dict[str, Any] = {}
    if request.model is not None:
        body["model"] = request.model
    body["messages"] = [encode_message(message, reasoning_field=reasoning_field) for message in request.messages]
    if request.tools:
        body["tools"] = [encode_tool(tool) for tool in request.tools]
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    if request.tool_choice is not None:
        _put_tool_choice(body, request)
    if request.response_format is not None and request.response_format.type in ("json_object", "json_schema"):
        body["response_format"] = _json_format(request.response_format)
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.max_tokens is not None:
        body[max_tokens_field] = request.max_tokens
    if request.stop:
        body["stop"] = request.stop
    if request.seed is not None:
        body["seed"] = request.seed
    if request.n != 1:
        body["n"] = request.n
    if request.presence_penalty is not None:
        body["presence_penalty"] = request.presence_penalty
    if request.frequency_penalty is not None:
        body["frequency_penalty"] = request.frequency_penalty
    if request.logprobs or request.top_logprobs is not None:
        body["logprobs"] = True
        if request.top_logprobs is not None:
            body["top_logprobs"] = request.top_logprobs
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    if request.options:
        merge_options(body, request.options, reserved=reserved)
    return body


def encode_message(message: Message, *, reasoning_field: str | None = None) -> dict[str, Any]:
    """One message. Raises InvalidRequest for one that the format cannot hold."""
    role = message.role
    content = message.content
    wire: dict[str, Any] = {"role": role, "content": content if isinstance(content, str) else _parts(content)}
    if message.name is not None:
        wire["name"] = message.name
    if role == "tool":
        if message.tool_call_id is None:
            raise InvalidRequest(
                "a tool message does not say which call it answers", hint="Set tool_call_id to the id of the ToolCall."
            )
        wire["tool_call_id"] = message.tool_call_id
    elif role == "assistant":
        if message.tool_calls:
            wire["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
            if not content:
                wire["content"] = None
        if message.reasoning and reasoning_field is not None:
            wire[reasoning_field] = message.reasoning
    return wire


def _parts(content: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {
            "type": "image_url",
            "image_url": {"url": f"data:{part.media_type};base64,{b64encode(part.data).decode('ascii')}"},
        }
        for part in content
    ]


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def encode_tool(tool: Tool) -> dict[str, Any]:
    """One tool that is offered."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _put_tool_choice(body: dict[str, Any], request: ChatRequest) -> None:
    choice = request.tool_choice
    if not request.tools:
        if choice in ("auto", "none"):
            return  # that is so without tools, and servers refuse the word
        raise InvalidRequest(f"tool_choice is {choice!r}, but no tools are offered", hint="Send the tools as well.")
    if choice not in ("auto", "none", "required"):
        if all(tool.name != choice for tool in request.tools):
            names = ", ".join(tool.name for tool in request.tools)
            raise InvalidRequest(f"tool_choice is {choice!r}, but the tools are {names}")
        body["tool_choice"] = {"type": "function", "function": {"name": choice}}
    else:
        body["tool_choice"] = choice


def _json_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.type == "json_object":
        return {"type": "json_object"}
    schema: dict[str, Any] = {"name": wanted.name, "schema": wanted.schema or {}}
    if wanted.strict is not None:
        schema["strict"] = wanted.strict
    return {"type": "json_schema", "json_schema": schema}


def merge_options(body: dict[str, Any], options: Mapping[str, Any], *, reserved: frozenset[str] = RESERVED) -> None:
    """Add extra parameters to a body. Raises InvalidRequest for one that has a field of its own."""
    taken = sorted(reserved.intersection(options))
    if taken:
        raise InvalidRequest(
            f"options may not set {', '.join(taken)}", hint="Use the request's own field; options are for all the rest."
        )
    body.update(options)


def _plain(value: Any) -> Any:
    """Mappings of any kind are objects."""
    if isinstance(value, Mapping):
        return dict(value)
    raise NotImplementedError


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def to_json(body: Mapping[str, Any]) -> bytes:
    """The body's bytes. Raises InvalidRequest for what JSON or UTF-8 cannot hold."""
    try:
        return _encode(body)
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the request holds text that is not valid Unicode ({error.reason})",
            hint="Decode the input with errors='replace', or find out its encoding.",
        ) from error
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise InvalidRequest(f"the request holds something that JSON cannot: {error}") from error
