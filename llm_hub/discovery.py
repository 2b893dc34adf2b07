"""What is installed: plugins found by their entry points, listed without importing any, loaded one by one."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llm_hub.capabilities import Capability

__all__ = ["Installed", "installed", "load"]

_GROUPS = {capability.group: capability for capability in Capability}


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin as its metadata describes it.

    `value` is the object reference of its entry points. `conflict` says why it cannot be used, where two distributions
    claim the name, or the entries of one name different objects.
    """

    name: str
    capabilities: frozenset[Capability]
    value: str
    distribution: str
    version: str
    conflict: str | None = None


def installed(path: Sequence[str] | None = None) -> tuple[Installed, ...]:
    """The plugins that are installed, sorted by name; from metadata alone. `path` in place of `sys.path`."""
    found: dict[str, list[tuple[Capability, str, str, str]]] = {}
    seen: set[str] = set()
    distributions = (
        importlib.metadata.distributions() if path is None else importlib.metadata.distributions(path=list(path))
    )
    for distribution in distributions:
        text = distribution.read_text("entry_points.txt")
        if not text or "llm_hub." not in text:
            continue
        entries = [entry for entry in distribution.entry_points if entry.group in _GROUPS]
        if not entries:
            continue
        owner, version = _identity(distribution)
        key = owner.lower().replace("_", "-").replace(".", "-")
        if key in seen:  # shadowed by the same distribution earlier on the path, as for imports
            continue
        seen.add(key)
        for entry in entries:
            found.setdefault(entry.name, []).append((_GROUPS[entry.group], entry.value, owner, version))
    return tuple(_combine(name, entries) for name, entries in sorted(found.items()))


def _identity(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Name and version, from the head of METADATA: parsing all of it as a message takes most of the time otherwise."""
    name = version = ""
    for line in (distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "").splitlines():
        if line.startswith("Name:"):
            name = line[5:].strip()
        elif line.startswith("Version:"):
            version = line[8:].strip()
        elif not line:
            break
        if name and version:
            break
    return name or "unknown", version or "unknown"


def _combine(name: str, entries: Iterable[tuple[Capability, str, str, str]]) -> Installed:
    entries = list(entries)
    owners = sorted({f"{owner} {version}" for _, _, owner, version in entries})
    values = sorted({value for _, value, _, _ in entries})
    conflict = None
    if len(owners) > 1:
        conflict = f"{len(owners)} distributions claim this name: {', '.join(owners)}"
    elif len(values) > 1:
        conflict = f"its entry points name different objects: {', '.join(values)}"
    _, value, owner, version = entries[0]
    return Installed(
        name=name,
        capabilities=frozenset(capability for capability, _, _, _ in entries),
        value=value,
        distribution=owner if len(owners) == 1 else ", ".join(sorted({one for _, _, one, _ in entries})),
        version=version if len(owners) == 1 else "",
        conflict=conflict,
    )


def load(plugin: Installed) -> object:
    """Import the plugin and return its object. Whatever the import raises comes through."""
    from stevedore.driver import DriverManager

    group = min(plugin.capabilities).group
    entry = importlib.metadata.EntryPoint(name=plugin.name, value=plugin.value, group=group)

    class OneDriver(DriverManager[Any]):
        """Loads the entry that discovery has found: stevedore's own list may be stale for a while after an install."""

        def list_entry_points(self) -> list[importlib.metadata.EntryPoint]:
            return [entry]

    def fail(manager: object, entry_point: object, error: BaseException) -> None:
        raise error

    driver: Any = OneDriver(namespace=group, name=plugin.name, on_load_failure_callback=fail)
    return driver.driver
