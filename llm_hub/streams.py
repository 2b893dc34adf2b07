"""Putting the chunks of a stream together into the answer that they are."""

from __future__ import annotations

from collections.abc import Iterable

from llm_hub.messages import (
    ChatChunk,
    ChatResponse,
    Choice,
    FinishReason,
    Message,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)

__all__ = ["collect"]


class _Gathering:
    """What has come of one choice."""

    __slots__ = ("calls", "finish_reason", "logprobs", "reasoning", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, tuple[list[str], list[str], list[str]]] = {}  # id, name and arguments, in pieces
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[TokenLogprob] | None = None

    def choice(self, index: int) -> Choice:
        calls = tuple(
            ToolCall(id="".join(ids), name="".join(names), arguments="".join(arguments) or "{}")
            for _, (ids, names, arguments) in sorted(self.calls.items())
        )
        message = Message(
            role="assistant", content="".join(self.text), tool_calls=calls, reasoning="".join(self.reasoning) or None
        )
        return Choice(
            message=message,
            finish_reason=self.finish_reason,
            index=index,
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
        )


def collect(chunks: Iterable[ChatChunk]) -> ChatResponse:
    """The answer that these chunks make up. A choice that has not ended has no finish reason."""
    choices: dict[int, _Gathering] = {}
    usage: Usage | None = None
    timings: Timings | None = None
    identity: str | None = None
    model: str | None = None
    for chunk in chunks:
        usage = chunk.usage or usage
        timings = chunk.timings or timings
        identity = identity or chunk.id
        model = model or chunk.model
        one = choices.get(chunk.index)
        if one is None:
            if not chunk.has_content and chunk.finish_reason is None and chunk.logprobs is None:
                continue  # a chunk of usage alone belongs to no choice
            one = choices[chunk.index] = _Gathering()
        if chunk.text:
            one.text.append(chunk.text)
        if chunk.reasoning:
            one.reasoning.append(chunk.reasoning)
        for call in chunk.tool_calls:
            ids, names, arguments = one.calls.setdefault(call.index, ([], [], []))
            if call.id:
                ids.append(call.id)
            if call.name:
                names.append(call.name)
            if call.arguments:
                arguments.append(call.arguments)
        if chunk.logprobs is not None:
            one.logprobs = [*(one.logprobs or ()), *chunk.logprobs]
        one.finish_reason = chunk.finish_reason or one.finish_reason
    return ChatResponse(
        choices=tuple(one.choice(index) for index, one in sorted(choices.items())),
        id=identity,
        model=model,
        usage=usage or Usage(),
        timings=timings or Timings(),
    )
