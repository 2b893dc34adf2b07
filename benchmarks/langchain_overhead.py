"""What a call and a chunk cost the client: HubChatModel beside ChatOpenAI and ChatOllama, on the same fake servers, in one run.

    uv run --group peers python benchmarks/langchain_overhead.py

CPU time of this process; the fake servers are a process of their own. The candidates take turns, and the smallest of several
rounds counts: what a shared machine adds is noise. A chunk is the difference of a long and a short answer, divided.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from llm_hub import Hub
from llm_hub.langchain import HubChatModel
from llm_hub.testing import FakeOllama, FakeVLLM

CALLS = 100
STREAMS = 6
ROUNDS = 7
SHORT, LONG = "Count from 1 to 10.", "Count from 1 to 1010."
QUESTION = "What is the capital of France?"
MODEL = "hub-test-vlm"


def serve(pipe: Connection) -> None:
    """Both fakes, until the other side says that it is over."""
    from llm_hub.testing import FakeModel

    model = FakeModel(name=MODEL, context=100_000)
    with FakeVLLM(model) as vllm, FakeOllama([model]) as ollama:
        pipe.send((vllm.url, ollama.url))
        pipe.recv()


def rounds(work: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Microseconds of CPU for one, by candidate."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, one in work.items():
            gc.collect()
            began = time.process_time_ns()
            for _ in range(count):
                one()
            found[name].append((time.process_time_ns() - began) / 1000 / count)
    return {name: min(times) for name, times in found.items()}


async def arounds(work: dict[str, Callable[[], Awaitable[object]]], count: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, one in work.items():
            gc.collect()
            began = time.process_time_ns()
            for _ in range(count):
                await one()
            found[name].append((time.process_time_ns() - began) / 1000 / count)
    return {name: min(times) for name, times in found.items()}


def told(what: str, found: dict[str, float]) -> None:
    print(what)
    hub = {kind: found[f"HubChatModel on {kind}"] for kind in ("vLLM", "Ollama")}
    for name, value in found.items():
        kind = name.rpartition(" ")[2]
        print(f"  {name:<26} {value:>9.1f} us   {value / hub[kind]:>5.2f} x HubChatModel")


async def drain(model: Any, prompt: str) -> int:
    return len([chunk async for chunk in model.astream(prompt)])


async def asynchronous(models: Callable[[], dict[str, Any]]) -> None:
    made = models()
    for model in made.values():
        assert (await model.ainvoke(QUESTION)).content == "The capital of France is Paris."
    told("A call, async", await arounds({name: lambda m=m: m.ainvoke(QUESTION) for name, m in made.items()}, CALLS))  # type: ignore[misc]
    short = await arounds({name: lambda m=m: drain(m, SHORT) for name, m in made.items()}, STREAMS)  # type: ignore[misc]
    long = await arounds({name: lambda m=m: drain(m, LONG) for name, m in made.items()}, STREAMS)  # type: ignore[misc]
    told("A chunk, async", {name: (long[name] - short[name]) / 1000 for name in made})


def main() -> None:
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    os.environ["LANGSMITH_TRACING"] = "false"
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    vllm, ollama = here.recv()
    hub = Hub.from_env({"VLLM_BASE_URL": vllm, "OLLAMA_BASE_URL": ollama})

    def models() -> dict[str, Any]:
        options: dict[str, Any] = {"model": MODEL, "temperature": 0}
        return {
            "HubChatModel on vLLM": HubChatModel(hub, backend="vllm", **options),
            "ChatOpenAI on vLLM": ChatOpenAI(
                base_url=f"{vllm}/v1", api_key=SecretStr("none"), stream_usage=True, **options
            ),
            "HubChatModel on Ollama": HubChatModel(hub, backend="ollama", **options),
            "ChatOllama on Ollama": ChatOllama(base_url=ollama, **options),
        }

    made = models()
    for model in made.values():
        assert model.invoke(QUESTION).content == "The capital of France is Paris."
        assert "".join(chunk.text for chunk in model.stream(LONG)).split()[-1] == "1010"
    told("A call, blocking", rounds({name: lambda m=m: m.invoke(QUESTION) for name, m in made.items()}, CALLS))  # type: ignore[misc]
    short = rounds({name: lambda m=m: sum(1 for _ in m.stream(SHORT)) for name, m in made.items()}, STREAMS)  # type: ignore[misc]
    long = rounds({name: lambda m=m: sum(1 for _ in m.stream(LONG)) for name, m in made.items()}, STREAMS)  # type: ignore[misc]
    told("A chunk, blocking", {name: (long[name] - short[name]) / 1000 for name in made})
    asyncio.run(asynchronous(models))
    hub.close()
    here.send(None)
    server.join()


if __name__ == "__main__":
    main()
