"""The rules of every capability about time: each deadline is kept, and a call that is given up ends at once."""

from __future__ import annotations

import asyncio
import platform
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from llm_hub.call import Call, CancelToken, Timeouts
from llm_hub.errors import (
    BackendUnreachable,
    Cancelled,
    DeadlineExceeded,
    HubError,
)
from llm_hub.testing.conformance.bench import Bench, Ended, patience, patiently
from llm_hub.testing.conformance.rules import Broken, Needs, RuleBook, expect, not_here
from llm_hub.testing.faults import Fault

__all__ = ["AT_ONCE", "RULES", "TRIES", "cancelled_within", "in_thread"]

AnyBench = Bench[Any]
RULES: RuleBook[AnyBench] = RuleBook()

SLACK = 1.5
"""Seconds by which an error may come late, on a busy machine."""
AT_ONCE = 0.1
"""Seconds within which a backend hears that its caller has gone."""
TRIES = 5

_TRANSPORT = (
    "Send over the transport of the build context (HttpBackend does), which keeps all deadlines and hears of "
    "cancellation; an engine looks at call.check() between tokens. A client of your own needs both."
)


def _late(
    bench: AnyBench,
    ways: Sequence[str],
    fault: Fault,
    *,
    stages: tuple[str, ...],
    within: float,
    timeout: float | None = 30.0,
    **waits: float,
) -> None:
    """While the server shows the fault, calls in these ways, all at once, end with DeadlineExceeded of a stage, in time."""
    options = {"seconds": 0.02} if fault is Fault.TRICKLE_HEADERS else {}
    with bench.faulty(fault, **options):
        waiting = []
        for way in ways:
            call = Call(timeout=timeout, timeouts=Timeouts(**waits))
            what = f"{way}, while the server shows {fault.name}"
            waiting.append(in_thread(lambda way=way, call=call: bench.perform(way, call), what))  # type: ignore[misc]
        for ended in [wait() for wait in waiting]:
            error = ended.raised(DeadlineExceeded)
            named = " or ".join(map(repr, stages))
            expect(error.stage in stages, f"{ended}: the stage is {error.stage!r}, not {named}")
            expect(ended.seconds < within + SLACK, f"{ended}, but after {ended.seconds:.2f} s instead of {within:g}")


@RULES.rule(
    "deadlines.connect",
    "A server that does not accept the connection within the connect deadline is BackendUnreachable.",
    remedy=_TRANSPORT,
    needs=Needs.SERVER,
)
def connect(bench: AnyBench) -> None:
    """A full queue of connections, with fresh connections on each side."""
    if platform.system() != "Linux":
        not_here("only on Linux a full queue leaves connections waiting")
    with bench.another() as fresh, fresh.faulty(Fault.CONNECT_HANG):
        whats = {way: f"{way}, while the server accepts no connection" for way in fresh.ways}
        waiting = [
            in_thread(lambda way=way: fresh.perform(way, fresh.call(connect=0.3)), what)  # type: ignore[misc]
            for way, what in whats.items()
        ]
        for ended in [wait() for wait in waiting]:
            ended.raised(BackendUnreachable, DeadlineExceeded)
            expect(ended.seconds < 0.3 + SLACK, f"{ended}, but only after {ended.seconds:.2f} s instead of 0.3")


@RULES.rule(
    "deadlines.first-token",
    "A stream of which nothing comes within the first-token deadline is DeadlineExceeded with that stage.",
    remedy=_TRANSPORT,
    needs=Needs.SERVER,
)
def first_token(bench: AnyBench) -> None:
    """Silence before the headers."""
    _late(bench, bench.streams, Fault.HANG_BEFORE_HEADERS, stages=("first token",), within=0.3, first_token=0.3)


@RULES.rule(
    "deadlines.whole",
    "An answer that comes in one piece, and not within its deadline, is DeadlineExceeded with the stage `whole`.",
    remedy=_TRANSPORT,
    needs=Needs.SERVER,
)
def whole(bench: AnyBench) -> None:
    """Silence before the headers, and in the midst of the body."""
    for fault in (Fault.HANG_BEFORE_HEADERS, Fault.HANG_BETWEEN_CHUNKS):
        _late(bench, bench.whole_ways, fault, stages=("whole",), within=0.3, whole=0.3)


