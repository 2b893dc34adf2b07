"""What `llm-hub doctor` knows: settings, plugins and backends looked at, each finding with its state and its fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from llm_hub.call import Call
from llm_hub.capabilities import Capability, Probe, Rung
from llm_hub.errors import HubError
from llm_hub.registry import PluginReport, PluginStatus
from llm_hub.selection import OPERATIONS, Ask
from llm_hub.transport import drive
from llm_hub.worlds import BLOCKING

if TYPE_CHECKING:
    from llm_hub.hub import Hub
    from llm_hub.runtime import Runtime

__all__ = ["Diagnosis", "Finding", "diagnose"]

Level = Literal["ok", "info", "warning", "error"]


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was looked at. `subject` is what, `state` how it is, `fix` what to do about it."""

    kind: Literal["settings", "plugin", "backend", "capability", "running"]
    subject: str
    state: str
    level: Level = "ok"
    detail: str = ""
    fix: str = ""
    traceback: str = ""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Is nothing wrong that somebody asked for?"""
        return all(finding.level != "error" for finding in self.findings)


def diagnose(hub: Hub, *, timeout: float = 10.0) -> Diagnosis:
    """Look at everything. `timeout` in seconds, for each backend."""
    runtime = hub.runtime
    findings = [Finding(kind="settings", subject="file", state=runtime.settings.config_path or "none")]
    findings += [
        Finding(kind="settings", subject="variable", state="suspicious", level="warning", detail=warning)
        for warning in runtime.settings.warnings
    ]
    findings += _control(hub)
    wanted = {runtime.plugin_name(name) for name in runtime.settings.backends}
    findings += [_plugin(report, asked_for=report.name in wanted) for report in hub.plugins(load=True)]
    offered = {capability for report in hub.plugins() for capability in report.capabilities}
    probed: set[tuple[str, Capability]] = set()
    for capability in Capability:
        if capability in offered:
            for operation in OPERATIONS[capability]:
                ask = Ask(capability=capability, operation=operation)
                findings += _capability(runtime, ask, timeout, probed)
    for name in runtime.settings.backends:
        for capability in Capability:
            if (name, capability) not in probed and runtime.offers(name, capability):
                probed.add((name, capability))
                findings.append(_backend(runtime, name, capability, timeout, chosen=False))
    findings += _running(runtime)
    findings += _gpus(runtime, timeout)
    return Diagnosis(findings=tuple(findings))


def _control(hub: Hub) -> list[Finding]:
    """What the control file says, if there is one, and whether it can be read."""
    hub.refresh()
    standing = hub.standing()
    if standing.problem is not None:
        reason, _, fix = standing.problem.partition(". ")
        return [Finding(kind="settings", subject="control file", state="error", level="error", detail=reason, fix=fix)]
    in_force = f"epoch {hub.epoch}, {hub.in_force.described}"
    state = "left alone: LLM_HUB_PIN is set" if standing.pinned else in_force
    return [Finding(kind="settings", subject="control file", state=state)]


def _running(runtime: Runtime) -> list[Finding]:
    """How what `llm-hub up` started fares."""
    from llm_hub.running import read_running

    try:
        running = read_running(runtime.settings.state_path)
    except HubError as error:
        return [Finding(kind="running", subject="up", state="error", level="error", detail=str(error))]
    if running is None or (not running.alive and all(one.state == "stopped" for one in running.backends.values())):
        return []
    if not running.alive:
        detail = f"process {running.pid} was killed, and what it had started went with it"
        return [Finding(kind="running", subject="up", state="ended", level="warning", detail=detail, fix="llm-hub up")]
    levels: dict[str, Level] = {"ready": "ok", "stopped": "info", "failed": "error", "unresponsive": "error"}
    return [
        Finding(
            kind="running",
            subject=name,
            state=one.state,
            level=levels.get(one.state, "warning"),
            detail=one.detail or f"process {one.pid} at {one.address}, restarts: {one.restarts}",
            fix=one.hint or (f"See its log: {one.log}" if one.state in ("failed", "restarting") else ""),
        )
        for name, one in running.backends.items()
    ]


def _gpus(runtime: Runtime, timeout: float) -> list[Finding]:
    """What is wrong with the plan, and where the backends that run are not on the GPUs that they were put on."""
    if not any(one.gpus for one in runtime.settings.assignments):
        return []
    from llm_hub.drift import drift
    from llm_hub.gpu import read_inventory
    from llm_hub.gpu.planning import plan_of

    try:
        inventory = read_inventory()
        plan = plan_of(runtime, inventory, ask=False)
        found = [(one, "plan") for one in plan.findings if one.level != "info"]
        found += [
            (one, "drift" if one.level == "error" else "not verified")
            for one in drift(runtime, timeout=timeout, inventory=inventory)
        ]
    except HubError as error:  # a register that somebody damaged: all else is told nevertheless
        detail = f"the plan could not be compared with what runs: {error.message}"
        return [
            Finding(
                kind="running", subject="gpu", state="not compared", level="error", detail=detail, fix=error.hint or ""
            )
        ]
    return [
        Finding(
            kind="running", subject=one.backend or "gpu", state=state, level=one.level, detail=str(one), fix=one.fix
        )
        for one, state in found
    ]


def _plugin(report: PluginReport, *, asked_for: bool) -> Finding:
    bad = report.status not in (PluginStatus.AVAILABLE, PluginStatus.INSTALLED)
    level: Level = "ok" if report.deprecated is None else "warning"
    if bad:
        level = "info" if report.status is PluginStatus.BLOCKED and not asked_for else "warning"
        if asked_for:
            level = "error"
    return Finding(
        kind="plugin",
        subject=report.name,
        state=str(report.status),
        level=level,
        detail=report.reason
        or report.deprecated
        or f"{report.distribution} {report.version}: {', '.join(sorted(report.capabilities))}",
        fix=report.hint or "",
        traceback=report.details or "",
    )


def _capability(runtime: Runtime, ask: Ask, timeout: float, probed: set[tuple[str, Capability]]) -> list[Finding]:
    asked_for = _asked_for(runtime, ask)
    try:
        decision = drive(runtime.decision(BLOCKING, ask, Call(timeout=timeout)))
    except HubError as error:
        return [
            Finding(
                kind="capability",
                subject=ask.what,
                state="error" if asked_for else "nothing serves it",
                level="error" if asked_for else "info",
                detail=error.message,
                fix=error.hint or "",
            )
        ]
    detail = f"{decision.backend}, by rule {decision.rule} ({decision.rule_text}): {', '.join(decision.reasons)}"
    found = [Finding(kind="capability", subject=ask.what, state="ok", detail=detail)]
    found += [
        Finding(kind="capability", subject=ask.what, state="note", level="warning", detail=warning)
        for warning in decision.warnings
    ]
    for name in (decision.backend, *(target.backend for target in decision.fallbacks)):
        probed.add((name, ask.capability))
        # The default of a capability that nobody speaks of need not be there.
        chosen = name == decision.backend and asked_for
        found.append(_backend(runtime, name, ask.capability, timeout, chosen=chosen))
    return found


def _asked_for(runtime: Runtime, ask: Ask) -> bool:
    """Does a setting mention this? Text counts always: it is what a hub is for. What names vision is about describing."""
    settings, capability = runtime.settings, ask.capability
    if ask.what in settings.providers or ask.what in settings.routes:
        return True
    if ask.operation != OPERATIONS[capability][0]:
        return False
    return (
        capability is Capability.TEXT
        or capability in settings.providers
        or capability in settings.routes
        or any(capability in assignment.capabilities for assignment in settings.assignments)
        or any(capability in config.models for config in settings.backends.values())
    )


def _backend(runtime: Runtime, name: str, capability: Capability, timeout: float, *, chosen: bool) -> Finding:
    try:
        probe = drive(runtime.probe(BLOCKING, name, capability, Rung.MODEL_PRESENT, Call(timeout=timeout)))
    except HubError as error:
        probe = Probe(rung=None, wanted=Rung.MODEL_PRESENT, detail=error.message, hint=error.hint)
    state = backend_state(probe)
    version = f" (version {probe.version})" if probe.version else ""
    if probe.degraded:
        return Finding(
            kind="backend", subject=f"{name} ({capability})", state="degraded", level="warning", detail=probe.degraded
        )
    return Finding(
        kind="backend",
        subject=f"{name} ({capability})",
        state=state,
        level="ok" if probe.ok else ("error" if chosen else "warning"),
        detail=(probe.detail or state) + version,
        fix=probe.hint or "",
    )


def backend_state(probe: Probe) -> str:
    """The state of a backend in words: unreachable, model missing, ready."""
    if probe.rung is None:
        return "unreachable"
    return "ready" if probe.ok else "model missing"
