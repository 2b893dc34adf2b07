"""What the hub adds to a call and to a chunk, beside the bare HTTP client, all in one run.

The transport is null: the client answers from memory, because on a socket its own noise is larger than the hub. "Bare" is
httpx as a service would use it, with the JSON decoded by msgspec into untyped values.

    uv run python benchmarks/overhead.py
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpcore
import httpx
import msgspec

from llm_hub import Hub
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig
from llm_hub.epochs import EpochStore
from llm_hub.runtime import Runtime
from llm_hub.selection import Ask
from llm_hub.settings import Named, Settings
from llm_hub.transport import Transport

CHUNKS = 2000
ANSWER = msgspec.json.encode(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The capital of France is Paris."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 37, "completion_tokens": 8, "total_tokens": 45},
    }
)
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
LAST = EVENT.replace(b'"finish_reason":null', b'"finish_reason":"stop"').replace(b" word", b"")
BODY = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream")]


def pieces() -> Iterator[bytes]:
    for _ in range(CHUNKS - 1):
        yield EVENT
    yield LAST
    yield b"data: [DONE]\n\n"


async def apieces() -> AsyncIterator[bytes]:
    for piece in pieces():
        yield piece


class NullPool(httpcore.ConnectionPool):
    """Answers from memory, in place of the hub's connections."""

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        if b'"stream":true' in request.stream._content:  # type: ignore[union-attr]
            return httpcore.Response(200, headers=SSE, content=pieces())
        return httpcore.Response(200, headers=JSON, content=ANSWER)


class AsyncNullPool(httpcore.AsyncConnectionPool):
    """The same for event loops."""

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        if b'"stream":true' in request.stream._content:  # type: ignore[union-attr]
            return httpcore.Response(200, headers=SSE, content=apieces())
        return httpcore.Response(200, headers=JSON, content=ANSWER)


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The streamed answer for httpx."""

    def __iter__(self) -> Iterator[bytes]:
        return pieces()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return apieces()


def null(request: httpx.Request) -> httpx.Response:
    """Answers from memory, in place of httpx's connections."""
    if b'"stream":true' in request.content:
        return httpx.Response(200, headers=SSE, stream=Pieces())
    return httpx.Response(200, headers=JSON, content=ANSWER)


def best(work: Callable[[], object], *, count: int, rounds: int = 7) -> float:
    """Microseconds of one, best of several rounds (the noise of a shared machine only adds)."""
    found = []
    for _ in range(rounds):
        gc.collect()
        began = time.process_time_ns()
        for _ in range(count):
            work()
        found.append((time.process_time_ns() - began) / 1000 / count)
    return min(found)


async def abest(work: Callable[[], Awaitable[object]], *, count: int, rounds: int = 7) -> float:
    found = []
    for _ in range(rounds):
        gc.collect()
        began = time.process_time_ns()
        for _ in range(count):
            await work()
        found.append((time.process_time_ns() - began) / 1000 / count)
    return min(found)


def settings(routes: int = 1) -> Settings:
    backends = {
        f"b{number}": BackendConfig(
            name=f"b{number}", plugin="vllm", base_urls={None: "http://127.0.0.1:9"}, models={Capability.TEXT: "m"}
        )
        for number in range(routes)
    }
    return Settings(backends=backends, provider=Named(("b0",), "benchmark"))


def row(name: str, value: float, budget: str = "") -> None:
    print(f"{name:<58} {value:>9.2f} us  {budget}")


