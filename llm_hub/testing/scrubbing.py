"""Takes secrets out of what is recorded: credentials by where they stand, and their values wherever they turn up."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote_plus

__all__ = ["MASK", "Scrubber", "is_secret_name"]

MASK = "***"
"""What stands in place of a secret that was found by its name."""

# As words of a name: `api_key`, `apiKey`, `x-goog-api-key`, `accessToken`, but neither `tokens`, `max_tokens` nor `keep`.
_NAMES = frozenset(
    {
        "apikey",
        "auth",
        "authorization",
        "bearer",
        "cookie",
        "credential",
        "credentials",
        "passphrase",
        "passwd",
        "password",
        "pwd",
        "secret",
        "session",
        "signature",
    }
)
_KEYS = frozenset({"access", "api", "auth", "functions", "license", "private", "secret", "service", "subscription"})
_PLAIN_TOKENS = frozenset(
    {
        "bos",
        "cls",
        "continuation",
        "decoder",
        "end",
        "eos",
        "eot",
        "image",
        "mask",
        "next",
        "pad",
        "page",
        "sep",
        "special",
        "start",
        "stop",
        "top",
        "unk",
    }
)
"""What stands before `token` where it is one of text, or of a page."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SHAPES = re.compile(
    # Keys that say what they are: OpenAI and Anthropic, Hugging Face, GitHub, AWS, Slack, Google, NVIDIA; JSON web tokens.
    rb"\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|xox[abp]-[A-Za-z0-9-]{10,}"
    rb"|AIza[A-Za-z0-9_-]{30,}|nvapi-[A-Za-z0-9_-]{16,}|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
)
_FIELD = re.compile(rb'"([A-Za-z][\w.-]{1,63})"(\s*:\s*)"((?:[^"\\]|\\.)+)"')
_SHORTEST = 8
"""Of a secret that was only seen, not named by the caller: shorter ones ("EMPTY", "ollama") are ordinary words."""


def is_secret_name(name: str) -> bool:
    """Is what goes by this name (a header, a field, a parameter of a query) a credential?

    By the words of the name, so `api_key`, `apiKey` and `X-Api-Key` are, and `max_tokens` is not.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    if _NAMES.intersection(words):
        return True
    last = words[-1]
    before = words[-2] if len(words) > 1 else ""
    if last == "token":
        return before not in _PLAIN_TOKENS
    return last in ("key", "keys") and (before in _KEYS or not before)


def is_secret_header(name: str) -> bool:
    """As `is_secret_name`, for headers, where every key and token is taken for a credential."""
    words = {word.lower() for word in _WORD.findall(name)}
    return bool(words & {"key", "token"}) or is_secret_name(name)


class Scrubber:
    """Knows the secrets it was given and those it has seen, and masks them.

    secrets: values that must not be written anywhere, however short. Raises ValueError for an empty one.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._values: set[str] = set()
        for secret in secrets:
            if not secret:
                raise ValueError("an empty text is no secret: it would be found everywhere")
            self._values.add(secret)
        self._pattern: re.Pattern[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Scrubber of {len(self._values)} secrets>"

    # what is seen

    def learn(self, headers: Mapping[str, str], path: str, body: Any) -> None:
        """Take up the secrets of a request, so that they are masked wherever else they stand."""
        for name, value in headers.items():
            if is_secret_header(name):
                for one in _credentials(name, value):
                    self._add(one)
        for name, value in _query(path):
            if is_secret_name(name):
                self._add(unquote_plus(value))
        for value in _secret_fields(body):
            self._add(value)

    def _add(self, value: str) -> None:
        if len(value) >= _SHORTEST and value not in self._values:
            self._values.add(value)
            self._pattern = None

    # what is written

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Headers with what is secret by its name masked, and every known value in the others."""
        return {name: MASK if is_secret_header(name) else self.text(value) for name, value in headers.items()}

    def path(self, path: str) -> str:
        """A path whose query holds no secrets."""
        where, mark, query = path.partition("?")
        pairs = []
        for pair in query.split("&") if mark else ():
            name, equals, value = pair.partition("=")
            secret = equals and value and is_secret_name(unquote_plus(name))
            pairs.append(f"{name}={MASK}" if secret else pair)
        return self.text(where + mark + "&".join(pairs))

    def json(self, value: Any) -> Any:
        """A decoded JSON value with the texts of secret fields masked, and every known value in the other texts."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.json(one) for one in value]
        if isinstance(value, dict):
            return {
                self.text(name): MASK
                if isinstance(inner, str) and inner and _is_secret_field(name)
                else self.json(inner)
                for name, inner in value.items()
            }
        return value

    def text(self, text: str) -> str:
        """A text without the known values; a mask has the length of what it hides."""
        return self.data(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def data(self, data: bytes) -> bytes:
        """Bytes without the known values, of the same length, so that chunk boundaries and lengths stay true."""
        data = _SHAPES.sub(_mask, data)
        pattern = self._compiled()
        return data if pattern is None else pattern.sub(_mask, data)

    def chunks(self, chunks: Iterable[bytes]) -> list[bytes]:
        """The pieces of one body, masked as the whole they are: a secret may be cut between two of them.

        Fields of JSON that are secret by their name are masked too, as what a server hands out.
        """
        pieces = list(chunks)
        whole = _FIELD.sub(_mask_field, self.data(b"".join(pieces)))
        cut, at = [], 0
        for piece in pieces:
            cut.append(whole[at : at + len(piece)])
            at += len(piece)
        return cut

    def _compiled(self) -> re.Pattern[bytes] | None:
        if self._pattern is None and self._values:
            forms = {form for value in self._values for form in _spellings(value)}
            self._pattern = re.compile(b"|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
        return self._pattern


def _mask(found: re.Match[bytes]) -> bytes:
    return b"*" * len(found[0])


def _mask_field(found: re.Match[bytes]) -> bytes:
    name, between, value = found.groups()
    if not _is_secret_field(name.decode()):
        return found[0]
    return b'"%s"%s"%s"' % (name, between, b"*" * len(value))


def _is_secret_field(name: str) -> bool:
    """As `is_secret_name`, but bodies are full of plain keys and tokens (of log probabilities)."""
    return is_secret_name(name) and name.lower() not in ("key", "token")


def _spellings(value: str) -> Iterator[bytes]:
    """How a value may stand in a body: as it is, in JSON, in a URL, in base64."""
    plain = value.encode("utf-8", "surrogateescape")
    yield plain
    yield json.dumps(value)[1:-1].encode()
    yield json.dumps(value, ensure_ascii=False)[1:-1].encode("utf-8", "surrogateescape")
    if len(value) >= _SHORTEST:
        yield quote(plain, safe="").encode()
        yield base64.b64encode(plain).rstrip(b"=")


def _credentials(name: str, value: str) -> Iterator[str]:
    """The secret texts in a header of credentials: without the scheme, Basic's parts decoded, each cookie's value."""
    yield value
    if "cookie" in name.lower():
        for pair in value.split(";"):
            yield pair.partition("=")[2].strip()
        return
    scheme, _, rest = value.partition(" ")
    rest = rest.strip()
    yield rest
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(rest, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return
        yield decoded
        yield decoded.partition(":")[2]


def _query(path: str) -> Iterator[tuple[str, str]]:
    for pair in path.partition("?")[2].split("&"):
        name, _, value = pair.partition("=")
        yield unquote_plus(name), value


def _secret_fields(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _secret_fields(one)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and _is_secret_field(name):
                yield inner
            else:
                yield from _secret_fields(inner)
