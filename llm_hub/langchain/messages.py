"""LangChain's messages as canonical ones, and canonical ones as LangChain's. Pure; both directions."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.image_headers import image_media_type
from llm_hub.messages import Content, ImagePart, Message, Part, Role, TextPart, ToolCall

__all__ = ["REASONING", "from_message", "split_calls", "to_message", "to_messages"]

REASONING = "reasoning_content"
"""Where a message keeps its reasoning, among `additional_kwargs`: langchain-core makes a reasoning block of it."""

_CALL_BLOCKS = frozenset(
    {"function_call", "input_json_delta", "invalid_tool_call", "tool_call", "tool_call_chunk", "tool_use"}
)
"""Blocks that repeat what an AIMessage has in `tool_calls`."""

_ROLES: Mapping[str, Role] = {
    "ai": "assistant",
    "assistant": "assistant",
    "developer": "system",
    "human": "user",
    "system": "system",
    "user": "user",
}


def to_messages(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """The conversation as the hub has it.

    A tool's answer gets the name of its tool from the call, which some backends need. The names of participants are left
    out: to LangChain they are labels (LangGraph writes each agent's on what it says), and few chat templates know them. Raises InvalidRequest and
    UnsupportedFeature, naming the message and the block.
    """
    names: dict[str, str] = {}
    found: list[Message] = []
    for at, message in enumerate(messages):
        made = to_message(message, where=f"messages[{at}]")
        for call in made.tool_calls:
            names[call.id] = call.name
        if made.role == "tool" and made.name is None and made.tool_call_id in names:
            made = Message(
                role="tool", content=made.content, tool_call_id=made.tool_call_id, name=names[made.tool_call_id]
            )
        found.append(made)
    return tuple(found)


def to_message(message: BaseMessage, *, where: str = "the message") -> Message:
    """One message as the hub has it; see `to_messages`."""
    if isinstance(message, HumanMessage):
        return Message(role="user", content=_content(message, where))
    if isinstance(message, AIMessage):
        return _assistant(message, where)
    if isinstance(message, SystemMessage):
        return Message(role="system", content=_content(message, where))
    if isinstance(message, ToolMessage):
        return Message(
            role="tool", content=_content(message, where), tool_call_id=message.tool_call_id, name=message.name
        )
    if isinstance(message, ChatMessage) and (role := _ROLES.get(message.role)) is not None:
        return Message(role=role, content=_content(message, where))
    kind = f"ChatMessage of role {message.role!r}" if isinstance(message, ChatMessage) else type(message).__name__
    raise InvalidRequest(
        f"{where} is a {kind}, which no backend knows",
        hint="Use SystemMessage, HumanMessage, AIMessage or ToolMessage.",
    )


def from_message(message: Message) -> BaseMessage:
    """One canonical message as LangChain has it; text alone stays text, parts become standard content blocks."""
    content: Any = message.content
    if not isinstance(content, str):
        content = [_block(part) for part in content]
    if message.role == "user":
        return HumanMessage(content=content, name=message.name)
    if message.role == "system":
        return SystemMessage(content=content, name=message.name)
    if message.role == "tool":
        return ToolMessage(content=content, tool_call_id=message.tool_call_id or "", name=message.name)
    valid, invalid = split_calls(message.tool_calls)
    return AIMessage(
        content=content,
        name=message.name,
        tool_calls=valid,
        invalid_tool_calls=invalid,
        additional_kwargs={} if message.reasoning is None else {REASONING: message.reasoning},
    )


def split_calls(calls: Sequence[ToolCall]) -> tuple[list[Any], list[Any]]:
    """The calls whose arguments are a JSON object, and those whose arguments are not, each as LangChain has them."""
    valid: list[Any] = []
    invalid: list[Any] = []
    for call in calls:
        try:
            arguments = json.loads(call.arguments)
        except ValueError as error:
            problem = f"the arguments are no JSON: {error}"
        else:
            if isinstance(arguments, dict):
                valid.append({"name": call.name, "args": arguments, "id": call.id, "type": "tool_call"})
                continue
            problem = f"the arguments are no JSON object but {type(arguments).__name__}"
        invalid.append(
            {"name": call.name, "args": call.arguments, "id": call.id, "error": problem, "type": "invalid_tool_call"}
        )
    return valid, invalid


# -- what the model said before ---------------------------------------------------------------------------------------


def _assistant(message: AIMessage, where: str) -> Message:
    calls = [
        ToolCall(id=call["id"] or f"call_{at}", name=call["name"], arguments=_json(call["args"]))
        for at, call in enumerate(message.tool_calls)
    ]
    calls += [
        ToolCall(id=call["id"] or f"invalid_{at}", name=call["name"] or "", arguments=call["args"] or "")
        for at, call in enumerate(message.invalid_tool_calls)
    ]
    reasoning = message.additional_kwargs.get(REASONING)
    content: Content
    if isinstance(message.content, str):
        content = message.content
    else:
        parts: list[Part] = []
        thoughts: list[str] = []
        for at, block in enumerate(message.content):
            kind = block.get("type") if isinstance(block, Mapping) else None
            if isinstance(block, Mapping) and kind in _CALL_BLOCKS:
                _call_of_block(block, calls)
            elif isinstance(block, Mapping) and kind in ("reasoning", "thinking"):
                thoughts.append(str(block.get("reasoning") or block.get("thinking") or ""))
            elif kind != "redacted_thinking":  # readable only to the server that wrote it
                parts.append(_part(block, f"{where}.content[{at}]"))
        content = tuple(parts)
        if not isinstance(reasoning, str) and thoughts:
            reasoning = "".join(thoughts)
    return Message(
        role="assistant",
        content=content,
        tool_calls=tuple(calls),
        reasoning=reasoning if isinstance(reasoning, str) else None,
    )


def _call_of_block(block: Mapping[str, Any], calls: list[ToolCall]) -> None:
    """Take the call of a block, unless the message has it among its calls already."""
    identity = block.get("id") or block.get("call_id")
    name = block.get("name")
    known = any(call.id == identity or (identity is None and call.name == name) for call in calls)
    if known or not isinstance(name, str):
        return
    arguments = block.get("args", block.get("input", block.get("arguments")))
    calls.append(
        ToolCall(
            id=str(identity or f"call_{len(calls)}"),
            name=name,
            arguments=arguments if isinstance(arguments, str) else _json(arguments or {}),
        )
    )


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the arguments of a tool call hold something that JSON cannot: {error}") from error


# -- content ----------------------------------------------------------------------------------------------------------


def _content(message: BaseMessage, where: str) -> Content:
    content = message.content
    if isinstance(content, str):
        return content
    return tuple(_part(block, f"{where}.content[{at}]") for at, block in enumerate(content))


def _part(block: Any, where: str) -> Part:
    """A content block of LangChain (of its standard, or as OpenAI or Anthropic write them) as a part."""
    if isinstance(block, str):
        return TextPart(block)
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind in ("text", "text-plain") and isinstance(block.get("text"), str):
        return TextPart(block["text"])
    if kind == "image_url":
        url = block.get("image_url")
        return _image_by_url(url.get("url") if isinstance(url, Mapping) else url, block, where)
    if kind == "image" or (kind == "file" and str(block.get("mime_type", "")).startswith("image/")):
        return _image(block, where)
    if kind in ("audio", "file", "input_audio", "text-plain", "video"):
        what = {"input_audio": "audio", "text-plain": "a text by reference"}.get(str(kind), str(kind))
        raise UnsupportedFeature(
            f"{where} is of type {kind!r} ({block.get('mime_type', what)}), and the hub's models take text and images",
            features=(what,),
            hint="Turn it into text (or pictures of its pages) first.",
        )
    raise InvalidRequest(
        f"{where} is a content block of an unknown kind: {kind if kind is not None else type(block).__name__!r}",
        hint="Use text and image blocks, as langchain_core.messages.content defines them.",
    )


def _image(block: Mapping[str, Any], where: str) -> ImagePart:
    media_type = block.get("mime_type")
    source = block.get("source")
    data: Any = None
    if isinstance(source, Mapping):  # Anthropic's form
        data, media_type = source.get("data"), source.get("media_type", media_type)
        if source.get("type") == "url":
            return _image_by_url(source.get("url"), block, where)
    for key in ("base64", "data"):  # the standard's form, and that of langchain-core before 1.0
        if block.get(key) is not None:
            data = block[key]
    if isinstance(data, bytes):
        return ImagePart(data, media_type or image_media_type(data) or "image/png")
    if isinstance(data, str):
        return _decoded(data, media_type, where)
    if block.get("url") is not None:
        return _image_by_url(block["url"], block, where)
    raise InvalidRequest(
        f"{where} is an image without data: {sorted(block)}",
        hint='Write {"type": "image", "base64": ..., "mime_type": "image/png"}.',
    )


def _image_by_url(url: Any, block: Mapping[str, Any], where: str) -> ImagePart:
    if isinstance(url, str) and url.startswith("data:"):
        head, _, payload = url.partition(",")
        if head.endswith(";base64"):
            return _decoded(payload, head[5:].partition(";")[0] or block.get("mime_type"), where)
    raise InvalidRequest(
        f"{where} is an image by URL, and the hub fetches no URLs (a server that does can be made to read its own network)",
        hint='Read the image yourself: {"type": "image", "base64": ..., "mime_type": ...}, or a data: URI in base64.',
    )


def _decoded(payload: str, media_type: str | None, where: str) -> ImagePart:
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"{where} is not valid base64 ({error})") from error
    return ImagePart(data, media_type or image_media_type(data) or "image/png")


def _block(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image", "base64": base64.b64encode(part.data).decode("ascii"), "mime_type": part.media_type}
