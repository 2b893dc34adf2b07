"""Plugins made usable: loaded once, validated, each with a status; a broken one harms nobody who does not ask for it."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterable, Mapping
from typing import cast

import msgspec
import pluggy

from llm_hub import hookspecs
from llm_hub.capabilities import Backend, Capability
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.discovery import Installed, installed, load
from llm_hub.errors import (
    HubError,
    PluginBlocked,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
    SettingsError,
)
from llm_hub.manifest import KnownBad, PluginManifest, check_api_version
from llm_hub.quarantine import Hung, import_apart, load_guarded, trace

__all__ = ["KNOWN_BAD_PLUGINS", "Plugin", "PluginReport", "PluginStatus", "Registry", "check_apart"]

KNOWN_BAD_PLUGINS: Mapping[str, tuple[KnownBad, ...]] = {}
"""Versions of plugin distributions that must not be used, each with the reason; by the name of the distribution."""

_SPECS = {name for name in vars(hookspecs) if name.startswith("llm_hub_")}
_METHODS = {
    Capability.TEXT: ("chat", "achat", "stream", "astream"),
    Capability.EMBEDDING: ("embed", "aembed"),
    Capability.VISION: ("chat", "achat", "stream", "astream"),
}
_COMMON = ("features", "models", "amodels", "probe", "aprobe", "close")


class PluginStatus(enum.StrEnum):
    """How a plugin stands."""

    INSTALLED = "installed"
    """Found, not imported yet."""
    AVAILABLE = "available"
    """Imported and valid."""
    BLOCKED = "blocked"
    CONFLICT = "conflict"
    INCOMPATIBLE = "incompatible"
    BROKEN = "broken"


class PluginReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a plugin. `details` is a traceback, or the stack on which it hangs; `seconds` its load time."""

    name: str
    status: PluginStatus
    capabilities: frozenset[Capability]
    distribution: str
    version: str
    api_version: str | None = None
    summary: str = ""
    reason: str | None = None
    hint: str | None = None
    details: str | None = None
    seconds: float | None = None


class Plugin:
    """A plugin that was loaded and found valid. Its hooks reach it alone: it has a PluginManager of its own."""

    def __init__(self, found: Installed, subject: object) -> None:
        self.name = found.name
        self.installed = found
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(subject, name=found.name)
            manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise self._broken(
                f"its hooks are wrong: {error}", "Correct the names and arguments of its hooks."
            ) from error
        self._hook = manager.hook
        self._check_hooks(subject, manager)
        self.manifest = self._manifest()

    def _broken(self, message: str, hint: str) -> PluginBroken:
        return PluginBroken(message, plugin=self.name, hint=hint)

    def _check_hooks(self, subject: object, manager: pluggy.PluginManager) -> None:
        """Every function that looks like a hook is one, and the hooks fit the entry points."""
        implemented = {caller.name for caller in manager.get_hookcallers(subject) or ()}
        for name in dir(subject):
            if name.startswith("llm_hub_") and name not in implemented and callable(getattr(subject, name, None)):
                known = f"There are: {', '.join(sorted(_SPECS))}."
                why = "is no hook" if name not in _SPECS else "is not marked with @hookimpl"
                raise self._broken(
                    f"its function {name} {why}", known if name not in _SPECS else "Mark it: @llm_hub.hookimpl"
                )
        if "llm_hub_manifest" not in implemented:
            raise self._broken("it has no llm_hub_manifest hook", "Add one that returns a PluginManifest.")
        for capability in Capability:
            hook, offered = f"llm_hub_{capability}", capability in self.installed.capabilities
            if offered and hook not in implemented:
                raise self._broken(
                    f"its entry points offer {capability}, but it has no hook {hook}",
                    "Add the hook, or remove the entry point.",
                )
            if hook in implemented and not offered:
                raise self._broken(
                    f"it has a hook {hook}, but no entry point in the group {capability.group}", "Add the entry point."
                )

    def _manifest(self) -> PluginManifest:
        try:
            manifest = self._hook.llm_hub_manifest()
        except Exception as error:
            raise self._broken(
                f"its manifest hook raised {type(error).__name__}: {error}", "See the traceback."
            ) from error
        if not isinstance(manifest, PluginManifest):
            raise self._broken(f"its manifest hook returned a {type(manifest).__name__}", "Return a PluginManifest.")
        check_api_version(self.name, manifest.api_version)
        settings: object = manifest.settings
        if settings is not None and not (isinstance(settings, type) and issubclass(settings, msgspec.Struct)):
            raise self._broken(
                "the settings of its manifest are no msgspec.Struct class", "Name a Struct class, or None."
            )
        return manifest

    def build(self, capability: Capability, config: BackendConfig, context: BuildContext) -> Backend | None:
        """A backend from this configuration, None if the plugin declines.

        Raises the plugin's HubError, or PluginBroken for anything else that it raises or returns.
        """
        try:
            built = getattr(self._hook, f"llm_hub_{capability}")(config=config, context=context)
        except HubError:
            raise
        except Exception as error:
            raise PluginBroken(
                f"building {config.name!r} raised {type(error).__name__}: {error}",
                plugin=self.name,
                details=trace(error),
                hint="This is a fault of the plugin: report it there.",
            ) from error
        if built is None:
            return None
        missing = [name for name in (*_COMMON, *_METHODS[capability]) if not hasattr(built, name)]
        if missing:
            raise self._broken(
                f"the {capability} backend that it built, a {type(built).__name__}, lacks {', '.join(missing)}",
                "Implement the Protocol of llm_hub.capabilities.",
            )
        return cast("Backend", built)


