"""Probes in the background: of a backend that failed in passing, of one whose breaker is open, and loads that callers gave up on."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Probe, Rung
from llm_hub.errors import BackendUnreachable, DeadlineExceeded, HubError
from llm_hub.events import BreakerChanged
from llm_hub.health import Health, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_hub.runtime import Destination, Runtime

    _Work = Callable[[weakref.ref[Runtime], Destination, Capability], None]

__all__ = ["attend", "tell_closed", "tell_opened"]

logger = logging.getLogger("llm_hub")

_SUSPICIOUS = 2  # failures since the last success, of whatever request
_CONTROL = 5.0  # seconds for a probe that generates nothing
_GENERATING = 30.0  # the most seconds for one that does
_FORGOTTEN = 300.0  # seconds after the last call, from when on nobody wants to know
_EARLY = 0.75  # part of a cool-down after which a probe looks whether it may end
_STILL_LOADED = 120.0  # seconds after the last answer of a model for which it is not believed to be out of memory


def attend(
    runtime: Runtime, destination: Destination, capability: Capability, error: HubError, *, opened: bool
) -> None:
    """A backend has failed: look after it in the background, if there is reason to."""
    health = destination.health
    if opened or health.suspicions >= _SUSPICIOUS:
        _start(_watch, runtime, destination, capability, health)
    elif isinstance(error, DeadlineExceeded) and error.stage != "connect" and _may_load(destination):
        _start(_load, runtime, destination, capability, health)


def _may_load(destination: Destination) -> bool:
    """May the model have to be loaded before it answers? What has just answered is in memory."""
    since = destination.health.served_at.get(destination.model)
    in_process = destination.health.address is None
    return (destination.loads_on_demand or in_process) and (
        since is None or destination.health.clock() - since > _STILL_LOADED
    )


def tell_opened(runtime: Runtime, health: Health, error: HubError | None, reason: str = "") -> None:
    """A breaker has opened, or its cool-down has grown."""
    runtime.watch.tell(
        BreakerChanged(
            backend=health.name,
            state="open",
            seconds=round(health.breaker.cooling(), 3),
            error=None if error is None else type(error).__name__,
            reason=reason or (reason_of(error) if error is not None else ""),
        )
    )


def tell_closed(runtime: Runtime, health: Health) -> None:
    """A breaker has closed: the backend serves again."""
    runtime.watch.tell(BreakerChanged(backend=health.name, state="closed", before="half-open"))


def _start(work: _Work, runtime: Runtime, destination: Destination, capability: Capability, health: Health) -> None:
    """One thread a backend at most."""
    with health.watch_lock:
        if health.watcher is not None or health.stop.cancelled:
            return
        health.watcher = thread = threading.Thread(
            target=_in_thread,
            args=(work, weakref.ref(runtime), destination, capability),
            name=f"llm-hub-probe-{health.name}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as failure:  # the interpreter ends, or the process can have no more threads
            health.watcher = None
            logger.debug("no probe of %s: %s", health.name, failure)


def _in_thread(work: _Work, runtime: weakref.ref[Runtime], destination: Destination, capability: Capability) -> None:
    health = destination.health
    try:
        work(runtime, destination, capability)
    finally:
        health.watcher = None


def _watch(ref: weakref.ref[Runtime], destination: Destination, capability: Capability) -> None:
    """Find out whether a suspect generates; probe one that is out of use until it may be tried again."""
    health, breaker = destination.health, destination.health.breaker
    if breaker.closed:
        began = health.clock()
        probe = _probe(ref, destination, capability, Rung.LOADED) if _may_load(destination) else None
        if probe is None or probe.ok:
            probe = _probe(ref, destination, capability, Rung.GENERATING)
        if probe is None:
            return
        served = health.served_at.get(destination.model)
        if probe.ok or (served is not None and served > began):
            health.suspicions = 0
            return
        _cool_down(ref, health, probe)
    while not breaker.closed and not breaker.asked:
        health.rest(breaker.cooling() * _EARLY)
        if _no_more(health):
            return
        breaker.hold(_limit(destination, health.needs))  # no call is risked while the probe is on its way
        probe = _probe(ref, destination, capability, health.needs)
        if probe is None:
            breaker.hold(0.0)
            return
        if probe.ok:
            if breaker.probed(well=True) and (runtime := ref()) is not None:
                runtime.watch.tell(BreakerChanged(backend=health.name, state="half-open", before="open"))
            return
        _cool_down(ref, health, probe)


def _no_more(health: Health) -> bool:
    """Has a call found it well meanwhile, or has nobody asked for it for long?"""
    return health.stop.cancelled or health.breaker.closed or health.clock() - health.asked_at > _FORGOTTEN


def _cool_down(ref: weakref.ref[Runtime], health: Health, probe: Probe) -> None:
    health.needs = Rung.MODEL_PRESENT if probe.rung is None else max(health.needs, probe.wanted)
    health.breaker.probed(well=False, reason=probe.detail)
    if (runtime := ref()) is not None:
        tell_opened(runtime, health, None, probe.detail)


def _load(ref: weakref.ref[Runtime], destination: Destination, capability: Capability) -> None:
    """A caller gave up, which may have cancelled the load of the model: load it apart from any caller's deadline."""
    _probe(ref, destination, capability, Rung.LOADED)
    if destination.health.suspicions >= _SUSPICIOUS:
        _watch(ref, destination, capability)


def _limit(destination: Destination, rung: Rung) -> float:
    """Seconds that a probe may take."""
    if rung < Rung.LOADED:
        return _CONTROL
    if rung is Rung.LOADED:
        return destination.timeouts.load
    most = min(destination.timeouts.first_token, _GENERATING)
    return most + destination.timeouts.load if _may_load(destination) else most


def _probe(ref: weakref.ref[Runtime], destination: Destination, capability: Capability, rung: Rung) -> Probe | None:
    """Probe the backend; None if its hub or epoch is closed, so that nobody wants to know."""
    runtime = ref()
    if runtime is None or runtime.is_closed():
        return None
    began = time.monotonic()
    call = Call(timeout=_limit(destination, rung), timeouts=destination.timeouts, cancel=destination.health.stop)
    try:
        probe: Probe = destination.backend.probe(rung, destination.model, call)
    except HubError as error:
        reached = None if isinstance(error, BackendUnreachable) else Rung.ALIVE
        probe = Probe(rung=reached, wanted=rung, detail=error.message, hint=error.hint)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        probe = Probe(rung=None, wanted=rung, detail=f"its plugin raised {type(error).__name__}: {error}")
    if runtime.is_closed() or destination.health.stop.cancelled:
        return None
    runtime.note_probe(destination.name, destination.model, capability, probe, seconds=time.monotonic() - began)
    return probe
