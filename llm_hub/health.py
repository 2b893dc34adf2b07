"""What is known of the health of each backend: counted in passing, and kept when a switch leaves the backend as it is."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from llm_hub.breaker import Breaker, BreakerState
from llm_hub.call import CancelToken
from llm_hub.capabilities import Capability, Probe, Rung
from llm_hub.config import BackendConfig, BackendLimits
from llm_hub.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendUnreachable,
    DeadlineExceeded,
    HubError,
    ModelNotFound,
)
from llm_hub.limiter import Limiter
from llm_hub.retries import RetryBudget

if TYPE_CHECKING:
    from llm_hub.worlds import Signal

__all__ = ["BackendCondition", "Health", "HealthBook", "Visit"]

_KEPT = 128  # latencies of the last calls
_REASON = 200  # characters of an error that are shown


class BackendCondition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The condition of one backend in one process, as plain data. Times in seconds; ages count back from now.

    `breaker` is "closed", "open" or "half-open"; while open, `reason` says why, `cooling` for how long still, and
    `asked` that the server itself named the time (Retry-After). `rung` is the highest rung of the health ladder that is
    known to have held `rung_age` seconds ago, "" for not even alive. `latency` has the median and the 95th percentile of
    the last whole answers, `first_chunk` of the first chunks of streams.
    """

    name: str
    plugin: str
    address: str | None = None
    breaker: str = "closed"
    reason: str = ""
    cooling: float = 0.0
    asked: bool = False
    rung: str | None = None
    rung_age: float | None = None
    loading: float | None = None
    degraded: str | None = None
    in_flight: int = 0
    waiting: int = 0
    places: int | None = None
    calls: int = 0
    failures: int = 0
    retries: int = 0
    retries_left: int = 0
    opened: int = 0
    latency: tuple[float, float] | None = None
    first_chunk: tuple[float, float] | None = None
    last_error: str | None = None
    last_error_age: float | None = None


class Visit:
    """One attempt at one backend: it holds a place there until it says how it went, or is dropped."""

    __slots__ = ("began", "first", "gone", "health", "signal")

    def __init__(self, health: Health, now: float) -> None:
        self.health = health
        self.began = now
        self.first: float | None = None
        self.gone = False
        self.signal: Signal | None = None

    def wake(self) -> None:
        """A place has become free for it."""
        signal = self.signal
        if signal is not None:
            signal.set()

    def leave(self) -> None:
        """Give the place back. What has not been told by then says nothing about the backend. Idempotent."""
        if not self.gone:
            self.health.limiter.leave(self)
            self.health.breaker.leave(self)

    __del__ = leave


