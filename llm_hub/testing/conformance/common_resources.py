"""The rules of every capability about what a backend takes and gives back, shares, holds up and lets out."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from llm_hub.call import Call
from llm_hub.capabilities import Rung
from llm_hub.errors import HubError
from llm_hub.testing.conformance.bench import Bench, patience, patiently
from llm_hub.testing.conformance.rules import Broken, Needs, RuleBook, expect, not_here
from llm_hub.testing.faults import Fault

__all__ = ["RULES"]

AnyBench = Bench[Any]
RULES: RuleBook[AnyBench] = RuleBook()

KEY = "conformance-key-7f3a91c2"
PROMPT = "zirconium-ferret-4471"


# -- leaks ------------------------------------------------------------------------------------------------------------


@RULES.rule(
    "leaks.connections",
    "Connections are given back: however calls end, few are open afterwards, and none once the hub is closed.",
    remedy="Send over the transport of the build context (HttpBackend does), close exchanges in a `finally`, and a client of "
    "your own in close().",
    needs=Needs.SERVER,
)
def connections(bench: AnyBench) -> None:
    """Calls that succeed, fail, take too long."""
    with bench.another() as fresh:
        server = fresh.fake
        for way in fresh.ways:
            for _ in range(4):
                fresh.ended(way).given()
            for fault in (Fault.SERVER_ERROR, Fault.CLOSE_BEFORE_HEADERS, Fault.HTML_PAGE):
                for _ in range(2):
                    with fresh.faulty(fault):
                        fresh.ended(way)
            with fresh.faulty(Fault.HANG_BEFORE_HEADERS):
                for _ in range(2):
                    fresh.ended(way, fresh.hurried(first_token=0.05, whole=0.05))
        gc.collect()
        left = _settled(lambda: server.connections, at_most=2)
        expect(
            left <= 2, f"{left} connections are open after {len(server.requests)} calls, none of which runs any more"
        )
        patiently(fresh.hub.close, "Hub.close()")
        left = _settled(lambda: server.connections, at_most=0)
        expect(left == 0, f"{left} connections are still open after the hub was closed")


def _settled(count: Callable[[], int], *, at_most: int, seconds: float = 2.0) -> int:
    """The count, once it has come down, or after these seconds."""
    deadline = time.monotonic() + seconds
    while count() > at_most and time.monotonic() < deadline:
        time.sleep(0.01)
    return count()


@RULES.rule(
    "leaks.threads",
    "No thread is left once the hub is closed, and calls do not add one each.",
    remedy="Start no thread for a call; end what you started in close(). EngineBackend has bounded threads for you.",
)
def threads(bench: AnyBench) -> None:
    """Counted before and after a hub's life."""
    if bench.live is not None:
        not_here("counted where nothing else goes on")
    before = set(threading.enumerate())
    with bench.another() as fresh:
        for way in fresh.ways:
            fresh.ended(way)
        some = _ours(before)
        for _ in range(3):
            for way in fresh.ways:
                fresh.ended(way)
        expect(len(_ours(before)) <= len(some) + 2, f"threads grow with the calls: {_names(_ours(before))}")
        patiently(fresh.hub.close, "Hub.close()")
        left = _settled(lambda: len(_ours(before)), at_most=1)  # the fake server has one
        if fresh.server is None:
            expect(left == 0, f"threads are left: {_names(_ours(before))}")
    left = _settled(lambda: len(_ours(before)), at_most=0)
    expect(left == 0, f"threads are left: {_names(_ours(before))}")


@RULES.rule(
    "leaks.tasks",
    "No task is left in the event loop when an async call has ended, however it ended.",
    remedy="Await what you start, and cancel and await it in a `finally`.",
)
def tasks(bench: AnyBench) -> None:
    """After calls that succeed, and that fail at their deadline."""

    async def ending(way: str, call: Call) -> None:
        with contextlib.suppress(HubError):
            await bench.aperform(way, call)

    for way in bench.async_ways:
        patiently(lambda way=way: bench.run(ending(way, bench.call())), way)  # type: ignore[misc]
        if bench.server is not None:
            with bench.faulty(Fault.HANG_BEFORE_HEADERS):
                call = bench.hurried(first_token=0.05, whole=0.05)
                patiently(lambda way=way, call=call: bench.run(ending(way, call)), way)  # type: ignore[misc]


def _ours(before: set[threading.Thread]) -> list[threading.Thread]:
    pool = ("conformance", "asyncio_", "llm-hub-reaper")
    return [one for one in threading.enumerate() if one not in before and not one.name.startswith(pool)]


def _names(threads: list[threading.Thread]) -> str:
    return ", ".join(sorted(thread.name for thread in threads))