def main() -> None:
    hub = Hub(settings(), transport=Transport(pool=NullPool(), async_pool=AsyncNullPool()))
    text = hub.text()
    client = httpx.Client(transport=httpx.MockTransport(null))
    url = "http://127.0.0.1:9/v1/chat/completions"
    prebuilt = client.build_request("POST", url, json=BODY)
    decode = msgspec.json.decode

    assert text.chat("Hi").text == "The capital of France is Paris."
    calls = 2000
    send = best(lambda: decode(client.send(prebuilt).content), count=calls)
    post = best(lambda: decode(client.post(url, json=BODY).content), count=calls)
    call = best(lambda: text.chat("What is the capital of France?"), count=calls)
    print("A call, blocking")
    row("httpx, request built once, client.send", send)
    row("httpx, client.post", post)
    row("hub.text().chat", call, f"{call - send:+.1f} over send (budget +20), {call / post:.2f} x post (budget < 1)")

    async def acalls() -> tuple[float, float, float]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(null)) as aclient:
            built = aclient.build_request("POST", url, json=BODY)

            async def bare() -> object:
                return decode((await aclient.send(built)).content)

            async def posted() -> object:
                return decode((await aclient.post(url, json=BODY)).content)

            return (
                await abest(bare, count=calls),
                await abest(posted, count=calls),
                await abest(lambda: text.achat("What is the capital of France?"), count=calls),
            )

    asend, apost, acall = asyncio.run(acalls())
    print("A call, async")
    row("httpx, request built once, client.send", asend)
    row("httpx, client.post", apost)
    row(
        "hub.text().achat",
        acall,
        f"{acall - asend:+.1f} over send (budget +20), {acall / apost:.2f} x post (budget < 1)",
    )

    def bare_stream() -> int:
        count = 0
        with client.stream("POST", url, json={**BODY, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    count += bool(decode(line[6:])["choices"])
        return count

    def hub_stream() -> int:
        return sum(1 for _ in text.stream("Hi"))

    assert bare_stream() == hub_stream() == CHUNKS
    bare_chunk = best(bare_stream, count=3) / CHUNKS
    hub_chunk = best(hub_stream, count=3) / CHUNKS
    print(f"A chunk, back to back, {CHUNKS} a stream, blocking")
    row("httpx, iter_lines, json", bare_chunk)
    row("hub.text().stream", hub_chunk, f"{hub_chunk - bare_chunk:+.2f} (budget +10)")

    async def achunks() -> tuple[float, float]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(null)) as aclient:

            async def bare() -> int:
                count = 0
                async with aclient.stream("POST", url, json={**BODY, "stream": True}) as response:
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            count += bool(decode(line[6:])["choices"])
                return count

            async def through_hub() -> int:
                return len([chunk async for chunk in text.astream("Hi")])

            return await abest(bare, count=3) / CHUNKS, await abest(through_hub, count=3) / CHUNKS

    abare_chunk, ahub_chunk = asyncio.run(achunks())
    print(f"A chunk, back to back, {CHUNKS} a stream, async")
    row("httpx, aiter_lines, json", abare_chunk)
    row("hub.text().astream", ahub_chunk, f"{ahub_chunk - abare_chunk:+.2f} (budget +10)")

    print("Looking up a capability, with its lease")
    for routes in (1, 1000):
        lookups(routes)
    hub.close()
    publishing()


def lookups(routes: int) -> None:
    hub = Hub(settings(routes), transport=Transport(pool=NullPool()))
    for number in range(routes):
        hub.text(backend=f"b{number}").chat("Hi")
    ask = Ask(capability=Capability.TEXT, backend=f"b{routes - 1}")
    epochs: Any = hub._epochs

    def look() -> None:
        lease = epochs.lease()
        assert lease.value.cached(ask) is not None
        lease.release()

    row(f"lease, route among {routes}, release", best(look, count=100_000, rounds=9), "(budget 1)")
    hub.close()


def publishing() -> None:
    """One assignment, whoever holds leases on the epoch before."""
    print("Publishing the next epoch, without its proof")
    for held in (0, 400):
        store: EpochStore[Runtime] = EpochStore()
        runtime: Any = object()
        store.publish(store.next_epoch(runtime, lambda value: None))
        times = []
        for _ in range(2_000):
            leases = [store.lease() for _ in range(held)]
            epoch = store.next_epoch(runtime, lambda value: None)
            began = time.perf_counter_ns()
            store.publish(epoch)
            times.append((time.perf_counter_ns() - began) / 1000)
            for lease in leases:
                lease.release()
        row(f"median, with {held} leases on the one before", statistics.median(times), "(budget 10)")


if __name__ == "__main__":
    main()
