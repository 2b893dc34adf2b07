"""The smallest instances of JSON schemas, and the shortest texts of regular expressions, that a fake model writes."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["fits", "minimal_instance", "shortest_match"]

_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "time": "00:00:00Z",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_DEPTH = 64
_CLASSES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "n": "\n", "t": "\t", "r": "\r"}
_CANDIDATES = "aA0 -_.,:;/@!#$%&'\"()+=<>?[]{}|~^`*\\\nzZ9éxX1bBcCdD"


def minimal_instance(schema: Any, *, known: Any = None) -> Any:
    """The smallest value that a schema allows; parts of `known` that fit their place in it are taken instead.

    Knows type, const, enum, $ref, allOf, anyOf, oneOf, properties, required, items, prefixItems, minItems, the bounds
    of numbers and strings, multipleOf, pattern (see shortest_match) and the common formats. Raises ValueError for a
    schema that has no finite instance, or none that is found this way.
    """
    return _instance(schema, schema, known, 0)


def _resolve(schema: Any, root: Any) -> dict[str, Any]:
    """A schema without $ref and allOf: what they say is merged in."""
    if schema is True or schema == {}:
        return {}
    if not isinstance(schema, dict):
        raise ValueError(f"no value fits the schema {schema!r}")
    merged = dict(schema)
    if "$ref" in merged:
        target: Any = root
        reference = merged.pop("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError(f"$ref {reference!r} points outside the schema")
        for part in reference.lstrip("#/").split("/") if reference != "#" else ():
            try:
                target = target[part.replace("~1", "/").replace("~0", "~")]
            except (KeyError, TypeError):
                raise ValueError(f"$ref {reference!r} points to nothing") from None
        merged = _merge(_resolve(target, root), merged)
    for part in merged.pop("allOf", ()):
        merged = _merge(merged, _resolve(part, root))
    return merged


def _merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = [*one["required"], *other["required"]]
    return merged


def _instance(schema: Any, root: Any, known: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise ValueError("the schema has no finite instance")
    schema = _resolve(schema, root)
    if known is not None and not isinstance(known, dict) and _allowed(known, schema):
        return known
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return _alternative(schema, key, root, known, depth)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind is None:
        kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
    if kind == "object":
        return _object(schema, root, known, depth)
    if kind == "array":
        fixed = [_instance(part, root, None, depth + 1) for part in schema.get("prefixItems", ())]
        missing = range(schema.get("minItems", 0) - len(fixed))
        return fixed + [_instance(schema.get("items", {}), root, None, depth + 1) for _ in missing]
    if kind in {"integer", "number"}:
        return _number(schema, whole=kind == "integer")
    if kind in {"boolean", "null"}:
        return False if kind == "boolean" else None
    if kind == "string":
        return _string(schema)
    raise ValueError(f"no value has the type {kind!r}")


def _alternative(schema: dict[str, Any], key: str, root: Any, known: Any, depth: int) -> Any:
    rest = {name: value for name, value in schema.items() if name != key}
    last: ValueError | None = None
    for option in schema[key]:
        try:
            return _instance(_merge(rest, _resolve(option, root)), root, known, depth + 1)
        except ValueError as error:
            last = error
    raise ValueError(f"no alternative of {key} has an instance") from last


def _object(schema: dict[str, Any], root: Any, known: Any, depth: int) -> dict[str, Any]:
    parts = known if isinstance(known, dict) else {}
    properties: dict[str, Any] = schema.get("properties", {})
    wanted = [name for name in properties if name in schema.get("required", ()) or name in parts]
    wanted += [name for name in schema.get("required", ()) if name not in properties]
    return {name: _instance(properties.get(name, {}), root, parts.get(name), depth + 1) for name in wanted}


def _number(schema: dict[str, Any], *, whole: bool) -> int | float:
    """The number nearest to 0 within the bounds, a multiple of the step if there is one."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    if above >= low and above > -math.inf:
        low = math.floor(above) + 1
    if below <= high and below < math.inf:
        high = math.ceil(below) - 1
    value: float = min(max(0, low), high)
    step = schema.get("multipleOf", 1 if whole else None)
    if step is not None:
        up = math.ceil(value / step) * step
        value = up if up <= high else math.floor(value / step) * step
    if not low <= value <= high:
        raise ValueError("no number within the bounds of the schema was found")
    return int(value) if value == int(value) else value


