"""The settings file: finding it, reading it, and on which line of it each setting stands."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from llm_hub.errors import SettingsError
from llm_hub.toml_lines import Path, dotted, locate

__all__ = ["FILE_NAME", "SECRETIVE", "Document", "Found", "find", "parse", "read"]

FILE_NAME = "llm-hub.toml"
_LARGEST = 1 << 20  # bytes
_NONE = ("/dev/null", "nul", "NUL")  # the usual names of "no file"
_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
SECRETIVE = re.compile(r"key|token|secret|passw|auth|credential", re.IGNORECASE)


class Found(NamedTuple):
    """A setting: its value, checked, and where it was set."""

    value: Any
    where: str


class Document(msgspec.Struct, frozen=True):
    """Settings in the shape of the file. `lines` is None where they are arguments of a call, not a file."""

    name: str
    data: Mapping[str, Any]
    lines: Mapping[Path, int] | None = None

    def where(self, path: Path) -> str:
        """Where a key stands, `file:line`; that of the nearest table around it if it has no line of its own."""
        if self.lines is None:
            return f"argument {dotted(path)}"
        for length in range(len(path), 0, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return f"{self.name}:{line}"
        return self.name


def find(named: Found | None) -> tuple[str | None, str, list[str]]:
    """The file to read or None, the name to call it by, and warnings.

    `named` is the file that was asked for, which must exist. Else it is llm-hub.toml here, else the one in the user's
    configuration folder, if there is one.
    """
    if named is not None:
        if named.value in _NONE:
            return None, named.value, []
        try:
            os.stat(named.value)  # noqa: PTH116 (pathlib is slow to import, and unneeded)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"the settings file {named.value} cannot be read: {_reason(error)}",
                where=named.where,
                hint="Name a file that exists, or leave the variable out; /dev/null stands for no file.",
            ) from error
        return named.value, named.value, []
    warnings: list[str] = []
    for path in (FILE_NAME, None):
        if path is None:
            import platformdirs  # here, because it is slow to import

            path = os.path.join(platformdirs.user_config_dir("llm-hub", appauthor=False), FILE_NAME)  # noqa: PTH118
        try:
            os.stat(path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # a home folder that this user may not look into: common in containers
            warnings.append(f"{path} cannot be looked at ({_reason(error)}), so no settings come from there")
            continue
        return os.path.abspath(path), path, warnings  # noqa: PTH100
    return None, "", warnings


def read(path: str, name: str) -> str:
    """The text of the settings file. Raises SettingsError, at the line where there is one."""
    try:
        status = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise SettingsError(f"it is {what}", where=name, hint=f"Name a file, such as {FILE_NAME}.")
        with open(path, "rb") as file:  # noqa: PTH123
            raw = file.read(_LARGEST + 1)
    except OSError as error:
        raise SettingsError(
            f"it cannot be read: {_reason(error)}", where=name, hint="Look at its owner and permissions."
        ) from error
    if len(raw) > _LARGEST:
        raise SettingsError(
            f"it is larger than {_LARGEST >> 20} MiB", where=name, hint="Is this really the settings file?"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"byte 0x{raw[error.start]:02x} is not UTF-8", where=f"{name}:{line}", hint="Save the file as UTF-8."
        ) from None  # the error holds the whole content


def parse(text: str, name: str) -> Document:
    """The document, with its lines. Raises SettingsError at the line for what is not TOML."""
    import tomllib

    try:
        data = tomllib.loads(text)
        lines = locate(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = _AT.search(message)
        cause = _AT.sub("", message)
        rows = text.split("\n")
        row = int(found[1]) if found and found[1] else len(text.rstrip().split("\n"))
        shown = _shown(rows[row - 1]) if row <= len(rows) else ""
        column = f" (column {found[2]})" if found and found[2] else ""
        raise SettingsError(
            f"this is not TOML: {_quiet(cause)}{column}" + (f": {shown}" if shown else ""), where=f"{name}:{row}"
        ) from None  # its message and, in newer Pythons, the error itself hold the text
    except RecursionError:
        raise SettingsError("it is nested too deeply", where=name) from None
    except ValueError:  # more digits than int() takes; the cause is left out, as everywhere here
        digits = re.search(r"[0-9_]{4000,}", text)
        line = f":{text.count(chr(10), 0, digits.start()) + 1}" if digits else ""
        raise SettingsError("it holds a number with too many digits", where=name + line) from None
    return Document(name, data, lines)


def _quiet(cause: str) -> str:
    """The cause as tomllib words it, in our typography; it never shows more of the text than a character or a key."""
    return cause[:1].lower() + cause[1:]


def _shown(line: str) -> str:
    """The line for an error message; what might be a secret is left out."""
    line = "".join(character if character.isprintable() else " " for character in line).strip()
    key, equals, _ = line.partition("=")
    if equals and SECRETIVE.search(key):
        return f"{key.strip()} = …"
    line = re.sub(r"://[^\s\"']*@", "://***@", line)
    return line if len(line) <= 80 else line[:80] + "…"


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
