"""The breaker, on a clock that the test turns."""

from __future__ import annotations

import gc
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.breaker import THRESHOLD, Breaker, BreakerState
from llm_hub.config import BackendLimits
from llm_hub.errors import BackendFailed
from llm_hub.health import Health
from llm_hub.retries import backoff


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock=clock, jitter=lambda: 0.5)


def _open(breaker: Breaker) -> None:
    assert breaker.blame(object(), object(), "it died", at_once=True)


def test_it_opens_after_distinct_requests_have_failed_and_not_for_one(breaker: Breaker) -> None:
    for _ in range(20):
        assert not breaker.blame(object(), "the same", "boom")
    for number in range(THRESHOLD - 2):
        assert not breaker.blame(object(), number, "boom")
    assert breaker.blame(object(), "yet another", "boom")
    assert (breaker.state, breaker.reason) == (BreakerState.OPEN, "boom")


def test_a_success_wipes_out_what_was_held_against_it(breaker: Breaker, clock: Clock) -> None:
    for number in range(10):
        assert not breaker.blame(object(), number, "boom")
        breaker.succeeded(object(), clock.now)
    assert breaker.closed


def test_while_open_nobody_is_let_in_and_then_one(breaker: Breaker, clock: Clock) -> None:
    _open(breaker)
    assert not breaker.admit(object())
    clock.now += 1.01
    first, second = object(), object()
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.admit(first)
    assert not breaker.admit(second)
    breaker.leave(first)  # it was cancelled
    assert breaker.admit(second)
    assert breaker.succeeded(second, clock.now)
    assert breaker.admit(object())


def test_cool_downs_grow_while_it_fails_and_begin_anew_when_it_was_well_for_long(
    breaker: Breaker, clock: Clock
) -> None:
    lengths = []
    _open(breaker)
    for _ in range(9):
        lengths.append(breaker.cooling())
        clock.now += breaker.cooling() + 0.001
        visitor = object()
        assert breaker.admit(visitor)
        assert breaker.blame(visitor, object(), "boom")
    assert lengths == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], rel=0.01)
    clock.now += 100
    visitor = object()
    assert breaker.admit(visitor)
    breaker.succeeded(visitor, clock.now)
    clock.now += 1
    _open(breaker)
    assert breaker.cooling() > 50  # it broke again at once
    clock.now += 100
    assert breaker.admit(visitor)
    breaker.succeeded(visitor, clock.now)
    clock.now += 100
    _open(breaker)
    assert breaker.cooling() == pytest.approx(1, rel=0.01)


def test_what_began_before_it_broke_proves_nothing(breaker: Breaker, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    _open(breaker)
    assert not breaker.succeeded(object(), began)
    assert not breaker.closed
    clock.now += 0.1
    assert breaker.succeeded(object(), clock.now)  # a call of last resort


def test_a_server_that_names_a_time_is_left_alone_for_that_time(breaker: Breaker, clock: Clock) -> None:
    assert breaker.pause(object(), 30, "429")
    assert not breaker.pause(object(), 5, "429")  # a shorter one does not end it sooner
    assert (breaker.cooling(), breaker.asked) == (30, True)
    assert not breaker.probed(well=True)  # what a probe says is no answer to that
    clock.now += 30
    assert breaker.state is BreakerState.HALF_OPEN


def test_no_call_is_risked_while_a_probe_is_on_its_way(breaker: Breaker, clock: Clock) -> None:
    _open(breaker)
    breaker.hold(10)
    clock.now += 5
    assert not breaker.admit(object())
    assert breaker.probed(well=True)
    assert breaker.admit(object())


def test_a_visit_that_is_dropped_gives_back_its_place_and_its_trial(clock: Clock) -> None:
    health = Health("b", "p", clock=clock, limits=BackendLimits(concurrent=1))
    health.breaker.blame(object(), object(), "boom", at_once=True)
    clock.now += 2
    visit: Any = health.visit()
    assert health.breaker.admit(visit)
    assert health.limiter.enter(visit)
    assert not health.breaker.admit(object())
    del visit
    gc.collect()
    assert health.limiter.inside == 0
    assert health.breaker.admit(object())


def test_a_condition_is_plain_data(clock: Clock) -> None:
    import msgspec

    health = Health("b", "p", address="http://x", clock=clock)
    for number in range(THRESHOLD):
        error = BackendFailed(f"it broke {'x' * 300}", backend="b", status=500)
        health.failed(health.visit(), error, lambda number=number: number, at_once=False)  # type: ignore[misc]
    found = health.snapshot()
    assert (found.breaker, found.failures, found.opened, found.rung) == ("open", 3, 1, "alive")
    assert len(found.reason) < 210
    again = msgspec.json.decode(msgspec.json.encode(found), type=type(found))
    assert again == found


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "ok", "fail", "die", "pause", "leave", "probe", "wait"]), st.integers(0, 5))
    )
)
def test_whatever_happens_there_is_one_trial_at_most_and_time_always_opens_the_way(
    steps: list[tuple[str, int]],
) -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    inside: list[object] = []
    trials: list[object] = []
    for step, number in steps:
        if step == "ask":
            visitor = object()
            was_open = not breaker.closed
            if breaker.admit(visitor):
                inside.append(visitor)
                if was_open:
                    assert not [one for one in trials if one in inside]
                    trials.append(visitor)
        elif step == "wait":
            clock.now += number
        elif step == "probe":
            breaker.probed(well=number % 2 == 0, reason="probe")
            trials.clear()
        elif inside:
            visitor = inside.pop(number % len(inside))
            if step == "ok":
                breaker.succeeded(visitor, clock.now)
            elif step == "pause":
                breaker.pause(visitor, number + 1, "429")
            elif step == "leave":
                breaker.leave(visitor)
            else:
                breaker.blame(visitor, number, "boom", at_once=step == "die")
            if breaker.closed or visitor in trials:
                trials = [one for one in trials if one is not visitor]
    for visitor in inside:
        breaker.leave(visitor)
    clock.now += 1000
    assert breaker.admit(object())


def test_jitter_leaves_the_generator_alone_that_a_service_may_have_seeded() -> None:
    before = random.getstate()
    breakers = [Breaker() for _ in range(5)]
    for one in breakers:
        assert one.blame(object(), object(), "it died", at_once=True)
    assert len({round(one.cooling(), 3) for one in breakers}) > 1
    assert len({backoff(3) for _ in range(5)}) > 1
    assert random.getstate() == before
