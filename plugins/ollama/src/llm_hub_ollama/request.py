"""A canonical chat request -> the body of `POST /api/chat`."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

import msgspec

from llm_hub.capabilities import Feature
from llm_hub.errors import InvalidRequest, UnsupportedFeature
from llm_hub.forced_calls import call_schema, is_forced
from llm_hub.messages import ChatRequest, Message, ResponseFormat, Tool, ToolCall
from llm_hub_ollama.settings import RUNNER_OPTIONS, OllamaSettings

__all__ = ["ChatEncoder", "dump"]

_KNOWN_MODELS = 256


class ChatEncoder:
    """Writes requests, each with what the settings fix for its model, so that no request reloads a model."""

    def __init__(self, settings: OllamaSettings) -> None:
        self.settings = settings
        self._fixed: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    def encode(self, request: ChatRequest, *, stream: bool) -> bytes:
        """The body. Raises UnsupportedFeature for what Ollama's API has no place for, InvalidRequest for bad values."""
        if not request.messages:
            # Ollama would load the model, or unload it, and answer with nothing.
            raise InvalidRequest("the conversation is empty", hint="Give at least one message.")
        _refuse(request)
        body, options = self._start(request.model)
        body["messages"] = _messages(request.messages)
        body["stream"] = stream
        # Without this the server drops the oldest messages of a conversation that is too long, and says nothing.
        body["truncate"] = False
        if request.tools and request.tool_choice != "none":
            body["tools"] = [_tool(tool) for tool in request.tools]
        if is_forced(request):
            body["format"] = call_schema(request)
        elif request.response_format is not None:
            body["format"] = _format(request.response_format)
        if request.reasoning is not None:
            body["think"] = request.reasoning
        if request.logprobs or request.top_logprobs:
            body["logprobs"] = True
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
        self._add_options(request, options)
        if options:
            body["options"] = options
        return dump(body)

    def load(self, model: str) -> bytes:
        """The body that loads a model as requests will want it, and generates nothing."""
        body, options = self._start(model)
        body["messages"] = []
        body["stream"] = False
        if options:
            body["options"] = options
        return dump(body)

    def _start(self, model: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The body and the options that every request for this model begins with."""
        if not model:
            raise InvalidRequest("no model is named", hint="Name one: OLLAMA_MODEL=llama3.2, or model= in the call.")
        fixed = self._fixed.get(model)
        if fixed is None:
            profile = self.settings.profile(model)
            fixed = ({"model": model, **profile.body}, profile.runner_options)
            if len(self._fixed) < _KNOWN_MODELS:
                self._fixed[model] = fixed
        body, options = fixed
        return body.copy(), options.copy()

    def _add_options(self, request: ChatRequest, options: dict[str, Any]) -> None:
        """The sampling options: the canonical ones, and those that only Ollama has."""
        given = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "num_predict": request.max_tokens,
            "stop": list(request.stop) or None,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
        }
        options.update((name, value) for name, value in given.items() if value is not None)
        for name, value in request.options.items():
            if name not in self.settings.request_options:
                raise _refused_option(name, request.model, self.settings)
            if given.get(name) is not None:
                raise InvalidRequest(
                    f"the request gives {name} twice, as itself and in options", hint=f"Leave out options[{name!r}]."
                )
            options[name] = value


def _refused_option(name: str, model: str | None, settings: OllamaSettings) -> InvalidRequest:
    if name in RUNNER_OPTIONS or name in ("keep_alive", "shift"):
        why = "when the model is unloaded belongs to the backend" if name == "keep_alive" else "it reloads the model"
        return InvalidRequest(
            f"a request may not set the option {name!r}: {why}",
            hint=f"Set it once for the model: profiles = {{ {model!r} = {{ {name} = ... }} }} in the backend's settings.",
        )
    return InvalidRequest(
        f"the option {name!r} may not be set by a request",
        hint=f"Allowed are {', '.join(sorted(settings.request_options))} (the backend's setting request_options).",
    )


def _refuse(request: ChatRequest) -> None:
    """Raise UnsupportedFeature for what this API cannot say, rather than leave it out."""
    if request.n != 1:
        raise _unsupported("several answers to one request (n > 1)", Feature.MULTIPLE_CHOICES, f"send it {request.n} x")
    if request.parallel_tool_calls is False:
        raise _unsupported("parallel_tool_calls=False", "parallel_tool_calls", "answer the first call only")
    if any(tool.strict for tool in request.tools):
        raise _unsupported("strict tools", "strict tools", "leave strict out and check the arguments")
    for message in request.messages:
        if message.name is not None and message.role != "tool":
            raise _unsupported("names of participants", "message name", "say the name in the text")


def _unsupported(what: str, feature: str, instead: str) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"Ollama's API has no {what}",
        features=(str(feature),),
        hint=f"Use a backend that has it (llm-hub explain text), or {instead}.",
    )


_WITHOUT = {"regex": Feature.REGEX, "choice": Feature.CHOICE, "grammar": Feature.GRAMMAR}


def _format(wanted: ResponseFormat) -> Any:
    if wanted.type == "json_object":
        return "json"
    if wanted.type == "json_schema":
        # An empty object would be taken for no format at all.
        return wanted.schema or "json"
    instead = "use a JSON schema with an enum" if wanted.type == "choice" else "use a JSON schema"
    raise _unsupported(f"answers held to a {wanted.type}", _WITHOUT[wanted.type], instead)


def _messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    names: dict[str, str] = {}  # of the tool calls so far, by their id
    return [_message(message, names) for message in messages]


def _message(message: Message, names: dict[str, str]) -> dict[str, Any]:
    content = message.content
    wire: dict[str, Any] = {"role": message.role, "content": content if isinstance(content, str) else message.text}
    if not isinstance(content, str) and (images := message.images):
        wire["images"] = [binascii.b2a_base64(image.data, newline=False).decode("ascii") for image in images]
    if message.reasoning:
        wire["thinking"] = message.reasoning
    if message.tool_calls:
        wire["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
        names.update((call.id, call.name) for call in message.tool_calls if call.id)
    if message.role == "tool":
        name = message.name or names.get(message.tool_call_id or "")
        if name:
            wire["tool_name"] = name
        if message.tool_call_id:
            wire["tool_call_id"] = message.tool_call_id
    return wire


def _tool_call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise _no_object(call, str(error)) from error
    if not isinstance(arguments, dict):
        raise _no_object(call, f"{type(arguments).__name__} instead of an object")
    wire: dict[str, Any] = {"function": {"name": call.name, "arguments": arguments}}
    if call.id:
        wire["id"] = call.id
    return wire


def _no_object(call: ToolCall, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the conversation holds a call of {call.name!r} whose arguments are no JSON object ({why}), which Ollama wants",
        hint="Leave the call and its result out of the conversation, or repair its arguments.",
    )


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    # Ollama reads the schema into a struct and writes it out again: without a type it would show the model `"type":""`.
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


def dump(body: dict[str, Any]) -> bytes:
    """The body as JSON. Raises InvalidRequest for what cannot be written."""
    try:
        return _ENCODER.encode(body)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the request holds text that is not valid Unicode ({error.reason})") from error
    except (TypeError, RecursionError, msgspec.EncodeError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON ({error})") from error
