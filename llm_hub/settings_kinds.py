"""What a setting may hold: each kind of value, read from a variable's text or from a value of the file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from llm_hub.addresses import address
from llm_hub.addresses import ollama_host as ollama_address
from llm_hub.capabilities import Capability
from llm_hub.config import Secret
from llm_hub.errors import SettingsError
from llm_hub.launch import is_pinned

__all__ = ["DISTRIBUTION", "KINDS", "Kind", "described", "suggestion"]

DISTRIBUTION = "dist:"
"""What an entry of the allow and the block list begins with that names a distribution."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MEMORY = re.compile(r"[0-9]+(?:\.[0-9]+)? ?(?:[MGT]i?B)")
_GPU = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST_WAIT = 1e6  # seconds; what the sockets of every platform can still be told
_FLAGS = {word: word in ("1", "true", "yes", "on") for word in ["1", "true", "yes", "on", "0", "false", "no", "off"]}


class Kind(msgspec.Struct, frozen=True):
    """One kind of value. `text` reads a variable, `value` a value of the file or of a call; both check it.

    They are given what was written and where, and raise SettingsError there. Kinds that only one of the two can
    hold have None for the other.
    """

    name: str
    explained: str
    text: Callable[[str, str], Any] | None
    value: Callable[[Any, str], Any] | None


def described(value: object) -> str:
    """What a value is, in the words of TOML; its content is not shown."""
    if isinstance(value, bool):
        return "true or false"
    for types, words in ((int, "a whole number"), (float, "a number"), (str, "text"), (Mapping, "a table")):
        if isinstance(value, types):
            return words
    if isinstance(value, list | tuple | set | frozenset):
        return "an array"
    return f"a {type(value).__name__}"


