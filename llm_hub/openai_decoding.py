"""OpenAI chat completions, whole or in chunks, decoded into the hub's canonical answers."""

from __future__ import annotations

from typing import Any

import msgspec

from llm_hub.errors import BackendFailed, HubError, ProtocolError, StreamInterrupted
from llm_hub.messages import (
    ChatChunk,
    ChatResponse,
    Choice,
    FinishReason,
    Message,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from llm_hub.openai_errors import classify, complaint

__all__ = ["ChunkStream", "decode_chunk", "decode_completion", "finish_reason", "response_from_bytes"]


# -- the wire, as far as it is read -----------------------------------------------------------------------------------
# Without gc: these are trees that live for an instant, and a stream makes thousands of them.


class _Part(msgspec.Struct, gc=False):
    text: str = ""


_Content = str | list[_Part] | None


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    """A message, or a piece of one. The reasoning text has two names: vLLM's new one, and what all others use."""

    content: _Content = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    refusal: str | None = None


class _Logprob(msgspec.Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Logprob] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Logprob] | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Timings(msgspec.Struct, gc=False):
    """llama.cpp's, in milliseconds."""

    prompt_ms: float | None = None
    predicted_ms: float | None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Delta | None = None
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _ChunkChoice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Envelope(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None
    object: str | None = None


class _Completion(_Envelope, gc=False):
    choices: list[_Choice] | None = None


class Chunk(_Envelope, gc=False):
    """One event of a stream."""

    choices: list[_ChunkChoice] | None = None


_completion = msgspec.json.Decoder(_Completion).decode
decode_event = msgspec.json.Decoder(Chunk).decode
"""The bytes of one event as a Chunk. Raises msgspec.DecodeError (ValidationError for JSON of another shape)."""
_any = msgspec.json.Decoder().decode

_FINISH: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    # Other spellings, of servers and gateways that translate other protocols.
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "repetition": "length",  # vLLM's repetition_detection cut it off
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "safety": "content_filter",
    "refusal": "content_filter",
}
_NOT_FINISHED = frozenset({"abort", "aborted", "cancelled", "canceled", "error"})


def finish_reason(value: str, *, called: bool = False) -> FinishReason:
    """The canonical reason for a server's word; a word that nobody knows means that the model stopped.

    `called`: the answer holds tool calls. Then `stop` becomes `tool_calls`, because some servers say `stop` for a call
    that was forced and others do not, and who reads it wants to know one thing: is it my turn? Raises BackendFailed for
    words that say the answer is not finished (vLLM's `abort` and `error`).
    """
    if value in _NOT_FINISHED:
        raise BackendFailed(
            f"it gave up within the answer (finish reason {value!r})", hint="See the log of the backend."
        )
    reason = _FINISH.get(value) or _FINISH.get(value.lower(), "stop")
    return "tool_calls" if called and reason == "stop" else reason


# -- pieces -----------------------------------------------------------------------------------------------------------


def _text(delta: _Delta) -> str:
    content = delta.content
    if content is None:
        return delta.refusal or ""
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content)


