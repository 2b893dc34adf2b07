"""What a plugin declares about itself, and the api version handshake."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from llm_hub.capabilities import Capability, Feature
from llm_hub.errors import PluginIncompatible

__all__ = [
    "API_VERSION",
    "DEPRECATED_API_VERSIONS",
    "SUPPORTED_API_VERSIONS",
    "Deprecated",
    "KnownBad",
    "PluginManifest",
    "check_api_version",
    "deprecation",
]

API_VERSION = "1.0"
"""The version of the contract between core and plugins: a plugin of the same major and at most this minor works."""

SUPPORTED_API_VERSIONS: Mapping[int, int] = {1: 0}
"""Each major version that this core still serves, with the highest minor of it that it knows."""


class Deprecated(msgspec.Struct, frozen=True):
    """An api version that is still served: `until` is the version of the core that no longer does, `change` what is to do."""

    until: str
    change: str


DEPRECATED_API_VERSIONS: Mapping[str, Deprecated] = {}
"""Api versions whose end is announced, by `MAJOR` or `MAJOR.MINOR`; see docs/explanation/compatibility.md for how long."""


class KnownBad(msgspec.Struct, frozen=True):
    """Versions of the server or engine that must not be used: a PEP 440 specifier such as `<0.5`, and why."""

    versions: str
    reason: str


class PluginManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin says of itself. It is plain data: asking for it does no I/O.

    `api_version` is the `llm_hub.manifest.API_VERSION` that the plugin was written against. `features` are what its
    backends can do with a model that can. `settings` is a `msgspec.Struct` class (frozen, keyword-only,
    `forbid_unknown_fields`) of the options that `[backends.NAME]` may hold beside the common ones. `default_url` is
    the address of an HTTP backend for which none is configured. `default_models` are models that need no download and
    no choice (an embedded backend's). `gpu` says whether a backend wants a GPU: "none", "optional" or "required".
    `install_model` is the command that fetches a model, with `{model}` in it. `loads_on_demand` says that its server loads a model for the first request, and drops the load
    if the client gives up; then the hub has it loaded apart from any caller's deadline. `known_bad` are versions of the server
    or engine that are refused, each with its reason.
    """

    api_version: str
    summary: str = ""
    features: frozenset[Feature] = frozenset()
    settings: type[msgspec.Struct] | None = None
    default_url: str | None = None
    default_models: Mapping[Capability, str] = {}
    gpu: str = "none"
    install_model: str | None = None
    loads_on_demand: bool = False
    known_bad: tuple[KnownBad, ...] = ()

    def bad_version(self, version: str | None) -> KnownBad | None:
        """The entry of `known_bad` that this version of the server falls under, if any."""
        if not version or not self.known_bad:
            return None
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version

        try:
            parsed = Version(version)
        except InvalidVersion:
            return None  # a development build names itself as it likes; nothing is known to be bad about it
        for entry in self.known_bad:
            if SpecifierSet(entry.versions).contains(parsed, prereleases=True):
                return entry
        return None


def deprecation(declared: str) -> str | None:
    """What to say to a plugin of this api version if its end is announced, None otherwise."""
    found = DEPRECATED_API_VERSIONS.get(declared) or DEPRECATED_API_VERSIONS.get(declared.partition(".")[0])
    if found is None:
        return None
    return (
        f"it is made for api version {declared}, which llm-hub-core serves until version {found.until} and no longer: "
        f"{found.change}"
    )


def check_api_version(plugin: str, declared: object) -> None:
    """Raise PluginIncompatible unless this core serves plugins of the declared api version."""
    match = re.fullmatch(r"(\d+)\.(\d+)", declared) if isinstance(declared, str) else None
    if match is None:
        raise PluginIncompatible(
            f"its manifest has api_version {declared!r}, which is no MAJOR.MINOR version",
            plugin=plugin,
            hint=f'Declare the version it was written against, such as "{API_VERSION}".',
        )
    major, minor = int(match[1]), int(match[2])
    served = SUPPORTED_API_VERSIONS.get(major)
    if served is not None and minor <= served:
        return
    newest = max(SUPPORTED_API_VERSIONS)
    newer = (major, minor) > (newest, SUPPORTED_API_VERSIONS[newest])
    raise PluginIncompatible(
        f"it is made for api version {declared}, this core serves "
        + ", ".join(f"{one}.0 to {one}.{top}" for one, top in sorted(SUPPORTED_API_VERSIONS.items())),
        plugin=plugin,
        hint="Upgrade the core: pip install -U llm-hub-core" if newer else "Upgrade the plugin.",
    )
