"""A way to text: the handle that callers hold, and what they may say of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import msgspec

from llm_hub.call import Call, CancelToken
from llm_hub.chat_streams import AsyncChatStream, ChatStream
from llm_hub.epochs import EpochStore
from llm_hub.errors import InvalidRequest
from llm_hub.prompts import ChatOptions, Prompt, build_request
from llm_hub.routing import route_chat, route_count
from llm_hub.runtime import Runtime
from llm_hub.selection import Ask
from llm_hub.transport import drive
from llm_hub.worlds import ASYNC, BLOCKING

if TYPE_CHECKING:
    from llm_hub.messages import ChatRequest, ChatResponse, TokenCount

__all__ = ["CallLimits", "CallOptions", "TextHandle", "take_limits"]


class CallOptions(ChatOptions, total=False):
    """The options of a chat, and those of the call: `timeout` in seconds for all of it, `cancel`, `repeatable`."""

    timeout: float
    cancel: CancelToken
    repeatable: bool


class CallLimits(TypedDict, total=False):
    """The options of a call alone; see `CallOptions`."""

    timeout: float
    cancel: CancelToken
    repeatable: bool


def take_limits(options: Any) -> Call:
    """The call that these options ask for; what says so is taken out of them."""
    limits = {name: options.pop(name) for name in ("timeout", "cancel", "repeatable") if name in options}
    timeout = limits.get("timeout")
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise InvalidRequest(f"timeout must be a number of seconds above 0, not {timeout!r:.40}")
    return Call(**limits)


class TextHandle:
    """A way to text. It holds nothing and does no I/O: each call finds its route anew, so it follows every switch."""

    __slots__ = ("_ask", "_epochs")

    def __init__(self, epochs: EpochStore[Runtime], ask: Ask) -> None:
        self._epochs = epochs
        self._ask = ask

    def __repr__(self) -> str:
        return f"<TextHandle {self._ask.backend or 'by the rules'}>"

    def chat(self, prompt: Prompt, **options: Unpack[CallOptions]) -> ChatResponse:
        """The whole answer. Raises the errors of `llm_hub.errors`."""
        ask, request, call = self._prepare(prompt, options)
        return drive(route_chat(BLOCKING, self._epochs, ask, request, call))

    async def achat(self, prompt: Prompt, **options: Unpack[CallOptions]) -> ChatResponse:
        """`chat`, async."""
        ask, request, call = self._prepare(prompt, options)
        return await route_chat(ASYNC, self._epochs, ask, request, call)

    def stream(self, prompt: Prompt, **options: Unpack[CallOptions]) -> ChatStream:
        """The answer in pieces; the call begins when the first is asked for."""
        return ChatStream(self._epochs, *self._prepare(prompt, options))

    def astream(self, prompt: Prompt, **options: Unpack[CallOptions]) -> AsyncChatStream:
        """`stream`, async: `async for chunk in hub.text().astream(...)`."""
        return AsyncChatStream(self._epochs, *self._prepare(prompt, options))

    def count_tokens(self, prompt: Prompt, **options: Unpack[CallOptions]) -> TokenCount:
        """How many tokens the prompt is for the backend that would answer it; an estimate, which says so, if it cannot tell."""
        ask, request, call = self._prepare(prompt, options)
        return drive(route_count(BLOCKING, self._epochs, ask, request, call))

    async def acount_tokens(self, prompt: Prompt, **options: Unpack[CallOptions]) -> TokenCount:
        """`count_tokens`, async."""
        ask, request, call = self._prepare(prompt, options)
        return await route_count(ASYNC, self._epochs, ask, request, call)

    def _prepare(self, prompt: Prompt, options: CallOptions) -> tuple[Ask, ChatRequest, Call]:
        call = take_limits(options)
        model: Any = options.pop("model", None)  # type: ignore[typeddict-item]
        request = build_request(prompt, options)
        model = model or request.model
        ask = self._ask
        if model is not None:
            ask = msgspec.structs.replace(ask, model=model)
        return ask, request, call
