"""The way of one call through its route: places, deadlines, retries, failover and breakers, for whole and streamed answers.

The order is that of the route. A backend whose breaker is open is tried last, never left out: a breaker must not take away
the last backend of a capability. When all have failed once, those whose failure may pass are tried again after a pause,
within the deadline and the retry budget.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import msgspec

from llm_hub.asking import advise, guarded, refuse, watched
from llm_hub.call import Call
from llm_hub.capabilities import Feature
from llm_hub.epochs import Lease
from llm_hub.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendUnreachable,
    DeadlineExceeded,
    EmbeddingSpaceChanged,
    HubError,
    ModelNotFound,
)
from llm_hub.events import FailedOver, Retrying
from llm_hub.health import Visit
from llm_hub.limiter import QueueFull
from llm_hub.messages import ServedBy
from llm_hub.prober import attend, tell_closed, tell_opened
from llm_hub.retries import CHANCE, backoff
from llm_hub.runtime import Destination, Route, Runtime
from llm_hub.selection import Ask
from llm_hub.unsaid import hush
from llm_hub.worlds import World

__all__ = ["Journey", "in_order"]

logger = logging.getLogger("llm_hub")

T = TypeVar("T")
R = TypeVar("R", bound=msgspec.Struct)
Attempt = Callable[[Destination, R], Awaitable[T]]
Admit = Callable[[Destination], Awaitable[None]]

_GRAVE = 2  # times that a request may fail in the hands of a backend; by then it may be the request
_LONGEST_PAUSE = 60.0  # seconds that a call without a deadline waits for a server that asked to be left alone
_POLL, _SLOWEST_POLL = 0.25, 2.0  # seconds between two looks at a model that loads; each is half as long again
_LAST_LOOK = 0.02  # seconds before a deadline, when it is no use to look again
_CROWDED = 2  # steps of the backoff that are left out with a backend that has too much to do


async def in_order(
    world: World,
    lease: Lease[Runtime],
    ask: Ask,
    request: R,
    needs: frozenset[Feature],
    call: Call,
    attempt: Attempt[R, T],
    *,
    admit: Admit | None = None,
    generates: bool = True,
) -> tuple[T, ServedBy]:
    """A whole answer from the first destination of the route that gives one; see `Journey`."""
    journey = Journey(world, lease, ask, request, needs, call, attempt, admit=admit, generates=generates)
    result, served_by, visit = await journey.go()
    journey.served(visit, served_by.model)
    return result, served_by


class Journey(Generic[R, T]):
    """One call, on its way through the destinations of its route.

    `request` has a field `model`; each destination gets its own. `needs` are the features that a destination must have.
    `attempt` asks one destination. `admit` is asked before a fallback is tried, and raises EmbeddingSpaceChanged for one
    that must not serve. `generates` False: the answer says nothing of a backend's health, and takes no place there.
    """

    __slots__ = (
        "_admit",
        "_ask",
        "_attempt",
        "_attempts",
        "_call",
        "_ejected",
        "_failed",
        "_generates",
        "_grave",
        "_lease",
        "_needs",
        "_refused",
        "_request",
        "_route",
        "_runtime",
        "_world",
    )

    def __init__(
        self,
        world: World,
        lease: Lease[Runtime],
        ask: Ask,
        request: R,
        needs: frozenset[Feature],
        call: Call,
        attempt: Attempt[R, T],
        *,
        admit: Admit | None = None,
        generates: bool = True,
    ) -> None:
        self._world = world
        self._lease = lease
        self._runtime = lease.value
        self._ask = ask
        self._request = request
        self._needs = needs
        self._call = call
        self._attempt = attempt
        self._admit = admit
        self._generates = generates
        self._attempts = 0
        self._grave = 0
        self._ejected = False
        self._failed: dict[int, HubError] = {}  # the last error of each destination, the latest last
        self._refused: list[HubError] = []

    # -- the way ------------------------------------------------------------------------------------------------------

    async def go(self) -> tuple[T, ServedBy, Visit]:
        """The answer, who gave it, and the visit there, which the caller ends. Raises the errors of `llm_hub.errors`."""
        runtime = self._runtime
        self._route: Route = runtime.cached(self._ask) or await runtime.route(self._world, self._ask, self._call)
        order: Iterable[int] = range(len(self._route.destinations))
        retry = 0
        while (done := await self._round(order, retry)) is None:
            order = await self._pause(retry)
            retry += 1
        # The errors of before hold frames, and these what the call has come to: a stream must be gone when it is dropped.
        self._failed.clear()
        self._refused.clear()
        return done

    async def _round(self, order: Iterable[int], retry: int) -> tuple[T, ServedBy, Visit] | None:
        """Try these destinations, once each; None if all failed, and none in a way that ends the call."""
        ahead, later = deque(order), list[int]()
        paid = True  # the first retry of a round is out of the budget already
        while ahead or later:
            resort = not ahead
            position = self._last_resort(later) if resort else ahead.popleft()
            destination = self._route.destinations[position]
            health = destination.health
            visit = health.visit()
            done = False
            try:
                if not health.breaker.closed and not health.breaker.admit(visit):
                    if not resort:
                        later.append(position)
                        continue
                    if health.breaker.asked:
                        await self._leave_alone(destination)
                if retry and not paid and not health.budget.take():
                    continue
                paid = False
                if retry:
                    health.retries += 1
                result = await self._stay(position, visit)
                done = True
                return result
            except EmbeddingSpaceChanged as refusal:
                if position == 0:
                    raise
                # That the one before failed is what matters; the refusal of a fallback is an addition to it.
                logger.warning("%s", refusal)
                self._refused.append(refusal)
            except HubError as error:
                # As the route knows it now: a model may have been found for it.
                destination = self._route.destinations[position]
                self.failed(destination, visit, error)
                await advise(self._world, self._runtime, destination, self._ask, self._call, error)
                self._failed.pop(position, None)
                self._failed[position] = error
                following = ahead[0] if ahead else later[0] if later else None
                self._go_on(destination, error, following)
            finally:
                if not done:
                    visit.leave()
        return None

    def _last_resort(self, later: list[int]) -> int:
        """Of those that are to be left alone: the next, and of those that named a time the one that comes first."""

        def wait(position: int) -> float:
            breaker = self._route.destinations[position].health.breaker
            return breaker.cooling() if breaker.asked else 0.0

        position = min(later, key=wait)
        later.remove(position)
        return position

    def _go_on(self, destination: Destination, error: HubError, following: int | None) -> None:
        """After this error: raise it if it ends the call, else tell who is tried next."""
        if _is_grave(error):
            self._grave += 1
        if self._grave >= _GRAVE or not _may_pass_on(error, self._call):
            raise self._final(error)
        if following is not None:
            self._runtime.watch.tell(
                FailedOver(
                    request_id=self._call.request_id,
                    capability=str(self._ask.capability),
                    backend=destination.name,
                    to=self._route.destinations[following].name,
                    model=destination.model,
                    epoch=self._lease.epoch.number,
                    error=type(error).__name__,
                    reason=self._reason(error),
                )
            )

    async def _pause(self, retry: int) -> list[int]:
        """All have failed: wait before those are tried again whose failure may pass. Raises the last error if none is."""
        error = next(reversed(self._failed.values()))
        again = [
            position
            for position, failure in sorted(self._failed.items())
            if _may_repeat(failure) and self._route.destinations[position].health.limits.retries > retry
        ]
        if not again:
            raise self._final(error)
        crowded = all(isinstance(self._failed[position], BackendOverloaded) for position in again)
        delay = backoff(retry + _CROWDED * crowded)
        first = self._route.destinations[again[0]]
        if self._runtime.is_closed() or delay >= self._call.remaining():
            raise self._final(error)
        if not first.health.budget.take():
            error.hint = " ".join(filter(None, (error.hint, "It was not tried again: its retry budget is used up.")))
            raise self._final(error)
        why = self._failed[again[0]]
        self._runtime.watch.tell(
            Retrying(
                request_id=self._call.request_id,
                capability=str(self._ask.capability),
                backend=first.name,
                model=first.model,
                epoch=self._lease.epoch.number,
                attempt=self._attempts,
                delay=delay,
                error=type(why).__name__,
                reason=self._reason(why),
            )
        )
        await self._world.wait(self._world.signal(), delay, self._call)
        return again

    def _final(self, error: HubError) -> HubError:
        """The error that ends the call, with what happened at the other destinations."""
        error.earlier = tuple(one for one in self._failed.values() if one is not error)
        if self._refused:
            refused = (f"No fallback: {str(one).rstrip('.')}." for one in self._refused)
            error.hint = " ".join(filter(None, (error.hint, *refused)))
        return error

    @staticmethod
    def _reason(error: HubError) -> str:
        """What the error says, for all who watch: without what it repeats of the request."""
        return str(error) if error.public is None else str(error).replace(error.message, error.public, 1)

    # -- one destination ----------------------------------------------------------------------------------------------

    async def _stay(self, position: int, visit: Visit) -> tuple[T, ServedBy, Visit]:
        """Ask one destination, for as long as all that it says is that the model is loading."""
        call, runtime, world = self._call, self._runtime, self._world
        destination = self._route.destinations[position]
        call.check()
        call.timeouts = destination.timeouts
        if destination.model is None:
            complete = runtime.with_model(world, self._route, position, self._ask, call)
            destination = await guarded(complete, destination)
            known = self._route.destinations
            self._route = Route(self._route.decision, (*known[:position], destination, *known[position + 1 :]))
        refuse(runtime, destination, self._needs, self._ask.capability)
        if position and self._admit is not None:
            await self._admit(destination)
        to_send = self._request
        if destination.model != to_send.model:  # type: ignore[attr-defined]  # every request has one
            to_send = msgspec.structs.replace(to_send, model=destination.model)
        if self._generates:
            await self._enter(destination, visit)
        poll, until = _POLL, 0.0
        while True:
            self._attempts += 1
            destination.health.calls += 1
            if self._attempts == 1:
                destination.health.budget.request(visit.began)
            try:
                result = await watched(self._attempt(destination, to_send), destination, call)
            except BackendLoading as error:
                until = until or time.monotonic() + destination.timeouts.load
                await self._while_loading(destination, error, poll, until)
                poll = min(poll * 1.5, _SLOWEST_POLL)
                continue
            served_by = ServedBy(
                destination.name,
                destination.plugin,
                destination.model,
                self._lease.epoch.number,
                attempts=self._attempts,
                fallback=position > 0,
            )
            return result, served_by, visit

    async def _enter(self, destination: Destination, visit: Visit) -> None:
        """Take a place at the backend, or wait for one in its queue."""
        health, call = destination.health, self._call
        try:
            if health.limiter.enter(visit):
                return
        except QueueFull:
            raise _crowded(destination, f"the queue for it is full: {health.limits.queue} calls wait") from None
        visit.signal = self._world.signal()
        if not health.limiter.has_place(visit):
            await self._world.wait(visit.signal, min(health.limits.wait, call.remaining()), call)
        if not health.limiter.has_place(visit):
            call.check(destination.name)
            raise _crowded(destination, f"no place became free for it within {health.limits.wait:g} s")
        visit.began = health.clock()

    async def _while_loading(self, destination: Destination, error: BackendLoading, poll: float, until: float) -> None:
        """Wait before it is asked again. Raises when that would be too late."""
        hush(error, self._request)
        destination.health.note(error)
        left = until - time.monotonic()
        if left <= _LAST_LOOK:
            raise DeadlineExceeded(
                f"it was still loading the model after {destination.timeouts.load:g} s",
                stage="load",
                seconds=destination.timeouts.load,
                backend=destination.name,
                hint="If it needs longer, raise timeouts.load of this backend.",
            ) from error
        # With a look before either deadline, however long the pause would be.
        pause = max(poll, error.retry_after or 0.0) * CHANCE.uniform(0.75, 1.25)
        pause = min(pause, left, self._call.remaining() / 2)
        if pause <= _LAST_LOOK:
            raise error
        await self._world.wait(self._world.signal(), pause, self._call)

    async def _leave_alone(self, destination: Destination) -> None:
        """The server asked to be left alone, and there is no other: wait, or say for how long it wants to be."""
        breaker = destination.health.breaker
        cooling = breaker.cooling()
        if cooling >= min(self._call.remaining(), _LONGEST_PAUSE):
            error = _crowded(destination, f"it asked to be left alone for another {cooling:.1f} s ({breaker.reason})")
            error.retry_after = cooling
            error.hint = "Wait that long, give the call a longer timeout, or declare a fallback."
            raise error
        # Not all at the same moment.
        await self._world.wait(self._world.signal(), cooling + CHANCE.uniform(0, 0.1 * cooling), self._call)

    # -- how it went --------------------------------------------------------------------------------------------------

    def served(self, visit: Visit, model: str | None) -> None:
        """The answer is complete."""
        if not self._generates:
            visit.leave()
        elif visit.health.served(visit, model):
            tell_closed(self._runtime, visit.health)

    def failed(self, destination: Destination, visit: Visit, error: HubError) -> None:
        """The visit ended with this error, before or after the answer had begun."""
        health = destination.health
        hush(error, self._request)
        if not isinstance(error, BackendError):
            visit.leave()
            health.note(error)
            return
        # One call puts one backend out of use: if the next fails as well, it may be for the request's sake.
        opened = health.failed(visit, error, self._fingerprint, at_once=error.ejects and not self._ejected)
        if opened:
            self._ejected = self._ejected or error.ejects
            tell_opened(self._runtime, health, error)
        attend(self._runtime, destination, self._ask.capability, error, opened=opened)

    def _fingerprint(self) -> object:
        """What tells this request from others, so that the same one, sent again, is blamed once."""
        try:
            return hash(msgspec.msgpack.encode(self._request))
        except (TypeError, ValueError, OverflowError, NotImplementedError):  # options of a plugin may be anything
            return id(self._request)


def _may_pass_on(error: HubError, call: Call) -> bool:
    """May it be tried again, here or elsewhere? Only if no backend can have acted on a call that must not be repeated."""
    if call.remaining() <= 0:  # then this error says who was slow
        return False
    not_acted = isinstance(error, _NOT_ACTED) or (isinstance(error, DeadlineExceeded) and error.stage == "connect")
    return error.failover and (call.repeatable or not_acted)


def _may_repeat(error: HubError) -> bool:
    """Is it worth while to ask the same backend again? One whose queue is full sheds load: not unless it says when."""
    if isinstance(error, BackendOverloaded):
        return error.retryable and (error.status == 429 or error.retry_after is not None)
    return error.retryable


_NOT_ACTED = (BackendUnreachable, ModelNotFound, BackendLoading)


def _is_grave(error: HubError) -> bool:
    """Did the request fail in the hands of the backend, so that it may be the request's fault?"""
    if isinstance(error, DeadlineExceeded):
        return error.stage not in ("connect", "load")
    return isinstance(error, BackendError) and not isinstance(
        error, BackendUnreachable | BackendOverloaded | BackendLoading
    )


def _crowded(destination: Destination, message: str) -> BackendOverloaded:
    """The hub itself holds the call back: nothing was sent, and the backend is not to blame."""
    error = BackendOverloaded(
        message,
        backend=destination.name,
        hint="Send less at a time, raise limits in the settings of this backend, or declare a fallback.",
    )
    error.retryable = error.blames_backend = False
    return error
