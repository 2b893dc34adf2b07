"""Does a whole answer keep what the request made it promise: its format, and the call of a tool?

Some servers ignore in silence what they do not know, so an answer that breaks its promise must not pass for one that keeps it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from llm_hub.errors import ProtocolError
from llm_hub.messages import ChatRequest, ChatResponse, Choice, ResponseFormat

__all__ = ["check_promises"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def check_promises(request: ChatRequest, response: ChatResponse) -> None:
    """Raise ProtocolError for an answer that ended by itself and is not what was asked for.

    Of a JSON schema it looks at types, required and additional properties, items, enum, const, the alternatives of anyOf,
    oneOf and allOf, and what `$ref` means within the schema: enough to tell an answer that ignored it from one that follows it.
    """
    forced = request.tools and request.tool_choice not in (None, "auto", "none")
    if request.response_format is None and not forced:
        return
    for choice in response.choices:
        if choice.finish_reason not in ("stop", "tool_calls"):
            continue  # cut off: that it is no whole is said already
        if forced and not choice.message.tool_calls:
            raise _broken(
                f"it was to call a tool ({request.tool_choice}) and answered with text",
                choice,
                "It ignores tool_choice, or its model cannot call tools: name another backend or model, or use tool_choice='auto'.",
            )
        if request.response_format is not None and not choice.message.tool_calls:
            wrong = _against(request.response_format, choice.message.text)
            if wrong:
                raise _broken(
                    f"its answer is not the {request.response_format.type} that was asked for ({wrong})",
                    choice,
                    "It ignores response_format: upgrade it, or name a backend that does not.",
                )


def _broken(message: str, choice: Choice, hint: str) -> ProtocolError:
    """The error for an answer that is none; the backend is well, and the next may be one."""
    error = ProtocolError(f"{message}: {choice.message.text[:120]!r}", hint=hint)
    error.public = message  # how the answer begins is for the caller alone
    error.blames_backend = False
    return error


def _against(wanted: ResponseFormat, text: str) -> str | None:
    """What is wrong with the text, None if nothing is."""
    if wanted.type == "choice":
        return None if text.strip() in wanted.choices else "it is none of the choices"
    if wanted.type == "regex":
        try:
            return None if re.fullmatch(wanted.pattern or "", text, re.DOTALL) else "it does not match"
        except re.error:
            return None  # a notation of the server's own
    if wanted.type == "grammar":
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        return f"it is no JSON: {error}"
    if wanted.type == "json_object":
        return None if isinstance(value, dict) else "it is JSON, but no object"
    schema = wanted.schema or {}
    return _violation(value, schema, "$", schema)


def _violation(value: Any, schema: Any, where: str, root: Mapping[str, Any], depth: int = 0) -> str | None:
    """What is wrong with the value. `root` is the whole schema, within which `$ref` points; `depth` ends a ring of them."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    if "$ref" in schema:
        wrong = _violation(value, _referred(schema["$ref"], root), where, root, depth + 1)
        if wrong is not None:
            return wrong
    for part in _schemas(schema, "allOf"):
        if (wrong := _violation(value, part, where, root, depth + 1)) is not None:
            return wrong
    for key in ("anyOf", "oneOf"):
        found = [_violation(value, part, where, root, depth + 1) for part in _schemas(schema, key)]
        if found and all(found):
            return found[0] if len(found) == 1 else f"{where} is none of {len(found)} alternatives ({found[0]})"
    if "const" in schema and value != schema["const"]:
        return f"{where} is not {schema['const']!r}"
    if isinstance(schema.get("enum"), list | tuple) and value not in schema["enum"]:
        return f"{where} is none of {list(schema['enum'])!r}"
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list | tuple) else []
    known = [_TYPES[name] for name in names if isinstance(name, str) and name in _TYPES]
    if known and len(known) == len(names) and not any(_is(value, types) for types in known):
        return f"{where} is no {' or '.join(map(str, names))}"
    if isinstance(value, dict):
        return _object(value, schema, where, root, depth)
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for at, item in enumerate(value):
            if (wrong := _violation(item, schema["items"], f"{where}[{at}]", root, depth + 1)) is not None:
                return wrong
    return None


_DEEPEST = 200
_ELSEWHERE = {"patternProperties", "$ref", "allOf", "anyOf", "oneOf"}
"""Where properties may be allowed that `properties` does not name."""


def _schemas(schema: Mapping[str, Any], key: str) -> list[Any]:
    parts = schema.get(key)
    return [*parts] if isinstance(parts, list | tuple) else []


def _referred(pointer: Any, root: Mapping[str, Any]) -> Any:
    """What a pointer into the schema itself means (RFC 6901); None, which allows everything, for any other."""
    if not isinstance(pointer, str) or not pointer.startswith("#"):
        return None
    found: Any = root
    for step in pointer[1:].split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, list | tuple) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def _is(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in types:
        return False
    if isinstance(value, float) and types == (int,):
        return value.is_integer()  # JSON Schema counts 1.0 as an integer
    return isinstance(value, types)


def _object(
    value: dict[str, Any], schema: Mapping[str, Any], where: str, root: Mapping[str, Any], depth: int
) -> str | None:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = schema.get("required")
    for name in required if isinstance(required, list | tuple) else ():
        if isinstance(name, str) and name not in value:
            return f"{where} has no {name!r}"
    for name, inner in value.items():
        if name in properties:
            if (wrong := _violation(inner, properties[name], f"{where}.{name}", root, depth + 1)) is not None:
                return wrong
        elif schema.get("additionalProperties") is False and not _ELSEWHERE & schema.keys():
            return f"{where} has {name!r}, which the schema does not allow"
    return None
