"""The shape of the settings file: takes a document apart into single settings, each checked and with its place."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from llm_hub.capabilities import Capability
from llm_hub.errors import SettingsError
from llm_hub.settings_file import Document, Found
from llm_hub.settings_kinds import KINDS, Kind, described, suggestion
from llm_hub.settings_table import KEYS, VARIABLES, Variable, variable_prefix
from llm_hub.toml_lines import Path, dotted

__all__ = ["take_apart"]


class _Table:
    """What a table may hold: keys by name, and `other` for any name that they do not claim."""

    __slots__ = ("keys", "kind", "other", "other_is")

    def __init__(self) -> None:
        self.kind: Kind | None = None  # set: no table at all, but a value of this kind
        self.keys: dict[str, _Table] = {}
        self.other: _Table | None = None
        self.other_is = ""

    def below(self, part: str) -> _Table:
        if part in ("NAME", "OPTION", "VARIABLE"):
            if self.other is None:
                self.other, self.other_is = _Table(), part
            return self.other
        return self.keys.setdefault(part, _Table())


@functools.cache
def _shape(in_code: bool) -> _Table:  # noqa: FBT001 (private, and the key of a cache)
    """The shape of the file, or of the arguments of `Settings.of`, from the table of settings."""
    root = _Table()
    rows = [(key.path, key.kind) for key in KEYS]
    if in_code:
        rows += [(row.setting, row.kind) for row in VARIABLES if row.setting[0] != "backends"]
        rows.append((("backends", "NAME", "api_key"), "secret"))
    for path, kind in rows:
        for capability in Capability if "CAPABILITY" in path else ("",):
            table = root
            for part in path:
                table = table.below(str(capability) if part == "CAPABILITY" else part)
            table.kind = KINDS[kind]
    return root


def take_apart(document: Document) -> dict[Path, Found]:
    """Every setting of the document by its path, checked; tables are in it as well, with None for a value.

    A route such as `vision.read` has one name as its key, however it is written. Raises SettingsError.
    """
    found: dict[Path, Found] = {}
    try:
        _take_table(document, document.data, (), (), _shape(document.lines is None), found)
    except RecursionError:
        raise SettingsError("it is nested too deeply", where=document.name) from None
    return found


def _take_table(
    document: Document, data: Mapping[str, Any], written: Path, path: Path, table: _Table, found: dict[Path, Found]
) -> None:
    """`written` is how the path stands in the document, `path` what it means."""
    for key, value in data.items():
        at = (*written, key)
        here = (*path, key)
        where = document.where(at)
        if not isinstance(key, str):
            raise SettingsError(f"the key {key!r} is not text", where=where)
        below = table.keys.get(key)
        if isinstance(value, Mapping) and any(known.startswith(f"{key}.") for known in table.keys):
            _take_nested(document, value, at, here, table, found)
            continue
        if below is None and table.other is not None:
            below = table.other
            if table.other_is in ("NAME", "VARIABLE"):
                _checked(KINDS[table.other_is.lower()], key, here, where, document)
            elif key == "api_key":
                raise _refused_key(here, where)
        if below is None:
            raise _unknown(document, key, path, table, where)
        if here in found:
            raise SettingsError(f"{dotted(here)} is set twice", where=where, hint="Leave one of them out.")
        if below.kind is not None:
            found[here] = Found(_checked(below.kind, value, here, where, document), where)
            if below.kind.name == "option":
                _note_nested(document, value, here, found)
        elif isinstance(value, Mapping):
            found[here] = Found(None, where)
            _take_table(document, value, at, here, below, found)
        else:
            raise SettingsError(
                f"{dotted(here)} must be a table, not {described(value)}", where=where, hint=_example(here)
            )


def _take_nested(
    document: Document, data: Mapping[str, Any], written: Path, path: Path, table: _Table, found: dict[Path, Found]
) -> None:
    """`[routes.vision] read = …`, which means the key "vision.read"."""
    *parent, key = path
    if not data:
        raise SettingsError(f"{dotted(path)} is an empty table", where=document.where(written))
    for name, value in data.items():
        full = f"{key}.{name}"
        here = (*parent, full)
        where = document.where((*written, name))
        below = table.keys.get(full)
        if below is None or below.kind is None:
            raise _unknown(document, full, tuple(parent), table, where)
        if here in found:
            raise SettingsError(f"{dotted(here)} is set twice", where=where, hint="Leave one of them out.")
        found[here] = Found(_checked(below.kind, value, here, where, document), where)


def _note_nested(document: Document, value: object, path: Path, found: dict[Path, Found]) -> None:
    """Where the parts of a plugin's option stand, for errors about them."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, part in items:
        here = (*path, key)
        found[here] = Found(None, document.where(here))
        _note_nested(document, part, here, found)


def _checked(kind: Kind, value: object, path: Path, where: str, document: Document) -> Any:
    if kind.value is None:  # the table gives such a kind to variables alone
        raise AssertionError(f"{kind.name} is no kind for a file")
    try:
        return kind.value(value, where)
    except SettingsError as error:
        if document.lines is not None:
            error.message = f"{dotted(path)}: {error.message}"
        raise


def _unknown(document: Document, key: str, path: Path, table: _Table, where: str) -> SettingsError:
    known = sorted(table.keys)
    if path and path[-1] in ("models", "base_urls"):
        return SettingsError(
            f"{key!r} in {dotted(path)} is no capability",
            where=where,
            hint=f"{suggestion(key, known)}There are: {', '.join(known)}.",
        )
    hint = suggestion(key, known)
    if not path and document.lines is not None and (row := _variable(key)) is not None:
        instead = "; in the file, [routes] choose" if row.name.endswith(("PROVIDER", "FALLBACK")) else ""
        hint = f"It is set by the variable {row.name}{instead}. "
    inside = f" in [{dotted(path)}]" if path else ""
    return SettingsError(f"unknown key {key!r}{inside}", where=where, hint=f"{hint}Known are: {', '.join(known)}.")


def _refused_key(path: Path, where: str) -> SettingsError:
    variable = f"{variable_prefix(str(path[1]))}_API_KEY"
    return SettingsError(
        f"{dotted(path)}: a key does not belong in a settings file, which is copied, committed and shown",
        where=where,
        hint=f'Take it out (and replace it, if others could read it), export {variable}=…, and write api_key_env = "'
        f'{variable}" in its place.',
    )


def _variable(key: str) -> Variable | None:
    """The variable that somebody means who writes this into the file."""
    for row in VARIABLES:
        if key in (row.setting[0], row.name.lower(), row.name.lower().removeprefix("llm_hub_").removeprefix("llm_")):
            return row
    return None


def _example(path: Path) -> str:
    """How to write this table."""
    for key in KEYS:
        if len(key.path) > len(path) and all(
            ours in (theirs, "NAME") for ours, theirs in zip(key.path, path, strict=False)
        ):
            if key.path[-1] == "CAPABILITY":
                return f"Write {key.example}."
            return f"Write [{dotted((*path, *key.path[len(path) : -1]))}] above its settings."
    raise AssertionError(f"{path} is no table of the settings")
