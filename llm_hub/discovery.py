"""What is installed, read from metadata alone, and the import of the one plugin that is wanted."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint

import msgspec

from llm_hub.capabilities import Capability

__all__ = ["GROUP_PREFIX", "OBSERVER_GROUP", "Installed", "installed", "load", "local_source", "normalized"]

logger = logging.getLogger("llm_hub")

GROUP_PREFIX = "llm_hub."
"""What the names of all entry point groups of the hub begin with."""

OBSERVER_GROUP = GROUP_PREFIX + "observer"
"""The group of the plugins that have the hook `llm_hub_observer`."""

_CAPABILITIES = {capability.group: capability for capability in Capability}
_KNOWN_GROUPS = {*_CAPABILITIES, OBSERVER_GROUP}
_FIELD = re.compile(r"^(name|version):[ \t]*(.*?)[ \t]*$", re.IGNORECASE | re.MULTILINE)
_SEPARATORS = re.compile(r"[-_.]+")
_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*(\.[^\W\d]\w*)*)?")


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin as its distribution's metadata declares it; nothing of it was imported.

    `value` is the object reference, `module` or `module:attribute`. `conflict` says why the name does not mean one
    object: two distributions claim it (`rivals` has all of them), or its entries name different objects. `observes`: it
    has an entry in the group `llm_hub.observer`.
    `claims` are what each of several distributions alone would amount to. `unknown_groups` are the groups of the hub's prefix that hold its name and that this core does not know: misspelt, or
    of a newer core.
    """

    name: str
    capabilities: frozenset[Capability]
    value: str
    distribution: str
    version: str
    conflict: str | None = None
    rivals: tuple[str, ...] = ()
    claims: tuple[Installed, ...] = ()
    unknown_groups: tuple[str, ...] = ()
    observes: bool = False

    @property
    def offers(self) -> tuple[str, ...]:
        """Its capabilities, and "observer" if it observes, sorted."""
        return tuple(sorted([*map(str, self.capabilities), *(["observer"] if self.observes else [])]))

    @property
    def origin(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()


def installed(path: Sequence[str] | None = None) -> tuple[Installed, ...]:
    """Every installed plugin, sorted by name. Imports none of them.

    `path` is searched in place of `sys.path`. Of two distributions with the same name the first one on the path counts,
    as for `importlib.metadata`. A distribution whose metadata cannot be read is passed over with a warning in the log.
    """
    claims: dict[str, list[_Entry]] = {}
    for entry in _entries(path):
        claims.setdefault(entry.name, []).append(entry)
    return tuple(_installed(name, claims[name]) for name in sorted(claims))


def load(plugin: Installed) -> object:
    """Import a plugin and return the object that its entry points name. Raises whatever the import raises.

    Raises ValueError where its object reference is none.
    """
    if _REFERENCE.fullmatch(plugin.value) is None:
        raise ValueError(f"{plugin.value!r} is no object reference; it must be module or module:attribute")
    from stevedore.driver import DriverManager  # when first needed: most processes that list plugins load none

    group = min((capability.group for capability in plugin.capabilities), default=OBSERVER_GROUP)
    entry = EntryPoint(name=plugin.name, value=plugin.value, group=group)

    class Driver(DriverManager):  # type: ignore[type-arg]  # stevedore 5.5 has it, and no parameters for it
        """Loads the entry that was found here: stevedore's own list may be stale for minutes."""

        def list_entry_points(self) -> list[EntryPoint]:
            return [entry]

    loaded: object = Driver(namespace=group, name=plugin.name).extensions[0].plugin
    return loaded


def local_source(distribution: str) -> tuple[str, bool] | None:
    """Where a distribution was installed from, if that was no index: a path, and whether it is editable.

    As PEP 610 (`direct_url.json`) records it.
    """
    try:
        text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    if not text:
        return None
    from urllib.parse import unquote, urlsplit

    origin = msgspec.json.decode(text)
    parts = urlsplit(str(origin.get("url", "")))
    if parts.scheme != "file":
        return None
    return unquote(parts.path), bool(origin.get("dir_info", {}).get("editable"))


def normalized(distribution: str) -> str:
    """The name of a distribution as names are compared (PyPA specification "Name normalization")."""
    return _SEPARATORS.sub("-", distribution).lower()


class _Entry(msgspec.Struct, frozen=True):
    """One line of an `entry_points.txt`."""

    group: str
    name: str
    value: str
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.distribution} {self.version}".strip()


