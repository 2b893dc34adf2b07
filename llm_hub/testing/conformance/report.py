"""The outcome of a suite: what was found of each rule, and the tiers that follow from it."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llm_hub.testing.conformance.rules import SUITE_VERSION

__all__ = ["Finding", "Outcome", "Report", "Tier", "tiers"]


class Outcome(enum.StrEnum):
    """What came out for a rule."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not be checked here, or is about a feature that is not declared and does not work either."""
    KNOWN = "known limit"
    """It does not hold, as the requirements say with a reason."""
    MENDED = "mended"
    """It holds, though the requirements say that it does not: remove it from `known_limits`."""
    COMING = "coming"
    """It does not hold, and is not mandatory yet at the version of the suites that the requirements keep to."""
    UNDECLARED = "undeclared"
    """The feature works, but is not declared: declare it, or nobody can use it."""


class Tier(enum.StrEnum):
    """What a plugin has shown. Computed, never claimed."""

    LOADS = "loads"
    """It is found, loads, has sound hooks, and builds a backend without I/O."""
    CONFORMS = "conforms"
    """It keeps every rule of the suite that applies, with a server of the kit or its own engine; known limits are told with it."""
    VERIFIED_LIVE = "verified live"
    """It keeps every rule that can be checked on a real server."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one rule. `seen` is what was seen when it failed, else the reason for the outcome."""

    rule: str
    says: str
    outcome: Outcome
    seen: str = ""
    remedy: str = ""
    since: str = SUITE_VERSION
    feature: str | None = None
    loads: bool = False
    seconds: float = 0.0
    trace: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a suite on a plugin. `live` is the address of the real server it ran on, None for the kit's or an engine.

    `answered`: there was something that answered, so that more than loading was tried. `complete`: every rule was run.
    """

    plugin: str
    capability: str
    suite_version: str = SUITE_VERSION
    api_version: str = ""
    features: tuple[str, ...] = ()
    live: str | None = None
    answered: bool = True
    complete: bool = True
    findings: tuple[Finding, ...] = ()

    def of(self, *outcomes: Outcome) -> tuple[Finding, ...]:
        """The findings with one of these outcomes."""
        return tuple(one for one in self.findings if one.outcome in outcomes)

    @property
    def ok(self) -> bool:
        """Did no rule fail?"""
        return not self.of(Outcome.FAILED)

    @property
    def tier(self) -> Tier | None:
        """The highest tier that this run shows; None if it does not even load."""
        reached = tiers([self])
        return reached[-1] if reached else None

    def to_builtins(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {**found, "ok": self.ok, "tiers": [str(one) for one in tiers([self])]}

    def __str__(self) -> str:
        counts = {one: len(self.of(one)) for one in Outcome}
        lines = [
            f"{self.plugin}, {self.capability} suite {self.suite_version}: "
            + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        ]
        lines += [
            f"FAILED {one.rule}: {one.says}\n  Seen: {one.seen}\n  Remedy: {one.remedy}"
            for one in self.of(Outcome.FAILED)
        ]
        lines += [
            f"{one.outcome} {one.rule}: {one.seen}"
            for one in self.of(Outcome.UNDECLARED, Outcome.MENDED, Outcome.KNOWN, Outcome.COMING)
        ]
        return "\n".join(lines)


def tiers(reports: Iterable[Report]) -> Sequence[Tier]:
    """The tiers that these runs of one plugin show together, in their order.

    It loads if no rule about loading failed in any run; it conforms if a whole run without a real server had answers and no
    failure; it is verified live if a whole run on a real server had no failure.
    """
    runs = list(reports)
    first = [one for run in runs for one in run.findings if one.loads]
    if not first or any(one.outcome is Outcome.FAILED for one in first):
        return ()
    found = [Tier.LOADS]
    sound = [run for run in runs if run.ok and run.complete and run.answered and run.of(Outcome.PASSED)]
    if any(run.live is None for run in sound) and all(run.ok for run in runs if run.live is None):
        found.append(Tier.CONFORMS)
    if any(run.live is not None for run in sound) and all(run.ok for run in runs if run.live is not None):
        found.append(Tier.VERIFIED_LIVE)
    return found
