"""What callers pass as a prompt -> a canonical request, refused with the reason when it is none."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, cast

import msgspec

from llm_hub.errors import InvalidRequest
from llm_hub.messages import (
    ChatRequest,
    Content,
    ImagePart,
    Message,
    Part,
    Reasoning,
    ResponseFormat,
    Role,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

__all__ = ["ChatOptions", "Prompt", "build_request"]

Prompt = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]] | ChatRequest
"""Text, a message, a conversation (messages, or dicts as OpenAI writes them), or a whole request."""


class ChatOptions(TypedDict, total=False):
    """What may be said of a chat besides its prompt; see `ChatRequest` for the meaning of each."""

    system: str
    tools: Sequence[Tool | Mapping[str, Any]]
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    response_format: ResponseFormat | Mapping[str, Any]
    temperature: float
    top_p: float
    max_tokens: int
    stop: str | Sequence[str]
    seed: int
    n: int
    presence_penalty: float
    frequency_penalty: float
    logprobs: bool
    top_logprobs: int
    reasoning: Reasoning
    options: Mapping[str, Any]


def build_request(prompt: Prompt, options: ChatOptions) -> ChatRequest:
    """The canonical request. Raises InvalidRequest, naming what is wrong and where."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    system = given.pop("system", None)
    messages = prompt.messages if isinstance(prompt, ChatRequest) else _messages(prompt)
    if system is not None:
        if not isinstance(system, str):
            raise InvalidRequest(f"system must be text, not {type(system).__name__}")
        if any(message.role == "system" for message in messages):
            raise InvalidRequest(
                "the conversation has a system message already", hint="Leave out either it or the system argument."
            )
        messages = (Message(role="system", content=_text(system, "system")), *messages)
    _numbers(given)
    if "tools" in given:
        given["tools"] = tuple(_tool(tool, f"tools[{at}]") for at, tool in enumerate(given["tools"]))
    if "stop" in given:
        given["stop"] = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
    if isinstance(given.get("response_format"), Mapping):
        given["response_format"] = _response_format(given["response_format"])
    if isinstance(prompt, ChatRequest):
        request = msgspec.structs.replace(prompt, messages=messages, **given)
    else:
        try:
            request = ChatRequest(messages=messages, **given)
        except TypeError as error:
            raise InvalidRequest(f"{error}", hint="The options of a chat are those of llm_hub.ChatRequest.") from error
    _check(request)
    return request


_WHOLE = ("max_tokens", "n", "seed", "top_logprobs")
_REAL = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


def _numbers(given: dict[str, Any]) -> None:
    """Take any kind of number (numpy's, say) for the options that are one, and nothing else."""
    for names, kind, plain, what in (
        (_WHOLE, numbers.Integral, int, "a whole number"),
        (_REAL, numbers.Real, float, "a number"),
    ):
        for name in names:
            if name in given and type(given[name]) is not plain:
                value = given[name]
                if isinstance(value, bool) or not isinstance(value, kind):
                    raise InvalidRequest(f"{name} must be {what}, not {type(value).__name__} ({value!r:.40})")
                convert: Callable[[Any], Any] = plain
                given[name] = convert(value)


def _check(request: ChatRequest) -> None:
    """Refuse what no backend could serve, before it is sent."""
    if not request.messages:
        raise InvalidRequest("the conversation is empty", hint="Give at least one message.")
    last = request.messages[-1]
    if last.role == "system" and len(request.messages) == 1:
        raise InvalidRequest("there is only a system message", hint="Add what the user says.")
    for at, message in enumerate(request.messages):
        if message.role in ("user", "system") and not message.images and not message.text.strip():
            raise InvalidRequest(
                "the prompt is empty" if len(request.messages) == 1 else f"messages[{at}] ({message.role}) is empty",
                hint="Say something, or leave the message out.",
            )
        if message.role == "tool" and not message.tool_call_id and not message.name:
            raise InvalidRequest(
                f"messages[{at}] (tool) answers no call", hint="Set tool_call_id to the id of the call."
            )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {request.max_tokens}")
    if request.n < 1:
        raise InvalidRequest(f"n must be at least 1, not {request.n}")
    if request.temperature is not None and not request.temperature >= 0:
        raise InvalidRequest(f"temperature must not be negative, but is {request.temperature}")
    if request.top_p is not None and not 0 < request.top_p <= 1:
        raise InvalidRequest(f"top_p must be above 0 and at most 1, not {request.top_p}")
    names = [tool.name for tool in request.tools]
    if len(set(names)) != len(names):
        raise InvalidRequest(f"two tools have the same name, among {names}")
    choice = request.tool_choice
    if choice in ("required",) and not names:
        raise InvalidRequest("tool_choice is 'required', but no tools are offered")
    if choice is not None and choice not in ("auto", "none", "required") and choice not in names:
        raise InvalidRequest(
            f"tool_choice names {choice!r}, which is not among the tools {names}",
            hint="Use 'auto', 'none', 'required', or the name of an offered tool.",
        )


