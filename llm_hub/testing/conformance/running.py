"""Running the rules of a suite on a plugin, with or without pytest."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from llm_hub.errors import ConfigurationError, HubError, UnsupportedFeature
from llm_hub.testing.conformance.bench import Bench, impatient, patience, patiently
from llm_hub.testing.conformance.report import Finding, Outcome, Report
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.testing.conformance.rules import Broken, NotApplicable, Rule

__all__ = ["check_rule", "run_suite"]

_KIT = str(Path(__file__).parent)
_LONGEST = 60.0  # seconds that one rule may take, or 8 calls if that is more, before it counts as hanging


def run_suite(
    requirements: Requirements | type[Requirements], *, live: str | None = None, only: Iterable[str] | None = None
) -> Report:
    """Hold a plugin to every rule of its suite (or to those named in `only`), and report.

    `live` is the address of a real server (by default that of the requirements): rules that need a server of the kit are
    skipped then. Raises LookupError for a rule that does not exist, ConfigurationError for requirements that are wrong, and
    nothing that the plugin does: what keeps it from being built at all is a finding.
    """
    wanted = requirements() if isinstance(requirements, type) else requirements
    suite = wanted.suite
    names = None if only is None else set(only)
    if names is not None and (unknown := names - suite.rules.keys()):
        raise LookupError(f"the {suite.capability} suite has no rule {', '.join(sorted(unknown))}")
    if mistakes := list(wanted.mistakes()):
        raise ConfigurationError("; ".join(one.partition("\n")[0].rstrip(".") for one in mistakes))
    chosen = [rule for rule in suite.rules.values() if names is None or rule.id in names]
    with _opened(suite.bench(wanted, live=live or wanted.live)) as bench:
        findings = tuple(check_rule(bench, rule) for rule in chosen)
        manifest = _manifest(bench)
        return Report(
            plugin=bench.plugin_name,
            capability=str(suite.capability),
            suite_version=wanted.suite_version,
            api_version=getattr(manifest, "api_version", ""),
            features=_features(bench),
            live=bench.live,
            answered=manifest is not None and bench.answers,
            complete=names is None,
            findings=findings,
        )


@contextmanager
def _opened(bench: Bench[Any]) -> Iterator[Bench[Any]]:
    """The bench within the block. That a hub does not close is the finding of the rules about closing, and no error here."""
    bench.__enter__()
    try:
        yield bench
    finally:
        with contextlib.suppress(Broken, HubError):
            bench.close()


def check_rule(bench: Bench[Any], rule: Rule[Any]) -> Finding:
    """Hold the plugin on this bench to one rule."""
    began = time.monotonic()
    with _patience(bench):
        outcome, seen, error = _judged(bench, rule)
    version = bench.requirements.suite_version
    if outcome is Outcome.FAILED and not rule.mandatory(version):
        outcome, seen = Outcome.COMING, f"{seen} (mandatory since {rule.since}; the requirements keep to {version})"
    reason = bench.requirements.known_limits.get(rule.id)
    if reason is not None and outcome is Outcome.FAILED:
        outcome, seen = Outcome.KNOWN, f"{reason} ({seen})"
    elif reason is not None and outcome is Outcome.PASSED:
        outcome, seen = Outcome.MENDED, f"it holds, though known_limits says: {reason}"
    return Finding(
        rule=rule.id,
        says=rule.says,
        outcome=outcome,
        seen=seen,
        remedy=rule.remedy if outcome in (Outcome.FAILED, Outcome.KNOWN, Outcome.UNDECLARED, Outcome.COMING) else "",
        since=rule.since,
        feature=str(rule.feature) if rule.feature is not None else None,
        loads=rule.loads,
        seconds=time.monotonic() - began,
        trace=_trace(error) if outcome is Outcome.FAILED and error is not None else "",
    )


def _trace(error: BaseException) -> str:
    """Where it was raised, without the frames of this kit."""
    told = traceback.TracebackException.from_exception(error)
    at: traceback.TracebackException | None = told
    while at is not None:
        frames = [frame for frame in at.stack if not frame.filename.startswith(_KIT)]
        at.stack = traceback.StackSummary.from_list(frames)
        at = at.__cause__ or at.__context__
    return "".join(told.format())


def _patience(bench: Bench[Any]) -> AbstractContextManager[None]:
    """Wait as long as the requirements say; as a real server may need, or an engine that loads its model."""
    seconds = bench.requirements.patience
    if seconds is None and bench.server is None:
        seconds = 60.0
    return impatient(seconds) if seconds is not None else contextlib.nullcontext()


def _judged(bench: Bench[Any], rule: Rule[Any]) -> tuple[Outcome, str, BaseException | None]:
    try:
        if (lacking := bench.lacks(rule.needs)) is not None:
            return Outcome.SKIPPED, lacking, None
        bench.refresh()
        if (reason := bench.requirements.lacking(rule.feature)) is not None:
            return _refused(bench, rule, reason)
        if rule.feature is None or rule.feature in bench.features:
            patiently(lambda: rule.check(bench), f"the check of {rule.id}", seconds=max(_LONGEST, 8 * patience()))
            return Outcome.PASSED, "", None
    except NotApplicable as error:
        return Outcome.SKIPPED, str(error), None
    except UnsupportedFeature as error:
        if rule.feature is None or bench.live is None:
            return Outcome.FAILED, f"{type(error).__name__}: {error}", error
        return Outcome.SKIPPED, f"the model of the real server lacks it, and asking for it is refused: {error}", None
    except Broken as error:
        return Outcome.FAILED, str(error), error.__cause__  # where it was raised in the kit says nothing more
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises is what was seen
        return Outcome.FAILED, f"{type(error).__name__}: {error}", error
    finally:
        bench.refresh()
    return _undeclared(bench, rule)


def _refused(bench: Bench[Any], rule: Rule[Any], reason: str) -> tuple[Outcome, str, BaseException | None]:
    """A rule about a feature that the model lacks: asking for it must be refused."""
    try:
        patiently(lambda: rule.check(bench), f"the check of {rule.id}", seconds=max(_LONGEST, 8 * patience()))
    except UnsupportedFeature:
        return Outcome.SKIPPED, f"the model lacks {rule.feature}, and asking for it is refused: {reason}", None
    return Outcome.MENDED, f"{rule.feature} works, though model_lacks says: {reason}", None


def _undeclared(bench: Bench[Any], rule: Rule[Any]) -> tuple[Outcome, str, BaseException | None]:
    """A rule about a feature that is not declared: nothing is demanded, but it is told if it works."""
    said = bench.requirements.claims(rule.feature) if rule.feature is not None else None
    try:
        patiently(lambda: rule.check(bench), f"the check of {rule.id}", seconds=patience() * 2)
    except NotApplicable as error:
        return Outcome.SKIPPED, f"{rule.feature} is not declared; whether it works is not seen: {error}", None
    except BaseException as error:  # that it does not work is what is expected
        if isinstance(error, KeyboardInterrupt):
            raise
        why = "it refuses it" if isinstance(error, UnsupportedFeature) else "and it does not work"
        return Outcome.SKIPPED, f"{rule.feature} is not declared, {why}", None
    finally:
        bench.refresh()
    if said is False:
        return Outcome.SKIPPED, f"{rule.feature} works, and the requirements say that it is not to be claimed", None
    return (
        Outcome.UNDECLARED,
        f"the feature {rule.feature} works on the backend, but is not declared: nobody can use it",
        None,
    )


def _features(bench: Bench[Any]) -> tuple[str, ...]:
    try:
        return tuple(sorted(map(str, bench.features)))
    except HubError:
        return ()


def _manifest(bench: Bench[Any]) -> Any:
    try:
        return bench.manifest
    except HubError:
        return None