def _arguments(value: Any) -> str:
    """Arguments as JSON text; some servers send the object itself."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _usage(usage: _Usage) -> Usage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=completion.reasoning_tokens if completion else None,
        cached_tokens=prompt.cached_tokens if prompt else None,
    )


def _timings(timings: _Timings) -> Timings:
    prompt, generation = timings.prompt_ms, timings.predicted_ms
    return Timings(
        prompt=None if prompt is None else prompt / 1000, generation=None if generation is None else generation / 1000
    )


def _logprobs(logprobs: _Logprobs | None) -> tuple[TokenLogprob, ...] | None:
    if logprobs is None or logprobs.content is None:
        return None
    return tuple(_logprob(token) for token in logprobs.content)


def _logprob(token: _Logprob) -> TokenLogprob:
    return TokenLogprob(
        token=token.token,
        logprob=token.logprob,
        bytes=None if token.bytes is None else tuple(token.bytes),
        top=tuple(_logprob(other) for other in token.top_logprobs or ()),
    )


def _deltas(calls: list[_ToolCall]) -> tuple[ToolCallDelta, ...]:
    deltas = []
    for position, call in enumerate(calls):
        function = call.function
        arguments = function.arguments if function is not None else None
        deltas.append(
            ToolCallDelta(
                position if call.index is None else call.index,
                call.id,
                function.name if function is not None else None,
                "" if arguments is None else _arguments(arguments),
            )
        )
    return tuple(deltas)


# -- whole answers ----------------------------------------------------------------------------------------------------


def decode_completion(obj: Any, *, n: int = 1) -> ChatResponse:
    """A `chat.completion` that was parsed already (dicts and lists). `n`: how many choices were asked for.

    Raises ProtocolError for another shape, or the error that the object stands for.
    """
    said = complaint(obj)
    if said is not None:
        raise classify(None, said)
    try:
        return _response(msgspec.convert(obj, _Completion), n)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"its answer is no chat completion ({error})") from error


def response_from_bytes(body: bytes, *, n: int = 1, model: str | None = None) -> ChatResponse:
    """A `chat.completion` in JSON.

    Raises msgspec.DecodeError for what is no JSON or has another shape, ProtocolError, or the error that the body
    stands for.
    """
    completion = _completion(body)
    if completion.error is not None or completion.object == "error":
        said = complaint(_any(body))
        if said is not None:
            raise classify(None, said, model=model)
    return _response(completion, n)


def _response(completion: _Completion, n: int) -> ChatResponse:
    choices = completion.choices
    if not choices:
        raise ProtocolError("its answer is no chat completion: it holds no choices")
    if len(choices) < n:
        raise ProtocolError(f"it gave {len(choices)} of the {n} answers that were asked for")
    return ChatResponse(
        choices=tuple(_choice(choice) for choice in choices),
        id=completion.id,
        model=completion.model,
        usage=_usage(completion.usage) if completion.usage is not None else Usage(),
        timings=_timings(completion.timings) if completion.timings is not None else Timings(),
    )


def _choice(choice: _Choice) -> Choice:
    message = choice.message
    if message is None:
        raise ProtocolError(f"its answer is no chat completion: choice {choice.index} holds no message")
    if not choice.finish_reason:
        raise ProtocolError(f"its answer is not finished: choice {choice.index} has no finish reason")
    calls = tuple(
        ToolCall(id=call.id or f"call_{position}", name=call.function.name, arguments=_whole_arguments(call.function))
        for position, call in enumerate(message.tool_calls or ())
        if call.function is not None and call.function.name
    )
    return Choice(
        index=choice.index,
        message=Message(
            role="assistant",
            content=_text(message),
            tool_calls=calls,
            reasoning=message.reasoning or message.reasoning_content or None,
        ),
        finish_reason=finish_reason(choice.finish_reason, called=bool(calls)),
        logprobs=_logprobs(choice.logprobs),
    )


def _whole_arguments(function: _Function) -> str:
    """An empty text means a call without arguments."""
    return (_arguments(function.arguments) if function.arguments is not None else "") or "{}"


# -- streams ----------------------------------------------------------------------------------------------------------


def decode_chunk(obj: Any) -> list[ChatChunk]:
    """One parsed `chat.completion.chunk`, by itself: a chunk for each choice, with its finish reason if it has one.

    What needs the whole stream (an end for every choice, the last usage, `tool_calls` for a forced call) is the work of
    ChunkStream. Raises ProtocolError for another shape, or the error that the object stands for.
    """
    stream = ChunkStream()
    return stream.add_object(obj) + stream._held()


def _as_chunk(obj: Any) -> Chunk:
    said = complaint(obj)
    if said is not None:
        raise classify(None, said)
    try:
        return msgspec.convert(obj, Chunk)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"its stream holds something that is no chunk ({error})") from error


class ChunkStream:
    """The state of one streamed answer of `n` choices: what was produced, and what is held back to its end.

    Finish reasons and usage are handed out only at the end, when it is certain that the stream ended properly.
    """

    __slots__ = ("_called", "_finished", "_last", "_n", "_pieces", "_timings", "_usage", "produced")

    def __init__(self, *, n: int = 1) -> None:
        self._n = n
        self._finished: dict[int, str] = {}
        self._called: set[int] = set()
        self._pieces: list[str] = []
        self._usage: _Usage | None = None
        self._timings: _Timings | None = None
        self._last = Chunk()
        self.produced = False

    @property
    def partial(self) -> str:
        """The text of choice 0 so far."""
        return "".join(self._pieces)

    def add_object(self, obj: Any) -> list[ChatChunk]:
        """The content of a parsed `chat.completion.chunk`. Raises what `decode_chunk` does."""
        chunks: list[ChatChunk] = []
        self.add(_as_chunk(obj), chunks)
        return chunks

    def add(self, chunk: Chunk, chunks: list[ChatChunk]) -> None:
        """Take in one event; what it holds of the answer is appended to `chunks`."""
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.timings is not None:
            self._timings = chunk.timings
        self._last = chunk
        if chunk.choices is None:
            return
        for choice in chunk.choices:
            delta = choice.delta
            index = choice.index
            if delta is not None:
                text = delta.content
                if text.__class__ is not str:
                    text = _text(delta)
                reasoning = delta.reasoning or delta.reasoning_content or ""
                calls = delta.tool_calls
                if text or reasoning or calls or choice.logprobs is not None:
                    if text and index == 0:
                        self._pieces.append(text)
                    self.produced = True
                    if calls:
                        self._called.add(index)
                    chunks.append(
                        ChatChunk(
                            text,
                            index,
                            reasoning,
                            _deltas(calls) if calls else (),
                            None,
                            _logprobs(choice.logprobs),
                            None,
                            chunk.id,
                            chunk.model,
                        )
                    )
            if choice.finish_reason:
                finish_reason(choice.finish_reason)  # raises for one that is no end
                self._finished[index] = choice.finish_reason

    def end(self) -> list[ChatChunk]:
        """The end mark has come: the last chunk of each choice. Raises StreamInterrupted if one of them lacks its end."""
        missing = [index for index in range(self._n) if index not in self._finished]
        if missing:
            which = ", ".join(str(index) for index in missing)
            raise self.interrupted(f"its stream ended without a finish reason for choice {which}")
        return self._held()

    def _held(self) -> list[ChatChunk]:
        chunks = [
            ChatChunk(
                index=index,
                finish_reason=finish_reason(word, called=index in self._called),
                id=self._last.id,
                model=self._last.model,
            )
            for index, word in self._finished.items()
        ]
        if self._usage is not None or self._timings is not None:
            last = chunks.pop() if chunks else ChatChunk(id=self._last.id, model=self._last.model)
            chunks.append(
                msgspec.structs.replace(
                    last,
                    usage=_usage(self._usage) if self._usage is not None else None,
                    timings=_timings(self._timings) if self._timings is not None else None,
                )
            )
        return chunks

    def interrupted(self, message: str) -> StreamInterrupted:
        """The error for a stream that broke off."""
        return StreamInterrupted(message, partial=self.partial, hint="See the log of the backend.")

    def broken(self, cause: HubError) -> HubError:
        """The error for a stream that failed: the cause itself, or an interruption by it once something was produced."""
        if not self.produced or isinstance(cause, StreamInterrupted):
            return cause
        error = StreamInterrupted(
            f"its stream broke off: {cause.message}",
            partial=self.partial,
            status=getattr(cause, "status", None),
            hint=cause.hint,
        )
        error.__cause__ = cause
        return error
