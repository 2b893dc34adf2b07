"""Plugins made usable: loaded once, validated, each with a status; a broken one harms nobody who does not ask for it."""

from __future__ import annotations

import copy
import enum
import logging
import os
import time
from collections.abc import Iterable, Mapping

import msgspec

from llm_hub.capabilities import Capability, Feature
from llm_hub.discovery import Installed, installed, load, normalized
from llm_hub.errors import (
    PluginBlocked,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
)
from llm_hub.manifest import KnownBad, PluginManifest, deprecation
from llm_hub.plugin import Plugin
from llm_hub.plugin_checks import Fault
from llm_hub.quarantine import Attempt, Hung, said, trace
from llm_hub.trust import Trust

__all__ = ["KNOWN_BAD_PLUGINS", "Plugin", "PluginReport", "PluginStatus", "Registry", "check_apart"]

logger = logging.getLogger("llm_hub")

KNOWN_BAD_PLUGINS: Mapping[str, tuple[KnownBad, ...]] = {}
"""Versions of plugin distributions that must not be imported, each with the reason; by the distribution's name."""


class PluginStatus(enum.StrEnum):
    """How a plugin stands."""

    INSTALLED = "installed"
    """Found, not imported yet."""
    AVAILABLE = "available"
    """Imported and valid."""
    BLOCKED = "blocked"
    """Kept out by LLM_HUB_PLUGINS or LLM_HUB_DISABLE; never imported."""
    CONFLICT = "conflict"
    """Two distributions claim the name, or its entries name different objects; never imported."""
    INCOMPATIBLE = "incompatible"
    """For another api version, or a version known to be bad."""
    BROKEN = "broken"
    """Raised, exited or hung while it was loaded, or its hooks are wrong."""
    MISSING = "not installed"
    """No distribution offers it."""


_STATUS: Mapping[type[PluginError], PluginStatus] = {
    PluginNotFound: PluginStatus.MISSING,
    PluginBlocked: PluginStatus.BLOCKED,
    PluginConflict: PluginStatus.CONFLICT,
    PluginIncompatible: PluginStatus.INCOMPATIBLE,
}


class PluginReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a plugin. `details` is a traceback, or the stack on which it hangs.

    `deprecated` is when its api version ends, if that is announced. `seconds` is how long loading took; None for that, `api_version` and `features` where it was not loaded.
    """

    name: str
    status: PluginStatus
    capabilities: frozenset[Capability]
    distribution: str
    version: str
    api_version: str | None = None
    features: frozenset[Feature] | None = None
    summary: str = ""
    reason: str | None = None
    hint: str | None = None
    details: str | None = None
    seconds: float | None = None
    observes: bool = False
    deprecated: str | None = None

    @property
    def offers(self) -> tuple[str, ...]:
        """Its capabilities, and "observer" if it observes, sorted."""
        return tuple(sorted([*map(str, self.capabilities), *(["observer"] if self.observes else [])]))


class Registry:
    """The plugins of a hub. Safe to use from any thread and after a fork; each plugin is loaded once, when asked for.

    `found` are the installed plugins, read from metadata if None. `plugins` are objects with hooks that are used
    besides, or in place of an installed plugin of the name. `allowed` (None: all) says what may be imported, `disabled`
    what may not be used, by the names of plugins or of distributions (see `llm_hub.trust`); unknown ones in either are a
    SettingsError. `timeout` in seconds, for each plugin.
    """

    def __init__(
        self,
        found: Iterable[Installed] | None = None,
        *,
        plugins: Mapping[str, object] | None = None,
        allowed: frozenset[str] | None = None,
        disabled: frozenset[str] = frozenset(),
        timeout: float = 10.0,
        known_bad: Mapping[str, tuple[KnownBad, ...]] = KNOWN_BAD_PLUGINS,
    ) -> None:
        self._trust = Trust(allowed, disabled)
        there = tuple(installed() if found is None else found)
        self._found = {plugin.name: self._trust.settled(plugin) for plugin in there}
        self._given: dict[str, object] = {}
        self._timeout = timeout
        self._known_bad = {normalized(name): entries for name, entries in known_bad.items()}
        self._outcomes: dict[str, Plugin | PluginError] = {}
        self._seconds: dict[str, float] = {}
        # By process too: a thread that loads does not survive a fork. And without a lock: one that is held would.
        self._attempts: dict[tuple[str, int], Attempt[Plugin | PluginError]] = {}
        for name, plugin in (plugins or {}).items():
            self.add(name, plugin)
        self._trust.check([*there, *(self._found[name] for name in self._given)])

    # -- what there is ------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """The names of all plugins, whatever their state, sorted."""
        return tuple(sorted(self._found))

    def reference(self, name: str) -> str:
        """The object reference that its entry points name, by metadata alone; empty for one that is not installed."""
        found = self._found.get(name)
        return "" if found is None else found.value

    def serving(self) -> tuple[str, ...]:
        """The names of those that could serve something: all but those that only observe."""
        return tuple(name for name in self.names() if self._found[name].offers != ("observer",))

    def observes(self, name: str) -> bool:
        """Does this plugin offer an observer, by metadata alone?"""
        found = self._found.get(name)
        return found is not None and found.observes

    def offering(self, capability: Capability) -> tuple[str, ...]:
        """The plugins that offer this, whatever their state, by metadata alone."""
        return tuple(name for name in self.names() if capability in self._found[name].capabilities)

    def add(self, name: str, plugin: object, capabilities: Iterable[Capability] | None = None) -> None:
        """Use this object as a plugin, in place of an installed one of the name. Capabilities default to its hooks'."""
        if capabilities is None:
            capabilities = [one for one in Capability if hasattr(plugin, f"llm_hub_{one}")]
        self._found[name] = Installed(
            name=name,
            capabilities=frozenset(capabilities),
            value=type(plugin).__name__,
            distribution="given to the hub",
            version="",
            observes=hasattr(plugin, "llm_hub_observer"),
        )
        self._given[name] = plugin
        self._outcomes.pop(name, None)
        self._attempts.pop((name, os.getpid()), None)

    def problem(self, name: str) -> PluginError | None:
        """Why the plugin cannot be used, as far as is known without importing it; None if nothing is."""
        outcome = self._outcomes.get(name)
        if outcome is not None:
            return _again(outcome) if isinstance(outcome, PluginError) else None
        found = self._found.get(name)
        if found is None:
            return PluginNotFound(
                "it is not installed",
                plugin=name,
                hint=f"Install it: pip install llm-hub-{name}. Installed are: {', '.join(self.names()) or 'none'}.",
            )
        objection = self._trust.objection(found)
        if objection is not None and (name not in self._given or name in self._trust.disabled):
            return PluginBlocked(objection[0], plugin=name, hint=objection[1])
        if found.conflict is not None:
            remedy = f"Uninstall all but one: pip uninstall {' '.join(found.rivals)}" if found.rivals else None
            return PluginConflict(found.conflict, plugin=name, hint=remedy or self._remedy(found))
        return self._bad(found)

    def _bad(self, found: Installed) -> PluginIncompatible | None:
        if not found.offers and found.unknown_groups:
            return PluginIncompatible(
                f"{found.origin} offers only what this core does not know: {', '.join(found.unknown_groups)}",
                plugin=found.name,
                hint=f"There are: {', '.join(one.group for one in Capability)}. If the group is not misspelt, "
                "upgrade the core: pip install -U llm-hub-core",
            )
        entries = self._known_bad.get(normalized(found.distribution), ())
        bad = PluginManifest(api_version="", known_bad=entries).bad_version(found.version) if entries else None
        if bad is None:
            return None
        return PluginIncompatible(
            f"{found.origin} is known to be bad: {bad.reason}", plugin=found.name, hint=self._remedy(found)
        )

    # -- loading ------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> Plugin:
        """The plugin, loaded and valid. Raises the PluginError that stands in the way, a like one every time."""
        outcome = self._outcomes.get(name)
        if outcome is None:
            problem = self.problem(name)
            if problem is not None:
                raise problem
            outcome = self._attempted(self._found[name])
        if isinstance(outcome, PluginError):
            raise _again(outcome) from outcome.__cause__
        return outcome

    def _attempted(self, found: Installed) -> Plugin | PluginError:
        """The outcome of the one attempt at loading it, which all who ask meanwhile wait for."""
        key = (found.name, os.getpid())
        fresh = Attempt(lambda: self._load(found), name=found.name, timeout=self._timeout)
        attempt = self._attempts.setdefault(key, fresh)
        if attempt is fresh:
            try:
                attempt.start()
            except RuntimeError:
                self._attempts.pop(key, None)  # that is not the plugin's fault: it may be tried again
                raise
        outcome: Plugin | PluginError
        try:
            outcome = attempt.wait()
        except Hung as hung:
            self._seconds.setdefault(found.name, self._timeout)
            outcome = self._hung(found, hung)
        return self._outcomes.setdefault(found.name, outcome)

    def _hung(self, found: Installed, hung: Hung) -> PluginBroken:
        hint = self._remedy(found)
        if hung.waits_for_import:
            hint = (
                "It waits for a module that another thread is still importing: do not use the hub while your own "
                f"modules are imported. {hint}"
            )
        return PluginBroken(
            f"{found.origin}: importing {found.value} took more than {self._timeout:g} s; it is not tried again in this "
            "process",
            plugin=found.name,
            details=hung.stack or None,
            hint=hint,
        )

    def _load(self, found: Installed) -> Plugin | PluginError:
        """Load it, here and now. Whatever foreign code raises is an outcome."""
        began = time.monotonic()
        stage = f"importing {found.value}"
        try:
            subject = self._given[found.name] if found.name in self._given else load(found)
            stage = "asking for its manifest"
            plugin = Plugin(found, subject)
            if (ending := deprecation(plugin.manifest.api_version)) is not None:
                logger.warning("plugin %r, %s: %s", found.name, found.origin, ending)
            return plugin
        except Fault as fault:
            cause = fault.__cause__
            return _because(
                PluginBroken(
                    f"{found.origin}: {fault.message}",
                    plugin=found.name,
                    details=trace(cause) if cause is not None else None,
                    hint=f"{fault.hint} {self._remedy(found)}",
                ),
                cause,
            )
        except PluginError as error:
            return _because(
                type(error)(
                    f"{found.origin}: {error.message}",
                    plugin=found.name,
                    details=error.details,
                    hint=f"{(error.hint or '').rstrip('.')}. {self._remedy(found)}".removeprefix(". "),
                ),
                error.__cause__,
            )
        except BaseException as error:  # noqa: BLE001 - whatever it is: it is reported, and never stops the others
            did = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {said(error)}"
            return _because(
                PluginBroken(
                    f"{found.origin}: {stage} {did}",
                    plugin=found.name,
                    details=trace(error),
                    hint=f"{_missing(error, found)}{self._remedy(found)}",
                ),
                error,
            )
        finally:
            self._seconds.setdefault(found.name, time.monotonic() - began)

    def _remedy(self, found: Installed) -> str:
        if found.name in self._given:
            return "It is the object that was given to the hub under this name."
        without = ",".join(sorted(self._trust.disabled | {found.name}))
        return f"Upgrade it: pip install -U {found.distribution} - or keep it out: LLM_HUB_DISABLE={without}"

    # -- reporting ----------------------------------------------------------------------------------------------------

    def report(self, name: str, *, load: bool) -> PluginReport:
        """What is known of one plugin; `load` imports it to know all. Raises nothing about the plugin."""
        found = self._found.get(name)
        problem = self.problem(name)
        if problem is None and load:
            try:
                self.get(name)
            except PluginError as error:
                problem = error
        outcome = self._outcomes.get(name)
        manifest = outcome.manifest if isinstance(outcome, Plugin) else None
        status = PluginStatus.INSTALLED if manifest is None else PluginStatus.AVAILABLE
        hint = None
        if problem is not None:
            status, hint = _STATUS.get(type(problem), PluginStatus.BROKEN), problem.hint
        elif manifest is not None and deprecation(manifest.api_version) is not None and found is not None:
            hint = f"Upgrade it: pip install -U {found.distribution}"
        elif found is not None and found.unknown_groups:
            hint = f"This core does not know what it offers as {', '.join(found.unknown_groups)}"
        return PluginReport(
            name=name,
            status=status,
            capabilities=found.capabilities if found is not None else frozenset(),
            distribution=found.distribution if found is not None else "",
            version=found.version if found is not None else "",
            api_version=manifest.api_version if manifest is not None else None,
            features=manifest.features if manifest is not None else None,
            summary=manifest.summary if manifest is not None else "",
            reason=problem.message if problem is not None else None,
            hint=hint,
            details=problem.details if problem is not None else None,
            seconds=self._seconds.get(name),
            observes=found is not None and found.observes,
            deprecated=deprecation(manifest.api_version) if manifest is not None else None,
        )

    def reports(self, *, load: bool) -> tuple[PluginReport, ...]:
        """What is known of all plugins, by name. One after another: imports side by side would slow each other down."""
        return tuple(self.report(name, load=load) for name in self.names())

    def check(self) -> None:
        """Load all that is not blocked, and raise the first PluginError, which names the others too: LLM_HUB_STRICT."""
        errors: list[PluginError] = []
        for name in self.names():
            try:
                if not isinstance(self.problem(name), PluginBlocked):
                    self.get(name)
            except PluginError as error:
                errors.append(error)
        if errors:
            if len(errors) > 1:
                others = "; ".join(str(error) for error in errors[1:])
                errors[0].hint = f"{(errors[0].hint or '').rstrip('.')}. And: {others}"
            raise errors[0]


