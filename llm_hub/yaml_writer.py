"""Writes YAML: mappings, lists, text, numbers and flags, in the order they come in, and in one form only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

__all__ = ["to_yaml"]

# What no YAML parser, of 1.1 or of 1.2, takes for anything but text. No digit in front: 1.1 has numbers with colons in them.
_PLAIN = re.compile(r"(?:--?[A-Za-z]|[A-Za-z_./])[A-Za-z0-9_./@+-]*(?::[A-Za-z0-9_./@+-]+)*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n", ".inf", ".nan"})


def to_yaml(value: Mapping[str, object]) -> str:
    """The text of a document. Raises TypeError for what it cannot write: None, and anything but the kinds above."""
    return "\n".join(_mapping(value)) + "\n"


def _mapping(value: Mapping[str, object]) -> Iterator[str]:
    for key, inner in value.items():
        head = f"{_text(key)}:"
        if isinstance(inner, str) and "\n" in inner:
            yield f"{head} {_block_mark(inner)}"
            yield from _indented(inner.rstrip("\n").split("\n"))
        elif isinstance(inner, Mapping) and inner:
            yield head
            yield from _indented(_mapping(inner))
        elif isinstance(inner, list | tuple) and inner:
            yield head
            yield from _indented(_sequence(inner))
        else:
            yield f"{head} {_scalar(inner)}"


def _sequence(value: list[object] | tuple[object, ...]) -> Iterator[str]:
    for inner in value:
        if isinstance(inner, Mapping) and inner:
            lines = _mapping(inner)
            yield f"- {next(lines)}"
            yield from _indented(lines)
        elif isinstance(inner, list | tuple) and inner:
            lines = _sequence(inner)
            yield f"- {next(lines)}"
            yield from _indented(lines)
        else:
            yield f"- {_scalar(inner)}"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" if line else "" for line in lines)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return _text(value)
    if value == {}:
        return "{}"
    if value in ([], ()):
        return "[]"
    raise TypeError(f"{value!r} is nothing that is written as YAML here")


def _text(text: str) -> str:
    """Plain where no parser could take it for something else, else as a JSON string, which YAML 1.2 reads as such."""
    if _PLAIN.fullmatch(text) and text.casefold() not in _WORDS and not re.fullmatch(r"[.+-]*[0-9_.e+-]+", text):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    # Characters that JSON takes as they are and YAML does not, or breaks lines at.
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda match: f"\\u{ord(match[0]):04x}", quoted)


def _block_mark(text: str) -> str:
    if text.endswith("\n\n") or text[:1] in (" ", "\n") or re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", text):
        raise TypeError(f"{text!r} is no text that is written as a block here")
    return "|" if text.endswith("\n") else "|-"
