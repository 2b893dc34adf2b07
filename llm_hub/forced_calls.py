"""Tool calls forced by a JSON schema, for servers that can hold an answer to a schema but have no tool choice.

This is how vLLM enforces `tool_choice` inside: whatever the model would have liked to say, the grammar leaves it only a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from llm_hub.errors import ProtocolError, UnsupportedFeature
from llm_hub.messages import ChatChunk, ChatRequest, Tool, ToolCall, ToolCallDelta

__all__ = ["ForcedCalls", "call_in", "call_schema", "is_forced"]

_ANYTHING: Mapping[str, Any] = {"type": "object", "properties": {}}


class _Written(msgspec.Struct):
    name: str
    arguments: msgspec.Raw


_decode = msgspec.json.Decoder(_Written).decode


def is_forced(request: ChatRequest) -> bool:
    """Must the answer be a tool call?"""
    return request.tool_choice not in (None, "auto", "none")


def call_schema(request: ChatRequest) -> dict[str, Any]:
    """The schema of a text that is one call, `{"name": ..., "arguments": {...}}`, of a tool that may be called.

    Raises UnsupportedFeature for a request that wants the answer itself to have a format as well.
    """
    if request.response_format is not None:
        raise UnsupportedFeature(
            f"the answer cannot be forced to be a tool call and {request.response_format.type} at once",
            features=("tool_choice", request.response_format.type),
            hint="Leave one of them out.",
        )
    named = [tool for tool in request.tools if tool.name == request.tool_choice]
    definitions: dict[str, Any] = {}
    schemas = [_one(tool, definitions) for tool in named or request.tools]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {**schema, "$defs": definitions} if definitions else schema


def _one(tool: Tool, definitions: dict[str, Any]) -> dict[str, Any]:
    parameters = dict(tool.parameters or _ANYTHING)
    parameters.setdefault("type", "object")
    moved: dict[str, str] = {}
    for keyword in ("$defs", "definitions"):  # references count from the root, which the parameters no longer are
        own = parameters.pop(keyword, {})
        moved.update({f"#/{keyword}/{name}": f"{tool.name}.{name}" for name in own})
        definitions.update({f"{tool.name}.{name}": one for name, one in own.items()})
    if moved:
        parameters = _moved(parameters, moved)
        for name in moved.values():
            definitions[name] = _moved(definitions[name], moved)
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [tool.name]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, places: Mapping[str, str]) -> Any:
    if isinstance(schema, Mapping):
        return {
            key: f"#/$defs/{places[value]}"
            if key == "$ref" and isinstance(value, str) and value in places
            else _moved(value, places)
            for key, value in schema.items()
        }
    if isinstance(schema, list | tuple):
        return [_moved(one, places) for one in schema]
    return schema


def call_in(text: str, *, id: str) -> ToolCall:  # noqa: A002 - it is what the field is called
    """The call that a whole text is. Raises ProtocolError: the server did not hold the model to the schema."""
    try:
        written = _decode(text)
        arguments = msgspec.json.decode(written.arguments, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ProtocolError(
            f"a tool call was forced, and the answer is none: {text[:200]!r} ({error})",
            hint="The server ignored the schema; upgrade it, or offer the tools with tool_choice 'auto'.",
        ) from error
    return ToolCall(id=id, name=written.name, arguments=msgspec.json.encode(arguments).decode())


class ForcedCalls:
    """Passes on the chunks of a forced answer, the text of each choice turned into the call that it is.

    Calls that the server found itself, and an answer that was cut, are passed on as they are. Raises ProtocolError from the
    chunk that ends a choice whose text is no call.
    """

    __slots__ = ("_called", "_emit", "_held", "_request")

    def __init__(self, request: ChatRequest, emit: Callable[[ChatChunk], None]) -> None:
        self._request = request
        self._emit = emit
        self._held: dict[int, list[str]] = {}
        self._called: set[int] = set()

    def __call__(self, chunk: ChatChunk) -> None:
        """Pass this chunk on, without its text."""
        held = self._held.setdefault(chunk.index, [])
        if chunk.text:
            held.append(chunk.text)
            chunk = msgspec.structs.replace(chunk, text="")
        if chunk.tool_calls:
            self._called.add(chunk.index)
        if chunk.finish_reason == "stop" and chunk.index not in self._called:
            before = sum(len(message.tool_calls) for message in self._request.messages)
            call = call_in("".join(held), id=f"call_{before + chunk.index}")
            delta = ToolCallDelta(0, call.id, call.name, call.arguments)
            chunk = msgspec.structs.replace(chunk, tool_calls=(delta,), finish_reason="tool_calls")
        elif chunk.finish_reason is not None:
            chunk = msgspec.structs.replace(chunk, text="".join(held))
        self._emit(chunk)
