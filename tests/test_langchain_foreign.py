"""What the models and clients beneath LangChain say, in the hub's terms: errors, reasons, pieces of calls."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration

from llm_hub import Message, errors
from llm_hub.langchain.as_plugin import Terms
from llm_hub.langchain.failures import to_error
from llm_hub.langchain.foreign import Gathered, whole
from llm_hub.messages import ChatRequest


def request() -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content="Hi"),))


class Said(Exception):
    """An error as the clients of Anthropic or Amazon raise it."""

    def __init__(self, **said: Any) -> None:
        super().__init__(str(said))
        vars(self).update(said)


class ConnectTimeout(Exception):
    pass


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
THROTTLED = {"ResponseMetadata": {"HTTPStatusCode": 429}, "Error": {"Code": "Throttling", "Message": "slow down"}}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Said(status_code=529, body=OVERLOADED), errors.BackendFailed),
        (Said(response=THROTTLED), errors.BackendOverloaded),
        (ConnectTimeout("timed out"), errors.BackendUnreachable),
        (TimeoutError("late"), errors.DeadlineExceeded),
        (ConnectionResetError(104, "reset"), errors.ConnectionLost),
        (NotImplementedError(), errors.UnsupportedFeature),
        (RuntimeError("boom"), errors.BackendFailed),
        (errors.InvalidRequest("as it is"), errors.InvalidRequest),
    ],
)
def test_errors_are_told_apart_by_what_they_say(error: Exception, kind: type[errors.HubError]) -> None:
    found = to_error(error)
    assert type(found) is kind
    assert found is error or found.__cause__ is error


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"stop_reason": "end_turn"}, "stop"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "SAFETY"}, "content_filter"),
        ({"stopReason": "tool_use"}, "tool_calls"),
    ],
)
def test_reasons_are_read_in_the_words_of_many(metadata: dict[str, Any], reason: str) -> None:
    answer = whole([ChatGeneration(message=AIMessage("a", response_metadata=metadata))], request(), Terms())
    assert answer.finish_reason == reason
    gathered = Gathered(request(), Terms())
    gathered.feed(AIMessageChunk(content=[{"type": "text", "text": "a", "index": 0}]))
    gathered.feed(AIMessageChunk(content=[], response_metadata=metadata, usage_metadata=usage(1)))
    gathered.feed(AIMessageChunk(content="", usage_metadata=usage(2)))
    last = gathered.end()
    assert last is not None
    assert last.finish_reason == reason
    assert last.usage is not None
    assert last.usage.completion_tokens == 3


def usage(tokens: int) -> Any:
    return {"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}


def test_an_unknown_reason_is_said_not_guessed() -> None:
    with pytest.raises(errors.ProtocolError, match="'bored'"):
        whole(
            [ChatGeneration(message=AIMessage("a", response_metadata={"finish_reason": "bored"}))], request(), Terms()
        )


def test_calls_that_come_in_pieces_keep_together_by_their_index() -> None:
    gathered = Gathered(request(), Terms())
    pieces = [("a", "f", "", 1), (None, None, '{"x"', 1), ("b", "g", "{}", 2), (None, None, ": 1}", 1)]
    found = [
        gathered.feed(
            AIMessageChunk(content="", tool_call_chunks=[{"id": one, "name": name, "args": args, "index": index}])
        )
        for one, name, args, index in pieces
    ]
    deltas = [chunk.tool_calls[0] for chunk in found if chunk is not None]
    assert [(one.index, one.id, one.name, one.arguments) for one in deltas] == [
        (0, "a", "f", ""),
        (0, None, None, '{"x"'),
        (1, "b", "g", "{}"),
        (0, None, None, ": 1}"),
    ]
