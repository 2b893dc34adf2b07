"""What llama.cpp cannot do with a JSON schema or a grammar, found before it is asked.

It leaves out keywords that it does not know, with a line in its log at most. And a repetition whose least is more than its
most fills the memory until the process is killed (b11549), so that one must never reach it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_hub.errors import InvalidRequest, UnsupportedFeature

__all__ = ["check_grammar", "check_schema", "check_sound"]

# Kept to by common/json-schema-to-grammar.cpp, or saying nothing about what is valid.
_KEPT = frozenset(
    {
        "$anchor",
        "$comment",
        "$defs",
        "$id",
        "$ref",
        "$schema",
        "additionalProperties",
        "allOf",
        "anyOf",
        "const",
        "default",
    }
    | {"definitions", "deprecated", "description", "discriminator", "enum", "example", "examples", "format", "items"}
    | {"maxItems", "maxLength", "minItems", "minLength", "oneOf", "pattern", "prefixItems", "properties", "readOnly"}
    | {"required", "strict", "title", "type", "writeOnly"}
)
_OF_INTEGERS = frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"})
_FORMATS = frozenset({"date", "date-time", "time", "uuid"})
_BOUNDS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum"))
_REPETITION = re.compile(r"\{\s*(\d+)\s*,\s*(\d+)\s*\}")

Schema = Mapping[str, Any]


def check_schema(schema: Schema) -> None:
    """Raise unless llama.cpp keeps to everything in this schema: UnsupportedFeature, or InvalidRequest."""
    check_sound(schema)
    ignored = [f"{where}: {what}" for where, part in _parts(schema, "#") for what in _ignored(part)]
    if ignored:
        raise UnsupportedFeature(
            f"of this JSON schema llama.cpp would leave out, at {'; '.join(ignored[:5])}",
            features=("json_schema",),
            hint="Take it out of the schema, or pass strict=False to have it ignored.",
        )


def check_sound(schema: Schema) -> None:
    """Raise InvalidRequest for bounds that nothing can satisfy."""
    for where, part in _parts(schema, "#"):
        for least, most in _BOUNDS:
            low, high = part.get(least), part.get(most)
            if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
                raise InvalidRequest(f"the JSON schema at {where} has {least} {low} over {most} {high}")
        if isinstance(pattern := part.get("pattern"), str):
            check_grammar(pattern)


def check_grammar(text: str) -> None:
    """Raise InvalidRequest for a repetition, in a grammar or pattern, that nothing can satisfy."""
    for found in _REPETITION.finditer(text):
        if int(found[1]) > int(found[2]):
            raise InvalidRequest(f"the grammar has the repetition {found[0]}, whose least is more than its most")


def _parts(schema: Any, where: str) -> Iterator[tuple[str, Schema]]:
    """A schema and all within it, each with its place."""
    if not isinstance(schema, Mapping):
        return
    yield where, schema
    for key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
        inner = schema.get(key)
        if isinstance(inner, Mapping):
            for name, part in inner.items():
                yield from _parts(part, f"{where}/{key}/{name}")
    for key in ("allOf", "anyOf", "oneOf", "prefixItems", "items"):
        inner = schema.get(key)
        if isinstance(inner, list | tuple):
            for index, part in enumerate(inner):
                yield from _parts(part, f"{where}/{key}/{index}")
    for key in ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"):
        yield from _parts(schema.get(key), f"{where}/{key}")


def _ignored(part: Schema) -> Iterator[str]:
    """What llama.cpp does not keep to in one part of a schema."""
    kept = _KEPT | _OF_INTEGERS if part.get("type") == "integer" else _KEPT
    yield from sorted(key for key in part if key not in kept and not key.startswith("x-"))
    pattern = part.get("pattern")
    if isinstance(pattern, str) and not (pattern.startswith("^") and pattern.endswith("$")):
        yield "a pattern without ^ before it and $ after it"
    form = part.get("format")
    if isinstance(form, str) and form not in _FORMATS:
        yield f"the format {form!r}"
    properties = part.get("properties")
    if isinstance(properties, Mapping):
        yield from (
            f"the required {name!r}, which is no property"
            for name in part.get("required", ())
            if name not in properties
        )
