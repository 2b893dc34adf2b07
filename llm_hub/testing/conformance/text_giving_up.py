"""The rules of text about streams that are given up, left waiting or read beside others."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

from llm_hub.call import CancelToken
from llm_hub.errors import Cancelled, DeadlineExceeded
from llm_hub.messages import ChatChunk
from llm_hub.testing.conformance.bench import Ended, patience, patiently
from llm_hub.testing.conformance.common_deadlines import AT_ONCE, TRIES, cancelled_within, in_thread
from llm_hub.testing.conformance.rules import Needs, RuleBook, expect
from llm_hub.testing.conformance.text_bench import TextBench
from llm_hub.testing.conformance.text_streams import tried
from llm_hub.testing.faults import Fault

__all__ = ["RULES"]

RULES: RuleBook[TextBench] = RuleBook()

_MUCH = 8_000_000  # bytes that no buffer of a connection holds


@RULES.rule(
    "stream.cancelled",
    "A stream that is cancelled in its midst from another thread raises Cancelled within 0.1 s, and the server hears of it.",
    remedy="Send over the transport of the build context (HttpBackend does); an engine looks at call.check() at each token.",
    needs=Needs.SERVER,
)
def cancelled(bench: TextBench) -> None:
    """After some pieces, while the next does not come."""
    with bench.faulty(Fault.HANG_BETWEEN_CHUNKS):
        for way in bench.streams:
            what = f"{way}, cancelled in its midst"

            def begin(token: CancelToken, way: str = way, what: str = what) -> Callable[[], Ended[Any]]:
                wait = in_thread(
                    lambda: bench.ask(way, bench.request(bench.requirements.long), bench.call(cancel=token)), what
                )
                time.sleep(0.05)  # until the pieces have come
                return wait

            cancelled_within(bench, begin, what)


@RULES.rule(
    "stream.closed",
    "Closing a stream early tells the server within 0.1 s, and raises nothing.",
    remedy="Close the exchange in the `finally` of the generator; a class of your own needs close() and aclose().",
    needs=Needs.SERVER,
)
def closed(bench: TextBench) -> None:
    """close() and aclose() after the first piece."""
    with bench.faulty(Fault.ENDLESS_STREAM):
        for way in bench.streams:
            best = float("inf")
            for _ in range(TRIES):
                count = len(bench.fake.requests)
                began = patiently(lambda way=way: _closed_early(bench, way), f"{way}, closed early,")  # type: ignore[misc]
                request = [one for one in bench.fake.requests[count:] if one.fault is not None][-1]
                expect(
                    request.wait(patience()) and request.gone_early,
                    f"{way}: the server never heard that its stream was closed",
                )
                best = min(best, (request.ended or time.monotonic()) - began)
                if best <= AT_ONCE:
                    break
            expect(best <= AT_ONCE, f"{way}: the server heard {best:.2f} s after its stream was closed, at best")


def _closed_early(bench: TextBench, way: str) -> float:
    """Close after the first chunk; when that was."""
    request = bench.request(bench.requirements.long)
    if way == "stream":
        stream = bench.backend.stream(request, bench.call())
        next(iter(stream))
        began = time.monotonic()
        stream.close()
        return began

    async def go() -> float:
        stream = bench.backend.astream(request, bench.call())
        await anext(aiter(stream))
        began = time.monotonic()
        await stream.aclose()
        return began

    return bench.run(go())


@RULES.rule(
    "stream.dropped",
    "A stream that is dropped without being closed lets go of its connection too.",
    remedy="A generator does by itself when it is collected; a class of your own needs __del__.",
    needs=Needs.SERVER,
)
def dropped(bench: TextBench) -> None:
    """One that has begun, and one that never did, which sends nothing."""
    with bench.faulty(Fault.ENDLESS_STREAM):
        count = len(bench.fake.requests)

        def drop() -> None:
            stream = bench.backend.stream(bench.request(bench.requirements.long), bench.call())
            next(iter(stream))

        patiently(drop, "a stream that is dropped")
        gc.collect()
        request = [one for one in bench.fake.requests[count:] if one.fault is not None][-1]
        expect(
            request.wait(patience()) and request.gone_early,
            "the server went on for a stream that nobody holds any more",
        )
        count = len(bench.fake.requests)
        bench.backend.stream(bench.request(), bench.call())
        gc.collect()
        time.sleep(0.05)
        expect(len(bench.fake.requests) == count, "a stream of which nothing was asked for was sent all the same")


@RULES.rule(
    "stream.back-pressure",
    "A slow reader holds the server up: a backend does not read ahead without bound.",
    remedy="Read from the socket only when the next chunk is asked for, or through a bounded queue.",
    needs=Needs.SERVER,
)
def back_pressure(bench: TextBench) -> None:
    """A server that never stops sending, and a reader that stops after one piece."""
    with bench.faulty(Fault.ENDLESS_STREAM):
        for way in bench.streams:
            sent = patiently(lambda way=way: _sent_while_paused(bench, way), way)  # type: ignore[misc]
            expect(sent[-1] == sent[-2], f"{way}, whose reader had paused, went on reading: {sent} bytes were sent")


def _sent_while_paused(bench: TextBench, way: str) -> list[int]:
    """What the server had sent, at some times after the reader had paused: until it no longer grows, or 5 s have passed."""
    request = bench.request(bench.requirements.long)
    count = len(bench.fake.requests)

    def watched() -> list[int]:
        log = [one for one in bench.fake.requests[count:] if one.fault is not None][-1]
        sent = [0, log.bytes_sent]
        deadline = time.monotonic() + 5.0
        while sent[-1] != sent[-2] and sent[-1] < _MUCH and time.monotonic() < deadline:
            time.sleep(0.15)
            sent.append(log.bytes_sent)
        return sent

    if way == "stream":
        stream = bench.backend.stream(request, bench.call())
        next(iter(stream))
        try:
            return watched()
        finally:
            stream.close()

    async def go() -> list[int]:
        stream = bench.backend.astream(request, bench.call())
        await anext(aiter(stream))
        try:
            return await asyncio.to_thread(watched)
        finally:
            await stream.aclose()

    return bench.run(go())


@RULES.rule(
    "stream.engine-closed",
    "Closing a stream of an engine early ends it, and the next call is served.",
    remedy="Stop the engine when the generator is closed (EngineBackend does).",
    needs=Needs.ENGINE,
)
def engine_closed(bench: TextBench) -> None:
    """After the first piece; the next call does not wait for the rest."""
    for way in bench.streams:
        usual = bench.ended(way)
        usual.given()
        patiently(lambda way=way: _closed_early(bench, way), f"{way}, closed early,")  # type: ignore[misc]
        after = bench.ended(way)
        after.given()
        expect(
            after.seconds < 2.0 + 3 * usual.seconds,
            f"{way}, after one that was closed early, took {after.seconds:.1f} s, and {usual.seconds:.1f} s before",
        )


@RULES.rule(
    "stream.mixed",
    "Streams that run at the same time do not get each other's pieces.",
    remedy="Make the decoder anew for each stream, and keep nothing of a stream on the backend.",
)
def mixed(bench: TextBench) -> None:
    """Two streams of each way, read in turn."""
    if not bench.exact:
        prompts = [bench.requirements.long, bench.requirements.short]
    else:
        prompts = ["Count from 1 to 20.", "Count from 1 to 30."]
    alone = [bench.ask("chat", bench.request(prompt, at_most=120)).text for prompt in prompts]

    def in_turn() -> list[str]:
        streams = [iter(bench.backend.stream(bench.request(one, at_most=120), bench.call())) for one in prompts]
        texts = ["" for _ in streams]
        going = set(range(len(streams)))
        while going:
            for at in sorted(going):
                chunk: ChatChunk | None = next(streams[at], None)
                if chunk is None:
                    going.discard(at)
                else:
                    texts[at] += chunk.text
        return texts

    async def at_once() -> list[str]:
        async def one(prompt: str) -> str:
            stream = bench.backend.astream(bench.request(prompt, at_most=120), bench.call())
            return "".join([chunk.text async for chunk in stream])

        return list(await asyncio.gather(*map(one, prompts)))

    ways: dict[str, Callable[[], list[str]]] = {"stream": in_turn, "astream": lambda: bench.run(at_once())}
    for way, read in ways.items():
        texts = patiently(read, f"two streams at once, by {way}")
        if bench.exact:
            expect(
                texts == alone,
                f"two of {way} at once gave {[text[:60] for text in texts]}, alone {[a[:60] for a in alone]}",
            )
        else:
            expect(all(texts), f"two of {way} at once gave {texts!r:.200}")


@RULES.rule(
    "stream.deadline-total",
    "The caller's own deadline ends a stream that goes on and on.",
    remedy="Check call.remaining() at each piece (HttpBackend and EngineBackend do).",
    needs=Needs.SERVER,
)
def deadline_total(bench: TextBench) -> None:
    """An endless stream."""
    with bench.faulty(Fault.ENDLESS_STREAM):
        for way in bench.streams:
            began = time.monotonic()
            told = tried(bench, way, bench.call(0.3))
            took = time.monotonic() - began
            expect(
                isinstance(told.error, DeadlineExceeded) and took < 2.0,
                f"{way}, endless and with a deadline of 0.3 s, gave {told.error!r:.200} after {took:.1f} s",
            )
            expect(not isinstance(told.error, Cancelled), f"{way} says that it was cancelled: {told.error!r}")
