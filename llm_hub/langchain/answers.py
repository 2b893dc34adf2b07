"""The hub's answers and chunks as LangChain's messages, with their metadata, and back. Pure; both directions."""

from __future__ import annotations

from typing import Any

import msgspec
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from llm_hub.langchain.messages import REASONING, split_calls, to_message
from llm_hub.messages import (
    ChatChunk,
    ChatResponse,
    Choice,
    ServedBy,
    Timings,
    TokenLogprob,
    Usage,
)

__all__ = [
    "PROVIDER",
    "from_chunk",
    "from_response",
    "from_usage",
    "last_chunk",
    "metadata_of",
    "to_response",
    "to_usage",
]

PROVIDER = "llm_hub"
"""What the messages name as their `model_provider`."""


def from_usage(usage: Usage) -> UsageMetadata | None:
    """The counted tokens; None unless the backend said both how many it read and how many it wrote."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    made = UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
    if usage.cached_tokens is not None:
        made["input_token_details"] = InputTokenDetails(cache_read=usage.cached_tokens)
    if usage.reasoning_tokens is not None:
        made["output_token_details"] = OutputTokenDetails(reasoning=usage.reasoning_tokens)
    return made


def to_usage(metadata: UsageMetadata | None) -> Usage:
    """The counted tokens as the hub has them."""
    if metadata is None:
        return Usage()
    return Usage(
        prompt_tokens=metadata["input_tokens"],
        completion_tokens=metadata["output_tokens"],
        cached_tokens=metadata.get("input_token_details", {}).get("cache_read"),
        reasoning_tokens=metadata.get("output_token_details", {}).get("reasoning"),
    )


def from_response(response: ChatResponse) -> ChatResult:
    """All answers, a generation each. The tokens were counted for all of them together: they stand at the first."""
    generations: list[ChatGeneration] = []
    for choice in response.choices:
        metadata = metadata_of(response)
        metadata["finish_reason"] = choice.finish_reason
        if choice.logprobs is not None:
            metadata["logprobs"] = _logprobs(choice.logprobs)
        valid, invalid = split_calls(choice.message.tool_calls)
        message = AIMessage(
            content=choice.message.text,
            additional_kwargs={REASONING: choice.message.reasoning} if choice.message.reasoning else {},
            tool_calls=valid,
            invalid_tool_calls=invalid,
            response_metadata=metadata,
            usage_metadata=None if generations else from_usage(response.usage),
        )
        generations.append(ChatGeneration(message=message, generation_info={"finish_reason": choice.finish_reason}))
    return ChatResult(generations=generations)


def to_response(message: AIMessage) -> ChatResponse:
    """The answer that a message came from, as far as it tells."""
    metadata = message.response_metadata
    served_by = metadata.get("served_by")
    logprobs = metadata.get("logprobs")
    choice = Choice(
        message=to_message(message),
        finish_reason=metadata.get("finish_reason"),
        logprobs=None if logprobs is None else tuple(_token(one) for one in logprobs["content"]),
    )
    return ChatResponse(
        choices=(choice,),
        id=metadata.get("id"),
        model=metadata.get("model_name"),
        usage=to_usage(message.usage_metadata),
        timings=Timings(**metadata.get("timings", {})),
        served_by=None if served_by is None else ServedBy(**served_by),
    )


def from_chunk(chunk: ChatChunk) -> ChatGenerationChunk:
    """A piece of an answer. What is known only of the whole comes with `last_chunk`."""
    message = AIMessageChunk(content=chunk.text)
    if chunk.reasoning:
        message.additional_kwargs = {REASONING: chunk.reasoning}
    if chunk.tool_calls:
        message = AIMessageChunk(
            content=chunk.text,
            additional_kwargs=message.additional_kwargs,
            tool_call_chunks=[
                tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=call.index)
                for call in chunk.tool_calls
            ],
        )
    if chunk.logprobs is not None:
        message.response_metadata = {"logprobs": _logprobs(chunk.logprobs)}
    return ChatGenerationChunk(message=message)


def last_chunk(response: ChatResponse) -> ChatGenerationChunk:
    """The end of a stream: no content, but who answered, why it ended, and what it cost."""
    metadata = metadata_of(response)
    metadata["finish_reason"] = response.finish_reason
    message = AIMessageChunk(
        content="",
        response_metadata=metadata,
        usage_metadata=from_usage(response.usage),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message, generation_info={"finish_reason": response.finish_reason})


def metadata_of(response: ChatResponse) -> dict[str, Any]:
    """Plain values, so that messages can be stored as JSON."""
    served_by = response.served_by
    metadata: dict[str, Any] = {"model_provider": PROVIDER}
    model = response.model or (served_by.model if served_by is not None else None)
    if model is not None:
        metadata["model_name"] = model
    if response.id is not None:
        metadata["id"] = response.id
    if served_by is not None:
        metadata["served_by"] = msgspec.structs.asdict(served_by)
    timings = {name: value for name, value in msgspec.structs.asdict(response.timings).items() if value is not None}
    if timings:
        metadata["timings"] = timings
    return metadata


def _logprobs(tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """As OpenAI writes them, and ChatOpenAI hands them on."""
    return {"content": [_logprob(token) for token in tokens]}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    made: dict[str, Any] = {"token": token.token, "logprob": token.logprob, "bytes": None}
    if token.bytes is not None:
        made["bytes"] = list(token.bytes)
    made["top_logprobs"] = [_logprob(top) for top in token.top]
    return made


def _token(written: dict[str, Any]) -> TokenLogprob:
    return TokenLogprob(
        token=written["token"],
        logprob=written["logprob"],
        bytes=None if written["bytes"] is None else tuple(written["bytes"]),
        top=tuple(_token(top) for top in written["top_logprobs"]),
    )
