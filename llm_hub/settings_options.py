"""The options of a backend, converted into what its plugin declares."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from llm_hub.config import BackendConfig, Secret
from llm_hub.errors import SettingsError
from llm_hub.manifest import PluginManifest
from llm_hub.settings_kinds import suggestion
from llm_hub.settings_table import KEYS
from llm_hub.toml_lines import Path, dotted

if TYPE_CHECKING:
    from llm_hub.settings import Settings

__all__ = ["RawOptions", "bind_options"]

_COMMON = tuple(sorted({key.path[2] for key in KEYS if key.path[0] == "backends" and key.kind != "option"}))
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`$")


class RawOptions(dict[str, Any]):
    """The options of a backend as they were written. Their values do not show themselves: one may be a secret."""

    def __repr__(self) -> str:
        return f"RawOptions({', '.join(self)})"


def bind_options(config: BackendConfig, manifest: PluginManifest, settings: Settings) -> BackendConfig:
    """The configuration with its options as an instance of the Struct that the plugin declares for them.

    Raises SettingsError where an option stands that the plugin does not have, or that is not what it must be.
    """
    declared = manifest.settings
    options = config.options
    if declared is not None and isinstance(options, declared):
        return config
    if not isinstance(options, Mapping):
        raise SettingsError(
            f"the options of {config.name!r} are {type(options).__name__}, not those of the plugin {config.plugin!r}",
            where=config.source,
        )
    names = [field.encode_name for field in msgspec.structs.fields(declared)] if declared is not None else []
    for key in options:
        if key not in names:
            theirs = f"Its options are: {', '.join(sorted(names))}." if names else "It has no options of its own."
            raise SettingsError(
                f"the plugin {config.plugin!r} has no option {key!r}",
                where=_where(config, settings, (key,)),
                hint=f"{suggestion(key, [*names, *_COMMON])}{theirs} Every backend has: {', '.join(_COMMON)}.",
            )
    if declared is None:
        return config
    try:
        bound = msgspec.convert(dict(options), declared, dec_hook=_secret)
    except msgspec.ValidationError as error:
        path, cause = _culprit(dict(options), declared, str(error))
        raise SettingsError(
            f"{dotted(('backends', config.name, *path))}: {cause}", where=_where(config, settings, path)
        ) from error
    return msgspec.structs.replace(config, options=bound)


def _secret(kind: type, value: Any) -> Secret:
    """An option that is declared as Secret: its text, or `{ env = "VARIABLE" }`. What it holds is never shown."""
    if kind is not Secret:
        raise NotImplementedError(f"an option cannot be a {kind.__name__}")
    if isinstance(value, Mapping) and set(value) == {"env"} and isinstance(value["env"], str):
        value = os.environ.get(value["env"])
        if not value:
            raise ValueError("the variable that it names is not set")
    if not isinstance(value, str) or not value.strip():
        raise ValueError('it must be text, or { env = "VARIABLE" }')
    return Secret(value.strip())


def _where(config: BackendConfig, settings: Settings, path: Path) -> str:
    """Where the option stands, or the nearest table around it."""
    for length in range(len(path), 0, -1):
        if (found := settings.source("backends", config.name, *path[:length])) is not None:
            return found
    return config.source


def _culprit(options: dict[str, Any], declared: type[msgspec.Struct], message: str) -> tuple[Path, str]:
    """The option that msgspec speaks of, and what it says.

    For the value of a mapping msgspec writes `[...]` and not its key. So each key is tried alone until one gives the
    same message.
    """
    cause, _, written = message.partition(" - at `$")
    if not written:
        cause, _, written = message.partition(" - at `key` in `$")
    steps = [step[1] or step[2] for step in _STEP.finditer(written.rstrip("`"))]
    path: Path = ()
    value: Any = options
    for step in steps:
        part: str | int = step
        if step == "...":
            if not isinstance(value, dict):
                break
            alone = next((key for key in value if _message(_only(options, path, key), declared) == message), None)
            if alone is None:
                break
            part = alone
        elif step.isdigit() and isinstance(value, list | tuple):
            part = int(step)
        path = (*path, part)
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            break
    if unknown := _UNKNOWN.search(cause):
        path = (*path, unknown[1])
        cause = "there is no such option"
    return path, cause[:1].lower() + cause[1:]


def _message(options: dict[str, Any], declared: type[msgspec.Struct]) -> str | None:
    try:
        msgspec.convert(options, declared, dec_hook=_secret)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _only(options: Any, path: Path, key: str) -> Any:
    """The options with nothing but `key` in the mapping at `path`."""
    if not path:
        return {key: options[key]}
    first, *rest = path
    if isinstance(options, dict):
        return {**options, first: _only(options[first], tuple(rest), key)}
    return [*options[:first], _only(options[first], tuple(rest), key), *options[int(first) + 1 :]]
