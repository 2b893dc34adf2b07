"""Questions about what a backend is asked for from day to day."""

from __future__ import annotations

import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor

from llm_hub.capabilities import Capability
from llm_hub.testing import draw
from llm_hub.verification.bench import Bench
from llm_hub.verification.common import COUNT, by, one
from llm_hub.verification.questions import Skip, expect, question

__all__ = ["concurrency", "embeddings", "langchain_objects", "streaming", "vision"]

_AT_ONCE = 4


@question("Streaming: do the pieces make the whole, in threads and in event loops?")
def streaming(bench: Bench) -> str:
    """Each stream ends with a finish reason; its pieces joined are its answer."""
    name = one(bench, Capability.TEXT)

    with bench.hub(LLM_TEXT_PROVIDER=name) as hub:
        stream = hub.text().stream(COUNT, max_tokens=24, timeout=bench.timeout)
        pieces = [chunk.text for chunk in stream]
        response = stream.response

        async def in_a_loop() -> tuple[int, str, str]:
            stream = hub.text().astream(COUNT, max_tokens=24, timeout=bench.timeout)
            pieces = [chunk.text async for chunk in stream]
            return len(pieces), "".join(pieces), stream.response.text

        number, joined, whole = asyncio.run(in_a_loop())
    seen = f"{len(pieces)} and {number} pieces by {by(response.served_by)}, {response.choices[0].finish_reason}"
    expect(seen=f"{seen}: the pieces are not the whole", holds="".join(pieces) == response.text and joined == whole)
    expect(seen=f"{seen}: the answer came in one piece", holds=len(pieces) > 1 and number > 1)
    return seen


@question("Embeddings: one vector a text, alike for the same text?")
def embeddings(bench: Bench) -> str:
    """Three texts, two of them the same."""
    name = one(bench, Capability.EMBEDDING)
    with bench.hub(LLM_EMBEDDING_PROVIDER=name) as hub:
        response = hub.embedding().embed(
            ["The cat sat on the mat.", "Invoices are due in 30 days.", "The cat sat on the mat."],
            timeout=bench.timeout,
        )
    first, other, again = response.vectors
    same, apart = _cosine(first, again), _cosine(first, other)
    seen = f"3 vectors of {len(first)} numbers by {by(response.served_by)}; same text {same:.4f}, another {apart:.2f}"
    expect(seen=seen, holds=len(first) == len(other) == len(again) and same > 0.999 and apart < same)
    return seen


def _cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.sqrt(math.fsum(a * a for a in one)) * math.sqrt(math.fsum(b * b for b in other)))


@question("Vision: is a picture described?")
def vision(bench: Bench) -> str:
    """A red circle on a white background."""
    name = one(bench, Capability.VISION)
    with bench.hub(LLM_VISION_PROVIDER=name) as hub:
        picture = draw("red", "circle", "white")
        answer = hub.vision().describe(picture, "What is in this picture?", max_tokens=40, timeout=bench.timeout)
    expect(seen=f"{by(answer.served_by)} said nothing", holds=bool(answer.text.strip()))
    text = " ".join(answer.text.split())
    return f"{by(answer.served_by)}: {text if len(text) <= 80 else text[:80] + '…'}"


@question("Concurrency: is one hub safe for many threads and tasks at once?")
def concurrency(bench: Bench) -> str:
    """Threads and tasks side by side, each with a question of its own."""
    name = one(bench, Capability.TEXT)
    together = threading.Barrier(_AT_ONCE)

    with bench.hub(LLM_TEXT_PROVIDER=name) as hub:
        text = hub.text()

        def in_a_thread(number: int) -> bool:
            together.wait(10)
            return bool(text.chat(f"Say the number {number}.", max_tokens=8, timeout=bench.timeout).choices)

        async def in_a_task(number: int) -> bool:
            return bool((await text.achat(f"Say the number {number}.", max_tokens=8, timeout=bench.timeout)).choices)

        async def tasks() -> list[bool]:
            return await asyncio.gather(*map(in_a_task, range(_AT_ONCE)))

        with ThreadPoolExecutor(_AT_ONCE + 1) as pool:
            loop = pool.submit(lambda: asyncio.run(tasks()))
            threads = list(pool.map(in_a_thread, range(_AT_ONCE)))
            answered = sum(threads) + sum(loop.result())
    seen = f"{answered} of {2 * _AT_ONCE} calls from {_AT_ONCE} threads and {_AT_ONCE} tasks were answered by {name}"
    expect(seen=seen, holds=answered == 2 * _AT_ONCE)
    return seen


@question("Do LangChain chains run on it?")
def langchain_objects(bench: Bench) -> str:
    """`get_provider().initialize_llm()`, `initialize_chat_model()`: string in, string out; messages in, message out."""
    try:
        from llm_hub.langchain import HubChatModel, HubLLM
    except ImportError as error:
        raise Skip(f"LangChain is not installed ({error.name})", "pip install 'llm-hub-core[langchain]'") from error
    name = one(bench, Capability.TEXT)
    with bench.hub(LLM_TEXT_PROVIDER=name) as hub:
        text = HubLLM(hub, max_tokens=8).invoke("ping")
        message = HubChatModel(hub, max_tokens=8).invoke("ping")
    expect(seen=f"they answer {text!r} and {message.content!r}", holds=bool(text and message.content))
    return f"HubLLM and HubChatModel answer by {name}"