def _again(error: PluginError) -> PluginError:
    """The like of it: an error that is raised twice collects the tracebacks of both."""
    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__
    return fresh


def _because(error: PluginError, cause: BaseException | None) -> PluginError:
    error.__cause__ = cause
    return error


def _missing(error: BaseException, found: Installed) -> str:
    """What to do about an import that failed within an import."""
    name = (error.name or "") if isinstance(error, ImportError) else ""
    top = name.partition(".")[0]
    if top == "llm_hub":
        return "It is made for another core: upgrade that (pip install -U llm-hub-core) or the plugin. "
    if top and isinstance(error, ModuleNotFoundError) and top != found.value.partition(".")[0]:
        return f"It needs the module {top}, which is not installed. "
    return ""


def check_apart(name: str, *, timeout: float = 10.0) -> PluginReport:
    """Load one installed plugin in a process of its own, which even finds one that crashes. `timeout` in seconds, for all.

    What is known to be wrong with it from its metadata is reported without.
    """
    from llm_hub.apart import Died, load_apart

    known = Registry().report(name, load=False)
    if known.status is not PluginStatus.INSTALLED:
        return known
    outcome = load_apart(name, timeout=timeout)
    if isinstance(outcome, bytes):
        try:
            return msgspec.json.decode(outcome, type=PluginReport)
        except msgspec.DecodeError as error:
            outcome = Died(f"its process gave no report ({error})", "")
    return msgspec.structs.replace(
        known,
        status=PluginStatus.BROKEN,
        reason=f"{known.distribution} {known.version}: {outcome.reason}",
        details=outcome.output or None,
        hint=f"Upgrade it: pip install -U {known.distribution} - or keep it out: LLM_HUB_DISABLE={name}",
    )