# -- many at once -----------------------------------------------------------------------------------------------------


@RULES.rule(
    "at-once.event-loop",
    "An async call does not hold up its event loop while it waits.",
    remedy="Await; never call a blocking client in an async method. Without an async client use EngineBackend, whose "
    "bounded threads do it.",
)
def event_loop(bench: AnyBench) -> None:
    """A heartbeat beside a call that waits."""

    async def longest(way: str) -> float:
        gaps = []
        call = asyncio.ensure_future(bench.aperform(way, bench.call()))
        last = time.monotonic()
        while not call.done():
            await asyncio.sleep(0.005)
            now = time.monotonic()
            gaps.append(now - last)
            last = now
        await call
        return max(gaps, default=0.0)

    for way in bench.async_ways:
        best = float("inf")
        for _ in range(4):  # a busy machine may hold one up
            with ExitStack() as stack:
                if bench.server is not None:
                    stack.enter_context(bench.faulty(Fault.HANG_BEFORE_HEADERS, seconds=0.4))
                best = min(best, patiently(lambda way=way: bench.run(longest(way)), way))  # type: ignore[misc]
            if best < 0.25:
                break
        expect(best < 0.25, f"{way} held up its event loop for {best:.2f} s")


@RULES.rule(
    "at-once.threads",
    "One backend serves many threads at once.",
    remedy="Keep no state of a call on the backend or the dialect: a stream's decoder is made anew for each.",
)
def many_threads(bench: AnyBench) -> None:
    """Eight threads, two calls each, in all ways."""
    failed: list[str] = []

    def work(number: int) -> None:
        for turn in range(2):
            way = bench.ways[(number + turn) % len(bench.ways)]
            try:
                bench.perform(way, bench.call())
            except Exception as error:  # noqa: BLE001 - told below
                failed.append(f"{way}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(number,), name="conformance") for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience())
    expect(not any(thread.is_alive() for thread in threads), "some of eight threads had not come back")
    expect(not failed, f"of eight threads {len(failed)} calls failed, such as {failed[:1]}")


@RULES.rule(
    "at-once.event-loops",
    "One backend serves several event loops, at once and one after the other.",
    remedy="Bind nothing to an event loop: no client, lock or session that is made in one and used in the next. The transport "
    "of the build context is free of it.",
)
def event_loops(bench: AnyBench) -> None:
    """Three loops in threads of their own, each with several tasks; then another."""
    failed: list[str] = []

    async def several() -> None:
        calls = [bench.aperform(way, bench.call()) for way in bench.async_ways for _ in range(3)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        failed.extend(f"{type(one).__name__}: {one}" for one in ended if isinstance(one, BaseException))

    def loop() -> None:
        try:
            bench.run(several())
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(f"{type(error).__name__}: {error}")

    for count in (3, 1):
        threads = [threading.Thread(target=loop, name="conformance") for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience())
        expect(not any(thread.is_alive() for thread in threads), "some of the event loops had not come to an end")
    expect(not failed, f"in several event loops {len(failed)} calls failed, such as {failed[:1]}")


@RULES.rule(
    "at-once.fork",
    "A backend that was used works in a forked child too, as under a preforking web server.",
    remedy="Hold no socket or thread over a fork: the transport of the build context begins anew in the child; a client of "
    "your own needs os.register_at_fork.",
    needs=Needs.SERVER,
)
def forked(bench: AnyBench) -> None:
    """A child makes a call on the parent's hub."""
    if not hasattr(os, "fork"):
        not_here("this system has no fork")
    for way in bench.ways:
        bench.ended(way).given()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: what is tried here
        child = os.fork()
    if child == 0:
        said = b"it did not come back"
        try:
            for way in bench.ways:
                bench.perform(way, bench.call(5.0))
            said = b""
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = f"{type(error).__name__}: {error}".encode()[:500]
        finally:
            os.write(writing, b"." + said)
            os._exit(0)
    os.close(writing)
    try:
        told = _child_says(reading, child)
    finally:
        os.close(reading)
    expect(told == b".", f"in a forked child: {told[1:].decode(errors='replace') or 'it did not come back'}")
    for way in bench.ways:
        ended = bench.ended(way)
        ended.what = f"{way} in the parent, after the child"
        ended.given()


def _child_says(reading: int, child: int) -> bytes:
    import select
    import signal

    ready, _, _ = select.select([reading], [], [], patience() + 4)
    told = os.read(reading, 600) if ready else b""
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return told


# -- what is let out --------------------------------------------------------------------------------------------------


@contextmanager
def _overheard() -> Iterator[io.StringIO]:
    """Everything that is logged, at any level, and printed."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    handler.setLevel(logging.NOTSET)
    root = logging.getLogger()
    loggers = [root, *(one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger))]
    levels = [(one, one.level, one.disabled) for one in loggers]
    for one in loggers:
        one.setLevel(logging.DEBUG)
        one.disabled = False
    root.addHandler(handler)
    try:
        with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
            yield heard
    finally:
        root.removeHandler(handler)
        for one, level, disabled in levels:
            one.setLevel(level)
            one.disabled = disabled


def _shown(text: str, secret: str) -> str:
    at = text.find(secret)
    return text[max(0, at - 60) : at + len(secret) + 20]


@RULES.rule(
    "secrets.key",
    "The key is sent to the server, and shows itself nowhere else: in no log, no repr, no error and no output.",
    remedy="Reveal the Secret only where the header is made; log no headers, and put none into errors.",
    needs=Needs.SERVER,
)
def key(bench: AnyBench) -> None:
    """Calls that succeed and fail, with everything overheard."""
    if not bench.requirements.sends_key:
        not_here("the requirements say that it sends no key (sends_key)")
    with bench.another(api_key=KEY) as fresh, _overheard() as heard:
        shown: dict[str, str] = {}
        for way in fresh.ways:
            fresh.ended(way)
        sent = [one for one in fresh.fake.requests if any(KEY in value for value in one.headers.values())]
        expect(sent, "the key was in no header of any request that the server got")
        for fault in (Fault.UNAUTHORIZED, Fault.SERVER_ERROR, Fault.HTML_PAGE, Fault.REFUSE, Fault.BAD_REQUEST):
            with fresh.faulty(fault):
                for way in fresh.ways:
                    error = fresh.ended(way).error
                    if error is not None:
                        shown[f"the error of {way} while the server shows {fault.name}"] = _whole(error)
        backend = fresh.backend
        shown["repr(backend)"] = repr(backend)
        for name, value in getattr(backend, "__dict__", {}).items():
            if not isinstance(value, list | tuple | dict):  # prepared headers hold it, and show it to nobody
                shown[f"repr(backend.{name})"] = repr(value)
        shown["what was logged or printed"] = heard.getvalue()
    for where, text in shown.items():
        expect(KEY not in text, f"{where} shows the key: {_shown(text, KEY)!r}")


def _whole(error: BaseException) -> str:
    """All that an error and its causes tell."""
    told: list[str] = []
    at: BaseException | None = error
    while at is not None:
        told.append(f"{at!r} {at} {vars(at)!r}")
        at = at.__cause__ or at.__context__
    return "\n".join(told)


@RULES.rule(
    "secrets.prompt",
    "What callers ask is not logged and not printed, at no level.",
    remedy="Log names, counts and times, never messages, texts or bodies; silence the debug log of a client of your own.",
)
def prompt(bench: AnyBench) -> None:
    """A word that occurs nowhere else."""
    with _overheard() as heard:
        for way in bench.ways:
            bench.ended(way, text=f"What is {PROMPT}?")
        if bench.server is not None:
            with bench.faulty(Fault.SERVER_ERROR):
                bench.ended(bench.ways[0], text=f"What is {PROMPT}?")
        text = heard.getvalue()
    expect(PROMPT not in text, f"the prompt was logged or printed: {_shown(text, PROMPT)!r}")


@RULES.rule(
    "close.idempotent",
    "close() releases, and may be called again, from any thread; a backend that was never used closes too.",
    remedy="Look whether it is closed already; release only what was opened.",
)
def idempotent(bench: AnyBench) -> None:
    """Never used, used, twice, and by another thread."""
    for used in (False, True):
        with bench.another() as fresh:
            backend = fresh.backend
            if used:
                fresh.ended(fresh.ways[0])
            for _ in range(2):
                patiently(backend.close, "close()")
                backend.close()
            ended = fresh.ended(fresh.ways[0], fresh.call(5.0))
            if ended.error is not None and not isinstance(ended.error, HubError):
                raise Broken(f"{ended}, after close(); an error of the hub is what callers expect") from ended.error


@RULES.rule(
    "close.others",
    "Two backends of one plugin share nothing: closing one leaves the other as it is.",
    remedy="Keep everything on the backend that the hook returns: no module-level client, no cached backend.",
)
def others(bench: AnyBench) -> None:
    """A second hub is opened and closed beside the first."""
    with bench.another() as fresh:
        expect(fresh.backend is not bench.backend, "the hook built the same object twice")
        fresh.ended(fresh.ways[0]).given()
    ended = bench.ended(bench.ways[0])
    ended.what = f"{bench.ways[0]}, after another backend of the plugin was closed"
    ended.given()
    expect(bench.backend.probe(Rung.ALIVE, bench.model, bench.call(5.0)) is not None, "its probe gave None")
