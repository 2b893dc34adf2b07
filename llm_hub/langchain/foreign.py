"""What a LangChain model is asked and what it says, in the hub's terms: arguments, messages, chunks. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables import RunnableBinding, RunnableSequence

from llm_hub.capabilities import Feature
from llm_hub.errors import HubError, InvalidRequest, ProtocolError, UnsupportedFeature
from llm_hub.langchain.answers import to_usage
from llm_hub.langchain.as_plugin import Terms
from llm_hub.langchain.construct import Parameters, parameters
from llm_hub.langchain.messages import REASONING, from_message, to_message
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    Choice,
    FinishReason,
    ImagePart,
    Message,
    ResponseFormat,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    Usage,
)

__all__ = ["Asked", "Gathered", "ask", "embeds_as", "unexplained", "whole"]

_NAMES: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "max_tokens": (
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "max_new_tokens",
        "num_predict",
        "max_tokens_to_sample",
    ),
    "seed": ("seed", "random_seed"),
    "n": ("n", "num_return_sequences", "candidate_count"),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "logprobs": ("logprobs",),
    "top_logprobs": ("top_logprobs",),
    "reasoning": ("reasoning",),
}
"""What classes call the options of a request."""


class Asked(msgspec.Struct, frozen=True):
    """One question: the model with the options of the request in its fields, and what is passed with the call."""

    model: Any
    messages: list[BaseMessage]
    arguments: dict[str, Any]


def ask(model: Any, request: ChatRequest, terms: Terms) -> Asked:
    """The question that a request is. Raises UnsupportedFeature and InvalidRequest for what this class cannot be asked."""
    known = parameters(type(model))
    fields: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    for name, value in _options(request):
        _place(model, known, terms, name, value, fields, arguments)
    for name, value in request.options.items():
        if known.is_reserved(name):
            raise InvalidRequest(
                f"options may not set {name}",
                hint="The model is an argument of the call; addresses and keys belong to the hub.",
            )
        field = known.field(name)
        if field is not None:
            fields[field] = value
        else:
            arguments[name] = value
    if request.stop:
        if terms.parameters.get("stop", "stop") is None:
            raise _unplaced(model, "stop")
        arguments["stop"] = list(request.stop)
    if request.tools and request.tool_choice != "none":  # what is not offered cannot be called
        arguments.update(_tools(model, request))
    if request.response_format is not None:
        arguments.update(_format(model, request.response_format, terms))
    if fields:
        model = model.model_copy(update=fields)
    return Asked(model, [_message(one) for one in request.messages], arguments)


def _options(request: ChatRequest) -> list[tuple[str, Any]]:
    given: list[tuple[str, Any]] = []
    for name in _NAMES:
        value = getattr(request, name)
        if value is not None and not (name == "n" and value == 1) and not (name == "logprobs" and not value):
            given.append((name, value))
    return given


def _place(
    model: Any,
    known: Parameters,
    terms: Terms,
    name: str,
    value: Any,
    fields: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    """Put an option where the class takes it: a field of a copy of the model, or an argument of the call."""
    said = terms.parameters.get(name, "")
    if callable(said):
        placed = dict(said(value))
    elif said:
        placed = {said: value}
    else:
        found = None
        if said is not None:
            found = next((one for one in _NAMES[name] if known.field(one) is not None), None)
            if found is None and name == "reasoning" and isinstance(value, str) and known.field("reasoning_effort"):
                found = "reasoning_effort"
        if found is None:
            raise _unplaced(model, name)
        placed = {found: value}
    for key, one in placed.items():
        field = known.field(key)
        if field is not None:
            fields[field] = one
        else:
            arguments[key] = one


def _unplaced(model: Any, name: str) -> UnsupportedFeature:
    return UnsupportedFeature(
        f"{type(model).__name__} has no parameter for {name}",
        features=(name,),
        hint=f"Leave {name} out, or let the plugin say what it is called: from_langchain(..., parameters=...).",
    )


def _message(message: Message) -> BaseMessage:
    made = from_message(message)
    if message.role == "tool" and message.images:
        raise UnsupportedFeature("LangChain has no images in answers of tools", features=(Feature.IMAGES,))
    if isinstance(made.content, list) and any(isinstance(part, ImagePart) for part in message.content):
        # As OpenAI writes them: every class understands that, and few the blocks of LangChain's own standard.
        made.content = [_openai_block(block) for block in made.content]
    return made


def _openai_block(block: Any) -> Any:
    if block.get("type") != "image":
        return block
    return {"type": "image_url", "image_url": {"url": f"data:{block['mime_type']};base64,{block['base64']}"}}


def _tools(model: Any, request: ChatRequest) -> dict[str, Any]:
    """What `bind_tools` would pass with a call."""
    known = inspect.signature(type(model).bind_tools).parameters
    options: dict[str, Any] = {}
    if request.tool_choice not in (None, "auto"):
        options["tool_choice"] = "any" if request.tool_choice == "required" else request.tool_choice
    if request.parallel_tool_calls is not None and "parallel_tool_calls" in known:
        options["parallel_tool_calls"] = request.parallel_tool_calls
    elif request.parallel_tool_calls is False:
        raise UnsupportedFeature(
            f"{type(model).__name__} cannot be kept to one call at a time", features=("parallel_tool_calls",)
        )
    return _bound(model, model.bind_tools([_tool(one) for one in request.tools], **options), "bind_tools")


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _format(model: Any, wanted: ResponseFormat, terms: Terms) -> dict[str, Any]:
    """What `with_structured_output` would pass with a call, without what it does with the answer."""
    said = terms.parameters.get("response_format")
    if callable(said):
        return dict(said(wanted))
    if wanted.type == "json_schema":
        schema: Any = {"title": wanted.name, **(wanted.schema or {})}
        made = model.with_structured_output(schema, method="json_schema")
    elif wanted.type == "json_object":
        made = model.with_structured_output(None, method="json_mode")
    else:
        raise UnsupportedFeature(
            f"LangChain has no way to ask for a {wanted.type}",
            features=(wanted.type,),
            hint="Let the plugin say how: from_langchain(..., parameters={'response_format': ...}).",
        )
    first = made.first if isinstance(made, RunnableSequence) else made
    return _bound(model, first, "with_structured_output")


def _bound(model: Any, made: Any, by: str) -> dict[str, Any]:
    if isinstance(made, RunnableBinding) and isinstance(made.bound, type(model)):
        return dict(made.kwargs)
    raise UnsupportedFeature(
        f"{by} of {type(model).__name__} does more than to pass arguments: it gives a {type(made).__name__}",
        hint="Leave the feature out of from_langchain(..., features=...).",
    )


# -- answers ----------------------------------------------------------------------------------------------------------

_REASONS: Mapping[str, FinishReason] = {
    "content_filter": "content_filter",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "function_call": "tool_calls",
    "length": "length",
    "max_length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "recitation": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "stop": "stop",
    "stop_sequence": "stop",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
}
"""Why an answer ended, in the words of OpenAI, Ollama, Anthropic, Mistral and Google, in lower case."""

_WHERE = ("finish_reason", "stop_reason", "done_reason", "stopReason", "finishReason")


def _reason(metadata: Mapping[str, Any] | None) -> FinishReason | None:
    for name in _WHERE:
        said = (metadata or {}).get(name)
        if said:
            known = _REASONS.get(str(getattr(said, "name", said)).lower().rpartition(".")[2])
            if known is None:
                raise ProtocolError(f"its answer ended for a reason that the hub does not know: {str(said)[:60]!r}")
            return known
    return None


def whole(generations: list[ChatGeneration], request: ChatRequest, terms: Terms) -> ChatResponse:
    """The answer that LangChain's generations are. Raises ProtocolError for what is no answer."""
    if len(generations) < request.n:
        raise ProtocolError(f"it gave {len(generations)} of {request.n} answers")
    choices: list[Choice] = []
    usage = Usage()
    for index, generation in enumerate(generations[: request.n]):
        message = generation.message
        if not isinstance(message, AIMessage):
            raise ProtocolError(f"its answer is a {type(message).__name__}, not an AIMessage")
        try:
            made = to_message(message)
        except HubError as error:
            raise ProtocolError(f"its answer holds what the hub cannot take: {error.message}") from error
        reason = _reason(message.response_metadata) or _reason(generation.generation_info)
        if made.tool_calls and (reason == "stop" or (reason is None and not terms.says_why)):
            reason = "tool_calls"
        if reason is None and terms.says_why:
            raise ProtocolError("its answer has no finish reason, so it may be a part of one", hint=unexplained(terms))
        if index == 0:
            usage = to_usage(message.usage_metadata)
        choices.append(
            Choice(
                message=msgspec.structs.replace(made, content=made.text),
                finish_reason=reason or "stop",
                index=index,
                logprobs=_logprobs(message.response_metadata) if request.logprobs else None,
            )
        )
    first = generations[0].message
    return ChatResponse(choices=tuple(choices), id=_id(first), model=_model(first), usage=usage)


