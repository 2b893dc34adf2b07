"""What the live fakes share: the models they serve, keys, queues, latency and the telling of a generation."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from llm_hub.testing.exchange import Answer, Pause, Reply, Request, Step
from llm_hub.testing.model import Generation, Prompt, TinyModel
from llm_hub.testing.server import FakeServer

__all__ = ["FakeModel", "LiveServer", "Refusal", "Speed"]

Route: TypeAlias = Callable[[Request, Any], Answer | Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModel:
    """A model that a live fake serves.

    capabilities: in Ollama's words: completion, tools, vision, thinking, embedding.
    context: tokens it may hold (vLLM's max_model_len; the num_ctx that Ollama takes when none is given).
    dimension: of its embeddings. space: two models of one space embed a text alike. matryoshka: trained to be cut to fewer
        dimensions, which vLLM refuses to do with others, and Ollama with none.
    images: the most images in one prompt, where the server has such a limit.
    """

    name: str
    capabilities: Sequence[str] = ("completion", "tools", "vision")
    context: int = 2048
    dimension: int = 384
    space: str = ""
    matryoshka: bool = False
    images: int = 2
    size: int = 2_800_000
    engine: TinyModel = field(default_factory=TinyModel)

    @property
    def digest(self) -> str:
        """A SHA-256 that names the model's content."""
        return hashlib.sha256(repr((self.name, self.space, self.dimension, self.size)).encode()).hexdigest()

    def can(self, capability: str) -> bool:
        """Does it have this capability?"""
        return capability in self.capabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How long a fake takes, in seconds: to load a model, to the first token, and for each token."""

    load: float = 0.0
    first_token: float = 0.0
    token: float = 0.0


class Refusal(Exception):
    """A request that is answered with an error: the reply says it in the server's own form."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"status {reply.status}")
        self.reply = reply


class LiveServer(FakeServer):
    """Base of the live fakes: routes, an optional key, at most `parallel` generations at once and a bounded queue.

    parallel: generations at the same time, None for any number. max_queue: how many may wait for one of these places;
    one more is refused with 503. `generating` and `waiting` tell how many there are now.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        speed: Speed | None = None,
        parallel: int | None = None,
        max_queue: int | None = None,
        port: int = 0,
        send_buffer: int | None = None,
    ) -> None:
        super().__init__(port=port, send_buffer=send_buffer)
        self.api_key = api_key
        self.speed = speed or Speed()
        self.generating = 0
        self.waiting = 0
        self.counts: Counter[str] = Counter()
        self._parallel = parallel
        self._max_queue = max_queue
        self._places: asyncio.Queue[None] | None = None

    def start(self) -> None:
        """Listen, with all places free."""
        if not self.running:
            self._places = None
            self.generating = self.waiting = 0
        super().start()

    def routes(self) -> Mapping[tuple[str, str], Route]:
        """What answers each method and path."""
        raise NotImplementedError

    def refusal(self, status: int, message: str, **details: Any) -> Refusal:
        """An error in the server's own form."""
        raise NotImplementedError

    def bad_json(self, request: Request, error: json.JSONDecodeError) -> Refusal:
        """The error for a body that is no JSON."""
        raise NotImplementedError

    def unauthorized(self) -> Refusal:
        """The error for a missing or wrong key."""
        raise NotImplementedError

    def not_found(self, *, path_exists: bool) -> Reply:
        """The answer to a path that is not served, or not with this method."""
        raise NotImplementedError

    def guarded(self, path: str) -> bool:
        """Does this path want the key?"""
        return True

    async def respond(self, request: Request) -> Answer:
        """Check the key, find the route, decode the body, answer."""
        path = request.path.partition("?")[0]
        routes = self.routes()
        try:
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
            if self.api_key is not None and self.guarded(path) and key != self.api_key:
                raise self.unauthorized()
            route = routes.get((request.method, path))
            if route is None:
                return self.not_found(path_exists=any(path == known for _, known in routes))
            body: Any = {}
            if request.method == "POST":
                body = self._decoded(request)
            answer = route(request, body)
            return await answer if inspect.isawaitable(answer) else answer
        except Refusal as refusal:
            return refusal.reply

    def _decoded(self, request: Request) -> Any:
        """The body, an object. Raises Refusal."""
        try:
            body = msgspec.json.decode(request.body)
        except ValueError as error:  # DecodeError is one, and so is what broken UTF-8 raises
            try:
                json.loads(request.body.decode(errors="replace"))  # says where it broke, as the real servers do
            except json.JSONDecodeError as where:
                raise self.bad_json(request, where) from error
            raise self.refusal(400, "the body is no valid UTF-8, or holds half of a surrogate pair") from error
        if not isinstance(body, dict):
            raise self.refusal(400, "the body must be a JSON object")
        return body

    async def admit(self, request: Request) -> None:
        """Wait for a place to generate in; it is given back when the request is over. Raises Refusal: queue full."""
        if self._parallel is not None:
            if self._places is None:
                self._places = asyncio.Queue()
                for _ in range(self._parallel):
                    self._places.put_nowait(None)
            if self._places.empty() and self._max_queue is not None and self.waiting >= self._max_queue:
                raise self.queue_full()
            self.waiting += 1
            try:
                await self._places.get()
            finally:
                self.waiting -= 1
        self.generating += 1
        request.afterwards(self._leave)

    def _leave(self) -> None:
        self.generating -= 1
        if self._places is not None:
            self._places.put_nowait(None)

    def queue_full(self) -> Refusal:
        """What is said to one request too many."""
        return self.refusal(503, "the queue is full")

    def generate(self, model: FakeModel, prompt: Prompt, choices: int = 1) -> list[Generation]:
        """Have a model answer, and count what it did."""
        generations = [model.engine.generate(prompt, choice=choice) for choice in range(choices)]
        self.counts["prompt_tokens"] += generations[0].prompt_tokens
        for generation in generations:
            self.counts["generation_tokens"] += generation.tokens
            self.counts[f"finished_{generation.finish}"] += 1
        return generations

    def thinking_time(self, generations: Sequence[Generation]) -> float:
        """Seconds for a whole answer that is not streamed."""
        return self.speed.first_token + self.speed.token * max(g.tokens for g in generations)

    def paced(self, chunks: Iterator[bytes]) -> Iterator[Step]:
        """The chunks of a stream at the server's speed."""
        if self.speed.first_token:
            yield Pause(self.speed.first_token)
        for chunk in chunks:
            yield chunk
            if self.speed.token:
                yield Pause(self.speed.token)

    async def delayed(self, reply: Reply, seconds: float) -> Reply:
        """A whole answer after the time it took."""
        if seconds:
            await asyncio.sleep(seconds)
        return reply
