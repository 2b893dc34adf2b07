"""Which settings of a plugin hold secrets in plain text, where they would show in logs, reprs and errors."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator

import msgspec

from llm_hub.config import Secret
from llm_hub.testing.scrubbing import is_secret_name

__all__ = ["plain_secrets"]

_NO_SECRET = ("_env", "_file", "_path", "_name", "_header", "_url", "_mode", "_type", "_kind")
"""Ends of names that are about a secret without being one."""


def plain_secrets(settings: type[msgspec.Struct] | None) -> tuple[str, ...]:
    """The fields, with those of Structs inside, that are named like a secret and are plain text or bytes.

    Such a field is to be of the type `llm_hub.config.Secret`, as `token: Secret | None = None`: the hub makes one of the text
    that is configured.
    """
    return tuple(_plain(settings, "", set())) if settings is not None else ()


def _plain(settings: type[msgspec.Struct], above: str, seen: set[type]) -> Iterator[str]:
    if settings in seen:
        return
    seen.add(settings)
    for field in msgspec.structs.fields(settings):
        kinds = set(_kinds(field.type))
        name = f"{above}{field.encode_name}"
        if (
            _is_secret(field.encode_name)
            and kinds & {str, bytes, bytearray, typing.Any, object}
            and Secret not in kinds
        ):
            yield name
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                yield from _plain(kind, f"{name}.", seen)


def _is_secret(name: str) -> bool:
    if name.lower().endswith(_NO_SECRET) or name.lower().startswith(("session", "signature")):
        return False
    return is_secret_name(name)


def _kinds(annotation: object) -> Iterator[object]:
    """The types within an annotation: of `dict[str, X] | None` they are str, X and NoneType."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return
    if origin is typing.Annotated:
        yield from _kinds(typing.get_args(annotation)[0])
    elif origin is None:
        yield getattr(annotation, "__value__", annotation)  # of `type X = ...`
    else:
        if origin not in (typing.Union, types.UnionType):
            yield origin
        for part in typing.get_args(annotation):
            yield from _kinds(part)
