"""On which line of a TOML document each key stands, which `tomllib` does not tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["Path", "dotted", "locate"]

Path = tuple[str | int, ...]
"""The keys that lead to a value, with the number of the element for an array."""

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_KEY_PART = re.compile(r"""[ \t]*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))[ \t]*""")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
)
_SCALAR = re.compile(r"[^,\]}#\r\n]*")


def dotted(path: Path) -> str:
    """The path as it would be written in TOML: `backends."a.b".models.text`."""
    return ".".join(str(part) if isinstance(part, int) or _BARE.fullmatch(part) else _quoted(part) for part in path)


def locate(text: str) -> dict[Path, int]:
    """The line, counted from 1, of each key of a document that `tomllib` has accepted.

    A table stands on the line of its header, or of the first key that made it. Elements of an array of tables, and
    tables within an array, have their number in the path. RecursionError for values that are nested some hundred deep.
    """
    return _Locator(text).document()


class _Locator:
    """Walks through the document once. That it is valid TOML is known, so only its structure is looked at."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._counted = 0  # up to this character, and this line
        self._line = 1
        self._elements: dict[Path, int] = {}  # arrays of tables: how many elements so far

    def document(self) -> dict[Path, int]:
        text, end = self.text, len(self.text)
        table: Path = ()
        while True:
            self.blank()
            if self.at >= end:
                return self.lines
            line = self.line()
            if text.startswith("[[", self.at):
                self.at += 2
                path = self.resolve(self.key())
                number = self._elements.get(path, 0)
                self._elements[path] = number + 1
                self.parents(path, line)
                self.lines.setdefault(path, line)
                table = (*path, number)
                self.lines[table] = line
                self.at += 2
            elif text[self.at] == "[":
                self.at += 1
                table = self.resolve(self.key())
                self.parents(table, line)
                self.lines[table] = line
                self.at += 1
            else:
                self.pair(table)

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def blank(self) -> None:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def key(self) -> Path:
        """A dotted key; `at` is behind it and the spaces that follow."""
        parts: list[str] = []
        while match := _KEY_PART.match(self.text, self.at):
            quoted, literal, bare = match.groups()
            if quoted is not None and "\\" in quoted:
                quoted = _unescape(quoted)
            parts.append(next(part for part in (quoted, literal, bare) if part is not None))
            self.at = match.end()
            if not self.text.startswith(".", self.at):
                break
            self.at += 1
        return tuple(parts)

    def resolve(self, path: Path) -> Path:
        """The path of a header: where a part of it is an array of tables, its last element is meant."""
        resolved: Path = ()
        for position, part in enumerate(path):
            resolved = (*resolved, part)
            if position < len(path) - 1 and (number := self._elements.get(resolved)):
                resolved = (*resolved, number - 1)
        return resolved

    def parents(self, path: Path, line: int) -> None:
        for length in range(1, len(path)):
            self.lines.setdefault(path[:length], line)

    def pair(self, table: Path) -> None:
        """`key = value`; `at` is on the key, then behind the value."""
        line = self.line()
        path = (*table, *self.key())
        for length in range(len(table) + 1, len(path)):
            self.lines.setdefault(path[:length], line)
        self.lines[path] = line
        self.at += 1  # the equals sign
        self.value(path)

    def value(self, path: Path) -> None:
        self.blank()
        first = self.text[self.at]
        if first == "[":
            self.at += 1
            self.elements(path)
        elif first == "{":
            self.at += 1
            self.members(path)
        else:
            match = _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at)
            self.at = match.end() if match else self.at

    def elements(self, path: Path) -> None:
        number = 0
        while True:
            self.blank()
            if self.skip("]"):
                return
            if not self.skip(","):
                element = (*path, number)
                self.lines[element] = self.line()
                self.value(element)
                number += 1

    def members(self, path: Path) -> None:
        while True:
            self.blank()
            if self.skip("}"):
                return
            if not self.skip(","):
                self.pair(path)

    def skip(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.at)
        self.at += found
        return found


def _quoted(part: str) -> str:
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in escaped) + '"'


def _unescape(quoted: str) -> str:
    import tomllib

    document: Mapping[str, Any] = tomllib.loads(f'k = "{quoted}"')
    return str(document["k"])