def unexplained(terms: Terms) -> str:
    """What to do about an answer without a finish reason."""
    name = getattr(terms.chat, "__name__", None) or str(terms.chat).rpartition(":")[2]
    return f"See the log of the backend. If {name} never gives one, its plugin says so: from_langchain(..., says_why=False)."


def _id(message: BaseMessage) -> str | None:
    """The server's id, not one that LangChain made up."""
    said = message.response_metadata.get("id") or message.id
    return None if said is None or str(said).startswith(("run-", "lc_run-", "lc_")) else str(said)


def _model(message: BaseMessage) -> str | None:
    said = message.response_metadata.get("model_name") or message.response_metadata.get("model")
    return None if said is None else str(said)


def _logprobs(metadata: Mapping[str, Any]) -> tuple[TokenLogprob, ...] | None:
    """As OpenAI writes them (`{"content": [...]}`) or Ollama (`[...]`)."""
    found: Any = metadata.get("logprobs")
    if isinstance(found, Mapping):
        found = found.get("content")
    return None if found is None else tuple(_token(one) for one in found)


def _token(said: Mapping[str, Any]) -> TokenLogprob:
    codes = said.get("bytes")
    return TokenLogprob(
        token=said["token"],
        logprob=said["logprob"],
        bytes=None if codes is None else tuple(codes),
        top=tuple(_token(one) for one in said.get("top_logprobs") or ()),
    )


