"""What an operator sees at a glance: what serves, how healthy it is, and how far each process has come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Probe, Rung
from llm_hub.control import Entry
from llm_hub.errors import HubError
from llm_hub.health import BackendCondition
from llm_hub.presence import Report, live
from llm_hub.running import RunningBackend, read_running
from llm_hub.selection import OPERATIONS, Ask, Decision, Target
from llm_hub.transport import drive
from llm_hub.worlds import BLOCKING

if TYPE_CHECKING:
    from llm_hub.hub import Hub
    from llm_hub.runtime import Runtime

__all__ = ["BackendLine", "CapabilityLine", "Overview", "overview"]


class CapabilityLine(msgspec.Struct, frozen=True, kw_only=True):
    """What serves one capability or operation, or why nothing does."""

    what: str
    decision: Decision | None = None
    error: str | None = None


class BackendLine(msgspec.Struct, frozen=True, kw_only=True):
    """One backend: how it answers now, and the sum of what the live processes say of it (`breaker` is the worst).

    `latency` and `first_chunk` are of the process that waits longest: median and 95th percentile, in seconds.
    """

    name: str
    capabilities: tuple[str, ...]
    model: str | None = None
    probe: Probe | None = None
    condition: BackendCondition | None = None
    processes: int = 0


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The state of everything that shares a control file. `problem` is what is wrong with that file.

    `started` are the backends that `llm-hub up` keeps running beside it, by name.
    """

    control_file: str | None
    current: Entry
    problem: str | None
    pinned: bool
    capabilities: tuple[CapabilityLine, ...]
    backends: tuple[BackendLine, ...]
    processes: tuple[Report, ...]
    started: Mapping[str, RunningBackend] = {}

    @property
    def behind(self) -> tuple[Report, ...]:
        """The processes that are not on the current epoch, but for those that are pinned."""
        return tuple(one for one in self.processes if one.switch != self.current.id and not one.pinned)

    @property
    def ready(self) -> bool:
        """Does everything serve that was asked for, and is every process where it should be?"""
        sick = {one.name for one in self.backends if one.probe is None or not one.probe.ok}
        serving = all(line.decision is not None and line.decision.backend not in sick for line in self.capabilities)
        return serving and not self.behind and self.problem is None


def overview(hub: Hub, *, rung: Rung = Rung.MODEL_PRESENT, timeout: float = 5.0) -> Overview:
    """Look at everything now. `timeout` in seconds, for each backend; they are asked side by side."""
    runtime = hub.runtime
    lines = tuple(_line(runtime, ask, timeout) for ask in _asks(runtime))
    wanted: dict[tuple[str, Capability, str | None], None] = {}
    for line in lines:
        if line.decision is not None:
            capability = line.decision.capability
            for target in (Target(line.decision.backend, line.decision.model), *line.decision.fallbacks):
                wanted.setdefault((target.backend, capability, target.model))
    reports = tuple(live(hub.control_file)) if hub.control_file is not None else ()
    with ThreadPoolExecutor(max_workers=max(1, min(16, len(wanted)))) as pool:
        asked = [
            pool.submit(_probe, runtime, name, capability, model, rung, timeout) for name, capability, model in wanted
        ]
        probes = [one.result() for one in asked]
    board = hub.standing()
    return Overview(
        control_file=hub.settings.state_path,
        current=hub.in_force,
        problem=board.problem,
        pinned=board.pinned,
        capabilities=lines,
        backends=_backends(list(zip(wanted, probes, strict=True)), reports),
        processes=reports,
        started=_started(hub.settings.state_path),
    )


def _started(state_path: str | None) -> Mapping[str, RunningBackend]:
    """What `llm-hub up` keeps running; nothing where none runs. A register that cannot be read is for the doctor."""
    try:
        running = read_running(state_path)
    except HubError:
        return {}
    return running.backends if running is not None and running.alive else {}