@RULES.rule(
    "deadlines.headers",
    "Headers that trickle do not outlive the deadline: it is a total, not a time between reads.",
    remedy=_TRANSPORT + " The timeouts of HTTP clients are per read, and do not do it.",
    needs=Needs.SERVER,
)
def headers(bench: AnyBench) -> None:
    """One byte every 0.02 s."""
    stages = ("first token", "whole")
    _late(bench, bench.ways, Fault.TRICKLE_HEADERS, stages=stages, within=0.3, first_token=0.3, whole=0.3)


@RULES.rule(
    "deadlines.total",
    "The caller's own deadline ends the call, whatever the stages allow: DeadlineExceeded with the stage `total`.",
    remedy=_TRANSPORT,
    needs=Needs.SERVER,
)
def total(bench: AnyBench) -> None:
    """Silence before the headers, with stages that are much longer."""
    _late(bench, bench.ways, Fault.HANG_BEFORE_HEADERS, stages=("total",), within=0.3, timeout=0.3)


@RULES.rule(
    "deadlines.passed",
    "A call whose deadline has passed, or that was cancelled, before it begins fails at once and sends nothing.",
    remedy="Call call.check(name) before anything else (HttpBackend and EngineBackend do).",
)
def passed(bench: AnyBench) -> None:
    """Nothing reaches the server."""
    before = len(bench.server.requests) if bench.server is not None else 0
    for way in bench.ways:
        late = bench.call(0.000_001)
        time.sleep(0.001)
        bench.ended(way, late).raised(DeadlineExceeded)
        token = CancelToken()
        token.cancel()
        bench.ended(way, bench.call(cancel=token)).raised(Cancelled)
    if bench.server is not None:
        sent = len(bench.server.requests) - before
        expect(sent == 0, f"{sent} requests were sent for calls that were over before they began")


# -- cancelling -------------------------------------------------------------------------------------------------------


def cancelled_within(bench: AnyBench, begin: Callable[[CancelToken], Callable[[], Ended[Any]]], what: str) -> None:
    """Cancel what `begin` started, some times over; Broken unless the best of them ended and was heard of within 0.1 s.

    `begin` gets the token, starts the call in a thread of its own, and returns what waits for its end. A single try may be
    held up by a busy machine, so the best one counts.
    """
    best = best_heard = float("inf")
    for _ in range(TRIES):
        token = CancelToken()
        count = len(bench.server.requests) if bench.server is not None else 0
        wait = begin(token)
        request = None
        if bench.server is not None:
            request = _arrived(bench, count, what)
        began = time.monotonic()
        token.cancel()
        ended = wait()
        best = min(best, time.monotonic() - began)
        ended.raised(Cancelled)
        if request is not None:
            expect(
                request.wait(patience()),
                f"{what}: the server never heard that its caller had gone{_which(bench, count)}",
            )
            expect(
                request.gone_early, f"{what}: the server was not told that its caller had gone{_which(bench, count)}"
            )
            best_heard = min(best_heard, (request.ended or time.monotonic()) - began)
        if best <= AT_ONCE and (request is None or best_heard <= AT_ONCE):
            return
    expect(best <= AT_ONCE, f"{what} came back {best:.2f} s after it was cancelled, at best")
    expect(best_heard <= AT_ONCE, f"{what}: the server heard of it {best_heard:.2f} s after, at best")


def _arrived(bench: AnyBench, count: int, what: str) -> Any:
    """The request that hangs, once it is there: the last of those that came."""
    deadline = time.monotonic() + patience()
    while time.monotonic() < deadline:
        hung = [one for one in bench.fake.requests[count:] if one.fault is not None]
        if hung:
            return hung[-1]
        time.sleep(0.002)
    raise Broken(f"{what}: no request arrived")


def _which(bench: AnyBench, count: int) -> str:
    """The requests since that count, where there are several: one of them may be another's, such as a probe's."""
    since = bench.fake.requests[count:]
    if len(since) < 2:
        return ""
    told = (f"{one.method} {one.path} ({'open' if one.ended is None else 'ended'})" for one in since)
    return f"; it had {', '.join(told)}"