class Registry:
    """The plugins of a hub. Safe to use from any thread; each plugin is loaded at most once, when it is asked for.

    `found` are the installed plugins, read from metadata if None. `allowed` (None: all) and `disabled` keep plugins out
    without importing them; unknown names in either are a SettingsError. `timeout` in seconds, for each import.
    """

    def __init__(
        self,
        found: Iterable[Installed] | None = None,
        *,
        allowed: frozenset[str] | None = None,
        disabled: frozenset[str] = frozenset(),
        strict: bool = False,
        timeout: float = 10.0,
        known_bad: Mapping[str, tuple[KnownBad, ...]] = KNOWN_BAD_PLUGINS,
    ) -> None:
        self._found = {plugin.name: plugin for plugin in (installed() if found is None else found)}
        self._given: dict[str, object] = {}
        self._allowed = allowed
        self._disabled = disabled
        self._strict = strict
        self._timeout = timeout
        self._known_bad = known_bad
        self._outcomes: dict[str, Plugin | PluginError] = {}
        self._seconds: dict[str, float] = {}
        self._locks = {name: threading.Lock() for name in self._found}
        for variable, names in (("LLM_HUB_PLUGINS", allowed or ()), ("LLM_HUB_DISABLE", disabled)):
            for name in sorted(names):
                if name not in self._found:
                    raise SettingsError(
                        f"there is no plugin {name!r} installed",
                        where=variable,
                        hint=f"Installed are: {', '.join(sorted(self._found)) or 'none'}.",
                    )

    def names(self) -> tuple[str, ...]:
        """The names of all plugins, whatever their state, sorted."""
        return tuple(sorted(self._found))

    def offering(self, capability: Capability) -> tuple[str, ...]:
        """The plugins that offer this, by metadata alone."""
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
        )
        self._given[name] = plugin
        self._outcomes.pop(name, None)
        self._locks[name] = threading.Lock()

    def problem(self, name: str) -> PluginError | None:
        """Why the plugin cannot be used, as far as is known without importing it; None if nothing is."""
        outcome = self._outcomes.get(name)
        if isinstance(outcome, PluginError):
            return outcome
        found = self._found.get(name)
        if found is None:
            return PluginNotFound(
                "it is not installed",
                plugin=name,
                hint=f"Install it: pip install llm-hub-{name}. Installed are: {', '.join(self.names()) or 'none'}.",
            )
        if name in self._disabled:
            return PluginBlocked("LLM_HUB_DISABLE keeps it out", plugin=name, hint="Take it out of LLM_HUB_DISABLE.")
        if self._allowed is not None and name not in self._allowed and name not in self._given:
            return PluginBlocked("LLM_HUB_PLUGINS does not allow it", plugin=name, hint="Add it to LLM_HUB_PLUGINS.")
        if found.conflict is not None:
            hint = (
                "Uninstall one of them."
                if "distributions" in found.conflict
                else "Report it to the author of the plugin."
            )
            return PluginConflict(found.conflict, plugin=name, hint=hint)
        return self._bad(found)

    def _bad(self, found: Installed) -> PluginIncompatible | None:
        entries = self._known_bad.get(found.distribution, ())
        bad = PluginManifest(api_version="", known_bad=entries).bad_version(found.version) if entries else None
        if bad is None:
            return None
        return PluginIncompatible(
            f"{found.distribution} {found.version} is known to be bad: {bad.reason}",
            plugin=found.name,
            hint=f"Upgrade it: pip install -U {found.distribution}",
        )

    def get(self, name: str) -> Plugin:
        """The plugin, loaded and valid. Raises the PluginError that stands in the way, the same one every time."""
        outcome = self._outcomes.get(name)
        if outcome is None:
            problem = self.problem(name)
            if problem is not None:
                raise problem
            with self._locks[name]:
                outcome = self._outcomes.get(name)
                if outcome is None:
                    outcome = self._outcomes[name] = self._load(self._found[name])
        if isinstance(outcome, PluginError):
            raise outcome
        return outcome

    def _load(self, found: Installed) -> Plugin | PluginError:
        began = time.monotonic()
        try:
            return load_guarded(lambda: Plugin(found, self._subject(found)), name=found.name, seconds=self._timeout)
        except PluginError as error:
            if error.details is None and error.__cause__ is not None:
                error.details = trace(error.__cause__)
            return error
        except Hung as hung:
            return PluginBroken(
                f"importing {found.value} took more than {self._timeout:g} s; it is not tried again in this process",
                plugin=found.name,
                details=hung.stack,
                hint=self._without(found),
            )
        except SystemExit as error:
            return PluginBroken(
                f"importing {found.value} called sys.exit({error.code!r})",
                plugin=found.name,
                details=trace(error),
                hint=self._without(found),
            )
        except BaseException as error:  # noqa: BLE001 - whatever foreign code raises is quarantined, with its traceback
            return PluginBroken(
                f"importing {found.value} raised {type(error).__name__}: {error}",
                plugin=found.name,
                details=trace(error),
                hint=self._without(found),
            )
        finally:
            self._seconds[found.name] = time.monotonic() - began

    def _subject(self, found: Installed) -> object:
        return self._given[found.name] if found.name in self._given else load(found)

    def _without(self, found: Installed) -> str:
        return f"Upgrade it (pip install -U {found.distribution}), or keep it out: LLM_HUB_DISABLE={found.name}"

    def report(self, name: str, *, load: bool) -> PluginReport:
        """What is known of one plugin; `load` imports it to know all."""
        found = self._found.get(name)
        problem: PluginError | None = self.problem(name)
        plugin: Plugin | None = None
        if problem is None:
            try:
                outcome = self.get(name) if load else self._outcomes.get(name)
                plugin = outcome if isinstance(outcome, Plugin) else None
            except PluginError as error:
                problem = error
        status = PluginStatus.AVAILABLE if plugin is not None else PluginStatus.INSTALLED
        if problem is not None:
            status = _STATUS.get(type(problem), PluginStatus.BROKEN)
        return PluginReport(
            name=name,
            status=status,
            capabilities=found.capabilities if found is not None else frozenset(),
            distribution=found.distribution if found is not None else "",
            version=found.version if found is not None else "",
            api_version=plugin.manifest.api_version if plugin is not None else None,
            summary=plugin.manifest.summary if plugin is not None else "",
            reason=problem.message if problem is not None else None,
            hint=problem.hint if problem is not None else None,
            details=problem.details if problem is not None else None,
            seconds=self._seconds.get(name),
        )

    def reports(self, *, load: bool) -> tuple[PluginReport, ...]:
        """What is known of all plugins, by name."""
        return tuple(self.report(name, load=load) for name in self.names())

    def check(self) -> None:
        """Load everything that is not blocked, and raise the first PluginError: for LLM_HUB_STRICT."""
        for name in self.names():
            if not isinstance(self.problem(name), PluginBlocked):
                self.get(name)


_STATUS: Mapping[type[PluginError], PluginStatus] = {
    PluginBlocked: PluginStatus.BLOCKED,
    PluginConflict: PluginStatus.CONFLICT,
    PluginIncompatible: PluginStatus.INCOMPATIBLE,
    PluginBroken: PluginStatus.BROKEN,
}


def check_apart(name: str, *, timeout: float = 10.0) -> PluginReport:
    """Load one installed plugin in a process of its own: even a crash of the interpreter is found. Seconds."""
    known = Registry().report(name, load=False)
    if known.status is not PluginStatus.INSTALLED:
        return known
    outcome = import_apart(name, timeout=timeout)
    if isinstance(outcome, bytes):
        return msgspec.json.decode(outcome, type=PluginReport)
    reason, details = outcome
    return msgspec.structs.replace(
        known,
        status=PluginStatus.BROKEN,
        reason=reason,
        details=details,
        hint=f"Upgrade it (pip install -U {known.distribution}), or keep it out: LLM_HUB_DISABLE={name}",
    )
