"""The rules of text about streams: they come in pieces, end exactly once, and never pass a part for the whole."""

from __future__ import annotations

import time
from typing import Any

from llm_hub.errors import BackendError, DeadlineExceeded, StreamInterrupted
from llm_hub.testing.conformance.bench import Ended, patiently
from llm_hub.testing.conformance.rules import Needs, RuleBook, expect
from llm_hub.testing.conformance.text_bench import TextBench, Told
from llm_hub.testing.faults import Fault

__all__ = ["RULES", "tried"]

RULES: RuleBook[TextBench] = RuleBook()

_ENDED = (
    "Raise an error unless the server's end mark has come with a finish reason for every choice: let your decoder's "
    "finish() raise StreamInterrupted."
)


def _long(bench: TextBench, way: str, **fields: Any) -> Told:
    """The long answer, streamed."""
    request = bench.request(bench.requirements.long, at_most=200, **fields)
    return patiently(lambda: bench.told(way, request), way)


def tried(bench: TextBench, way: str, call: Any = None) -> Told:
    """The long answer, streamed, however it ends."""
    request = bench.request(bench.requirements.long)
    return patiently(lambda: bench.told(way, request, call), way)


# -- how they come ----------------------------------------------------------------------------------------------------


@RULES.rule(
    "stream.pieces",
    "A stream comes in pieces which join to the whole answer, in order.",
    remedy="Yield a ChatChunk for each piece that the server sends, with its text only, not all that came so far.",
)
def pieces(bench: TextBench) -> None:
    """The long answer, streamed and whole."""
    whole = bench.ask("chat", bench.request(bench.requirements.long, at_most=200))
    for way in bench.streams:
        told = _long(bench, way)
        if told.error is not None:
            raise told.error
        texts = [chunk.text for chunk in told.chunks if chunk.text]
        expect(len(texts) > 1, f"{way} gave a long answer in {len(texts)} piece")
        if bench.exact:
            expect(told.text == whole.text, f"{way} joined to {told.text!r:.120}, chat gave {whole.text!r:.120}")


@RULES.rule(
    "stream.one-end",
    "Each choice of a stream ends exactly once: one finish reason, and no text after it.",
    remedy="Send the finish reason with the last chunk of a choice, and nothing of that choice after it; a chunk of usage may follow.",
)
def one_end(bench: TextBench) -> None:
    """Counted."""
    for way in bench.streams:
        told = _long(bench, way)
        if told.error is not None:
            raise told.error
        expect(told.chunks, f"{way} ended without a chunk")
        for index in {chunk.index for chunk in told.chunks}:
            own = [chunk for chunk in told.chunks if chunk.index == index]
            reasons = [chunk.finish_reason for chunk in own if chunk.finish_reason is not None]
            expect(len(reasons) == 1, f"choice {index} of {way} has the finish reasons {reasons}, not exactly one")
            at = next(number for number, chunk in enumerate(own) if chunk.finish_reason is not None)
            after = [chunk for chunk in own[at + 1 :] if chunk.has_content]
            expect(not after, f"choice {index} of {way} went on after its end: {after!r:.200}")


@RULES.rule(
    "stream.arrives",
    "The pieces are handed on as they come, not kept until the end.",
    remedy="Yield from the response as it is read; do not collect it first.",
    needs=Needs.SERVER,
)
def arrives(bench: TextBench) -> None:
    """A server that pauses after its third piece: three must be there meanwhile."""
    with bench.faulty(Fault.HANG_BETWEEN_CHUNKS, after=4, seconds=0.25):
        for way in bench.streams:
            first, last = patiently(lambda way=way: _times(bench, way), way)  # type: ignore[misc]
            expect(
                last - first > 0.12,
                f"{way} gave its first piece {last - first:.2f} s before its last; the server paused 0.25 s",
            )


def _times(bench: TextBench, way: str) -> tuple[float, float]:
    times: list[float] = []
    request = bench.request(bench.requirements.long, at_most=200)
    if way == "stream":
        stream = bench.backend.stream(request, bench.call())
        times.extend(time.monotonic() for chunk in stream if chunk.has_content)
    else:

        async def read() -> None:
            stream = bench.backend.astream(request, bench.call())
            times.extend([time.monotonic() async for chunk in stream if chunk.has_content])

        bench.run(read())
    return times[0], times[-1]


