"""The state of a hub as `Hub.status` tells it: what each capability comes to, and how its backends were found."""

from __future__ import annotations

from typing import Any

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Probe
from llm_hub.errors import HubError
from llm_hub.runtime import Runtime
from llm_hub.selection import OPERATIONS, Ask, Decision

__all__ = ["BackendStatus", "HubStatus", "RouteStatus", "resolved"]


class RouteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a capability comes to: a decision, or the error that stands in its way. `operation`: which half of vision."""

    capability: Capability
    operation: str = ""
    decision: Decision | None = None
    error: str | None = None


class BackendStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a backend was found."""

    name: str
    plugin: str
    capability: Capability
    probe: Probe


class HubStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a hub: its epoch, its routes, and the backends that they lead to, each probed."""

    epoch: int
    routes: tuple[RouteStatus, ...]
    backends: tuple[BackendStatus, ...]

    @property
    def ready(self) -> bool:
        """Can every capability that was asked about be served?"""
        healthy = {(one.name, one.capability) for one in self.backends if one.probe.ok}
        return bool(self.routes) and all(
            route.decision is not None
            and any(
                (name, route.capability) in healthy
                for name in (route.decision.backend, *(target.backend for target in route.decision.fallbacks))
            )
            for route in self.routes
        )


async def resolved(world: Any, runtime: Runtime, wanted: str, timeout: float) -> RouteStatus:
    """What a capability, or one operation of it, comes to."""
    name, _, operation = wanted.partition(".")
    capability = Capability(name)
    failed: str | None = None
    for one in (operation,) if operation else OPERATIONS[capability]:
        ask = Ask(capability=capability, operation=one)
        try:
            decision = await runtime.decision(world, ask, Call(timeout=timeout))
        except HubError as error:
            failed = failed or str(error)
        else:
            return RouteStatus(capability=capability, operation=one, decision=decision)
    return RouteStatus(capability=capability, operation=operation or OPERATIONS[capability][0], error=failed)
