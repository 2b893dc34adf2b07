"""What Ollama answers to `POST /api/chat` -> a canonical response, or the chunks of a stream."""

from __future__ import annotations

from typing import Protocol

import msgspec

from llm_hub.capabilities import Feature
from llm_hub.errors import HubError, ProtocolError, StreamInterrupted, UnsupportedFeature
from llm_hub.forced_calls import call_in, is_forced
from llm_hub.messages import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    Choice,
    FinishReason,
    Message,
    ToolCall,
    ToolCallDelta,
)
from llm_hub.streaming import NDJSONDecoder
from llm_hub_ollama.failures import error_of_line
from llm_hub_ollama.wire import Answer, Call, first_words, logprobs_of, read_answer

__all__ = ["ChatStream", "Check", "read_chat"]


class Check(Protocol):
    """Looks at the end of an answer for a reason why it must not be used."""

    def __call__(self, request: ChatRequest, answer: Answer) -> HubError | None: ...


# "load" and "unload" answer a request without messages. Empty or missing is what versions before 0.1.3x said, and what
# `DoneReason.String` gives for the rest.
_FINISH: dict[str | None, FinishReason] = {
    None: "stop",
    "": "stop",
    "stop": "stop",
    "length": "length",
    "load": "stop",
    "unload": "stop",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


def read_chat(request: ChatRequest, body: bytes, *, check: Check) -> ChatResponse:
    """The response in a body of status 200. Raises ProtocolError, or the error that the body stands for."""
    answer = read_answer(body)
    if answer.error is not None:
        raise error_of_line(answer.error, model=request.model)
    message = answer.message
    if message is None or not answer.done:
        raise ProtocolError(f"its answer is not finished: {first_words(body)}", hint="See the log of Ollama.")
    calls = tuple(
        ToolCall(id=_id_of(call, request, index), name=call.function.name, arguments=_arguments(call))
        for index, call in enumerate(message.tool_calls or ())
    )
    logprobs = logprobs_of(answer.logprobs)
    failure = check(request, answer)
    if failure is None and (message.content or message.thinking or calls):
        failure = _without_logprobs(request, found=logprobs is not None)
    if failure is not None:
        raise failure
    text = message.content or ""
    if is_forced(request) and not calls and _finish(answer, called=False) == "stop":
        calls, text = (call_in(text, id=_new_id(request, 0)),), ""
    choice = Choice(
        message=Message(role="assistant", content=text, tool_calls=calls, reasoning=message.thinking or None),
        finish_reason=_finish(answer, called=bool(calls)),
        logprobs=logprobs,
    )
    return ChatResponse(choices=(choice,), model=answer.model, usage=answer.usage(), timings=answer.timings())


class ChatStream:
    """Decodes one streamed answer: lines of JSON, of which the last says `done`.

    An error after content does not take along the content that was read together with it: the chunks are returned
    first, `done` is true, and `finish` raises. So how the bytes were cut makes no difference.
    """

    __slots__ = (
        "_calls",
        "_check",
        "_ended",
        "_failure",
        "_forced",
        "_lines",
        "_logprobs",
        "_request",
        "_text",
        "_written",
    )

    def __init__(self, request: ChatRequest, *, check: Check) -> None:
        self._request = request
        self._check = check
        self._lines = NDJSONDecoder()
        self._text: list[str] = []
        self._calls = 0
        self._forced = is_forced(request)
        self._logprobs = False
        self._written = False
        self._ended = False
        self._failure: HubError | None = None

    @property
    def done(self) -> bool:
        """Has the line with `done` been read, or one that ends the answer as badly?"""
        return self._ended or self._failure is not None

    def feed(self, data: bytes) -> list[ChatChunk]:
        """The chunks that these bytes complete. Raises the error of the first line, if it is one."""
        chunks: list[ChatChunk] = []
        if self._failure is not None:
            raise self._failure
        if self._ended:
            return chunks
        try:
            for line in self._lines.feed(data):
                chunk = self._read(line)
                if chunk is None:
                    continue
                chunks.append(chunk)
                if chunk.finish_reason is not None:
                    break  # what follows the end mark is not read
        except HubError as error:
            failure = self._fail(error)
            if not chunks:
                if failure is error:
                    raise
                raise failure from error
        return chunks

    def finish(self) -> list[ChatChunk]:
        """The body has ended. Raises StreamInterrupted if no line said `done`, or the error that was held back."""
        chunks: list[ChatChunk] = []
        cut = False
        if not self.done:
            for line in self._lines.finish():
                try:
                    chunk = self._read(line)
                except ProtocolError as error:
                    cut = line.lstrip()[:1] == b"{"
                    if not cut:
                        self._fail(error)
                except HubError as error:
                    self._fail(error)
                else:
                    chunks = [chunk] if chunk is not None else []
        if self._failure is not None:
            raise self._failure
        if not self._ended:
            raise StreamInterrupted(
                "the stream ended before the answer did" + (", in the middle of a line" if cut else ""),
                partial="".join(self._text),
                hint="See the log of Ollama: the process of its model may have died.",
            )
        return chunks

    def _read(self, line: bytes) -> ChatChunk | None:
        """The chunk of one line, None if nothing is in it."""
        answer = read_answer(line)
        message = answer.message
        if answer.error is not None or message is None:
            raise error_of_line(answer.error, model=self._request.model)
        text = message.content or ""
        reasoning = message.thinking or ""
        if text:
            self._text.append(text)
            if self._forced:  # a call comes whole
                text = ""
        if not (answer.done or answer.logprobs or message.tool_calls):
            if not text and not reasoning:
                return None
            self._written = True
            return ChatChunk(text=text, reasoning=reasoning, model=answer.model)
        calls = self._deltas(message.tool_calls)
        logprobs = logprobs_of(answer.logprobs)
        self._logprobs = self._logprobs or logprobs is not None
        written = self._written or bool(text or reasoning or calls)
        if not answer.done:
            self._written = written
            return ChatChunk(text=text, reasoning=reasoning, tool_calls=calls, logprobs=logprobs, model=answer.model)
        failure = self._check(self._request, answer)
        if failure is None and written:
            failure = _without_logprobs(self._request, found=self._logprobs)
        if failure is not None:
            raise failure
        if self._forced and not self._calls:
            if _finish(answer, called=False) == "stop":
                call = call_in("".join(self._text), id=_new_id(self._request, 0))
                calls = (ToolCallDelta(0, call.id, call.name, call.arguments),)
                self._calls = 1
            else:
                text = "".join(self._text)  # it was cut, and says so
        chunk = ChatChunk(
            text=text,
            reasoning=reasoning,
            tool_calls=calls,
            finish_reason=_finish(answer, called=self._calls > 0),
            logprobs=logprobs,
            usage=answer.usage(),
            model=answer.model,
            timings=answer.timings(),
        )
        self._ended = True
        return chunk

    def _deltas(self, calls: list[Call] | None) -> tuple[ToolCallDelta, ...]:
        """The tool calls of a line, each of them whole, numbered through the stream."""
        if not calls:
            return ()
        first = self._calls
        self._calls += len(calls)
        return tuple(
            ToolCallDelta(index, _id_of(call, self._request, index), call.function.name, _arguments(call))
            for index, call in enumerate(calls, start=first)
        )

    def _fail(self, error: HubError) -> HubError:
        """Remember how the stream ended: with the error itself, or as interrupted by it once something was written."""
        self._failure = error
        if not self._written:
            return error
        self._failure = StreamInterrupted(
            f"the stream broke off: {error.message}",
            partial="".join(self._text),
            status=getattr(error, "status", None),
            hint=error.hint,
        )
        self._failure.__cause__ = error
        return self._failure


def _finish(answer: Answer, *, called: bool) -> FinishReason:
    try:
        reason = _FINISH[answer.done_reason]
    except KeyError:
        raise ProtocolError(
            f"the answer ended for a reason that is not known: {str(answer.done_reason)[:80]!r}",
            hint="Upgrade the plugin: pip install -U llm-hub-ollama",
        ) from None
    return "tool_calls" if called and reason == "stop" else reason


def _id_of(call: Call, request: ChatRequest, index: int) -> str:
    """The id of a call; where the server gives none, one that no call of the conversation has by this way."""
    return call.id or _new_id(request, index)


def _new_id(request: ChatRequest, index: int) -> str:
    return f"call_{index + sum(len(message.tool_calls) for message in request.messages)}"


def _arguments(call: Call) -> str:
    """The arguments as text: compact, in the order in which they came."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        return arguments or "{}"
    try:
        return "{}" if arguments is None else msgspec.json.encode(arguments).decode()
    except RecursionError as error:
        raise ProtocolError("it called a tool with arguments that are nested too deep") from error


def _without_logprobs(request: ChatRequest, *, found: bool) -> UnsupportedFeature | None:
    """The error if log probabilities were asked for and the server has left them out."""
    if found or not (request.logprobs or request.top_logprobs):
        return None
    return UnsupportedFeature(
        "the server gave no log probabilities",
        features=(Feature.LOGPROBS.value,),
        hint="It needs Ollama 0.12.11 or newer, and a model that it runs itself.",
    )
