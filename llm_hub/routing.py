"""Whole answers: a call's lease, its way through the route, and the answer that says who gave it."""

from __future__ import annotations

import time
from typing import TypeVar

import msgspec

from llm_hub.attempts import in_order
from llm_hub.call import Call
from llm_hub.capabilities import Feature, required_features
from llm_hub.epochs import EpochStore
from llm_hub.errors import ProtocolError
from llm_hub.messages import ChatRequest, ChatResponse, ReadRequest, ReadResponse, ServedBy, TokenCount
from llm_hub.promises import check_promises
from llm_hub.runtime import Destination, Runtime
from llm_hub.selection import Ask
from llm_hub.watching import begin
from llm_hub.worlds import World

__all__ = ["make_ready", "route_chat", "route_count", "route_read"]


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


A = TypeVar("A", ChatResponse, ReadResponse)


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

    lease = epochs.lease()
    begin(lease, ask, "chat", call)
    try:
        request, needs = await make_ready(world, request)
        response, served_by = await in_order(world, lease, ask, request, needs, call, attempt)
    except BaseException as error:
        if call.watching is not None:
            call.watching.failed(error)
        raise
    finally:
        lease.release()
    return _stamp(response, served_by, call)


async def route_read(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ReadRequest, call: Call
) -> ReadResponse:
    """The text on an image. Raises as `route_chat` does."""

    async def attempt(destination: Destination, to_send: ReadRequest) -> ReadResponse:
        return await world.read(destination.backend, to_send, call)

    lease = epochs.lease()
    begin(lease, ask, "read", call)
    try:
        response, served_by = await in_order(world, lease, ask, request, _READ, call, attempt)
    except BaseException as error:
        if call.watching is not None:
            call.watching.failed(error)
        raise
    finally:
        lease.release()
    return _stamp(response, served_by, call)


_READ = frozenset({Feature.READ})


async def route_count(
    world: World, epochs: EpochStore[Runtime], ask: Ask, request: ChatRequest, call: Call
) -> TokenCount:
    """The tokens of a prompt, counted by the backend that would answer it, or estimated."""
    lease = epochs.lease()

    async def attempt(destination: Destination, to_send: ChatRequest) -> TokenCount:
        counted = await world.count(destination.backend, to_send, call)
        if counted is not None:
            return counted
        known = lease.value.known.get((destination.name, destination.model or ""))
        size = sum(len(message.text.encode()) for message in request.messages)
        limit = known.context_length if known is not None else None
        return TokenCount(tokens=-(-size // 4) + 4 * len(request.messages), limit=limit, exact=False)

    begin(lease, ask, "count", call)
    try:
        request, needs = await make_ready(world, request)
        counted, served_by = await in_order(world, lease, ask, request, needs, call, attempt, generates=False)
    except BaseException as error:
        if call.watching is not None:
            call.watching.failed(error)
        raise
    finally:
        lease.release()
    if call.watching is not None:
        call.watching.ended(counted, served_by)
    return counted
