"""Rows 1 to 5, 7, 25 and 35 of the table of faults: up to the first byte, and when the caller goes away."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from llm_hub import CancelToken, Timeouts
from llm_hub.capabilities import Capability
from llm_hub.config import BackendLimits
from llm_hub.errors import (
    BackendOverloaded,
    BackendUnreachable,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
)
from llm_hub.testing import FakeModel, Fault


def test_row_01_a_refused_connection_is_tried_again_within_limits(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, limits=BackendLimits(retries=2))
    server.stop()
    with pytest.raises(BackendUnreachable, match="b0: .*refused the connection"):
        rig.ask(hub)
    found = rig.condition(hub)
    assert (found.calls, found.retries, found.retries_left) == (3, 2, 8)


def test_row_01_a_server_that_comes_back_meanwhile_serves(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_hub.attempts.backoff", lambda retry: 0.15)
    server = rig.server()
    hub = rig.hub(server)
    server.stop()
    threading.Timer(0.05, server.start).start()
    response = rig.ask(hub)
    assert response.text == "pong"
    assert response.served_by is not None
    assert response.served_by.attempts > 1
    assert not response.served_by.fallback


def test_row_01_a_refused_connection_is_passed_on_without_a_pause(rig: Any) -> None:
    down, up = rig.server(), rig.server()
    hub = rig.hub(down, up)
    down.stop()
    response = rig.ask(hub)
    assert response.served_by is not None
    assert (response.served_by.backend, response.served_by.attempts) == ("b1", 2)
    assert rig.condition(hub).retries == 0


def test_row_01_a_host_that_nobody_knows_is_named(rig: Any) -> None:
    up = rig.server()
    hub = rig.hub(urls=("http://no-such-host.invalid:1", up.url), limits=BackendLimits(retries=1))
    assert rig.ask(hub).served_by.backend == "b1"
    with pytest.raises(BackendUnreachable, match="cannot resolve the host 'no-such-host.invalid'"):
        hub.text(backend="b0").chat("ping")


def test_row_02_a_connect_that_hangs_ends_at_its_deadline_and_is_passed_on(rig: Any) -> None:
    stuck, up = rig.server(), rig.server()
    hub = rig.hub(stuck, up, timeouts=Timeouts(connect=0.1, whole=5, first_token=5))
    with stuck.fault(Fault.CONNECT_HANG):
        began = time.monotonic()
        assert rig.ask(hub).served_by.backend == "b1"
        assert time.monotonic() - began < 2
    alone = rig.hub(stuck, timeouts=Timeouts(connect=0.1), limits=BackendLimits(retries=1))
    with stuck.fault(Fault.CONNECT_HANG), pytest.raises(DeadlineExceeded) as caught:
        rig.ask(alone)
    assert (caught.value.stage, rig.condition(alone).retries) == ("connect", 1)


def test_row_03_a_kept_connection_that_was_closed_is_replaced_and_nobody_blamed(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server)
    rig.ask(hub)
    with server.fault(Fault.CLOSE_KEPT_ALIVE, times=1):
        response = rig.ask(hub)
    found = rig.condition(hub)
    assert response.served_by.attempts == 1
    assert (found.calls, found.failures, found.retries) == (2, 0, 0)


def test_row_04_a_reset_before_the_headers_is_repeated_only_where_that_is_allowed(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server)
    server.fault(Fault.RESET_BEFORE_HEADERS, times=1)
    assert rig.ask(hub).served_by.attempts == 2
    server.fault(Fault.RESET_BEFORE_HEADERS, times=1)
    before = rig.asked(server)
    with pytest.raises(ConnectionLost):
        rig.ask(hub, repeatable=False)
    assert rig.asked(server) == before + 1


def test_row_04_embedding_is_always_repeated(whole: Any) -> None:
    model = FakeModel(name="e", capabilities=("embedding",))
    server = whole.server(models=[model]) if whole.wire == "ollama" else whole.server(model=model)
    hub = whole.hub(server, model="e", capability=Capability.EMBEDDING)
    server.fault(Fault.RESET_BEFORE_HEADERS, times=1)
    response = whole.embed(hub, ["a", "b"])
    assert (len(response.vectors), response.served_by.attempts) == (2, 2)


def test_row_05_a_hang_before_the_headers_ends_at_the_deadline_upstream_too(rig: Any) -> None:
    stuck, up = rig.server(), rig.server()
    hub = rig.hub(stuck, up, timeouts=Timeouts(first_token=0.15, whole=0.15))
    stuck.fault(Fault.HANG_BEFORE_HEADERS, path=rig.path)
    response = rig.ask(hub)
    assert response.served_by.backend == "b1"
    assert rig.last(stuck).wait(1)
    assert rig.last(stuck).gone_early
    with pytest.raises(DeadlineExceeded) as caught:
        hub.text(backend="b0").chat("ping")
    assert caught.value.stage == "whole"
    assert caught.value.backend == "b0"


def test_row_07_headers_that_trickle_do_not_outlive_their_deadline(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server)
    server.fault(Fault.TRICKLE_HEADERS, seconds=0.1)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        rig.ask(hub)
    assert caught.value.stage == ("first token" if rig.streams else "whole")
    assert time.monotonic() - began < 2


def _cancelled_soon(rig: Any, hub: Any, when: Any) -> tuple[BaseException, float]:
    """Ask, and cancel from another thread as soon as `when` says so: the error, and when it was cancelled."""
    token, at = CancelToken(), [0.0]

    def cancel() -> None:
        rig.until(when)
        at[0] = time.monotonic()
        token.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled) as caught:
        rig.ask(hub, "Count from 1 to 20.", cancel=token)
    thread.join()
    return caught.value, at[0]


@pytest.mark.parametrize("fault", [Fault.HANG_BEFORE_HEADERS, Fault.HANG_BETWEEN_CHUNKS])
def test_row_25_a_cancelled_call_is_cancelled_upstream_at_once(rig: Any, fault: Fault) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts())
    server.fault(fault, path=rig.path)
    _, at = _cancelled_soon(rig, hub, lambda: bool(rig.asked(server)))
    assert rig.last(server).wait(1)
    assert rig.last(server).gone_early
    assert rig.last(server).ended - at < 0.5  # 0.1 on a machine that is not busy
    assert rig.is_idle(hub)
    assert rig.condition(hub).failures == 0


def test_row_25_a_call_is_cancelled_while_it_waits_before_a_retry(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_hub.attempts.backoff", lambda retry: 30.0)
    server = rig.server()
    hub = rig.hub(server)
    server.stop()
    began = time.monotonic()
    _cancelled_soon(rig, hub, lambda: any(one.calls for one in hub.conditions()))
    assert time.monotonic() - began < 5
    assert rig.is_idle(hub)


def test_row_25_a_call_is_cancelled_while_its_model_loads(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts())
    server.fault(Fault.LOADING, path=rig.path)
    _cancelled_soon(rig, hub, lambda: any(one.loading is not None for one in hub.conditions()))
    assert rig.is_idle(hub)


def test_row_25_a_call_is_cancelled_in_the_queue_and_the_next_gets_its_turn(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts(), limits=BackendLimits(concurrent=1))
    server.fault(Fault.HANG_BETWEEN_CHUNKS, path=rig.path, times=1)
    with hub.text().stream("Count from 1 to 20.") as first:
        next(first)
        _cancelled_soon(rig, hub, lambda: rig.condition(hub).waiting == 1)
        assert rig.condition(hub).waiting == 0
    assert rig.ask(hub, timeout=5).text == "pong"
    assert rig.asked(server) == 2
    assert rig.is_idle(hub)


def test_row_25_a_call_that_gets_no_place_in_time_says_so(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, timeouts=Timeouts(), limits=BackendLimits(concurrent=1, queue=1, wait=0.1))
    server.fault(Fault.HANG_BETWEEN_CHUNKS, path=rig.path, times=1)
    with hub.text().stream("Count from 1 to 20.") as first:
        next(first)
        with pytest.raises(BackendOverloaded, match="no place became free for it within 0.1 s"):
            rig.ask(hub)
        with pytest.raises(DeadlineExceeded) as caught:
            rig.ask(hub, timeout=0.05)
        assert caught.value.stage == "total"
    assert rig.asked(server) == 1
    assert rig.condition(hub).failures == 0


def test_row_35_a_redirect_is_not_followed(rig: Any) -> None:
    server, elsewhere = rig.server(), rig.server()
    hub = rig.hub(server)
    server.fault(Fault.REDIRECT, location=f"{elsewhere.url}/x")
    with pytest.raises(ProtocolError, match="redirect"):
        rig.ask(hub)
    assert not elsewhere.requests


def test_row_35_tls_that_nobody_speaks_is_said_plainly(rig: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        hub = rig.hub(urls=(url,), timeouts=Timeouts(), limits=BackendLimits(retries=0))
        with pytest.raises(BackendUnreachable, match="does not speak TLS"):
            rig.ask(hub)
        thread.join(5)
