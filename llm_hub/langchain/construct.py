"""How a LangChain object is made from the configuration of a backend: which argument is called what in which class."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig
from llm_hub.errors import ConfigurationError, SettingsError
from llm_hub.langchain.as_plugin import Source, Terms

__all__ = ["MODEL", "Parameters", "check_present", "construct", "parameters", "resolve"]

MODEL = ("model", "model_name", "model_id", "repo_id")
_BASE_URL = ("base_url", "api_base", "endpoint", "endpoint_url", "azure_endpoint", "server_url", "inference_server_url")
_API_KEY = ("api_key", "api_token", "token")


class Parameters:
    """The names that a class takes: each field with the argument of the constructor that sets it."""

    def __init__(self, kind: Any) -> None:
        self.any = False
        self._fields: dict[str, str] = {}
        fields = getattr(kind, "model_fields", None)
        if isinstance(fields, Mapping):
            by_alias_only = not kind.model_config.get("populate_by_name") and not kind.model_config.get(
                "validate_by_name"
            )
            for name, field in fields.items():
                alias = field.alias if isinstance(field.alias, str) else None
                self._fields[name] = name if alias is None else alias
                if alias is not None:
                    self._fields.setdefault(alias, alias)
            self._of_alias: dict[str, str] = {
                field.alias: name for name, field in fields.items() if isinstance(field.alias, str)
            }
            self.names = frozenset(self._fields) - (set(self._of_alias.values()) if by_alias_only else set())
            self.any = kind.model_config.get("extra") == "allow"
        else:
            self._of_alias = {}
            for name, one in inspect.signature(kind).parameters.items():
                if one.kind is inspect.Parameter.VAR_KEYWORD:
                    self.any = True
                elif one.kind is not inspect.Parameter.VAR_POSITIONAL:
                    self._fields[name] = name
            self.names = frozenset(self._fields)

    def argument(self, candidates: tuple[str, ...], *, ending: tuple[str, ...] = ()) -> str | None:
        """The argument that is called by one of these names, or whose name ends so."""
        for name in candidates:
            if name in self._fields:
                return self._fields[name]
        return next((self._fields[name] for name in sorted(self._fields) if ending and name.endswith(ending)), None)

    def field(self, name: str) -> str | None:
        """The field that is set by an argument of this name."""
        if name in self._of_alias:
            return self._of_alias[name]
        return name if name in self._fields else None

    def is_reserved(self, name: str) -> bool:
        """Is this the model, the address or the key, for which there are settings of their own?"""
        taken = {self.argument(MODEL), self.argument(_BASE_URL), self.argument(_API_KEY, ending=("_api_key",))}
        return (
            name.endswith(("api_key", "api_token"))
            or name in taken
            or self.field(name) in {self.field(one) for one in taken if one is not None} - {None}
        )

    def __contains__(self, name: object) -> bool:
        return self.any or name in self.names


_KNOWN: weakref.WeakKeyDictionary[Any, Parameters] = weakref.WeakKeyDictionary()


def parameters(kind: Any) -> Parameters:
    """The names that a class takes; looked up once."""
    found = _KNOWN.get(kind)
    if found is None:
        found = _KNOWN[kind] = Parameters(kind)
    return found


def check_present(source: Source) -> None:
    """Raise ConfigurationError if the package of a class that is given by name is not installed. Imports nothing."""
    if not isinstance(source, str):
        return
    package = source.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"it needs the package {package}, which is not installed",
            hint=f"Install it: pip install {package.replace('_', '-')}",
        )


def resolve(source: Source) -> Any:
    """The class, object or function itself. Raises ConfigurationError where a name leads nowhere."""
    if not isinstance(source, str):
        return source
    module, _, name = source.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise ConfigurationError(
            f"it needs the module {error.name}, which is not installed",
            hint=f"Install it: pip install {missing.replace('_', '-')}",
        ) from error
    except AttributeError as error:
        raise ConfigurationError(
            f"{module} has no {name}", hint="The plugin is made for another version of that package: upgrade either."
        ) from error


def construct(source: Any, terms: Terms, config: BackendConfig, capability: Capability, model: str | None) -> Any:
    """The LangChain object for one model. May load it. Raises SettingsError for arguments that the class does not take."""
    if isinstance(source, type):
        return _made(source, _arguments(source, terms, config, capability, model), config)
    if hasattr(source, "embed_documents") or hasattr(source, "invoke"):
        return _adapted(source, terms, config, capability, model)
    return source(config, model)


def _arguments(
    kind: type, terms: Terms, config: BackendConfig, capability: Capability, model: str | None
) -> dict[str, Any]:
    known = parameters(kind)
    arguments: dict[str, Any] = {}
    if "max_retries" in known.names:
        arguments["max_retries"] = 0  # `routing.py` is the only place that retries
    if "stream_usage" in known.names:
        arguments["stream_usage"] = True
    arguments.update(_own_http(known, config))
    if model is not None:
        arguments[_wanted(known, kind, "model", MODEL, config)] = model
    url = config.base_url(capability)
    if url is not None:
        arguments[_wanted(known, kind, "base_url", _BASE_URL, config, ending=("base_url", "_api_base"))] = url
    if config.api_key is not None:
        ending = ("_api_key", "api_token")
        arguments[_wanted(known, kind, "api_key", _API_KEY, config, ending=ending)] = config.api_key.reveal()
    arguments.update(terms.arguments(config) if callable(terms.arguments) else terms.arguments)
    arguments.update(_of_operator(known, kind, config))
    return arguments


def _own_http(known: Parameters, config: BackendConfig) -> dict[str, Any]:
    """HTTP clients of its own where the class takes some: they can be closed (packages share one among all their objects
    otherwise), and do what the hub's own transport does.
    """
    of_openai = {"http_client", "http_async_client"} <= known.names  # and of those who follow it
    of_ollama = {"sync_client_kwargs", "async_client_kwargs"} <= known.names
    if not (of_openai or of_ollama):
        return {}
    import httpx

    from llm_hub.langchain.own_http import async_options, sync_options, timeout

    connect = config.timeouts.connect
    if of_ollama:
        return {"sync_client_kwargs": sync_options(connect), "async_client_kwargs": async_options(connect)}
    arguments: dict[str, Any] = {
        "http_client": httpx.Client(**sync_options(connect)),
        "http_async_client": httpx.AsyncClient(**async_options(connect)),
    }
    waits = known.argument(("timeout", "request_timeout"))
    if waits is not None:
        arguments[waits] = timeout(connect)
    return arguments


def _wanted(
    known: Parameters,
    kind: type,
    what: str,
    names: tuple[str, ...],
    config: BackendConfig,
    *,
    ending: tuple[str, ...] = (),
) -> str:
    found = known.argument(names, ending=ending)
    if found is None and known.any:
        found = names[0]
    if found is None:
        raise SettingsError(
            f"{kind.__name__} has no parameter for the {what} of {config.name!r}",
            where=config.source,
            hint=f"Leave {what} out, or let the plugin say how it is given: from_langchain(..., arguments=...).",
        )
    return found


def _of_operator(known: Parameters, kind: type, config: BackendConfig) -> dict[str, Any]:
    """The arguments that the settings of the backend hold."""
    options = config.options
    given: dict[str, Any] = options if isinstance(options, dict) else msgspec.structs.asdict(options)
    if set(given) == {"arguments"}:
        given = dict(given["arguments"])
    else:
        given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if known.is_reserved(name):
            raise SettingsError(
                f"the arguments of {config.name!r} hold {name}",
                where=config.source,
                hint="Models, addresses and keys have settings of their own: models, base_url, api_key_env.",
            )
        if name not in known:
            close = difflib.get_close_matches(name, known.names, 1)
            meant = f"Did you mean {close[0]}? " if close else ""
            raise SettingsError(
                f"{kind.__name__} has no parameter {name!r}, which the arguments of {config.name!r} hold",
                where=config.source,
                hint=f"{meant}It has: {', '.join(sorted(known.names))}.",
            )
    return given


def _made(kind: type, arguments: dict[str, Any], config: BackendConfig) -> Any:
    try:
        return kind(**arguments)
    except Exception as error:  # noqa: BLE001 - it becomes a typed error; its cause is left out where it may show the key
        raise SettingsError(
            f"{kind.__name__} does not take the arguments of {config.name!r}: {_said(error, config)}",
            where=config.source,
            hint=f"It was given: {', '.join(sorted(arguments))}.",
        ) from (None if config.api_key is not None else error)


def _said(error: Exception, config: BackendConfig) -> str:
    """What it says, without what it was given: that may be a key."""
    errors = getattr(error, "errors", None)
    if callable(errors):  # pydantic's
        text = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in errors())
    else:
        text = f"{type(error).__name__}: {error}"
    if config.api_key is not None:
        text = text.replace(config.api_key.reveal(), "***")
    return " ".join(text.split())[:400]


def _adapted(source: Any, terms: Terms, config: BackendConfig, capability: Capability, model: str | None) -> Any:
    """An object that was configured by the author, for this model."""
    for what, given in (("base_url", config.base_url(capability)), ("api_key", config.api_key)):
        if given is not None:
            raise SettingsError(
                f"{config.name!r} has a {what}, and the plugin brings a {type(source).__name__} that is configured already",
                where=config.source,
                hint=f"Leave {what} out, or let the plugin give the class instead of an object.",
            )
    known = parameters(type(source))
    changes = _of_operator(known, type(source), config)
    if model is not None:
        changes[_wanted(known, type(source), "model", MODEL, config)] = model
    if not changes:
        return source
    return source.model_copy(update={known.field(name) or name: value for name, value in changes.items()})