@RULES.rule(
    "stream.split",
    "However the bytes of a stream are cut, through characters and JSON, or all at once, the answer is the same.",
    remedy="Decode over an incremental decoder: `llm_hub.streaming` has one for server-sent events and one for lines of JSON.",
    needs=Needs.SERVER,
)
def split(bench: TextBench) -> None:
    """One byte at a time, three, and the whole body in one send; with an answer beyond ASCII."""
    text = "Grüße aus 東京, naïve 🙂 café"
    wanted = bench.told("stream", bench.request(text)).text
    cuts: list[tuple[Fault, dict[str, Any]]] = [
        (Fault.SPLIT_BYTES, {"size": 1}),
        (Fault.SPLIT_BYTES, {"size": 3}),
        (Fault.ONE_SEND, {}),
    ]
    for fault, options in cuts:
        for way in bench.streams:
            with bench.faulty(fault, **options):
                told = patiently(lambda way=way: bench.told(way, bench.request(text)), way)  # type: ignore[misc]
            what = f"{way}, with {fault.name} {options or ''}"
            expect(told.error is None, f"{what} raised {told.error!r}")
            expect(told.text == wanted, f"{what} gave {told.text!r}, not {wanted!r}")
            expect(told.response.finish_reason == "stop", f"{what} had no end")


@RULES.rule(
    "stream.long-line",
    "A piece of a million characters comes through, and a line that does not end is cut off with a typed error.",
    remedy="Bound the buffer of a line (llm_hub.streaming does, at 16 MiB), well above a megabyte.",
    needs=Needs.SERVER,
)
def long_line(bench: TextBench) -> None:
    """Both."""
    for way in bench.streams:
        with bench.faulty(Fault.LONG_LINE):
            told = patiently(lambda way=way: bench.told(way, bench.request()), way)  # type: ignore[misc]
        expect(told.error is None, f"{way}, with a line of 1 MB, raised {told.error!r:.200}")
        expect(len(told.text) >= 1_000_000, f"{way}, with a line of 1 MB, gave {len(told.text)} characters")
    with bench.faulty(Fault.ENDLESS_LINE):
        ended = Ended(lambda: bench.ask("stream", bench.request()), "stream, with a line that does not end,")
        ended.raised(BackendError)


# -- how they must not end --------------------------------------------------------------------------------------------


def _broken(bench: TextBench, fault: Fault, **options: Any) -> None:
    """On the bare backend it is an error; by way of the hub StreamInterrupted, with what had come."""
    for way in bench.streams:
        with bench.faulty(fault, **options):
            told = tried(bench, way)
        what = f"{way}, while the server shows {fault.name},"
        expect(
            isinstance(told.error, BackendError),
            f"{what} ended as if it were whole, after {told.text!r:.80}"
            if told.error is None
            else f"{what} raised {type(told.error).__name__}: {told.error}",
        )
        expect(told.text, f"{what} lost what had come before")
        with bench.faulty(fault, **options):
            partial, error = patiently(lambda way=way: _by_hub(bench, way), what)  # type: ignore[misc]
        expect(
            isinstance(error, StreamInterrupted), f"{what} by way of the hub gave {error!r:.200}, not StreamInterrupted"
        )
        found = getattr(error, "partial", None)
        expect(found == partial and found, f"{what} has the partial text {found!r:.80}, where {partial!r:.80} had come")


def _by_hub(bench: TextBench, way: str) -> tuple[str, BaseException | None]:
    """The text that came by way of a hub of its own (which remembers no failure), and the error in the end."""
    texts: list[str] = []
    with bench.open_hub() as hub:
        handle = hub.conversation(bench.capability)
        error: BaseException | None = None
        if way == "stream":
            try:
                with handle.stream(bench.requirements.long, timeout=20) as stream:
                    texts.extend(chunk.text for chunk in stream)
            except BackendError as caught:
                error = caught
        else:

            async def read() -> BaseException | None:
                try:
                    async with handle.astream(bench.requirements.long, timeout=20) as stream:
                        async for chunk in stream:
                            texts.append(chunk.text)  # noqa: PERF401 - what came before an error is kept
                except BackendError as caught:
                    return caught
                return None

            error = bench.run(read())
    return "".join(texts) or getattr(error, "partial", ""), error


