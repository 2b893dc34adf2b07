"""What every row of the table of faults needs: backends in both wire formats, and the four ways to ask them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from llm_hub import Hub, Timeouts
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BackendLimits, Secret
from llm_hub.health import BackendCondition
from llm_hub.messages import ChatResponse, EmbedResponse
from llm_hub.settings import Named, Settings
from llm_hub.testing import FakeOllama, FakeVLLM
from llm_hub.transport import Limits, Transport

QUICK = Timeouts(connect=2.0, load=2.0, first_token=0.6, between_tokens=0.4, whole=0.6)


class Rig:
    """Fake servers of one wire format, hubs that use them, and one of the ways to ask."""

    def __init__(self, stack: ExitStack, wire: str, way: str) -> None:
        self.stack = stack
        self.wire = wire
        self.way = way
        self.streams = way in ("stream", "astream")
        self.path = "/api/chat" if wire == "ollama" else "/v1/chat/completions"

    def server(self, **options: Any) -> Any:
        """A server of this wire format."""
        return self.stack.enter_context(FakeOllama(**options) if self.wire == "ollama" else FakeVLLM(**options))

    def hub(
        self,
        *servers: Any,
        timeouts: Timeouts = QUICK,
        limits: BackendLimits | None = None,
        urls: tuple[str, ...] = (),
        key: str | None = None,
        model: str = "hub-test-vlm",
        capability: Capability = Capability.TEXT,
        **options: Any,
    ) -> Hub:
        """A hub with a backend for each server: `b0`, and `b1` and so on as its fallbacks."""
        addresses = [server.url for server in servers] or list(urls)
        backends = {
            f"b{number}": BackendConfig(
                name=f"b{number}",
                plugin=self.wire,
                base_urls={None: url},
                models={capability: model},
                timeouts=timeouts,
                limits=limits or BackendLimits(),
                api_key=Secret(key) if key else None,
            )
            for number, url in enumerate(addresses)
        }
        settings = Settings(
            backends=backends,
            provider=Named(("b0",), "test"),
            fallback=Named(tuple(backends)[1:], "test") if len(backends) > 1 else None,
        )
        transport = Transport(limits=Limits(max_reply=1_000_000))
        return self.stack.enter_context(Hub(settings, transport=transport, **options))

    def ask(self, hub: Hub, prompt: Any = "ping", **options: Any) -> ChatResponse:
        """The whole answer, asked for in this way."""
        text = hub.text()
        if self.way == "chat":
            return text.chat(prompt, **options)
        if self.way == "stream":
            with text.stream(prompt, **options) as stream:
                for _ in stream:
                    pass
                return stream.response

        async def later() -> ChatResponse:
            if self.way == "achat":
                return await text.achat(prompt, **options)
            async with text.astream(prompt, **options) as stream:
                async for _ in stream:
                    pass
                return stream.response

        return asyncio.run(later())

    def embed(self, hub: Hub, texts: list[str], **options: Any) -> EmbedResponse:
        """Vectors, in the blocking world or the other."""
        if self.way in ("chat", "stream"):
            return hub.embedding().embed(texts, **options)
        return asyncio.run(hub.embedding().aembed(texts, **options))

    def condition(self, hub: Hub, name: str = "b0") -> BackendCondition:
        """How a backend has fared."""
        (found,) = [one for one in hub.conditions() if one.name == name]
        return found

    def asked(self, server: Any) -> int:
        """How many answers the server was asked for."""
        return len(self._answers(server))

    def _answers(self, server: Any) -> list[Any]:
        """The requests for an answer: not what only loads a model, which happens in the background."""
        return [
            request
            for request in list(server.requests)
            if request.path == self.path and b'"messages":[]' not in request.body
        ]

    def last(self, server: Any) -> Any:
        """The last request for an answer; what a probe in the background asked does not count."""
        return self._answers(server)[-1]

    def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> bool:
        """Wait for something that another thread does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.01)
        return condition()

    def is_idle(self, hub: Hub) -> bool:
        """Nothing is on its way: no lease, no place, nobody in a queue."""
        epoch: Any = hub._epochs.latest
        return not epoch.tokens and all(one.in_flight == one.waiting == 0 for one in hub.conditions())


@pytest.fixture(params=["vllm", "ollama"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["chat", "achat", "stream", "astream"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(wire: str, way: str) -> Iterator[Rig]:
    """Each test is run in both wire formats and in all four ways."""
    with ExitStack() as stack:
        yield Rig(stack, wire, way)


@pytest.fixture(params=["stream", "astream"])
def streaming(request: pytest.FixtureRequest, wire: str) -> Iterator[Rig]:
    """Both wire formats, streamed: blocking and async."""
    with ExitStack() as stack:
        yield Rig(stack, wire, request.param)


@pytest.fixture(params=["chat", "achat"])
def whole(request: pytest.FixtureRequest, wire: str) -> Iterator[Rig]:
    """Both wire formats, whole answers: blocking and async."""
    with ExitStack() as stack:
        yield Rig(stack, wire, request.param)