def _installed(name: str, entries: list[_Entry]) -> Installed:
    """What the entries of one name amount to."""
    first = min(entries, key=lambda entry: (normalized(entry.distribution), entry.group)) if entries[1:] else entries[0]
    groups = [entry.group for entry in entries]
    conflict, rivals = _conflict(entries) if entries[1:] else (None, ())
    return Installed(
        name=name,
        capabilities=frozenset([_CAPABILITIES[group] for group in groups if group in _CAPABILITIES]),
        value=first.value,
        distribution=first.distribution,
        version=first.version,
        conflict=conflict,
        rivals=rivals,
        claims=_claims(name, entries) if rivals else (),
        unknown_groups=tuple(sorted(set(groups) - _KNOWN_GROUPS)),
        observes=OBSERVER_GROUP in groups,
    )


def _claims(name: str, entries: list[_Entry]) -> tuple[Installed, ...]:
    """What the entries of each distribution amount to by themselves."""
    of: dict[str, list[_Entry]] = {}
    for entry in entries:
        of.setdefault(entry.origin, []).append(entry)
    return tuple(_installed(name, of[origin]) for origin in sorted(of))


def _conflict(entries: list[_Entry]) -> tuple[str | None, tuple[str, ...]]:
    """Why they do not mean one object, and the distributions that are in each other's way."""
    origins = sorted({entry.origin for entry in entries})
    if len(origins) > 1:
        rivals = tuple(sorted({entry.distribution for entry in entries}))
        return f"{len(origins)} distributions claim this name: {', '.join(origins)}", rivals
    values = sorted({entry.value for entry in entries})
    if len(values) > 1:
        return f"its entry points name different objects: {', '.join(values)}", ()
    return None, ()


def _entries(path: Sequence[str] | None) -> Iterator[_Entry]:
    """The entries of our groups, of the distributions that importlib.metadata would find by their names."""
    names = _Names()
    found = importlib.metadata.distributions() if path is None else importlib.metadata.distributions(path=list(path))
    for distribution in found:
        try:
            text = distribution.read_text("entry_points.txt")
            if text is None or GROUP_PREFIX not in text:
                names.pass_by(distribution)
                continue
            name, version = _name_and_version(distribution)
            if not names.is_new(name, distribution):
                continue  # an import would find the earlier one too
        except (OSError, UnicodeError) as error:
            logger.warning("metadata of a distribution in %s cannot be read: %s", _folder(distribution), error)
            continue
        for group, entry, value in _parse(text):
            if group.startswith(GROUP_PREFIX):
                yield _Entry(group, entry, value, name or "(a distribution without a name)", version)


class _Names:
    """The names of the distributions that were met on the path: of two with one name, the first shadows the second.

    Reading a name costs as much as reading entry points, and most distributions have no plugins, so the names of those
    are read only when a plugin turns up in a later folder, which is rare. (In one folder a name is there once.)
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._passed: list[tuple[object, Distribution]] = []

    def pass_by(self, distribution: Distribution) -> None:
        """Note one that has no plugins."""
        self._passed.append((_folder(distribution), distribution))

    def is_new(self, name: str, distribution: Distribution) -> bool:
        """Is this distribution, which has plugins, the first of its name?"""
        if self._passed:
            here = _folder(distribution)
            earlier = [one for folder, one in self._passed if folder != here]
            if earlier:
                self._passed = [(folder, one) for folder, one in self._passed if folder == here]
                self._seen.update(map(_name, earlier))
        key = normalized(name)
        if key and key in self._seen:
            return False
        self._seen.add(key)
        return True


def _name(distribution: Distribution) -> str:
    """The name of one without plugins, as names are compared; empty if it cannot be read."""
    try:
        return normalized(_name_and_version(distribution)[0])
    except (OSError, UnicodeError) as error:
        logger.debug("metadata of a distribution in %s cannot be read: %s", _folder(distribution), error)
        return ""


def _folder(distribution: Distribution) -> object:
    """The folder on the path that it lies in."""
    try:
        return distribution.locate_file("")
    except NotImplementedError:  # a finder of somebody's own need not have files
        return repr(distribution)


def _name_and_version(distribution: Distribution) -> tuple[str, str]:
    """Both from the head of the metadata, read as text: parsing it all as an e-mail, as `.metadata` does, takes most of
    the time of a listing. Format: PyPA "Core metadata specifications"; a blank line ends the head.
    """
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or distribution.read_text("") or ""
    end = text.find("\n\n")
    fields: dict[str, str] = {}
    for match in _FIELD.finditer(text, 0, end if end >= 0 else len(text)):
        fields.setdefault(match[1].lower(), match[2])
        if len(fields) == 2:
            break
    return fields.get("name", ""), fields.get("version", "")


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    """Group, name and object reference (without extras, which mean nothing any more) of each entry.

    Format: PyPA "Entry points specification", an INI file with `=` as its delimiter. A line that is neither a section
    nor an entry is passed over, so that it costs one entry and not the listing.
    """
    group = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and not line.startswith(("#", ";")):
            name, equals, value = line.partition("=")
            if equals:
                yield group, name.strip(), "".join(value.partition("[")[0].split())
