"""Leases and epochs: nothing closes while it is leased, everything closes once."""

from __future__ import annotations

import gc
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from llm_hub.epochs import Epoch, EpochStore, Lease
from llm_hub.errors import HubClosed


class Thing:
    """What an epoch holds here: counts how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def published(store: EpochStore[Thing]) -> Epoch[Thing]:
    epoch = store.next_epoch(Thing(), Thing.close)
    store.publish(epoch)
    return epoch


def test_an_epoch_closes_when_its_last_lease_is_returned() -> None:
    store: EpochStore[Thing] = EpochStore()
    first = published(store)
    lease = store.lease()
    published(store)
    assert (first.retired, first.value.closed) == (True, 0)
    lease.release()
    assert first.value.closed == 1


def test_an_epoch_without_leases_closes_when_the_next_is_published() -> None:
    store: EpochStore[Thing] = EpochStore()
    first = published(store)
    second = published(store)
    assert (first.value.closed, second.value.closed) == (1, 0)
    assert (first.number, second.number) == (1, 2)


def test_releasing_twice_and_dropping_after_that_counts_once() -> None:
    store: EpochStore[Thing] = EpochStore()
    first = published(store)
    one, other = store.lease(), store.lease()
    published(store)
    one.release()
    one.release()
    del one
    gc.collect()
    assert first.value.closed == 0
    other.release()
    assert first.value.closed == 1


def test_a_dropped_lease_is_returned() -> None:
    store: EpochStore[Thing] = EpochStore()
    first = published(store)
    lease = store.lease()
    published(store)
    del lease
    gc.collect()
    assert first.value.closed == 1


def test_there_is_no_lease_after_the_end() -> None:
    store: EpochStore[Thing] = EpochStore()
    published(store)
    store.publish(None)
    with pytest.raises(HubClosed):
        store.lease()


def test_a_switch_that_comes_after_the_end_brings_nothing_back() -> None:
    store: EpochStore[Thing] = EpochStore()
    published(store)
    store.publish(None)
    with pytest.raises(HubClosed):
        published(store)
    store.publish(None)
    assert store.latest is None
    with pytest.raises(HubClosed):
        store.lease()


def test_whoever_claims_the_closing_does_it_alone() -> None:
    store: EpochStore[Thing] = EpochStore()
    epoch = published(store)
    assert epoch.claim()
    store.publish(None)
    assert epoch.value.closed == 0
    assert not epoch.claim()


def test_threads_that_lease_while_epochs_are_switched_never_see_a_closed_one() -> None:
    store: EpochStore[Thing] = EpochStore()
    epochs = [published(store)]
    stop = threading.Event()
    seen_closed: list[int] = []
    taken = [0] * 4

    def work(number: int) -> None:
        while not stop.is_set():
            lease = store.lease()
            if lease.value.closed:
                seen_closed.append(lease.epoch.number)
            taken[number] += 1
            lease.release()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        epochs.append(published(store))
    stop.set()
    for thread in threads:
        thread.join()
    store.publish(None)
    assert not seen_closed
    assert [epoch.value.closed for epoch in epochs] == [1] * len(epochs)
    assert min(taken) > 0


class Switching(RuleBasedStateMachine):
    """Any order of leasing, releasing, dropping and publishing."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.store: EpochStore[Thing] = EpochStore()
        self.epochs = [published(self.store)]
        self.held: dict[Lease[Thing], Epoch[Thing]] = {}

    @rule(target=leases)
    def lease(self) -> Lease[Thing]:
        lease = self.store.lease()
        assert lease.epoch is self.epochs[-1]
        self.held[lease] = lease.epoch
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease[Thing]) -> None:
        lease.release()
        self.held.pop(lease, None)

    @rule(lease=leases, times=st.integers(1, 3))
    def release_again_later(self, lease: Lease[Thing], times: int) -> None:
        for _ in range(times):
            lease.release()
        self.held.pop(lease, None)

    @rule()
    def publish(self) -> None:
        self.epochs.append(published(self.store))

    @invariant()
    def closed_exactly_when_retired_and_unleased(self) -> None:
        for epoch in self.epochs:
            leased = any(held is epoch for held in self.held.values())
            assert epoch.value.closed == int(epoch is not self.epochs[-1] and not leased)


Switching.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSwitching = Switching.TestCase