@RULES.rule(
    "stream.error-midway",
    "An error in the midst of a stream is an error, never a normal end; the hub makes it StreamInterrupted with the partial text.",
    remedy="Look for the error object in each event, whatever the HTTP status was, and raise it.",
    needs=Needs.SERVER,
)
def error_midway(bench: TextBench) -> None:
    """An error object inside a stream with status 200."""
    _broken(bench, Fault.ERROR_IN_STREAM)


@RULES.rule(
    "stream.no-end-mark",
    "A stream that ends without its end mark is an error, not an answer.",
    remedy=_ENDED,
    needs=Needs.SERVER,
)
def no_end_mark(bench: TextBench) -> None:
    """A body that ends in order, too early."""
    _broken(bench, Fault.END_WITHOUT_MARK)


@RULES.rule(
    "stream.cut-off",
    "A stream whose connection breaks is an error, not an answer.",
    remedy=_ENDED,
    needs=Needs.SERVER,
)
def cut_off(bench: TextBench) -> None:
    """Closed, and reset."""
    _broken(bench, Fault.CLOSE_MID_BODY)
    for way in bench.streams:
        with bench.faulty(Fault.RESET_MID_BODY):
            told = tried(bench, way)
        expect(
            isinstance(told.error, BackendError),
            f"{way}, reset in its midst, gave {told.text!r:.80} and {told.error!r}",
        )


@RULES.rule(
    "stream.garbage",
    "What is no event of the protocol, in the midst of a stream, is an error and is not skipped.",
    remedy="Raise ProtocolError with how it begins; skipping it would lose text in silence.",
    needs=Needs.SERVER,
)
def garbage(bench: TextBench) -> None:
    """Neither UTF-8 nor JSON."""
    _broken(bench, Fault.GARBAGE_IN_STREAM)


@RULES.rule(
    "stream.error-first",
    "An error before the first piece is that error, and not StreamInterrupted: the call may still go elsewhere.",
    remedy="Raise StreamInterrupted only after a chunk with content was yielded.",
    needs=Needs.SERVER,
)
def error_first(bench: TextBench) -> None:
    """As the first event, and as a stream that ends before it began."""
    for way in bench.streams:
        with bench.faulty(Fault.ERROR_FIRST):
            told = tried(bench, way)
        expect(
            isinstance(told.error, BackendError) and not isinstance(told.error, StreamInterrupted),
            f"{way}, with an error first, gave {told.error!r:.200} after {told.text!r:.80}",
        )


@RULES.rule(
    "stream.between-tokens",
    "A stream that falls silent ends at the between-tokens deadline, with the partial text by way of the hub.",
    remedy="Send over the transport of the build context (HttpBackend does), and arm this deadline at each piece.",
    needs=Needs.SERVER,
)
def between_tokens(bench: TextBench) -> None:
    """Silence after the third piece."""
    with bench.faulty(Fault.HANG_BETWEEN_CHUNKS):
        for way in bench.streams:
            began = time.monotonic()
            told = tried(bench, way, bench.call(between_tokens=0.25))
            took = time.monotonic() - began
            expect(
                isinstance(told.error, DeadlineExceeded | StreamInterrupted),
                f"{way}, when its server fell silent, gave {told.error!r:.200}",
            )
            expect(took < 2.0, f"{way} ended {took:.1f} s after it began, with a deadline of 0.25 s between tokens")
    with bench.another(timeouts={"between_tokens": 0.25}) as fresh, fresh.faulty(Fault.HANG_BETWEEN_CHUNKS):
        partial, error = patiently(lambda: _by_hub(fresh, "stream"), "stream")
        expect(
            isinstance(error, StreamInterrupted) and error.partial == partial and partial,
            f"by way of the hub it was {error!r:.200}, after {partial!r:.80}",
        )