class Health:
    """What is known of one backend, and what bounds its use. Safe to use from any thread."""

    def __init__(
        self,
        name: str,
        plugin: str,
        *,
        address: str | None = None,
        limits: BackendLimits = BackendLimits(),  # noqa: B008 - a frozen value
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.plugin = plugin
        self.address = address
        self.limits = limits
        self.clock = clock
        self.breaker = Breaker(clock=clock)
        self.budget = RetryBudget(clock=clock)
        self.limiter = Limiter(limits.concurrent, limits.queue)
        self.calls = 0
        self.failures = 0
        self.retries = 0
        self.suspicions = 0  # failures, of whatever request, since the last success
        self.rung: Rung | None = None
        self.rung_at: float | None = None
        self.needs = Rung.MODEL_PRESENT  # the rung that must hold before a call is risked again
        self.loading_since: float | None = None
        self.degraded: str | None = None
        self.digests: dict[str, str] = {}
        self.served_at: dict[str | None, float] = {}
        self.asked_at = clock()
        self.watcher: threading.Thread | None = None  # who probes it in the background
        self.watch_lock = threading.Lock()
        self.stop = CancelToken()  # for that thread
        # Not the error itself: its traceback would hold the call, its request and its lease for as long.
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self._latency: deque[float] = deque(maxlen=_KEPT)
        self._first: deque[float] = deque(maxlen=_KEPT)

    def __repr__(self) -> str:
        return f"<Health of {self.name!r}: {self.breaker.state}>"

    # -- told in passing ----------------------------------------------------------------------------------------------

    def visit(self) -> Visit:
        """Begin an attempt. It has no place yet: see `Limiter.enter`."""
        now = self.asked_at = self.clock()
        return Visit(self, now)

    def served(self, visit: Visit, model: str | None) -> bool:
        """The attempt was served to its end. True if that closed the breaker."""
        now = self.clock()
        if visit.first is not None:
            self._first.append(visit.first - visit.began)
        else:
            self._latency.append(now - visit.began)
        self.suspicions = 0
        self.loading_since = None
        self.rung, self.rung_at = Rung.GENERATING, now
        self.served_at[model] = now
        closed = self.breaker.succeeded(visit, visit.began)
        visit.leave()
        return closed

    def failed(self, visit: Visit, error: BackendError, request: Callable[[], object], *, at_once: bool) -> bool:
        """The attempt ended with this error. True if that opened the breaker.

        `request` gives what tells one request from another; `at_once` opens the breaker without a second witness.
        """
        opened = False
        self.note(error)
        impatient = (
            isinstance(error, DeadlineExceeded) and error.stage == "total"
        )  # the caller's, and perhaps too short
        busy = isinstance(error, BackendOverloaded)  # which it could not say if it were ill
        if error.backend is not None and (error.blames_backend or impatient) and not busy:
            self.suspicions += 1
        if error.blames_backend and not impatient:
            self.failures += 1
            opened = self._blame(visit, error, request, at_once=at_once)
        visit.leave()
        return opened

    def _blame(self, visit: Visit, error: BackendError, request: Callable[[], object], *, at_once: bool) -> bool:
        reason = reason_of(error)
        if error.retry_after is not None and error.retry_after > 0:
            return self.breaker.pause(visit, error.retry_after, reason)
        # A backend that cannot be reached, or is full, fails whatever is asked: there each call counts, not each request.
        each = isinstance(error, BackendUnreachable | BackendOverloaded) or (
            isinstance(error, DeadlineExceeded) and error.stage == "connect"
        )
        opened = self.breaker.blame(visit, object() if each else request(), reason, at_once=at_once)
        if opened:
            self.needs = Rung.MODEL_PRESENT if each else Rung.GENERATING
        return opened

    def note(self, error: HubError) -> None:
        """What an error says in passing of how far up the ladder the backend is."""
        now = self.clock()
        if isinstance(error, ModelNotFound):
            self.rung, self.rung_at = Rung.ALIVE, now
        if not isinstance(error, BackendError) or error.backend is None:
            return
        self.last_error, self.last_error_at = reason_of(error), now
        if isinstance(error, BackendLoading):
            self.rung, self.rung_at = Rung.MODEL_PRESENT, now
            if self.loading_since is None:
                self.loading_since = now
        elif isinstance(error, BackendUnreachable):
            self.rung, self.rung_at = None, now
        elif error.blames_backend and error.status is not None:
            self.rung, self.rung_at = Rung.ALIVE, now

    def probed(self, probe: Probe, model: str | None) -> str | None:
        """What a probe found. Says how the digest of the model has changed since the last one, if it has."""
        now = self.clock()
        if probe.rung is None or not (probe.ok and self.rung is not None and self.rung > probe.rung):
            self.rung, self.rung_at = probe.rung, now  # else what is known of higher rungs stands
        self.degraded = probe.degraded
        if probe.rung is not None and probe.rung >= self.needs and not self.breaker.closed:
            self.breaker.probed(well=True)
        if probe.digest is None or model is None:
            return None
        before = self.digests.get(model)
        self.digests[model] = probe.digest
        return None if before in (None, probe.digest) else f"{str(before)[:12]} before, {probe.digest[:12]} now"

    def rest(self, seconds: float) -> None:
        """Wait, until the hub is closed at most. For the thread that probes in the background."""
        over = threading.Event()
        self.stop.subscribe(over, over.set)
        try:
            over.wait(seconds)
        finally:
            self.stop.unsubscribe(over)

    # -- showing ------------------------------------------------------------------------------------------------------

    def snapshot(self) -> BackendCondition:
        """What is known now."""
        now = self.clock()
        state = self.breaker.state
        error, at = self.last_error, self.last_error_at
        return BackendCondition(
            name=self.name,
            plugin=self.plugin,
            address=self.address,
            breaker=str(state),
            reason="" if state is BreakerState.CLOSED else self.breaker.reason,
            cooling=round(self.breaker.cooling(), 3),
            asked=state is not BreakerState.CLOSED and self.breaker.asked,
            rung=None if self.rung_at is None else ("" if self.rung is None else self.rung.name.lower()),
            rung_age=_age(now, self.rung_at),
            loading=_age(now, self.loading_since),
            degraded=self.degraded,
            in_flight=self.limiter.inside,
            waiting=self.limiter.waiting,
            places=self.limiter.places,
            calls=self.calls,
            failures=self.failures,
            retries=self.retries,
            retries_left=self.budget.left(),
            opened=self.breaker.opened,
            latency=_percentiles(self._latency),
            first_chunk=_percentiles(self._first),
            last_error=error,
            last_error_age=_age(now, at),
        )

    def forked(self) -> None:
        """In the child of a fork: the threads and tasks of the parent are not here."""
        self.watch_lock = threading.Lock()
        self.watcher = None
        self.breaker.forked()
        self.budget.forked()
        self.limiter.forked()


def reason_of(error: HubError) -> str:
    """An error in a few words, without what a backend's answer may repeat of a request at length."""
    text = " ".join((error.message if error.public is None else error.public).split())
    return text if len(text) <= _REASON else text[:_REASON].rstrip() + " ..."


def _age(now: float, at: float | None) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)


