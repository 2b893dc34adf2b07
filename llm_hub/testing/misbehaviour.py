"""What a fake server sends for each `Fault`: the right answer spoilt, or another in its place."""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from email.utils import format_datetime

from llm_hub.testing.exchange import (
    Answer,
    Close,
    Hang,
    Pause,
    Reply,
    Request,
    Reset,
    Script,
    Step,
    body_steps,
    wire_steps,
)
from llm_hub.testing.faults import ActiveFault, Fault
from llm_hub.testing.wire_form import STATUSES, WireForm

__all__ = ["misbehave"]

_MEBI = 1024 * 1024


def _whole(reply: Reply) -> bool:
    """Does the body come whole, rather than as a stream of events?"""
    kind = next((value for name, value in reply.headers.items() if name.lower() == "content-type"), "")
    return isinstance(reply.body, bytes) or kind.startswith("application/json")


async def _all(reply: Reply) -> bytes:
    async with aclosing(body_steps(reply.body)) as steps:
        return b"".join([step async for step in steps if isinstance(step, bytes)])


async def _body(reply: Reply) -> AsyncGenerator[Step, None]:
    """The chunks of a stream, and a body that comes whole in two halves."""
    if _whole(reply):
        data = await _all(reply)
        middle = (len(data) + 1) // 2
        yield data[:middle]
        yield data[middle:]
        return
    async with aclosing(body_steps(reply.body)) as steps:
        async for step in steps:
            yield step


def _framed(reply: Reply, body: AsyncGenerator[Step, None]) -> Reply:
    """The reply with another body under the same framing."""
    if isinstance(reply.body, bytes):
        return replace(reply, headers={"content-length": str(len(reply.body)), **reply.headers}, body=body)
    return replace(reply, body=body)


def _after(active: ActiveFault, reply: Reply) -> int:
    """After how many of the chunks of _body the fault comes."""
    return 1 if _whole(reply) else int(active.options["after"])


async def _then(reply: Reply, after: int, *steps: Step, rest: bool = False) -> AsyncGenerator[Step, None]:
    """So many chunks, then other steps, then perhaps the rest."""
    count = 0
    async with aclosing(_body(reply)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, bytes):
                if count == after:
                    for step in steps:
                        yield step
                    if not rest:
                        return
                count += 1
            yield chunk
    if count <= after:  # the body was shorter
        for step in steps:
            yield step


async def _endless(reply: Reply, after: int) -> AsyncGenerator[Step, None]:
    """So many chunks, then the last of them for ever."""
    last = b""
    async with aclosing(_body(reply)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, bytes):
                if after == 0:
                    break
                after -= 1
                last = chunk
            yield chunk
    while last:
        yield last
        yield Pause(0)  # others are served meanwhile


async def _with_event(event: bytes, reply: Reply) -> AsyncGenerator[Step, None]:
    yield event
    async with aclosing(_body(reply)) as chunks:
        async for chunk in chunks:
            yield chunk


async def _split(reply: Reply, size: int, seconds: float) -> AsyncGenerator[Step, None]:
    async with aclosing(_body(reply)) as chunks:
        async for chunk in chunks:
            if not isinstance(chunk, bytes):
                yield chunk
                continue
            for at in range(0, len(chunk), size):
                yield chunk[at : at + size]
                if seconds:
                    yield Pause(seconds)


async def _slowly(reply: Reply, seconds: float) -> AsyncGenerator[Step, None]:
    async with aclosing(_body(reply)) as chunks:
        async for chunk in chunks:
            yield Pause(seconds)
            yield chunk


async def _trickled(answer: Answer, seconds: float) -> AsyncGenerator[Step, None]:
    async with aclosing(wire_steps(answer)) as steps:
        head = await anext(steps)
        for byte in head if isinstance(head, bytes) else b"":
            yield bytes([byte])
            yield Pause(seconds)
        async for step in steps:
            yield step


def _bomb(size: int) -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(_MEBI)
    for at in range(0, size, _MEBI):
        if piece := packer.compress(zeros[: size - at]):
            yield piece
    yield packer.flush()


def _padding(size: int) -> Iterator[bytes]:
    head, tail = b'{"model": "big", "padding": "', b'"}'
    yield head
    left = size - len(head) - len(tail)
    while left > 0:
        yield b"x" * min(left, 65536)
        left -= 65536
    yield tail


def _spoilt(fault: Fault, vector: list[float] | str) -> list[float] | str:
    packed = isinstance(vector, str)
    if isinstance(vector, str):
        data = base64.b64decode(vector)
        numbers = list(struct.unpack(f"<{len(data) // 4}f", data))
    else:
        numbers = list(vector)
    if fault is Fault.EMBED_WRONG_DIMENSION:
        numbers = numbers[:-1]
    elif fault is Fault.EMBED_NAN:
        numbers[0] = math.nan
    else:
        numbers = [0.0] * len(numbers)
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode() if packed else numbers


async def _bad_vectors(fault: Fault, reply: Reply, form: WireForm) -> Reply:
    answer = json.loads(await _all(reply))
    found = form.vectors(answer)
    if found is None or not found[0]:
        return reply
    vectors, key = found
    if fault is Fault.EMBED_WRONG_COUNT:
        vectors.pop()
    elif key is not None:
        vectors[-1][key] = _spoilt(fault, vectors[-1][key])
    else:
        vectors[-1] = _spoilt(fault, vectors[-1])
    headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-length"}
    return Reply(reply.status, headers, json.dumps(answer).encode())  # json writes NaN as Python's servers do


