"""`TextBench` and `TextRequirements`: a text backend at work, and what its author says of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llm_hub.call import Call
from llm_hub.capabilities import Capability
from llm_hub.errors import HubError
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, Message
from llm_hub.streams import collect
from llm_hub.testing.conformance.bench import Bench, patience
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.text import TextHandle

__all__ = ["TextBench", "TextRequirements", "Told"]

Prompt = str | Sequence[Message]


class TextRequirements(Requirements):
    """What the text suite needs to know of a plugin. Features left at None are as the plugin declares them."""

    system: bool | None = None
    """Does it take system messages?"""
    tools: bool | None = None
    """May tools be offered, and do calls and results go into the conversation?"""
    tool_choice: bool | None = None
    """Can the call of a tool be forced ("required", or one by its name)?"""
    json_object: bool | None = None
    """Can the answer be forced to be a JSON object?"""
    json_schema: bool | None = None
    """Can the answer be forced to follow a JSON schema?"""
    regex: bool | None = None
    """Can the answer be forced to match a regular expression?"""
    choice: bool | None = None
    """Can the answer be forced to be one of several texts?"""
    grammar: bool | None = None
    """Can the answer be forced to follow a grammar?"""
    reasoning: bool | None = None
    """Can thinking be turned on and off, its text apart from the answer?"""
    reasoning_effort: bool | None = None
    """Does thinking take an effort?"""
    logprobs: bool | None = None
    """Does it give the log probabilities of tokens?"""
    seed: bool | None = None
    """Can sampling be seeded?"""
    multiple_choices: bool | None = None
    """Does it give several answers to one request?"""
    penalties: bool | None = None
    """Does it take presence and frequency penalties?"""

    short: str = "What is the capital of France?"
    """A question with a short answer."""
    long: str = "Count from 1 to 60."
    """A question whose answer is at least 20 tokens long and has the word or number of `stop` in it."""
    stop: str = "30"
    """A text in the midst of the answer to `long`."""

    max_tokens: bool = True
    """Does it keep to `max_tokens`? False: it must refuse it (UnsupportedFeature), never ignore it."""
    stops: bool = True
    """Does it stop at stop sequences? False: it must refuse them (UnsupportedFeature), never ignore them."""
    usage: bool = True
    """Does it tell how many tokens prompt and answer took?"""
    context_length: int | None = None
    """How many tokens the model's context holds, where `models()` does not tell."""
    overflow: bool = True
    """Does it notice a prompt that is longer than the context?"""
    reasoning_model: str | None = None
    """The model to ask for reasoning, where `model` cannot."""


class Told:
    """A stream as it was read: its chunks, and the error that it ended with, if any."""

    def __init__(self) -> None:
        self.chunks: list[ChatChunk] = []
        self.error: BaseException | None = None

    @property
    def text(self) -> str:
        """The text of choice 0."""
        return "".join(chunk.text for chunk in self.chunks if chunk.index == 0)

    @property
    def response(self) -> ChatResponse:
        """The answer that the chunks make up."""
        return collect(self.chunks)


class TextBench(Bench[TextRequirements]):
    """A text backend at work. `through_hub`: ask the hub, not the bare backend."""

    capability = Capability.TEXT
    ways = ("chat", "achat", "stream", "astream")
    streams = ("stream", "astream")

    def request(self, prompt: Prompt | None = None, *, at_most: int | None = None, **fields: Any) -> ChatRequest:
        """A request to the bench's model, at temperature 0 unless told otherwise. `at_most` tokens, if it keeps to a number."""
        if at_most is not None and self.requirements.max_tokens:
            fields["max_tokens"] = at_most
        chosen = self.requirements.short if prompt is None else prompt
        messages = (Message(role="user", content=chosen),) if isinstance(chosen, str) else tuple(chosen)
        return ChatRequest(messages=messages, **{"model": self.model, "temperature": 0.0, **fields})

    def perform(self, way: str, call: Call, *, model: str | None = None, text: str | None = None) -> ChatResponse:
        """Ask the short question, or what `text` says."""
        return self.ask(way, self._plain(text, model), call)

    async def aperform(
        self, way: str, call: Call, *, model: str | None = None, text: str | None = None
    ) -> ChatResponse:
        """`perform`, for achat and astream."""
        request = self._plain(text, model)
        if way == "achat":
            response: ChatResponse = await self.backend.achat(request, call)
            return response
        return collect([chunk async for chunk in self.backend.astream(request, call)])

    def _plain(self, text: str | None, model: str | None) -> ChatRequest:
        return self.request(text) if model is None else self.request(text, model=model)

    def perform_long(self, way: str, call: Call) -> ChatResponse:
        """Ask the long question."""
        return self.ask(way, self.request(self.requirements.long), call)

    def ask(self, way: str, request: ChatRequest, call: Call | None = None) -> ChatResponse:
        """The whole answer of the bare backend, in one of the four ways."""
        call = call or self.call()
        if way in self.streams:
            told = self.told(way, request, call)
            if told.error is not None:
                raise told.error
            return told.response
        response: ChatResponse = self.do(way, request, call)
        return response

    def told(self, way: str, request: ChatRequest, call: Call | None = None) -> Told:
        """A stream of the bare backend, read to its end, whichever that is."""
        call = call or self.call()
        told = Told()
        if way == "stream":
            try:
                for chunk in self.backend.stream(request, call):
                    told.chunks.append(chunk)
            except HubError as error:
                told.error = error
            return told

        async def read() -> None:
            try:
                async for chunk in self.backend.astream(request, call):
                    told.chunks.append(chunk)
            except HubError as error:
                told.error = error

        self.run(read())
        return told

    @property
    def handle(self) -> TextHandle:
        """Conversations by way of the hub."""
        return self.hub.text()

    def mark(self) -> int:
        """How many requests the kit's server has had so far; 0 without one."""
        return len(self.server.requests) if self.server is not None else 0

    def sent(self, mark: int) -> list[Any] | None:
        """All values in the bodies that the kit's server was sent since that mark, in their order; None without a server."""
        if self.server is None:
            return None
        return [value for request in self.server.requests[mark:] for value in _values(_body(request.body))]

    def hub_ask(self, way: str, prompt: Prompt, **options: Any) -> ChatResponse:
        """The whole answer by way of the hub, as a service would ask."""
        messages: Any = prompt if isinstance(prompt, str) else list(prompt)
        text = self.handle
        options = {"temperature": 0.0, "timeout": max(30.0, 2 * patience()), **options}
        if way == "chat":
            return text.chat(messages, **options)
        if way == "stream":
            with text.stream(messages, **options) as stream:
                for _ in stream:
                    pass
                return stream.response

        async def later() -> ChatResponse:
            if way == "achat":
                return await text.achat(messages, **options)
            async with text.astream(messages, **options) as stream:
                async for _ in stream:
                    pass
                return stream.response

        return self.run(later())


def _body(data: bytes) -> Any:
    """A body as JSON, None if it is none."""
    try:
        return json.loads(data) if data else None
    except ValueError:
        return None


def _values(value: Any) -> list[Any]:
    """All that JSON holds, in its order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [inner for one in value for inner in _values(one)] if isinstance(value, list) else [value]
