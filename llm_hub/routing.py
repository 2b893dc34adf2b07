"""Whole answers: a call's lease, its way through the route, and the answer that says who gave it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from llm_hub.attempts import in_order
from llm_hub.call import Call
from llm_hub.capabilities import Feature, required_features
from llm_hub.epochs import EpochStore, Lease
from llm_hub.errors import HubClosed, HubError, ProtocolError
from llm_hub.events import Operation
from llm_hub.messages import ChatRequest, ChatResponse, ReadRequest, ReadResponse, ServedBy, TokenCount
from llm_hub.promises import check_promises
from llm_hub.runtime import Destination, Runtime
from llm_hub.selection import Ask
from llm_hub.watching import begin
from llm_hub.worlds import World

__all__ = ["leased", "make_ready", "route_chat", "route_count", "route_read"]


def _checked(response: ChatResponse, request: ChatRequest) -> ChatResponse:
    """The answer, if it is one: as many choices as were asked for, each at its end and what it was to be."""
    n = request.n
    found: object = response
    if not isinstance(found, ChatResponse):
        raise ProtocolError(f"its plugin answered with a {type(found).__name__} in place of a ChatResponse")
    if len(found.choices) < n or any(choice.finish_reason is None for choice in found.choices):
        raise ProtocolError(
            f"its plugin answered with {len(found.choices)} of {n} choices, or with one that has no end"
        )
    check_promises(request, found)
    return found


T = TypeVar("T")
A = TypeVar("A", ChatResponse, ReadResponse)


async def leased(
    epochs: EpochStore[Runtime],
    ask: Ask,
    operation: Operation,
    call: Call,
    work: Callable[[Lease[Runtime]], Awaitable[T]],
) -> T:
    """What `work` comes to on the epoch in force; on the next one, if it failed because its epoch was drained no longer.

    Over HTTP an answer that is on its way comes all the same. An engine in this process is closed with its epoch.
    """
    lease = epochs.lease()
    begin(lease, ask, operation, call)
    try:
        while True:
            try:
                return await work(lease)
            except HubError as error:
                if not _moves_on(epochs, lease, call, error):
                    raise
                error.__traceback__ = None  # its frames hold the lease
            lease.release()
            lease = epochs.lease()
            if call.watching is not None:
                call.watching.moved(lease)
    except BaseException as error:
        if call.watching is not None:
            call.watching.failed(error)
        raise
    finally:
        lease.release()


def _moves_on(epochs: EpochStore[Runtime], lease: Lease[Runtime], call: Call, error: HubError) -> bool:
    """Did it fail because a switch has closed its epoch, while another serves, and may it be asked there?"""
    if not lease.value.is_closed() or epochs.latest in (None, lease.epoch):
        return False
    return (error.failover or isinstance(error, HubClosed)) and call.repeatable and call.remaining() > 0


def _stamp(response: A, served_by: ServedBy, call: Call) -> A:
    timings = msgspec.structs.replace(response.timings, total=time.monotonic() - call.started)
    if call.watching is not None:
        call.watching.ended(response, served_by)
    return msgspec.structs.replace(response, served_by=served_by, timings=timings)


async def make_ready(world: World, request: ChatRequest) -> tuple[ChatRequest, frozenset[Feature]]:
    """The request with its images checked and made ready, and the features that serving it takes."""
    needs = required_features(request)
    if Feature.IMAGES in needs:
        from llm_hub.images import prepare  # here, because most calls have no images

        ready = request
        request = await world.apart(lambda: prepare(ready))
    return request, needs


async def route_chat(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ChatRequest, call: Call
) -> ChatResponse:
    """A whole answer. Raises the errors of `llm_hub.errors`; `earlier` holds those of the destinations before."""

    async def attempt(destination: Destination, to_send: ChatRequest) -> ChatResponse:
        return _checked(await world.chat(destination.backend, to_send, call), to_send)

    async def work(lease: Lease[Runtime]) -> tuple[ChatResponse, ServedBy]:
        ready, needs = await make_ready(world, request)
        return await in_order(world, lease, ask, ready, needs, call, attempt)

    response, served_by = await leased(epochs, ask, "chat", call, work)
    return _stamp(response, served_by, call)


async def route_read(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ReadRequest, call: Call
) -> ReadResponse:
    """The text on an image. Raises as `route_chat` does."""

    async def attempt(destination: Destination, to_send: ReadRequest) -> ReadResponse:
        return await world.read(destination.backend, to_send, call)

    async def work(lease: Lease[Runtime]) -> tuple[ReadResponse, ServedBy]:
        return await in_order(world, lease, ask, request, _READ, call, attempt)

    response, served_by = await leased(epochs, ask, "read", call, work)
    return _stamp(response, served_by, call)


_READ = frozenset({Feature.READ})


async def route_count(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ChatRequest, call: Call
) -> TokenCount:
    """The tokens of a prompt, counted by the backend that would answer it, or estimated."""

    async def work(lease: Lease[Runtime]) -> tuple[TokenCount, ServedBy]:
        async def attempt(destination: Destination, to_send: ChatRequest) -> TokenCount:
            counted = await world.count(destination.backend, to_send, call)
            if counted is not None:
                return counted
            known = lease.value.known.get((destination.name, destination.model or ""))
            size = sum(len(message.text.encode()) for message in request.messages)
            limit = known.context_length if known is not None else None
            return TokenCount(tokens=-(-size // 4) + 4 * len(request.messages), limit=limit, exact=False)

        ready, needs = await make_ready(world, request)
        return await in_order(world, lease, ask, ready, needs, call, attempt, generates=False)

    counted, served_by = await leased(epochs, ask, "count", call, work)
    if call.watching is not None:
        call.watching.ended(counted, served_by)
    return counted
