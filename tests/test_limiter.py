"""Places and the queue for them: threads race, and nothing is lost."""

from __future__ import annotations

import gc
import random
import threading
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_hub.limiter import Limiter, QueueFull


class Waiting:
    """Somebody who wants a place."""

    def __init__(self, woken: list[Waiting] | None = None) -> None:
        self.gone = False
        self.event = threading.Event()
        self.woken = woken

    def wake(self) -> None:
        if self.woken is not None:
            self.woken.append(self)
        self.event.set()


def test_without_a_limit_everybody_has_a_place() -> None:
    limiter = Limiter()
    inside = [Waiting() for _ in range(100)]
    assert all(limiter.enter(one) for one in inside)
    assert limiter.inside == 100
    for one in inside:
        limiter.leave(one)
        limiter.leave(one)
    assert limiter.inside == 0


def test_places_are_given_in_the_order_of_coming() -> None:
    woken: list[Waiting] = []
    limiter = Limiter(2, queue=3)
    people = [Waiting(woken) for _ in range(6)]
    assert [limiter.enter(one) for one in people[:5]] == [True, True, False, False, False]
    with pytest.raises(QueueFull):
        limiter.enter(people[5])
    limiter.leave(people[3])  # out of the queue
    limiter.leave(people[0])
    limiter.leave(people[1])
    assert woken == [people[2], people[4]]
    assert limiter.has_place(people[4])
    assert (limiter.inside, limiter.waiting) == (2, 0)


@given(st.integers(1, 3), st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_it_behaves_as_a_queue_does(places: int, queue: int, steps: list[tuple[bool, int]]) -> None:
    limiter = Limiter(places, queue)
    inside: list[Waiting] = []
    line: deque[Waiting] = deque()
    for comes, number in steps:
        if comes:
            one = Waiting()
            if len(inside) < places:
                assert limiter.enter(one)
                inside.append(one)
            elif len(line) < queue:
                assert not limiter.enter(one)
                line.append(one)
            else:
                with pytest.raises(QueueFull):
                    limiter.enter(one)
        elif everybody := [*inside, *line]:
            one = everybody[number % len(everybody)]
            limiter.leave(one)
            if one in inside:
                inside.remove(one)
                if line:
                    inside.append(line.popleft())
            else:
                line.remove(one)
        assert (limiter.inside, limiter.waiting) == (len(inside), len(line))
        assert all(limiter.has_place(one) for one in inside)
        assert all(one.event.is_set() == (one in inside) for one in line)


def test_threads_that_come_go_and_give_up_lose_no_place() -> None:
    limiter = Limiter(3, queue=100)
    most, served, given_up = [0], [0], [0]

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(200):
            one = Waiting()
            if not limiter.enter(one) and not one.event.wait(chance.choice((0, 0, 0.001, 5))):
                limiter.leave(one)  # perhaps at the very moment when it is given a place
                given_up[0] += 1
                continue
            most[0] = max(most[0], limiter.inside)
            served[0] += 1
            limiter.leave(one)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert (limiter.inside, limiter.waiting) == (0, 0)
    assert most[0] <= 3
    assert served[0]


def test_leaving_while_this_very_thread_enters_does_not_lock_up() -> None:
    limiter = Limiter(1, queue=5)
    first, second, third = Waiting(), Waiting(), Waiting()
    limiter.enter(first)
    limiter.enter(second)
    with limiter._lock:  # as if the garbage collector ran while this thread is inside
        limiter.leave(first)
        gc.collect()
    assert not limiter.has_place(second)
    limiter.enter(third)  # whoever comes next looks again
    assert second.event.is_set()
    limiter.leave(second)
    limiter.leave(third)
    assert (limiter.inside, limiter.waiting) == (0, 0)