def _instead(active: ActiveFault, request: Request, form: WireForm) -> Answer | None:
    """The answer of a fault that does not care what the right answer is."""
    fault, options = active.fault, active.options
    if fault is Fault.CLOSE_KEPT_ALIVE or fault is Fault.CLOSE_BEFORE_HEADERS:
        return Script([Close()])
    if fault is Fault.RESET_BEFORE_HEADERS:
        return Script([Reset()])
    if fault is Fault.GENERATION_HANGS:
        return Script([Hang()])
    if fault is Fault.NOT_HTTP:
        return Script([b"SSH-2.0-OpenSSH_9.6\r\n"])
    if fault is Fault.ENGINE_DEAD and form.is_health(request.path.partition("?")[0]):
        return Reply(options["health"])
    if fault in STATUSES:
        status = options.get("status") or STATUSES[fault]
        reply = form.error(request, fault, status=status, message=options.get("message"))
        wait = options.get("retry_after")
        if wait is not None:
            text = format_datetime(wait, usegmt=True) if isinstance(wait, datetime) else str(wait)
            return replace(reply, headers={**reply.headers, "retry-after": text})
        return reply
    if fault is Fault.ENDLESS_LINE:
        return Reply(200, form.stream_headers(request), itertools.chain([b"data: "], itertools.repeat(b"x" * 65536)))
    if fault is Fault.GZIP_BOMB:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        return Reply(200, headers, _bomb(options["size"]))
    if fault is Fault.OVERSIZED_BODY:
        headers = {"content-type": "application/json", "content-length": str(options["size"])}
        return Reply(200, headers, _padding(options["size"]))
    if fault is Fault.HTML_PAGE:
        page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Please sign in</h1></body></html>"
        return Reply.of_text(page, status=options["status"], content_type="text/html; charset=utf-8")
    if fault is Fault.REDIRECT:
        return Reply(options["status"], {"location": options["location"]})
    if fault is Fault.EMPTY_BODY:
        return Reply(200, {"content-type": "application/json"})
    if fault is Fault.ERROR_FIRST:
        return Reply(200, form.stream_headers(request), form.stream_error(request, options["message"]))
    return None


async def misbehave(
    active: ActiveFault, request: Request, respond: Callable[[], Awaitable[Answer]], form: WireForm
) -> Answer:
    """The answer to a request that meets a fault; `respond` gives the right one, and `form` has the server's words."""
    fault, options = active.fault, active.options
    if (other := _instead(active, request, form)) is not None:
        return other
    if fault is Fault.HANG_BEFORE_HEADERS:
        if options["seconds"] is None:
            return Script([Hang()])
        return _delayed(await respond(), options["seconds"])
    answer = await respond()
    if fault is Fault.TRICKLE_HEADERS:
        return Script(_trickled(answer, options["seconds"]))
    if isinstance(answer, Script):
        raise TypeError(f"{fault.name} needs a Reply to spoil, and the handler gave a Script")
    return await _spoil(active, request, answer, form)


def _delayed(answer: Answer, seconds: float) -> Script:
    async def steps() -> AsyncGenerator[Step, None]:
        yield Pause(seconds)
        async with aclosing(wire_steps(answer)) as rest:
            async for step in rest:
                yield step

    return Script(steps())


async def _spoil(active: ActiveFault, request: Request, reply: Reply, form: WireForm) -> Reply:
    """The right reply with a fault in its body."""
    fault, options = active.fault, active.options
    if fault is Fault.ONE_SEND:
        return replace(reply, body=[await _all(reply)], framing="chunked" if reply.framing == "auto" else reply.framing)
    if fault is Fault.SPLIT_BYTES:
        return _framed(reply, _split(reply, options["size"], options["seconds"]))
    if fault is Fault.SLOW_CHUNKS:
        return _framed(reply, _slowly(reply, options["seconds"]))
    if fault is Fault.LONG_LINE:
        return replace(reply, body=_with_event(form.stream_event(request, "x" * options["size"]), reply))
    if fault in {Fault.EMBED_WRONG_COUNT, Fault.EMBED_WRONG_DIMENSION, Fault.EMBED_NAN, Fault.EMBED_ZERO}:
        return await _bad_vectors(fault, reply, form)
    after = _after(active, reply)
    if fault is Fault.ENDLESS_STREAM:
        return _framed(reply, _endless(reply, after))
    if fault is Fault.HANG_BETWEEN_CHUNKS:
        if options["seconds"] is None:
            return _framed(reply, _then(reply, after, Hang()))
        return _framed(reply, _then(reply, after, Pause(options["seconds"]), rest=True))
    if fault is Fault.CLOSE_MID_BODY:
        return _framed(reply, _then(reply, after, Close()))
    if fault is Fault.RESET_MID_BODY:
        return _framed(reply, _then(reply, after, Reset()))
    headers = {name: value for name, value in reply.headers.items() if name.lower() != "content-length"}
    reply = replace(reply, headers=headers)
    if fault is Fault.END_WITHOUT_MARK:
        return replace(reply, body=_then(reply, after))
    if fault is Fault.ERROR_IN_STREAM:
        return replace(reply, body=_then(reply, after, *form.stream_error(request, options["message"])))
    if fault is Fault.GARBAGE_IN_STREAM:
        return replace(reply, body=_then(reply, after, form.stream_garbage(request), rest=True))
    raise NotImplementedError(f"{fault.name} is not about bodies")