def _messages(prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message(role="user", content=_text(prompt, "the prompt")),)
    if isinstance(prompt, Message | Mapping):
        prompt = [prompt]
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence):
        raise InvalidRequest(
            f"a prompt is text or messages, not {type(prompt).__name__}",
            hint="Decode bytes first: data.decode('utf-8').",
        )
    return tuple(_message(message, f"messages[{at}]") for at, message in enumerate(prompt))


def _text(text: str, where: str) -> str:
    """The text, if it can be sent: lone surrogates are no text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{where} holds a lone surrogate at position {error.start}, which is no valid Unicode text",
            hint="It was probably read with errors='surrogateescape'; decode it as what it is.",
        ) from error
    return text


def _message(message: Any, where: str) -> Message:
    if isinstance(message, Message):
        for part in (message.content,) if isinstance(message.content, str) else message.content:
            if not isinstance(part, ImagePart):
                _text(part if isinstance(part, str) else part.text, where)
        return message
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} is a {type(message).__name__}", hint="A message is a Message or a dict.")
    role = message.get("role")
    if role not in ("system", "user", "assistant", "tool", "developer"):
        raise InvalidRequest(f"{where} has the role {role!r}", hint="A role is one of system, user, assistant, tool.")
    if unknown := set(message) - _KEYS:
        raise InvalidRequest(f"{where} has the unknown keys {sorted(unknown)}", hint=f"Known are {sorted(_KEYS)}.")
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    return Message(
        role=cast("Role", "system" if role == "developer" else role),
        content=_content(message.get("content"), where),
        tool_calls=tuple(
            _tool_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(message.get("tool_calls") or ())
        ),
        tool_call_id=message.get("tool_call_id"),
        name=message.get("name"),
        reasoning=reasoning,
    )


_KEYS = {"content", "name", "reasoning", "reasoning_content", "refusal", "role", "tool_call_id", "tool_calls"}


def _content(content: Any, where: str) -> Content:
    if content is None:
        return ""
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, Sequence):
        raise InvalidRequest(
            f"{where}.content is a {type(content).__name__}", hint="Content is text or a list of parts."
        )
    return tuple(_part(part, f"{where}.content[{at}]") for at, part in enumerate(content))


def _part(part: Any, where: str) -> Part:
    if isinstance(part, TextPart | ImagePart):
        return part
    if isinstance(part, str):
        return TextPart(_text(part, where))
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return TextPart(_text(part["text"], where))
        if part.get("type") == "image_url":
            from llm_hub.images import data_uri  # here, because most conversations have no images

            url = part.get("image_url")
            return data_uri(url.get("url") if isinstance(url, Mapping) else url, where)
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidRequest(f"{where} is no part that is known ({kind!r})", hint="A part is of type text or image_url.")


def _tool(tool: Any, where: str) -> Tool:
    if isinstance(tool, Tool):
        made = tool
    else:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{where} has no name", hint='Write {"type": "function", "function": {"name": ...}}.')
        made = Tool(
            name=function["name"],
            description=function.get("description") or "",
            parameters=function.get("parameters") or {},
            strict=function.get("strict"),
        )
    if not made.name:
        raise InvalidRequest(f"{where} has an empty name")
    parameters: Any = made.parameters
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise InvalidRequest(
            f"the parameters of the tool {made.name!r} are no JSON schema of an object",
            hint='Write {"type": "object", "properties": {...}}.',
        )
    return made


def _tool_call(call: Any, where: str) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} has no function with a name")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return ToolCall(id=str(call.get("id") or ""), name=function["name"], arguments=arguments)


def _response_format(value: Mapping[str, Any]) -> ResponseFormat:
    kind = value.get("type")
    if kind == "json_object":
        return ResponseFormat.json_object()
    if (
        kind == "json_schema"
        and isinstance(body := value.get("json_schema"), Mapping)
        and isinstance(schema := body.get("schema"), Mapping)
    ):
        return ResponseFormat.json_schema(schema, name=body.get("name") or "response", strict=body.get("strict"))
    raise InvalidRequest(
        f"response_format of type {kind!r} is not known",
        hint="Use ResponseFormat.json_object(), .json_schema(...), .regex(...), .choice(...) or .grammar(...).",
    )