def _asks(runtime: Runtime) -> list[Ask]:
    """Text, and whatever else is spoken of anywhere: by a switch, a variable, a route or a model."""
    settings = runtime.settings
    bound = runtime.switch.bindings if runtime.switch is not None else {}
    spoken = {*bound, *settings.providers, *settings.routes}
    for config in settings.backends.values():
        spoken |= {str(capability) for capability in config.models}
    asks = []
    for capability, operations in OPERATIONS.items():
        for operation in operations:
            ask = Ask(capability=capability, operation=operation)
            whole = str(capability) in spoken and (operation == operations[0] or _reads_for(runtime, ask))
            if capability is Capability.TEXT or whole or ask.what in spoken:
                asks.append(ask)
    return asks


def _reads_for(runtime: Runtime, ask: Ask) -> bool:
    """Does anything serve this half of a capability that is spoken of as a whole?"""
    try:
        runtime.decide(ask)
    except HubError:
        return False
    return True


def _line(runtime: Runtime, ask: Ask, timeout: float) -> CapabilityLine:
    try:
        decision = drive(runtime.decision(BLOCKING, ask, Call(timeout=timeout)))
    except HubError as error:
        return CapabilityLine(what=ask.what, error=str(error))
    return CapabilityLine(what=ask.what, decision=decision)


def _probe(runtime: Runtime, name: str, capability: Capability, model: str | None, rung: Rung, timeout: float) -> Probe:
    try:
        return drive(runtime.probe(BLOCKING, name, capability, rung, Call(timeout=timeout), model=model))
    except HubError as error:
        return Probe(rung=None, wanted=rung, detail=error.message, hint=error.hint)


def _backends(
    probed: Sequence[tuple[tuple[str, Capability, str | None], Probe]], reports: Sequence[Report]
) -> tuple[BackendLine, ...]:
    names = dict.fromkeys(
        [name for (name, _, _), _ in probed] + [one.name for report in reports for one in report.backends if one.calls]
    )
    lines = []
    for name in names:
        mine = [(capability, model, probe) for (one, capability, model), probe in probed if one == name]
        worst = min((probe for _, _, probe in mine), key=lambda probe: (probe.ok, probe.rung or 0), default=None)
        said = [(report, one) for report in reports for one in report.backends if one.name == name]
        models = list(dict.fromkeys(model for _, model, _ in mine if model))
        lines.append(
            BackendLine(
                name=name,
                capabilities=tuple(dict.fromkeys(str(capability) for capability, _, _ in mine)),
                model=", ".join(models) or None,
                probe=worst,
                condition=_summed(said),
                processes=len({id(report) for report, _ in said}),
            )
        )
    return tuple(lines)


_WORST = ("open", "half-open", "closed")


def _summed(said: Sequence[tuple[Report, BackendCondition]]) -> BackendCondition | None:
    """What several processes say of one backend, in one: counts are added, of states the worst is taken."""
    if not said:
        return None
    now = time.time()
    conditions = [one for _, one in said]
    worst = min(conditions, key=lambda one: _WORST.index(one.breaker) if one.breaker in _WORST else 0)
    cooling = max(
        max(0.0, one.cooling - (now - report.written)) for report, one in said if one.breaker == worst.breaker
    )
    newest = min(
        ((one.last_error_age + (now - report.written), one) for report, one in said if one.last_error_age is not None),
        key=lambda pair: pair[0],
        default=None,
    )
    return msgspec.structs.replace(
        worst,
        cooling=round(cooling, 1),
        in_flight=sum(one.in_flight for one in conditions),
        waiting=sum(one.waiting for one in conditions),
        calls=sum(one.calls for one in conditions),
        failures=sum(one.failures for one in conditions),
        retries=sum(one.retries for one in conditions),
        opened=sum(one.opened for one in conditions),
        degraded=next((one.degraded for one in conditions if one.degraded), None),
        latency=_slowest(one.latency for one in conditions),
        first_chunk=_slowest(one.first_chunk for one in conditions),
        last_error=newest[1].last_error if newest is not None else None,
        last_error_age=round(newest[0], 1) if newest is not None else None,
    )


def _slowest(pairs: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    return max((pair for pair in pairs if pair is not None), key=lambda pair: pair[1], default=None)
