"""Settings that are right one by one and wrong together: names that nothing defines, and settings in conflict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from llm_hub.errors import SettingsError, UnknownBackend
from llm_hub.settings_file import Found
from llm_hub.settings_kinds import DISTRIBUTION, suggestion
from llm_hub.settings_table import OWN_PLUGINS, variable_prefix
from llm_hub.toml_lines import Path

if TYPE_CHECKING:
    from llm_hub.settings import Named, Settings

__all__ = ["check", "check_environment", "check_prefixes", "missing_plugins"]


def check_prefixes(found: Mapping[Path, Found], written: Iterable[str], plugins: Iterable[str]) -> None:
    """Two backends whose variables would have the same names are told apart by nobody."""
    owner = {variable_prefix(name): name for name in plugins}
    for name in written:
        other = owner.setdefault(variable_prefix(name), name)
        if other != name:
            raise SettingsError(
                f"the backends {other!r} and {name!r} would have the same variables, {variable_prefix(name)}_…",
                where=found["backends", name].where,
                hint="Rename one of them.",
            )


def check_environment(
    found: Mapping[Path, Found], over: Mapping[Path, Found], plugins: Sequence[str] | None
) -> list[str]:
    """Do the variables in `over` fit to the file's settings in `found`? Returns warnings.

    The variables of a plugin are not meant for a backend of another plugin that happens to have its name: that is an
    error.
    """
    for at, one in over.items():
        name = str(at[1])
        plugin = found.get((*at[:2], "plugin"))
        if plugin is None or plugin.value == name:
            continue
        if one.where == "OLLAMA_HOST" or name in (OWN_PLUGINS if plugins is None else plugins):
            raise SettingsError(
                f"it configures {name!r}, which is a plugin's own name, but {plugin.where} makes a backend of the "
                f"plugin {plugin.value!r} of it",
                where=one.where,
                hint="Rename that backend, or unset the variable.",
            )
    host: Path = ("backends", "ollama", "base_url")
    if host in found and host in over and over[host].where == "OLLAMA_HOST" and over[host].value != found[host].value:
        # It is often set for the server, by somebody who does not think of its clients.
        both = f"OLLAMA_HOST ({over[host].value}) overrides {found[host].value} of {found[host].where}"
        return [f"{both}; OLLAMA_BASE_URL would come before both"]
    return []


def check(settings: Settings, known: Sequence[str] | None) -> None:
    """Raise SettingsError or UnknownBackend for what does not fit together; `known` None: the plugins are not known."""
    _check_plugins(settings, known)
    if known is not None:
        _check_backends(settings, known)
    _check_blocked(settings)


def missing_plugins(settings: Settings, known: Sequence[str]) -> list[str]:
    """A backend of a plugin that is not installed is no error until it is asked for, but most likely a mistake."""
    notes = []
    for config in settings.backends.values():
        if config.plugin in known:
            continue
        where = settings.source("backends", config.name)
        if settings.source("backends", config.name, "plugin") is not None:
            notes.append(
                f"{where}: the backend {config.name!r} needs the plugin {config.plugin!r}, which is not installed"
            )
        else:
            near = next((one for one in known if config.name.startswith(one)), "NAME")
            notes.append(
                f"{where}: no plugin {config.plugin!r} is installed; say which one the backend {config.name!r} is of: "
                f'plugin = "{near}"'
            )
    return notes


def _check_plugins(settings: Settings, known: Sequence[str] | None) -> None:
    """The plugins that are allowed and disabled exist, and none is both. (Of distributions the registry sees to it.)"""
    for field, names in (("allowed", settings.allowed or frozenset()), ("disabled", settings.disabled)):
        for name in sorted(names):
            if name.startswith(DISTRIBUTION):
                continue  # what is installed of it is for the registry to know
            if known is not None and name not in known:
                raise SettingsError(
                    f"no plugin {name!r} is installed",
                    where=settings.source(field),
                    hint=f"{suggestion(name, known)}Installed are: {', '.join(known) or 'none'}.",
                )
            if field == "allowed" and name in settings.disabled:
                raise SettingsError(
                    f"the plugin {name!r} is also in {settings.source('allowed')}",
                    where=settings.source("disabled"),
                    hint="Take it out of one of them.",
                )


def _check_backends(settings: Settings, known: Sequence[str]) -> None:
    """Every backend that is named anywhere is defined somewhere."""
    defined = sorted({*settings.backends, *known})
    assigned = [((one.backend,), one.source) for one in settings.assignments]
    for names, source in [*((one.names, one.source) for one in _all_named(settings)), *assigned]:
        for name in names:
            if name in defined:
                continue
            install = f" Or install it: pip install llm-hub-{name}" if name in OWN_PLUGINS else ""
            raise UnknownBackend(
                f"{source} names the backend {name!r}, which nothing defines",
                hint=f"{suggestion(name, defined)}There are: {', '.join(defined) or 'none'}.{install}",
            )


def _check_blocked(settings: Settings) -> None:
    """What one variable asks for must not be kept out by another."""
    for one in _all_named(settings, routes=False):
        for name in one.names:
            plugin = settings.backends[name].plugin if name in settings.backends else name
            if plugin in settings.disabled:
                by = settings.source("disabled")
            elif settings.allowed is not None and plugin not in settings.allowed and not _by_distribution(settings):
                by = settings.source("allowed")
            else:
                continue
            raise SettingsError(
                f"it names {name!r}, but {by} keeps the plugin {plugin!r} out",
                where=one.source,
                hint="Change one of the two.",
            )


def _by_distribution(settings: Settings) -> bool:
    """Does the allow list name distributions, so that the registry has to say what it lets in?"""
    return any(one.startswith(DISTRIBUTION) for one in settings.allowed or ())


def _all_named(settings: Settings, *, routes: bool = True) -> list[Named]:
    """The backends that variables name and, with `routes`, those of the routes."""
    variables = [*settings.providers.values(), settings.provider, settings.fallback]
    return [one for one in (*variables, *(settings.routes.values() if routes else ())) if one is not None]
