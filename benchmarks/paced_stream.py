"""CPU time of the client for a chunk of a stream whose chunks come 1 ms apart over a real socket, beside httpx.

The server is a process of its own, so that only the client is measured.

    uv run python benchmarks/paced_stream.py
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import msgspec

from llm_hub import Hub
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig
from llm_hub.settings import Named, Settings

CHUNKS = 500
ROUNDS = 7
SERVER = f"""
import sys, time
from llm_hub.testing import FakeServer, Pause, Reply
event = b'data: {{"id":"c","model":"m","choices":[{{"index":0,"delta":{{"content":" word"}},"finish_reason":null}}]}}\\n\\n'
last = event.replace(b'null', b'"stop"')
def body():
    for _ in range({CHUNKS} - 1):
        yield event
        yield Pause(0.001)
    yield last
    yield b'data: [DONE]\\n\\n'
with FakeServer(lambda request: Reply(200, {{"content-type": "text/event-stream"}}, body())) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def cpu(work: Callable[[], int]) -> float:
    """Microseconds of CPU time for a chunk."""
    began = time.process_time_ns()
    assert work() == CHUNKS
    return (time.process_time_ns() - began) / 1000 / CHUNKS


def main() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    base = server.stdout.readline().strip()
    url = base + "/v1/chat/completions"
    backend = BackendConfig(name="b", plugin="vllm", base_urls={None: base}, models={Capability.TEXT: "m"})
    hub = Hub(Settings(backends={"b": backend}, provider=Named(("b",), "benchmark")))
    client = httpx.Client()
    decode = msgspec.json.decode

    def bare() -> int:
        count = 0
        with client.stream("POST", url, json=BODY) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    count += bool(decode(line[6:])["choices"])
        return count

    def through_hub() -> int:
        return sum(bool(chunk.text) for chunk in hub.text().stream("Hi"))

    async def abare() -> int:
        count = 0
        async with httpx.AsyncClient() as aclient, aclient.stream("POST", url, json=BODY) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    count += bool(decode(line[6:])["choices"])
        return count

    async def athrough_hub() -> int:
        return len([chunk async for chunk in hub.text().astream("Hi") if chunk.text])

    ways: dict[str, Callable[[], int]] = {
        "httpx, blocking": bare,
        "hub, blocking": through_hub,
        "httpx, async": lambda: asyncio.run(abare()),
        "hub, async": lambda: asyncio.run(athrough_hub()),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(ROUNDS):
        for name, work in ways.items():
            found[name].append(cpu(work))
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name, median in medians.items():
        kind = name.split(", ")[1]
        print(f"{name:<18} {median:>7.1f} us a chunk   {median / medians[f'httpx, {kind}']:.2f} x httpx (budget 1.5)")
    hub.close()
    client.close()
    server.communicate("")


if __name__ == "__main__":
    main()
