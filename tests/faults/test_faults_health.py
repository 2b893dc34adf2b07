"""Rows 15, 16, 30 and 32 of the table of faults: backends that live and do not work, clocks that jump, and flapping."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm_hub import Timeouts
from llm_hub.capabilities import Rung
from llm_hub.config import BackendLimits
from llm_hub.errors import DeadlineExceeded, HubError
from llm_hub.testing import Fault, Speed


def _generates(rig: Any, hub: Any, rung: Rung) -> bool:
    if rig.way in ("achat", "astream"):
        return bool(asyncio.run(hub.astatus(rung=rung)).backends[0].probe.ok)
    return bool(hub.status(rung=rung).backends[0].probe.ok)


def test_row_15_a_dead_engine_behind_a_living_api_is_found_by_the_highest_rung(whole: Any) -> None:
    server = whole.server()
    hub = whole.hub(server)
    server.fault(Fault.ENGINE_DEAD, health=200)
    assert _generates(whole, hub, Rung.MODEL_PRESENT)
    assert not _generates(whole, hub, Rung.GENERATING)


def test_row_15_a_dead_engine_is_ejected_in_passing_and_comes_back_by_a_probe(whole: Any) -> None:
    rig, ill, other = whole, whole.server(), whole.server()
    hub = rig.hub(ill, other)
    ill.fault(Fault.ENGINE_DEAD, health=200)
    assert rig.ask(hub).served_by.backend == "b1"
    assert rig.condition(hub).breaker == "open"
    ill.clear_faults()
    # The probe in the background generates a token before a call is risked.
    assert rig.until(lambda: rig.condition(hub).breaker == "half-open")
    assert rig.condition(hub).rung == "generating"
    assert rig.ask(hub).served_by.backend == "b0"
    assert rig.condition(hub).breaker == "closed"


def test_row_16_a_generation_that_hangs_is_found_though_all_ask_the_same(rig: Any) -> None:
    ill, other = rig.server(), rig.server()
    hub = rig.hub(ill, other, timeouts=Timeouts(first_token=0.12, whole=0.12))
    rig.ask(hub)
    ill.fault(Fault.GENERATION_HANGS)
    for _ in range(2):  # the same request twice proves nothing of the backend, but is suspicious
        assert rig.ask(hub).served_by.backend == "b1"
    assert rig.until(lambda: rig.condition(hub).breaker == "open")
    assert rig.ask(hub).served_by.attempts == 1


def test_row_16_impatient_callers_raise_suspicion_and_a_probe_decides(whole: Any) -> None:
    ill, other = whole.server(), whole.server()
    hub = whole.hub(ill, other, timeouts=Timeouts(first_token=0.12))
    whole.ask(hub)
    ill.fault(Fault.GENERATION_HANGS)
    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            whole.ask(hub, timeout=0.1)
    assert whole.until(lambda: whole.condition(hub).breaker == "open")
    assert whole.condition(hub).failures == 0  # no caller's impatience was held against it
    slow = whole.server(speed=Speed(token=0.15))
    hub = whole.hub(slow, other, timeouts=Timeouts(first_token=5))
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            whole.ask(hub, timeout=0.1)
    assert not whole.until(lambda: whole.condition(hub).breaker != "closed", 0.3)


def test_row_30_deadlines_and_cool_downs_do_not_follow_the_wall_clock(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump = [0.0]
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + jump[0])
    server, other = rig.server(), rig.server()
    hub = rig.hub(server, other)
    server.fault(Fault.OUT_OF_MEMORY, path=rig.path, times=1)
    rig.ask(hub)
    for jump[0] in (-86400.0, 86400.0):
        assert rig.condition(hub).breaker == "open"
        other.fault(Fault.HANG_BEFORE_HEADERS, path=rig.path, times=1)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            rig.ask(hub, timeout=0.1)
        assert 0.09 < time.monotonic() - began < 2


def test_row_32_retries_stay_within_the_budget_while_a_backend_flaps(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_hub.attempts.backoff", lambda retry: 0.001)
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts())
    requests, failed = 300, 0
    server.fault(Fault.RESET_BEFORE_HEADERS, path=rig.path, times=200)

    def one(number: int) -> bool:
        try:
            rig.ask(hub, f"ping {number}")
        except HubError:
            return False
        return True

    if rig.way in ("chat", "stream"):
        with ThreadPoolExecutor(8) as pool:
            failed = [*pool.map(one, range(requests))].count(False)
    else:
        failed = asyncio.run(_many(rig, hub, requests))
    attempts = rig.asked(server)
    assert attempts <= 1.2 * requests + 10 + _probes(server)
    assert attempts > requests  # some were tried again
    assert failed <= 200
    assert rig.is_idle(hub)


def _probes(server: Any) -> int:
    """Requests of the probes in the background, which ask for one token."""
    return sum(b"max_tokens" in one.body or b"num_predict" in one.body for one in server.requests)


async def _many(rig: Any, hub: Any, requests: int) -> int:
    gate = asyncio.Semaphore(8)

    async def one(number: int) -> bool:
        async with gate:
            try:
                if rig.streams:
                    async with hub.text().astream(f"ping {number}") as stream:
                        async for _ in stream:
                            pass
                else:
                    await hub.text().achat(f"ping {number}")
            except HubError:
                return False
            return True

    return (await asyncio.gather(*[one(number) for number in range(requests)])).count(False)


def test_row_32_a_backend_that_comes_back_is_met_by_one_call_and_not_by_all(rig: Any) -> None:
    slow, other = rig.server(speed=Speed(first_token=0.15)), rig.server()
    hub = rig.hub(slow, other, timeouts=Timeouts())
    slow.fault(Fault.RATE_LIMITED, path=rig.path, times=1, retry_after=0.1)
    rig.ask(hub)
    assert rig.until(lambda: rig.condition(hub).breaker == "half-open")
    before = rig.asked(slow)
    served: list[str] = []

    def one() -> None:
        served.append(rig.ask(hub).served_by.backend)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rig.asked(slow) == before + 1
    assert sorted(served) == ["b0"] + ["b1"] * 7
    assert rig.ask(hub).served_by.backend == "b0"


def test_places_are_given_in_the_order_of_coming_to_threads_and_tasks_alike(rig: Any) -> None:
    server = rig.server(speed=Speed(first_token=0.02))
    hub = rig.hub(server, timeouts=Timeouts(), limits=BackendLimits(concurrent=2))
    most = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.001):
            most[0] = max(most[0], *(one.in_flight for one in hub.conditions()), 0)

    rig.ask(hub)
    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=lambda: rig.ask(hub)) for _ in range(5)]
    for thread in threads:
        thread.start()

    async def tasks() -> None:
        await asyncio.gather(*[hub.text().achat("ping") for _ in range(5)])

    asyncio.run(tasks())
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    assert most[0] == 2
    assert rig.asked(server) == 11
    assert rig.is_idle(hub)
