"""Rows 11 to 14, 17 to 20, 33 and 34 of the table of faults: what servers answer instead of an answer."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from typing import Any

import pytest

from llm_hub import Timeouts
from llm_hub.config import BackendLimits
from llm_hub.errors import (
    AuthenticationFailed,
    BackendFailed,
    BackendOverloaded,
    ContextOverflow,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
)
from llm_hub.testing import FakeModel, Fault, Reply, Speed


def test_row_11_a_rate_limit_is_passed_on_and_left_alone_for_as_long_as_it_says(rig: Any) -> None:
    limited, other = rig.server(), rig.server()
    hub = rig.hub(limited, other)
    limited.fault(Fault.RATE_LIMITED, path=rig.path, times=1, retry_after=0.3)
    assert rig.ask(hub).served_by.backend == "b1"
    found = rig.condition(hub)
    assert (found.breaker, found.asked) == ("open", True)
    assert 0 < found.cooling <= 0.3
    assert rig.ask(hub).served_by.attempts == 1  # not even asked
    assert rig.asked(limited) == 1
    assert rig.until(lambda: rig.condition(hub).breaker == "half-open")
    assert rig.ask(hub).served_by.backend == "b0"
    assert rig.condition(hub).breaker == "closed"


def test_row_11_with_no_other_backend_the_call_waits_as_it_is_told(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server)
    server.fault(Fault.RATE_LIMITED, path=rig.path, times=1, retry_after=0.2)
    began = time.monotonic()
    assert rig.ask(hub).served_by.attempts == 2
    assert time.monotonic() - began >= 0.2
    assert rig.condition(hub).retries == 1


def test_row_11_a_wait_beyond_the_deadline_is_said_at_once(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server)
    server.fault(Fault.RATE_LIMITED, path=rig.path, retry_after=30)
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(BackendOverloaded) as caught:
            rig.ask(hub, timeout=5)
        assert caught.value.retry_after == pytest.approx(30, abs=2)
    assert time.monotonic() - began < 3
    assert rig.asked(server) == 1  # the second call knew


def test_row_11_of_two_that_asked_to_be_left_alone_the_sooner_is_waited_for(whole: Any) -> None:
    long, short = whole.server(), whole.server()
    hub = whole.hub(long, short)
    long.fault(Fault.RATE_LIMITED, path=whole.path, times=1, retry_after=20)
    short.fault(Fault.RATE_LIMITED, path=whole.path, times=1, retry_after=0.2)
    assert whole.ask(hub, timeout=5).served_by.backend == "b1"


def test_row_11_retry_after_may_be_a_date(whole: Any) -> None:
    server = whole.server()
    hub = whole.hub(server)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=90)
    server.fault(Fault.RATE_LIMITED, path=whole.path, retry_after=later)
    with pytest.raises(BackendOverloaded) as caught:
        whole.ask(hub, timeout=5)
    assert caught.value.retry_after == pytest.approx(90, abs=5)


def test_row_12_a_model_that_loads_is_waited_for_out_of_no_retry_budget(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, rig.server())
    server.fault(Fault.LOADING, path=rig.path, seconds=0.2)
    response = rig.ask(hub)
    assert (response.served_by.backend, response.served_by.attempts > 1) == ("b0", True)
    found = rig.condition(hub)
    assert (found.retries, found.retries_left, found.failures, found.loading) == (0, 10, 0, None)


def test_row_12_the_wait_for_a_load_has_a_deadline_of_its_own(rig: Any) -> None:
    server, other = rig.server(), rig.server()
    server.fault(Fault.LOADING, path=rig.path)
    waits = Timeouts(load=0.25)
    with pytest.raises(DeadlineExceeded, match="still loading the model after 0.25 s") as caught:
        rig.ask(rig.hub(server, timeouts=waits))
    assert caught.value.stage == "load"
    assert rig.ask(rig.hub(server, other, timeouts=waits)).served_by.backend == "b1"


def test_row_12_the_state_loading_can_be_seen(whole: Any) -> None:
    server = whole.server()
    hub = whole.hub(server)
    server.fault(Fault.LOADING, path=whole.path, seconds=0.3)
    thread = threading.Thread(target=lambda: whole.ask(hub))
    thread.start()
    assert whole.until(lambda: bool(hub.conditions()) and whole.condition(hub).loading is not None)
    assert whole.condition(hub).rung == "model_present"
    thread.join()
    assert whole.condition(hub).loading is None


@pytest.mark.parametrize("wire", ["ollama"], indirect=True)
def test_row_12_a_load_goes_on_when_its_caller_gives_up(rig: Any) -> None:
    server = rig.server(speed=Speed(load=0.3))  # which drops the load when its client leaves
    hub = rig.hub(server, timeouts=Timeouts())
    with pytest.raises(DeadlineExceeded) as caught:
        rig.ask(hub, timeout=0.1)
    assert caught.value.stage == "total"
    assert rig.until(lambda: bool(server.loads))
    assert rig.ask(hub, timeout=0.25).text == "pong"
    assert len(server.loads) == 1


def test_row_13_a_full_queue_is_passed_on_or_said_and_not_hammered(rig: Any) -> None:
    full, other = rig.server(), rig.server()
    full.fault(Fault.QUEUE_FULL, path=rig.path)
    with pytest.raises(BackendOverloaded):
        rig.ask(rig.hub(full))
    assert rig.asked(full) == 1
    hub = rig.hub(full, other)
    for _ in range(6):
        assert rig.ask(hub).served_by.backend == "b1"
    assert rig.asked(full) == 1 + 3  # then it is left alone


def test_row_14_a_backend_out_of_memory_is_ejected_at_once(rig: Any) -> None:
    ill, other = rig.server(), rig.server()
    hub = rig.hub(ill, other)
    ill.fault(Fault.OUT_OF_MEMORY, path=rig.path)
    assert rig.ask(hub).served_by.backend == "b1"
    found = rig.condition(hub)
    assert found.breaker == "open"
    assert "out of memory" in found.reason
    assert rig.ask(hub).served_by.attempts == 1
    assert rig.asked(ill) == 1
    alone = rig.hub(ill)
    with pytest.raises(BackendFailed, match="out of memory"):
        rig.ask(alone)
    assert rig.condition(alone).retries == 0  # no identical retry there


@pytest.mark.parametrize("status", [400, 422])
def test_row_17_a_bad_request_is_the_callers(rig: Any, status: int) -> None:
    server, other = rig.server(), rig.server()
    hub = rig.hub(server, other)
    server.fault(Fault.BAD_REQUEST, path=rig.path, status=status)
    for number in range(4):
        with pytest.raises(InvalidRequest):
            rig.ask(hub, f"ping {number}")
    found = rig.condition(hub)
    assert (found.calls, found.failures, found.retries, found.breaker) == (4, 0, 0, "closed")
    assert not other.requests


@pytest.mark.parametrize("fault", [Fault.UNAUTHORIZED, Fault.FORBIDDEN])
def test_row_18_a_refused_key_is_said_and_never_shown(rig: Any, fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server, other = rig.server(), rig.server()
    hub = rig.hub(server, other, key="sk-very-secret")
    server.fault(fault, path=rig.path)
    with pytest.raises(AuthenticationFailed) as caught:
        rig.ask(hub)
    shown = f"{caught.value} {caught.value!r} {hub.conditions()} {caplog.text}"
    assert "sk-very-secret" not in shown
    assert rig.asked(server) == 1
    assert not other.requests


def test_row_19_a_missing_model_is_named_with_those_there_are_and_how_to_get_it(rig: Any) -> None:
    server, other = rig.server(), rig.server()
    with pytest.raises(ModelNotFound) as caught:
        rig.ask(rig.hub(server, model="nope"))
    assert any("hub-test-vlm" in name for name in caught.value.available)
    assert "nope" in str(caught.value)
    assert ("ollama pull nope" if rig.wire == "ollama" else "vllm serve nope") in str(caught.value)
    assert rig.asked(server) == 1
    server.fault(Fault.NOT_FOUND, path=rig.path)
    assert rig.ask(rig.hub(server, other)).served_by.backend == "b1"  # a route that was configured for it


def test_row_20_a_prompt_over_the_context_is_an_error_with_both_numbers(rig: Any) -> None:
    model = FakeModel(name="hub-test-vlm", context=64)
    server = rig.server(models=[model]) if rig.wire == "ollama" else rig.server(model=model)
    hub = rig.hub(server, rig.server())
    with pytest.raises(ContextOverflow) as caught:
        rig.ask(hub, "word " * 200)
    assert caught.value.limit == 64
    assert caught.value.tokens is not None
    assert caught.value.tokens > 64
    assert rig.condition(hub).failures == 0


def _poisoned(server: Any) -> None:
    """Have it fail at what holds the word, and serve all else."""
    right = server.respond

    def respond(request: Any) -> Any:
        return Reply.of_json({"error": "boom"}, status=500) if b"poison" in request.body else right(request)

    server.respond = respond


def test_row_33_a_poison_request_is_passed_on_once_and_opens_nothing(rig: Any) -> None:
    servers = [rig.server() for _ in range(3)]
    hub = rig.hub(*servers)
    for server in servers:
        _poisoned(server)
    for _ in range(5):
        with pytest.raises(BackendFailed) as caught:
            rig.ask(hub, "poison")
        assert [one.backend for one in caught.value.earlier] == ["b0"]
    hub.close()
    assert [sum(b"poison" in request.body for request in server.requests) for server in servers] == [5, 5, 0]
    assert {one.breaker for one in hub.conditions()} == {"closed"}


def test_row_33_requests_that_differ_open_the_breaker_and_a_success_forgives(rig: Any) -> None:
    server, other = rig.server(), rig.server()
    hub = rig.hub(server, other)
    server.fault(Fault.SERVER_ERROR, path=rig.path, times=2)
    for number in range(3):  # the third is served, so the first two are forgotten
        rig.ask(hub, f"ping {number}")
    assert rig.condition(hub).breaker == "closed"
    server.fault(Fault.SERVER_ERROR, path=rig.path, status=502)
    for number in range(3):
        assert rig.ask(hub, f"ping {number}").served_by.backend == "b1"
    assert rig.condition(hub).breaker == "open"


def test_row_33_one_request_that_kills_everything_ejects_one_backend(rig: Any) -> None:
    servers = [rig.server(), rig.server()]
    hub = rig.hub(*servers)
    for server in servers:
        server.fault(Fault.OUT_OF_MEMORY, path=rig.path)
    with pytest.raises(BackendFailed):
        rig.ask(hub, "poison")
    assert [one.breaker for one in hub.conditions()] == ["open", "closed"]


def test_row_33_a_dead_last_backend_is_still_asked(rig: Any) -> None:
    server = rig.server()
    hub = rig.hub(server, limits=BackendLimits(retries=0))
    server.fault(Fault.OUT_OF_MEMORY, path=rig.path, times=1)
    with pytest.raises(BackendFailed):
        rig.ask(hub)
    assert rig.condition(hub).breaker == "open"
    assert rig.ask(hub).text == "pong"
    assert rig.condition(hub).breaker == "closed"


def test_row_34_a_page_for_people_is_a_protocol_error_that_shows_how_it_begins(rig: Any) -> None:
    server, other = rig.server(), rig.server()
    server.fault(Fault.HTML_PAGE, path=rig.path)
    with pytest.raises(ProtocolError, match="DOCTYPE html") as caught:
        rig.ask(rig.hub(server))
    assert server.url in str(caught.value)
    assert rig.ask(rig.hub(server, other)).served_by.backend == "b1"


def test_a_call_that_must_not_be_repeated_is_not_passed_on_once_it_was_sent(rig: Any) -> None:
    server, other = rig.server(), rig.server()
    server.fault(Fault.SERVER_ERROR, path=rig.path, times=1)
    hub = rig.hub(server, other)
    with pytest.raises(BackendFailed):
        rig.ask(hub, repeatable=False)
    assert not other.requests
    server.stop()
    assert rig.ask(hub, repeatable=False).served_by.backend == "b1"  # nothing was sent