def in_thread(work: Callable[[], Any], what: str) -> Callable[[], Ended[Any]]:
    """Start work; what is returned waits for its end."""
    result: list[Ended[Any]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            result.append(Ended(work, what))
        except BaseException as error:  # noqa: BLE001 - raised again where the end is waited for
            failed.append(error)

    thread = threading.Thread(target=run, name="conformance", daemon=True)
    thread.start()

    def wait() -> Ended[Any]:
        thread.join(patience() * 2)
        if failed:
            raise failed[0]
        expect(result, f"{what} did not end")
        return result[0]

    return wait


@RULES.rule(
    "cancel.token",
    "A call that is cancelled from another thread raises Cancelled within 0.1 s, and the server hears of it as fast.",
    remedy=_TRANSPORT,
    needs=Needs.SERVER,
)
def cancel_token(bench: AnyBench) -> None:
    """Each way, waiting for an answer that does not come."""
    with bench.faulty(Fault.HANG_BEFORE_HEADERS):
        for way in bench.ways:
            what = f"{way}, cancelled by its token"

            def begin(token: CancelToken, way: str = way, what: str = what) -> Callable[[], Ended[Any]]:
                return in_thread(lambda: bench.perform(way, bench.call(cancel=token)), what)

            cancelled_within(bench, begin, what)


@RULES.rule(
    "cancel.task",
    "A task that is cancelled while it waits ends at once, and the server hears of it within 0.1 s.",
    remedy="Await within the task (no thread of your own that goes on), and close the exchange in a `finally`.",
    needs=Needs.SERVER,
)
def cancel_task(bench: AnyBench) -> None:
    """task.cancel(), as a web framework does when its client leaves."""
    for way in bench.async_ways:

        async def once(way: str = way) -> tuple[float, float]:
            count = len(bench.fake.requests)
            task = asyncio.ensure_future(bench.aperform(way, bench.call()))
            deadline = time.monotonic() + patience()
            while not [one for one in bench.fake.requests[count:] if one.fault] and time.monotonic() < deadline:
                await asyncio.sleep(0.002)
            request = bench.fake.requests[-1]
            began = time.monotonic()
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=patience() / 2)
            expect(done, f"{way}: its task had not ended {patience() / 2:g} s after it was cancelled")
            took = time.monotonic() - began
            expect(task.cancelled(), f"{way}: its task was cancelled and gave {task!r:.200}")
            heard = await asyncio.to_thread(request.wait, patience() / 2)
            expect(heard and request.gone_early, f"{way}: the server never heard that its caller had gone")
            return took, (request.ended or time.monotonic()) - began

        with bench.faulty(Fault.HANG_BEFORE_HEADERS):
            best = min((patiently(lambda: bench.run(once()), way, seconds=30) for _ in range(3)), key=max)
        expect(
            max(best) <= AT_ONCE, f"{way}: cancelled, it ended after {best[0]:.2f} s, heard of after {best[1]:.2f} s"
        )


@RULES.rule(
    "cancel.engine",
    "A call to an engine that is cancelled raises Cancelled soon, the engine stops working, and the next call is served.",
    remedy="Check call.check() between tokens (EngineBackend does where the engine yields), and stop the engine.",
    needs=Needs.ENGINE,
)
def cancel_engine(bench: AnyBench) -> None:
    """Long work, cancelled soon after it began."""
    for way in bench.ways:
        bench.ended(way).given()  # its model is loaded now
        token = CancelToken()
        wait = in_thread(lambda way=way, token=token: bench.perform_long(way, bench.call(cancel=token)), way)  # type: ignore[misc]
        time.sleep(0.02)
        began = time.monotonic()
        token.cancel()
        ended = wait()
        if ended.error is not None:  # it may have been faster than the cancellation
            ended.raised(Cancelled)
            expect(time.monotonic() - began < 2.0, f"{way} went on for {time.monotonic() - began:.1f} s after that")
        bench.ended(way).given()


@RULES.rule(
    "cancel.closed-hub",
    "When the hub is closed, calls that wait end with an error of the hub instead of hanging.",
    remedy="Send over the transport of the build context (HttpBackend does), or end your calls in close().",
    needs=Needs.SERVER,
)
def closed_hub(bench: AnyBench) -> None:
    """One call of each way waits."""
    with bench.another() as fresh, fresh.faulty(Fault.HANG_BEFORE_HEADERS):
        waits = [
            in_thread(lambda way=way: fresh.perform(way, fresh.call()), f"{way}, when the hub was closed")  # type: ignore[misc]
            for way in fresh.ways
        ]
        fresh.fake.wait_for_requests(len(waits))
        time.sleep(0.05)
        patiently(fresh.hub.close, "Hub.close()")
        for wait in waits:
            wait().raised(HubError)