def _percentiles(values: Iterable[float]) -> tuple[float, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    last = len(ordered) - 1
    return round(ordered[last // 2], 6), round(ordered[round(last * 0.95)], 6)


class HealthBook:
    """The health of every backend of a hub, by its configuration. One book outlives all epochs.

    Capabilities that share an address share the health of its server; those with an address of their own have one each.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pages: dict[tuple[str, str | None], list[tuple[BackendConfig, Health]]] = {}
        _BOOKS.add(self)

    def of(self, config: BackendConfig, capability: Capability, *, address: str | None = None) -> Health:
        """The health of this backend: the same as before if it was configured like this before."""
        address = config.base_url(capability) or address
        key = (config.name, address)
        with self._lock:
            pages = self._pages.setdefault(key, [])
            for known, health in pages:
                if _alike(known, config):
                    pages.append(pages.pop(pages.index((known, health))))
                    return health
            health = Health(config.name, config.plugin, address=address, limits=config.limits, clock=self._clock)
            pages.append((config, health))
            del pages[:-_CONFIGURATIONS]
            return health

    def current(self, name: str) -> tuple[Health, ...]:
        """The health of a backend, as last configured: one for each address it has."""
        with self._lock:
            return tuple(pages[-1][1] for (one, _), pages in self._pages.items() if one == name and pages)

    def snapshot(self) -> tuple[BackendCondition, ...]:
        """The condition of every backend that was used, by name."""
        with self._lock:
            found = [pages[-1][1] for pages in self._pages.values() if pages]
        return tuple(sorted((one.snapshot() for one in found), key=lambda one: (one.name, one.address or "")))

    def close(self, timeout: float = 1.0) -> None:
        """End the probes in the background, waiting at most so many seconds for each."""
        with self._lock:
            found = [health for pages in self._pages.values() for _, health in pages]
        for health in found:
            health.stop.cancel()
        for health in found:
            watcher = health.watcher
            if watcher is not None and watcher is not threading.current_thread():
                watcher.join(timeout)

    def _forked(self) -> None:
        self._lock = threading.Lock()
        for pages in self._pages.values():
            for _, health in pages:
                health.forked()


_CONFIGURATIONS = 8  # of one backend that are remembered, so that a rollback finds what it left


def _alike(one: Any, other: Any) -> bool:
    """Is this the same server, used in the same way? Where it was configured, and with which models, does not matter."""
    return all(
        getattr(one, field) == getattr(other, field)
        for field in ("plugin", "base_urls", "api_key", "limits", "timeouts", "options")
    )


_BOOKS: weakref.WeakSet[HealthBook] = weakref.WeakSet()


def _after_fork() -> None:
    for book in list(_BOOKS):
        book._forked()


os.register_at_fork(after_in_child=_after_fork)
