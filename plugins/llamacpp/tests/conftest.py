"""Backends over real models: hub-test-vlm, whose greedy answers are known, and the default model where it is installed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_hub.call import Call
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BuildContext, Progress
from llm_hub.engine import EngineBackend
from llm_hub.messages import ChatChunk, ChatRequest, ChatResponse, Message
from llm_hub.streams import collect
from llm_hub.transport import Transport
from llm_hub_llamacpp.plugin import llm_hub_text
from llm_hub_llamacpp.settings import LlamaCppSettings

MODELS = Path(__file__).parents[3] / "tests" / "data" / "models" / "hub-test-vlm"

Build = Callable[..., EngineBackend]
Ask = Callable[..., ChatResponse]


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The file of hub-test-vlm."""
    return MODELS / "hub-test-vlm-f16.gguf"


@pytest.fixture(scope="session")
def projector() -> Path:
    """What hub-test-vlm sees through."""
    return MODELS / "mmproj-hub-test-vlm-f16.gguf"


def build_backend(
    model: str | Path | None = None, *, name: str = "box", told: list[Progress] | None = None, **options: Any
) -> EngineBackend:
    config = BackendConfig(
        name=name,
        plugin="llamacpp",
        models={} if model is None else {Capability.TEXT: str(model)},
        options=LlamaCppSettings(**options),
    )
    context = BuildContext(transport=Transport(), progress=([] if told is None else told).append)
    backend = llm_hub_text(config, context)
    assert isinstance(backend, EngineBackend)
    return backend


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds backends, closes them, and sees that no thread is left."""
    built: list[EngineBackend] = []

    def make(model: str | Path | None = None, **options: Any) -> EngineBackend:
        backend = build_backend(model, **options)
        built.append(backend)
        return backend

    yield make
    for backend in built:
        backend.close()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("llm-hub-box")]
    assert left == []


@pytest.fixture(scope="module")
def shared(tiny: Path, projector: Path) -> Iterator[EngineBackend]:
    """hub-test-vlm with its projector, loaded once for a module."""
    backend = build_backend(tiny, name="shared", mmproj=str(projector), n_ctx=2048, temperature=0.0)
    yield backend
    backend.close()


async def _async_stream(backend: EngineBackend, request: ChatRequest, call: Call) -> list[ChatChunk]:
    return [chunk async for chunk in backend.astream(request, call)]


def answer(way: str, backend: EngineBackend, prompt: str | Message | list[Message], **options: Any) -> ChatResponse:
    """Ask in one of the four ways; the whole answer."""
    if isinstance(prompt, str):
        prompt = Message(role="user", content=prompt)
    messages = (prompt,) if isinstance(prompt, Message) else tuple(prompt)
    call = options.pop("call", None) or Call(timeout=60)
    request = ChatRequest(messages=messages, **{"max_tokens": 200, **options})
    if way == "chat":
        return backend.chat(request, call)
    if way == "achat":
        return asyncio.run(backend.achat(request, call))
    if way == "stream":
        return collect(backend.stream(request, call))
    return collect(asyncio.run(_async_stream(backend, request, call)))


@pytest.fixture(params=["chat", "achat", "stream", "astream"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`answer` in each of the four ways."""

    def go(backend: EngineBackend, prompt: str | Message | list[Message], **options: Any) -> ChatResponse:
        return answer(request.param, backend, prompt, **options)

    return go


@pytest.fixture(scope="session")
def ask_once() -> Ask:
    """`answer` in one way, where the way does not matter."""

    def go(backend: EngineBackend, prompt: str | Message | list[Message], **options: Any) -> ChatResponse:
        return answer("chat", backend, prompt, **options)

    return go
