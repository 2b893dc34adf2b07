"""Asking one destination: what it cannot do is refused first, and what its plugin raises becomes an error of the hub."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TypeVar

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Feature
from llm_hub.errors import BackendError, BackendFailed, HubError, ModelNotFound, UnsupportedFeature
from llm_hub.runtime import Destination, Runtime
from llm_hub.selection import Ask, elsewhere
from llm_hub.worlds import World

__all__ = ["advise", "fault", "guarded", "refuse", "watched"]

T = TypeVar("T")


async def watched(work: Awaitable[T], destination: Destination, call: Call) -> T:
    """`guarded`, and the observers are told of the attempt."""
    watching = call.watching
    if watching is None:
        return await guarded(work, destination)
    started = time.monotonic()
    try:
        result = await guarded(work, destination)
    except BaseException as error:
        watching.attempt(destination, started, error)
        raise
    watching.attempt(destination, started)
    return result


async def guarded(work: Awaitable[T], destination: Destination) -> T:
    """What a plugin raises that is no error of the hub is a failure of its backend, with what it raised as the cause."""
    try:
        return await work
    except HubError as error:
        if error.backend is None:
            error.backend = destination.name
        raise
    except Exception as error:
        raise fault(error, destination.name, destination.plugin) from error


def fault(error: Exception, backend: str | None, plugin: str) -> BackendFailed:
    """The error for what a plugin raised and should not have."""
    return BackendFailed(
        f"its plugin {plugin!r} raised {type(error).__name__}: {error}",
        backend=backend,
        hint="This is a fault of the plugin: report it there, with the traceback that --debug or the log shows.",
    )


def refuse(runtime: Runtime, destination: Destination, needs: frozenset[Feature], capability: Capability) -> None:
    """Raise UnsupportedFeature for what the backend or the model, as far as it is known, cannot do."""
    missing = needs - destination.features
    what = f"its plugin {destination.plugin!r} has"
    if not missing and destination.model is not None:
        known = runtime.known.get((destination.name, destination.model))
        if known is not None and known.features is not None:
            missing = (needs & _OF_MODELS) - known.features
            what = f"its model {destination.model!r} has"
    if missing:
        raise UnsupportedFeature(
            f"{what} no support for {', '.join(sorted(missing))}",
            features=tuple(sorted(missing)),
            backend=destination.name,
            hint=elsewhere(capability, missing)
            or "Leave it out, or choose a backend and model that have it; see: llm-hub models",
        )


_OF_MODELS = frozenset({Feature.TOOLS, Feature.IMAGES, Feature.REASONING})
"""What depends on the model and not on the server alone."""


async def advise(
    world: World, runtime: Runtime, destination: Destination, ask: Ask, call: Call, error: HubError
) -> None:
    """Say what to do about it, where that takes more than the backend knows."""
    if isinstance(error, UnsupportedFeature) and tuple(error.features) == (Feature.IMAGES,):
        error.hint = elsewhere(ask.capability, frozenset({Feature.IMAGES}))
    if isinstance(error, ModelNotFound):
        runtime.forget(ask)
        await _list_models(world, runtime, destination, call, error)


async def _list_models(
    world: World, runtime: Runtime, destination: Destination, call: Call, error: ModelNotFound
) -> None:
    """Say what the backend has instead, and how to get what it has not."""
    if not error.available:
        try:
            found = await runtime.models(world, destination.name, destination.backend, call)
        except BackendError:
            return  # the error stands without the list
        error.available = tuple(model.name for model in found)
        if found:
            error.message += f"; it has {', '.join(error.available)}"
    if error.hint is None and destination.install_model and (error.model or destination.model):
        error.hint = "Fetch it: " + destination.install_model.format(model=error.model or destination.model)
