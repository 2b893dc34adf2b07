"""The retry budget and the pauses between tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_hub.retries import RESERVE, SHARE, WINDOW, RetryBudget, backoff


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_up_to_a_bound_and_are_spread_over_all_of_it() -> None:
    assert [backoff(number, jitter=lambda: 1.0) for number in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff(3, jitter=lambda: 0.0) == 0.0
    assert 0 <= backoff(1000) <= 5.0


def test_a_backend_with_few_calls_has_its_reserve_and_a_busy_one_a_share_more() -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    assert [budget.take() for _ in range(RESERVE + 1)] == [True] * RESERVE + [False]
    clock.now += WINDOW
    assert budget.left() == RESERVE
    for _ in range(100):
        budget.request(clock.now)
    assert budget.left() == RESERVE + 20
    assert [budget.take() for _ in range(31)].count(True) == 30
    clock.now += WINDOW + 0.5
    assert budget.left() == RESERVE


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.floats(0, 20)), max_size=40))
def test_no_retry_is_granted_over_the_budget_of_the_window_that_ends_with_it(
    steps: list[tuple[int, int, float]],
) -> None:
    clock = Clock()
    budget = RetryBudget(clock=clock)
    requests: list[int] = []
    retries: list[int] = []
    for asked, wanted, pause in steps:
        for _ in range(asked):
            budget.request(clock.now)
            requests.append(int(clock.now))
        granted = [budget.take() for _ in range(wanted)].count(True)
        retries += [int(clock.now)] * granted
        now = int(clock.now)
        window = range(now - WINDOW + 1, now + 1)
        allowed = RESERVE + SHARE * sum(at in window for at in requests)
        if granted:  # later the requests leave the window sooner than the retries that they allowed
            assert sum(at in window for at in retries) <= allowed
        clock.now += pause
