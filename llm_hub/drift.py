"""Looks at what runs: the processes of the backends, what their servers and the driver say, and whether that is the plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llm_hub.call import Call
from llm_hub.capabilities import Capability
from llm_hub.errors import HubError
from llm_hub.gpu import Finding, Inventory, read_inventory, resolve
from llm_hub.gpu.planning import descendants
from llm_hub.process import listener
from llm_hub.running import read_running
from llm_hub.starting import is_local
from llm_hub.transport import drive
from llm_hub.truth import Seen, compare
from llm_hub.worlds import BLOCKING

if TYPE_CHECKING:
    from llm_hub.runtime import Runtime

__all__ = ["drift", "look"]


def drift(
    runtime: Runtime, *, only: Iterable[str] | None = None, timeout: float = 10.0, inventory: Inventory | None = None
) -> tuple[Finding, ...]:
    """Where the backends that run are not as the plan has them. Nothing where nothing is assigned.

    `only` names the backends to look at, by default all that are configured and answer. `timeout` in seconds, for each.
    """
    assignments = runtime.settings.assignments
    if not any(one.gpus for one in assignments):
        return ()
    inventory = inventory or read_inventory()
    placements = resolve(assignments, inventory)
    names = tuple(runtime.settings.backends) if only is None else tuple(only)
    seen = {name: found for name in names if (found := look(runtime, name, timeout=timeout)) is not None}
    return compare(placements, inventory, seen)


def look(runtime: Runtime, name: str, *, timeout: float = 10.0) -> Seen | None:
    """What is seen of one backend; None if it does not serve, which is not for this to tell."""
    capability = next((one for one in Capability if runtime.offers(name, one)), None)
    if capability is None:
        return None
    try:
        backend = runtime.backend(name, capability)
        call = Call(timeout=timeout)
        models = drive(runtime.models(BLOCKING, name, backend, call))
        # A server that knows its share of the GPU tells it in a conversation of its dialect (vLLM: /metrics).
        talk = getattr(getattr(backend, "dialect", None), "memory_share", None)
        share = backend.converse(talk(), call) if talk is not None else None  # type: ignore[attr-defined]
    except HubError:
        return None
    loaded = [one.loaded for one in models if one.loaded is not None]
    return Seen(
        pids=_pids(runtime, name),
        complaints=tuple(f"{one.name}: {one.degraded}" for one in models if one.loaded and one.degraded),
        loaded=any(loaded) if loaded else None,
        share=share,
    )


def _pids(runtime: Runtime, name: str) -> frozenset[int] | None:
    """The processes of a backend: those of the register, else those of whoever listens on its address here."""
    running = read_running(runtime.settings.state_path)
    registered = running.backends.get(name) if running is not None else None
    if registered is not None and registered.alive:
        return frozenset(descendants({registered.pid: name}))
    config = runtime.config(name)
    urls = set(config.base_urls.values()) or {runtime.manifest(name).default_url or ""}
    pids: set[int] = set()
    for url in urls:
        parts = urlsplit(url)
        if parts.hostname is None or not is_local(parts.hostname):
            return None
        owner = listener(parts.port or 80)
        if owner is None:
            return None
        pids |= descendants({owner: name}).keys()
    return frozenset(pids)
