"""Settings: the environment and llm-hub.toml, as one immutable value that knows where each part of it comes from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from llm_hub.call import Timeouts
from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig, BackendLimits, BatchLimits, Secret
from llm_hub.errors import SettingsError, UnknownBackend
from llm_hub.settings_checks import check, check_environment, check_prefixes, missing_plugins
from llm_hub.settings_environment import ollama_variables, read_backends, read_hub, secret, warn_of_misspelt
from llm_hub.settings_file import Document, Found, find, parse, read
from llm_hub.settings_kinds import suggestion
from llm_hub.settings_options import RawOptions, bind_options
from llm_hub.settings_services import Service, read_services
from llm_hub.settings_shape import take_apart
from llm_hub.settings_table import KEYS, OWN_PLUGINS, variable_prefix
from llm_hub.toml_lines import Path, dotted

__all__ = ["Assignment", "Named", "Settings", "bind_options", "variable_prefix"]

_COMMON = frozenset(key.path[2] for key in KEYS if key.path[0] == "backends" and key.kind != "option") | {"api_key"}
_STATE_FILE = "control.json"
HEADROOM = "512 MiB"


class Named(msgspec.Struct, frozen=True):
    """Backends by name, in order, and where they are named: a variable, `file:line` or an argument."""

    names: tuple[str, ...]
    source: str


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """[gpu.assign.NAME]: a backend, the GPUs that it runs on, and the capabilities that this chooses it for.

    `gpus` are UUIDs or indices; `memory` an amount ("20 GiB") or a fraction of each GPU; `exclusive`: nothing else
    may be assigned to them.
    """

    backend: str
    capabilities: tuple[Capability, ...] = ()
    gpus: tuple[int | str, ...] = ()
    memory: str | float | None = None
    exclusive: bool = False
    source: str = "argument"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is configured. Immutable; keys are `Secret`, so that it can be shown.

    `backends` are the instances that the file or the environment configures, by name, their options as written (see
    `bind_options`). `providers`, `provider` and `fallback` are what LLM_TEXT_PROVIDER…, LLM_PROVIDER and LLM_FALLBACK
    name. `providers` and `routes` have a capability, "vision.read" or "vision.describe" for keys. `assignments` are in
    the order of the file, and `headroom` is the memory that the plan leaves free of each GPU. `services` are those that
    `llm-hub compose` adds. `allowed` None allows every plugin. `config_path` is the file that was read, `state_path` the
    control file, which need not exist. `sources` says for each setting, written as in the file, where its value comes
    from. `warnings` are for the operator. `ollama_variables` are the OLLAMA_* variables that are set.
    """

    backends: Mapping[str, BackendConfig] = {}
    providers: Mapping[str, Named] = {}
    provider: Named | None = None
    fallback: Named | None = None
    routes: Mapping[str, Named] = {}
    assignments: tuple[Assignment, ...] = ()
    headroom: str | float = HEADROOM
    services: tuple[Service, ...] = ()
    allowed: frozenset[str] | None = None
    disabled: frozenset[str] = frozenset()
    observers: tuple[str, ...] = ()
    strict: bool = False
    pinned: bool = False
    config_path: str | None = None
    state_path: str | None = None
    sources: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()
    ollama_variables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("backends", "providers", "routes", "sources"):
            msgspec.structs.force_setattr(self, field, MappingProxyType(dict(getattr(self, field))))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {field: getattr(self, field) for field in self.__struct_fields__}
        plain = {
            field: dict(value) if isinstance(value, MappingProxyType) else value for field, value in values.items()
        }
        return _restore, (plain,)  # a Secret in it refuses to be pickled

    @property
    def touches_ollama(self) -> bool:
        """Is any OLLAMA_* variable set?"""
        return bool(self.ollama_variables)

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        plugins: Iterable[str] | None = None,
        config: str | os.PathLike[str] | None = None,
    ) -> Settings:
        """The settings of this process: variables over the settings file.

        `environ` defaults to `os.environ`. `plugins` are the names of all installed plugins, whose variables are read
        and which are what names are checked against; None: not known, so nothing is checked, and the variables of the
        plugins of this project are read. `config` is a settings file that comes before LLM_HUB_CONFIG.

        Raises SettingsError at the variable or `file:line`, UnknownBackend for a name that nothing defines.
        """
        environ = dict(os.environ if environ is None else environ)
        hub = read_hub(environ)
        if config is not None:
            hub["config",] = Found(os.fspath(config), "argument config")
        path, name, warnings = find(hub.get(("config",)))
        document = parse(read(path, name), name) if path is not None else Document("", {}, {})
        if ("state",) not in hub:
            import platformdirs  # here, because it is slow to import

            folder = platformdirs.user_state_dir("llm-hub", appauthor=False)
            hub["state",] = Found(os.path.join(folder, _STATE_FILE), "default")  # noqa: PTH118
        return _assemble(document, environ, hub, plugins=plugins, path=path, warnings=warnings)

    @classmethod
    def from_toml(
        cls,
        text: str,
        *,
        name: str = "llm-hub.toml",
        environ: Mapping[str, str] | None = None,
        plugins: Iterable[str] | None = None,
    ) -> Settings:
        """The settings of a file with this text, named `name` in errors; of the environment only what is given.

        Raises as `from_env` does.
        """
        environ = dict(environ or {})
        return _assemble(parse(text, name), environ, read_hub(environ), plugins=plugins)

    @classmethod
    def of(
        cls,
        *,
        backends: Mapping[str, Mapping[str, Any]] | None = None,
        provider: str | None = None,
        providers: Mapping[str, str] | None = None,
        fallback: str | Iterable[str] | None = None,
        routes: Mapping[str, Any] | None = None,
        gpu: Mapping[str, Any] | None = None,
        services: Mapping[str, Any] | None = None,
        allowed: Iterable[str] | None = None,
        disabled: Iterable[str] | None = None,
        observers: str | Iterable[str] | None = None,
        strict: bool = False,
        pinned: bool = False,
        state: str | os.PathLike[str] | None = None,
        plugins: Iterable[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """Settings from code, in the shape of the file and checked as it is; the environment is left out of it.

            Settings.of(provider="vllm", backends={"vllm": {"base_url": "http://h:8000", "models": {"text": "m"}}})

        A backend may have `api_key` here, as text or `Secret`; `api_key_env` is looked up in `environ`, by default
        `os.environ`. Raises as `from_env` does, naming the argument.
        """
        given = {
            "backends": backends,
            "provider": provider,
            "providers": providers,
            "fallback": _listed(fallback) or None,
            "routes": routes,
            "gpu": gpu,
            "services": services,
            "allowed": _listed(allowed),
            "disabled": _listed(disabled) or None,
            "observers": _listed(observers) or None,
            "strict": strict or None,
            "pinned": pinned or None,
            "state": None if state is None else os.fspath(state),
        }
        document = Document("the arguments", {key: value for key, value in given.items() if value is not None})
        return _assemble(document, os.environ if environ is None else environ, None, plugins=plugins)

    def config(self, name: str, *, plugin: str | None = None) -> BackendConfig:
        """The backend that is configured under this name, else the implicit one of `plugin`.

        Raises UnknownBackend if it is not configured and `plugin` is None.
        """
        configured = self.backends.get(name)
        if configured is not None:
            return configured
        if plugin is None:
            raise UnknownBackend(
                f"the backend {name!r} is not configured",
                hint=f"{suggestion(name, self.backends)}Configured are: {', '.join(self.backends) or 'none'}.",
            )
        return BackendConfig(name=name, plugin=plugin, options=RawOptions())

    def source(self, *path: str | int) -> str | None:
        """Where a setting comes from, by its keys: `source("backends", "vllm", "base_url")`; None if it is not set."""
        return self.sources.get(dotted(path))


def _restore(fields: dict[str, Any]) -> Settings:
    return Settings(**fields)


def _listed(names: str | Iterable[str] | None) -> str | list[str] | None:
    return names if names is None or isinstance(names, str) else list(names)


# -- putting together -------------------------------------------------------------------------------------------------


def _assemble(
    document: Document,
    environ: Mapping[str, str],
    hub: Mapping[Path, Found] | None,
    *,
    plugins: Iterable[str] | None,
    path: str | None = None,
    warnings: Iterable[str] = (),
) -> Settings:
    """One value from all that was found. `hub` None: no variable is read, but those that `api_key_env` names."""
    notes = list(warnings)
    known = None if plugins is None else sorted(set(plugins))
    found = take_apart(document)
    written = [str(at[1]) for at in found if _is_backend(at)]
    places = {name: [found["backends", name].where] for name in written}
    check_prefixes(found, written, known or ())
    if hub is not None:
        over, more = read_backends(environ, [*written, *(OWN_PLUGINS if known is None else known)])
        notes += check_environment(found, over, known)
        notes += more
        notes += warn_of_misspelt(environ)
        found.update(hub)
        for at, one in over.items():
            name = str(at[1])
            # What the environment says of a backend makes it one that is configured.
            found.setdefault(at[:2], Found(None, one.where))
            places.setdefault(name, []).append(one.where)
            if at[2] == "api_key":
                found.pop((*at[:2], "api_key_env"), None)
            found[at] = one
    backends = {name: _backend(name, found, environ, ", ".join(where)) for name, where in places.items()}
    settings = Settings(
        backends=backends,
        providers={
            str(at[1]): named
            for at in found
            if at[0] == "providers" and at[1:] and (named := _named(found, "providers", str(at[1])))
        },
        provider=_named(found, "provider"),
        fallback=_named(found, "fallback"),
        routes={str(at[1]): Named(one.value, one.where) for at, one in found.items() if at[0] == "routes" and at[1:]},
        assignments=tuple(
            _assignment(str(at[2]), found, backends) for at in found if len(at) == 3 and at[:2] == ("gpu", "assign")
        ),
        headroom=_value(found, "gpu", "headroom", default=HEADROOM),
        services=read_services(found),
        allowed=frozenset(_value(found, "allowed")) if ("allowed",) in found else None,
        disabled=frozenset(_value(found, "disabled", default=())),
        observers=_value(found, "observers", default=()),
        strict=_value(found, "strict", default=False),
        pinned=_value(found, "pinned", default=False),
        config_path=path,
        state_path=_absolute(found.get(("state",))),
        sources={dotted(at): one.where for at, one in found.items()},
        ollama_variables=ollama_variables(environ) if hub is not None else (),
    )
    check(settings, known)
    if known is not None:
        notes += missing_plugins(settings, known)
    return msgspec.structs.replace(settings, warnings=tuple(notes))


def _is_backend(at: Path) -> bool:
    return len(at) == 2 and at[0] == "backends"


def _value(found: Mapping[Path, Found], *at: str, default: Any = None) -> Any:
    return found[at].value if at in found else default


def _named(found: Mapping[Path, Found], *at: str) -> Named | None:
    one = found.get(at)
    if one is None:
        return None
    return Named((one.value,) if isinstance(one.value, str) else one.value, one.where)


def _backend(name: str, found: Mapping[Path, Found], environ: Mapping[str, str], source: str) -> BackendConfig:
    own = {at[2:]: one for at, one in found.items() if at[:2] == ("backends", name) and len(at) > 2}
    urls: dict[Capability | None, str] = {
        one: own[("base_urls", one)].value for one in Capability if ("base_urls", one) in own
    }
    if ("base_url",) in own:
        urls[None] = _value(own, "base_url")
    return BackendConfig(
        name=name,
        plugin=_value(own, "plugin", default=name),
        base_urls=urls,
        api_key=_key(name, own, environ),
        key_variable=_key_variable(own),
        models={one: own[("models", one)].value for one in Capability if ("models", one) in own},
        timeouts=Timeouts(**{str(at[1]): one.value for at, one in own.items() if at[0] == "timeouts" and at[1:]}),
        prefixes={str(at[1]): one.value for at, one in own.items() if at[0] == "prefixes" and at[1:]},
        batch=BatchLimits(**{str(at[1]): one.value for at, one in own.items() if at[0] == "batch" and at[1:]}),
        limits=BackendLimits(**{str(at[1]): one.value for at, one in own.items() if at[0] == "limits" and at[1:]}),
        options=RawOptions({str(at[0]): one.value for at, one in own.items() if at[0] not in _COMMON and not at[1:]}),
        source=source,
    )


def _key(name: str, own: Mapping[Path, Found], environ: Mapping[str, str]) -> Secret | None:
    key: Secret | None = _value(own, "api_key")
    named = own.get(("api_key_env",))
    if named is None:
        return key
    if key is not None:
        raise SettingsError(
            f"the backend {name!r} has both api_key and api_key_env", where=named.where, hint="Leave one of them out."
        )
    return secret(environ, named.value, named.where)


def _key_variable(own: Mapping[Path, Found]) -> str | None:
    """The variable that the key comes from: the one that the file names, or its own. None for a key given in code."""
    if (named := own.get(("api_key_env",))) is not None:
        return str(named.value)
    key = own.get(("api_key",))
    return key.where if key is not None and key.where.isidentifier() else None


def _assignment(name: str, found: Mapping[Path, Found], backends: Mapping[str, BackendConfig]) -> Assignment:
    at: Path = ("gpu", "assign", name)
    fields = {str(path[3]): one.value for path, one in found.items() if path[:3] == at and len(path) == 4}
    models = backends[name].models if name in backends else {}
    fields.setdefault("capabilities", tuple(models) or (Capability.TEXT,))
    return Assignment(backend=name, source=found[at].where, **fields)


def _absolute(found: Found | None) -> str | None:
    """The control file's path, made absolute, so that it stays the same file when the process changes its folder."""
    if found is None:
        return None
    path: str = found.value
    if os.path.isdir(path):  # noqa: PTH112 (pathlib is slow to import)
        raise SettingsError(f"{path} is a folder", where=found.where, hint=f"Name a file in it, such as {_STATE_FILE}.")
    return os.path.abspath(path)  # noqa: PTH100 (see above)
