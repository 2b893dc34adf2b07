"""Row 25 of the table of faults, in the ways that a caller can go away: tasks, generators, timeouts and Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llm_hub import CancelToken, Hub, Timeouts
from llm_hub.config import BackendLimits
from llm_hub.errors import DeadlineExceeded
from llm_hub.testing import Fault

LONG = "Count from 1 to 20."


@pytest.fixture(params=["achat", "astream"])
def way(request: pytest.FixtureRequest) -> str:
    """Tasks can be cancelled; threads cannot."""
    return str(request.param)


async def _ask(rig: Any, hub: Hub) -> None:
    if rig.way == "achat":
        await hub.text().achat(LONG)
    else:
        async with hub.text().astream(LONG) as stream:
            async for _ in stream:
                pass


async def _cancelled(work: Awaitable[None], when: Callable[[], bool]) -> float:
    """Run it as a task and cancel that as soon as `when` says so: when that was."""
    task = asyncio.ensure_future(work)
    while not when():
        await asyncio.sleep(0.005)
        assert not task.done()
    at = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - at < 0.5  # 0.1 on a machine that is not busy
    return at


@pytest.mark.parametrize("fault", [Fault.HANG_BEFORE_HEADERS, Fault.HANG_BETWEEN_CHUNKS])
def test_row_25_a_cancelled_task_is_cancelled_upstream(rig: Any, fault: Fault) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts())
    server.fault(fault, path=rig.path)
    at = asyncio.run(_cancelled(_ask(rig, hub), lambda: bool(rig.asked(server))))
    assert rig.last(server).wait(1)
    assert rig.last(server).gone_early
    assert rig.last(server).ended - at < 0.5
    assert rig.is_idle(hub)


@pytest.mark.parametrize("where", ["queue", "retry", "load", "asked to wait"])
def test_row_25_a_task_is_cancelled_wherever_it_waits(rig: Any, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_hub.attempts.backoff", lambda retry: 30.0)
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts(), limits=BackendLimits(concurrent=1))

    async def go() -> None:
        if where == "queue":
            server.fault(Fault.HANG_BETWEEN_CHUNKS, path=rig.path, times=1)
            async with hub.text().astream(LONG) as first:
                await anext(first)
                await _cancelled(_ask(rig, hub), lambda: rig.condition(hub).waiting == 1)
        elif where == "retry":
            server.fault(Fault.RESET_BEFORE_HEADERS, path=rig.path, times=1)
            await _cancelled(_ask(rig, hub), lambda: bool(hub.conditions()) and rig.condition(hub).failures == 1)
        elif where == "load":
            server.fault(Fault.LOADING, path=rig.path, times=1)
            await _cancelled(_ask(rig, hub), lambda: any(one.loading is not None for one in hub.conditions()))
        else:
            server.fault(Fault.RATE_LIMITED, path=rig.path, times=1, retry_after=20)
            await _cancelled(_ask(rig, hub), lambda: any(one.asked for one in hub.conditions()))
        assert rig.is_idle(hub)

    asyncio.run(go())


@pytest.mark.parametrize("how", ["left", "closed", "dropped"])
@pytest.mark.parametrize("way", ["stream", "astream"], indirect=True)
def test_row_25_a_stream_that_is_left_is_left_upstream_too(rig: Any, how: str) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts(), limits=BackendLimits(concurrent=1))
    server.fault(Fault.HANG_BETWEEN_CHUNKS, path=rig.path, times=1)

    def blocking() -> None:
        stream = hub.text().stream(LONG)
        if how == "left":
            with stream:
                next(stream)
            return
        next(stream)
        if how == "closed":
            stream.close()
        del stream
        gc.collect()

    async def later() -> None:
        stream = hub.text().astream(LONG)
        if how == "left":
            async with stream:
                await anext(stream)
            return
        await anext(stream)
        if how == "closed":
            await stream.aclose()
        del stream
        gc.collect()
        await asyncio.sleep(0.01)  # a loop closes what was dropped in its next turn

    if rig.way == "stream":
        blocking()
    else:
        asyncio.run(later())
    assert rig.last(server).wait(1)
    assert rig.last(server).gone_early
    assert hub.text().chat("ping", timeout=5).text == "pong"  # the place is free
    assert rig.is_idle(hub)
    assert rig.condition(hub).failures == 0


@pytest.mark.parametrize("way", ["stream"], indirect=True)
def test_row_25_a_dropped_stream_is_gone_at_once_though_others_had_failed_before(rig: Any) -> None:
    down, up = rig.server(), rig.server()
    hub = rig.hub(down, up, timeouts=Timeouts(), limits=BackendLimits(concurrent=1))
    down.stop()
    token = CancelToken()  # which outlives the stream
    up.fault(Fault.HANG_BETWEEN_CHUNKS, path=rig.path, times=1)
    gc.disable()
    try:
        stream = hub.text().stream(LONG, cancel=token)
        next(stream)
        del stream
        assert rig.last(up).wait(1)
        assert rig.last(up).gone_early
        assert rig.is_idle(hub)
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["stream"], indirect=True)
def test_row_25_a_stream_in_a_ring_is_collected_even_within_the_pool(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts())
    server.fault(Fault.HANG_BETWEEN_CHUNKS, path=rig.path, times=1)
    ring: list[Any] = [hub.text().stream(LONG)]
    next(ring[0])
    ring.append(ring)
    pool: Any = next(iter(hub._transport._pools.values()))
    with pool._optional_thread_lock:  # as if the collector ran while this thread is in the pool
        del ring
        gc.collect()
    assert rig.last(server).wait(1)
    assert rig.last(server).gone_early
    assert hub.text().chat("ping", timeout=5).text == "pong"
    assert rig.is_idle(hub)


@pytest.mark.parametrize("way", ["chat", "stream"], indirect=True)
def test_row_25_the_deadline_of_a_thread_is_told_upstream(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts())
    server.fault(Fault.HANG_BEFORE_HEADERS, path=rig.path)
    with pytest.raises(DeadlineExceeded) as caught:
        rig.ask(hub, timeout=0.15)
    at = time.monotonic()
    assert caught.value.stage == "total"
    assert rig.last(server).wait(1)
    assert rig.last(server).gone_early
    assert rig.last(server).ended - at < 0.5
    assert rig.is_idle(hub)


def _heed_interrupts() -> None:
    """What runs in the background of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("way", ["chat"], indirect=True)
@pytest.mark.parametrize("fault", [Fault.HANG_BETWEEN_CHUNKS, Fault.LOADING])
def test_row_25_ctrl_c_ends_the_command_line_and_the_generation(rig: Any, fault: Fault, tmp_path: Path) -> None:
    server = rig.server()
    server.fault(fault, path=rig.path)
    name = rig.wire.upper()
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("LLM_", "OLLAMA_", "VLLM_"))},
        "LLM_PROVIDER": rig.wire,
        f"{name}_BASE_URL": server.url,
        f"{name}_MODEL": "hub-test-vlm",
        "LLM_HUB_CONFIG": "/dev/null",
        "HOME": str(tmp_path),
    }
    command = [f"{sysconfig.get_path('scripts')}/llm-hub", "ask", LONG]
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    )
    try:
        assert rig.until(lambda: rig.asked(server) > 0, 20)
        time.sleep(0.1)
        at = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(10)
        if fault is Fault.HANG_BETWEEN_CHUNKS:
            assert rig.last(server).wait(2)
            assert rig.last(server).gone_early
            assert rig.last(server).ended - at < 1
    finally:
        process.kill()
        _, errors = process.communicate()
    assert process.returncode not in (0, None)
    assert "Traceback" not in errors