class Gathered:
    """A streamed answer, chunk by chunk: LangChain's in, the hub's out, and at the end what was known only then."""

    def __init__(self, request: ChatRequest, terms: Terms) -> None:
        self._says_why = terms.says_why
        self._wants_logprobs = request.logprobs
        self._text: list[str] = []
        self._calls: dict[Any, int] = {}
        self._named: set[int] = set()
        self._usage: list[Usage] = []
        self._reason: FinishReason | None = None
        self._id: str | None = None
        self._model: str | None = None
        self.produced = False

    @property
    def partial(self) -> str:
        """The text so far."""
        return "".join(self._text)

    def feed(self, chunk: Any) -> ChatChunk | None:
        """The piece that a chunk of LangChain's is, None where it holds none. Raises ProtocolError."""
        if not isinstance(chunk, AIMessage):
            raise ProtocolError(f"its stream holds a {type(chunk).__name__}, not an AIMessageChunk")
        metadata = chunk.response_metadata
        self._reason = _reason(metadata) or self._reason
        self._id = _id(chunk) or self._id
        self._model = _model(chunk) or self._model
        if chunk.usage_metadata is not None:
            self._usage.append(to_usage(chunk.usage_metadata))
        text, reasoning = _said(chunk)
        calls = tuple(self._call(one) for one in getattr(chunk, "tool_call_chunks", None) or _as_chunks(chunk))
        logprobs = _logprobs(metadata) if self._wants_logprobs else None
        if not (text or reasoning or calls or logprobs):
            return None
        self.produced = True
        self._text.append(text)
        return ChatChunk(text=text, reasoning=reasoning, tool_calls=calls, logprobs=logprobs)

    def _call(self, piece: Mapping[str, Any]) -> ToolCallDelta:
        """Pieces of one call have one index; without an index a piece is a call of its own."""
        key = piece.get("index")
        key = object() if key is None else key
        index = self._calls.setdefault(key, len(self._calls))
        first = index not in self._named
        self._named.add(index)
        return ToolCallDelta(
            index=index,
            id=(piece.get("id") or f"call_{index}") if first else None,
            name=(piece.get("name") or "") if first else None,
            arguments=piece.get("args") or "",
        )

    def end(self) -> ChatChunk | None:
        """The last chunk, with the finish reason; None if the stream never said that it has ended."""
        reason = self._reason
        if reason is None and not self._says_why:
            reason = "stop"
        if reason is None:
            return None
        if reason == "stop" and self._calls:
            reason = "tool_calls"
        return ChatChunk(finish_reason=reason, usage=_sum(self._usage), id=self._id, model=self._model)


def _said(message: AIMessage) -> tuple[str, str]:
    """Text and reasoning of a chunk."""
    reasoning = message.additional_kwargs.get(REASONING)
    thoughts = reasoning if isinstance(reasoning, str) else ""
    if isinstance(message.content, str):
        return message.content, thoughts
    if not message.content:
        return "", thoughts
    try:
        made = to_message(AIMessage(content=message.content, additional_kwargs=message.additional_kwargs))
    except HubError as error:
        raise ProtocolError(f"its stream holds what the hub cannot take: {error.message}") from error
    return made.text, made.reasoning or ""


def _as_chunks(message: AIMessage) -> list[Any]:
    """Whole calls, of a model that streams no pieces of them."""
    made = to_message(
        AIMessage(content="", tool_calls=message.tool_calls, invalid_tool_calls=message.invalid_tool_calls)
    )
    return [{"id": one.id, "name": one.name, "args": one.arguments, "index": None} for one in made.tool_calls]


def _sum(found: list[Usage]) -> Usage | None:
    """The usages of the chunks add up, as LangChain has it."""
    if not found:
        return None
    names = Usage.__struct_fields__
    sums: dict[str, int | None] = {}
    for name in names:
        values = [value for one in found if (value := getattr(one, name)) is not None]
        sums[name] = sum(values) if values else None
    return Usage(**sums)


def embeds_as(model: Any, dimensions: int | None, terms: Terms) -> Any:
    """The embeddings with as many numbers as the request asks for."""
    if dimensions is None:
        return model
    known = parameters(type(model))
    said = terms.parameters.get("dimensions")
    placed = dict(said(dimensions)) if callable(said) else {said or "dimensions": dimensions}
    fields = {field: value for name, value in placed.items() if (field := known.field(name)) is not None}
    if not fields or not hasattr(model, "model_copy"):
        raise UnsupportedFeature(
            f"{type(model).__name__} has no parameter for dimensions",
            features=(Feature.DIMENSIONS,),
            hint="Leave dimensions out.",
        )
    return model.model_copy(update=fields)