def _string(schema: dict[str, Any]) -> str:
    if "pattern" in schema:
        return shortest_match(schema["pattern"])
    text = _FORMATS.get(schema.get("format", ""), "text")
    text = text.ljust(schema.get("minLength", 0), "x")
    return text[: schema["maxLength"]] if "maxLength" in schema else text


def _allowed(value: Any, schema: dict[str, Any]) -> bool:
    """Does a scalar value fit a resolved schema?"""
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema.get("type", "string")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    name = {str: "string", bool: "boolean", int: "integer", float: "number"}.get(type(value), "")
    if name not in kinds and not (name == "integer" and "number" in kinds):
        return False
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            return False
        return (
            schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)) and "format" not in schema
        )
    below, above = schema.get("minimum", value), schema.get("maximum", value)
    return bool(
        below <= value <= above
        and ("exclusiveMinimum" not in schema or schema["exclusiveMinimum"] < value)
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def fits(value: Any, schema: Any) -> bool:
    """Is this object an instance of a schema of objects within objects, without references and arrays?

    Enough to see whether a learnt JSON answer, or a call of a tool, may be given.
    """
    if isinstance(schema, dict) and "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if not isinstance(value, dict) or not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return False
    properties = schema.get("properties", {})
    if any(name not in value for name in schema.get("required", ())):
        return False
    for name, part in value.items():
        if name not in properties:
            if schema.get("additionalProperties") is False:
                return False
        elif "$ref" in properties[name] or not (fits if isinstance(part, dict) else _allowed)(part, properties[name]):
            return False
    return True


class _Pattern:
    """A recursive descent over the part of the regular expression syntax that schemas use."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def fail(self) -> ValueError:
        return ValueError(f"the pattern {self.pattern!r} is beyond the fake model, at position {self.at}")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        character = self.peek()
        if not character:
            raise self.fail()
        self.at += 1
        return character

    def alternatives(self) -> str:
        options = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            options.append(self.sequence())
        return min(options, key=len)

    def sequence(self) -> str:
        text = ""
        while self.peek() not in {"", "|", ")"}:
            text += self.quantified()
        return text

    def quantified(self) -> str:
        atom = self.atom()
        mark = self.peek()
        count = 1
        if mark and mark in "*?":
            self.at += 1
            count = 0
        elif mark == "+":
            self.at += 1
        elif mark == "{" and (bounds := re.compile(r"\{(\d*)(,\d*)?\}").match(self.pattern, self.at)):
            self.at = bounds.end()
            count = int(bounds[1] or 0)
        if self.peek() == "?":  # lazy
            self.at += 1
        return atom * count

    def atom(self) -> str:
        character = self.take()
        if character in "^$":
            return ""
        if character == ".":
            return "a"
        if character == "\\":
            escaped = self.take()
            if escaped in "bBAZ":
                return ""
            return _CLASSES.get(escaped, escaped)
        if character == "[":
            return self.one_of()
        if character == "(":
            if self.pattern.startswith("?:", self.at):
                self.at += 2
            elif named := re.compile(r"\?P?<\w+>").match(self.pattern, self.at):
                self.at = named.end()
            elif self.peek() == "?":
                raise self.fail()
            text = self.alternatives()
            if self.take() != ")":
                raise self.fail()
            return text
        return character

    def one_of(self) -> str:
        """The first character that the class at hand takes, as the re module reads it."""
        begin = self.at - 1
        if self.peek() == "^":
            self.at += 1
        if self.peek() == "]":
            self.at += 1
        while self.take() != "]":
            if self.pattern[self.at - 1] == "\\":
                self.take()
        allowed = re.compile(self.pattern[begin : self.at])
        for character in _CANDIDATES + self.pattern[begin : self.at]:
            if allowed.fullmatch(character):
                return character
        raise self.fail()


def shortest_match(pattern: str) -> str:
    """A shortest text that a regular expression matches. Raises ValueError for lookarounds and back references."""
    parser = _Pattern(pattern)
    text = parser.alternatives()
    if parser.at != len(pattern) or not re.search(pattern, text):
        raise parser.fail()
    return text