def suggestion(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`Did you mean 'x'? ` for a name that resembles a known one at least by `cutoff` (0 to 1), else nothing."""
    from difflib import get_close_matches  # here, because it is needed only when something is wrong

    spelled = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), spelled, n=1, cutoff=cutoff)
    return f"Did you mean {spelled[near[0]]!r}? " if near else ""


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"it must be text in quotes, not {described(value)}", where=where)
    value = value.strip()
    if not value:
        raise SettingsError("it is empty", where=where, hint="Give it a value, or leave it out.")
    if _CONTROL.search(value):
        raise SettingsError("it holds a control character", where=where, hint="It must be one line of plain text.")
    return value


def _name(value: object, where: str) -> str:
    name = _string(value, where)
    if not _NAME.fullmatch(name):
        if "," in name:
            raise SettingsError(
                f"{name!r} must be a single name",
                where=where,
                hint="Further names belong in LLM_FALLBACK, or in a route.",
            )
        raise SettingsError(
            f"{name!r} is no name", where=where, hint="Names are letters, digits, '-', '_' and '.', such as vllm-text."
        )
    return name


def _plugin_or_distribution(value: object, where: str) -> str:
    text = _string(value, where)
    prefix, colon, name = text.partition(":")
    if not colon:
        return _name(text, where)
    if f"{prefix.strip()}:" != DISTRIBUTION:
        raise SettingsError(
            f"{text!r} is no name", where=where, hint="Write the name of a plugin, or dist: and that of a distribution."
        )
    return DISTRIBUTION + _name(name, where)


def _names(value: object, where: str, one: Callable[[object, str], str] = _name) -> tuple[str, ...]:
    parts = [value] if isinstance(value, str) else _array(value, where, "names")
    names = [one(part, where) for part in parts]
    if not names:
        raise SettingsError("it names nothing", where=where, hint="Name at least one, or leave it out.")
    for position, name in enumerate(names):
        if name in names[:position]:
            raise SettingsError(f"{name!r} is named twice", where=where, hint="Name each once.")
    return tuple(names)


def _names_text(text: str, where: str) -> tuple[str, ...]:
    return _names([part for part in text.split(",") if part.strip()], where)


def _plugins(value: object, where: str) -> tuple[str, ...]:
    return _names(value, where, _plugin_or_distribution)


def _plugins_text(text: str, where: str) -> tuple[str, ...]:
    return _plugins([part for part in text.split(",") if part.strip()], where)


def _array(value: object, where: str, of: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise SettingsError(f"it must be an array of {of}, not {described(value)}", where=where)
    return list(value)


def _address(value: object, where: str) -> str:
    return address(_string(value, where), where)


def _ollama_host(text: str, where: str) -> tuple[str, str | None]:
    return ollama_address(text, where)


def _flag_text(text: str, where: str) -> bool:
    flag = _FLAGS.get(text.lower())
    if flag is None:
        raise SettingsError(f"{text!r} is neither yes nor no", where=where, hint="Write 1 or 0.")
    return flag


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"it must be true or false, not {described(value)}", where=where)
    return value


def _path(value: object, where: str) -> str:
    import os.path

    return os.path.expanduser(_string(value, where))  # noqa: PTH111 (pathlib is slow to import, and unneeded)


def _variable(value: object, where: str) -> str:
    name = _string(value, where)
    if not _VARIABLE.fullmatch(name):
        # Not shown: somebody may have put the key itself here.
        raise SettingsError(
            "it is not the name of an environment variable",
            where=where,
            hint='Write the name of the variable that holds the key, such as "VLLM_API_KEY"; never the key itself.',
        )
    return name


def _secret(value: object, where: str) -> Secret:
    if isinstance(value, Secret):
        value = value.reveal()
    if not isinstance(value, str):
        raise SettingsError(f"it must be text, not {described(value)}", where=where)
    value = value.strip()
    if not re.fullmatch(r"[!-~]+", value):  # RFC 9110, section 5.5, without spaces
        raise SettingsError(
            "the key is empty or holds a character that no HTTP header can carry",
            where=where,
            hint="Look for a space, a line break or a typographic quote in it.",
        )
    return Secret(value)


def _seconds(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError(f"it must be a number of seconds, not {described(value)}", where=where)
    if not (0 < value <= _LONGEST_WAIT and math.isfinite(value)):
        raise SettingsError(
            f"it must be more than 0 and at most {_LONGEST_WAIT:.0f} seconds, not {value:g}"
            if isinstance(value, float) or abs(value) < 10**15
            else "it must be a sensible number of seconds",
            where=where,
        )
    return float(value)


def _capabilities(value: object, where: str) -> tuple[Capability, ...]:
    known = [str(one) for one in Capability]
    found: list[Capability] = []
    for part in [value] if isinstance(value, str) else _array(value, where, "capabilities"):
        if not isinstance(part, str) or part not in known:
            hint = suggestion(part, known) if isinstance(part, str) else ""
            shown = repr(part) if isinstance(part, str) else described(part)
            raise SettingsError(
                f"{shown} is no capability", where=where, hint=f"{hint}There are: {', '.join(sorted(known))}."
            )
        if part in found:
            raise SettingsError(f"{str(part)!r} is named twice", where=where, hint="Name each once.")
        found.append(Capability(part))
    return tuple(found)


def _gpus(value: object, where: str) -> tuple[int | str, ...]:
    found: list[int | str] = []
    for part in _array(value, where, "GPUs"):
        index = isinstance(part, int) and not isinstance(part, bool) and 0 <= part < 1024
        if not index and not (isinstance(part, str) and _GPU.fullmatch(part)):
            shown = repr(part) if isinstance(part, str) else described(part)
            raise SettingsError(
                f"{shown} names no GPU",
                where=where,
                hint='Name GPUs by UUID ("GPU-…", as `nvidia-smi -L` lists them) or by index: gpus = [0].',
            )
        if part in found:
            raise SettingsError(f"the GPU {part!r} is named twice", where=where, hint="Name each once.")
        found.append(part)  # type: ignore[arg-type]  # checked above
    return tuple(found)


def _memory(value: object, where: str) -> str | float:
    hint = 'Write an amount such as "20 GiB", or a fraction of the whole such as 0.5.'
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise SettingsError(f"the fraction {value:g} is not between 0 and 1", where=where, hint=hint)
        return value
    if isinstance(value, str) and _MEMORY.fullmatch(value.strip()):
        return value.strip()
    shown = repr(value) if isinstance(value, str) else described(value)
    raise SettingsError(f"{shown} is no amount of memory", where=where, hint=hint)


def _prefix(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"it must be text in quotes, not {described(value)}", where=where)
    return value  # as it is: a space at its end belongs to it, and an empty one turns the model's own off


def _words(value: object, where: str) -> tuple[str, ...]:
    return tuple(_string(str(part) if isinstance(part, int) else part, where) for part in _array(value, where, "text"))


def _image(value: object, where: str) -> str:
    name = _string(value, where)
    if not is_pinned(name):
        raise SettingsError(
            f"the image {name!r} has no version, so that nobody knows what it will be",
            where=where,
            hint='Pin it: "name:1.2.3", or "name@sha256:…".',
        )
    return name


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(f"it must be a whole number, not {described(value)}", where=where)
    if not 1 <= value <= 10**9:
        raise SettingsError("it must be at least 1, and no more than a billion", where=where)
    return value


def _number(value: object, where: str) -> int:
    return 0 if value == 0 and value.__class__ is int else _count(value, where)


def _option(value: object, where: str) -> object:
    return value  # the plugin says what it may be; see `bind_options`


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("name", "the name of a backend: letters, digits, `-`, `_` and `.`", _name, _name),
        Kind("names", "names of backends, each once: with commas between, in the file an array", _names_text, _names),
        Kind("plugin", "the name of a plugin", _name, _name),
        Kind(
            "plugins",
            "names of plugins (`ollama`), or `dist:` and the name of a distribution (`dist:llm-hub-ollama`), with commas between",
            _plugins_text,
            _plugins,
        ),
        Kind("observers", "names of observers, with commas between", _names_text, _names),
        Kind(
            "address",
            "`http://` or `https://`, host, optional port, optional path before the server's own; a `/v1` at its end "
            "does not count; never a user, password or query",
            _address,
            _address,
        ),
        Kind("Ollama host", "host, or address, as Ollama reads it: scheme and port are optional", _ollama_host, None),
        Kind("model", "the name of a model, as its server writes it", _string, _string),
        Kind("secret", "a key; never shown in any output", _secret, _secret),
        Kind("variable", "the name of an environment variable", None, _variable),
        Kind(
            "flag",
            "`1`, `true`, `yes`, `on` or `0`, `false`, `no`, `off`; in the file `true` or `false`",
            _flag_text,
            _flag,
        ),
        Kind("path", "a path; `~` is the home folder", _path, _path),
        Kind("seconds", "a number of seconds, more than 0", None, _seconds),
        Kind("prefix", "text, which is put before each text as it is, with its spaces; empty for none", None, _prefix),
        Kind("count", "a whole number, 1 or more", None, _count),
        Kind("number", "a whole number, 0 or more", None, _number),
        Kind("capabilities", "an array of `text`, `embedding`, `vision`", None, _capabilities),
        Kind("GPUs", "an array of UUIDs (`GPU-…`, `MIG-…`) or indices", None, _gpus),
        Kind("memory", 'an amount (`"20 GiB"`) or a fraction of the whole (`0.5`)', None, _memory),
        Kind("image", "the name of an image with a version (never `latest`)", None, _image),
        Kind("line", "one line of text", None, _string),
        Kind("words", "an array of text", None, _words),
        Kind("option", "whatever the plugin declares for it", None, _option),
    )
}
"""Every kind of value, by name."""
