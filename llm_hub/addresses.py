"""Addresses of HTTP servers as people write them, brought into one form, without ever showing a password."""

from __future__ import annotations

import re

from llm_hub.errors import SettingsError

__all__ = ["address", "ollama_host", "redacted"]

_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")  # compose services have underscores
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST = 2000  # characters
_LONGEST_SHOWN = 120


def redacted(text: str) -> str:
    """The address for an error message: without user, password, query and fragment, and not endlessly long."""
    scheme = _SCHEME.match(text)
    head, rest = (scheme[0], text[scheme.end() :]) if scheme else ("", text)
    if "@" in rest:
        # With a query or fragment as well there is no telling on which side of the @ the secret stands.
        rest = "***" if re.search(r"[?#]", rest) else "***@" + rest.rpartition("@")[2]
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    shown = head + rest
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "…"


def address(text: str, where: str) -> str:
    """The base address `scheme://host[:port][/prefix]`, without a slash or `/v1` at its end.

    A prefix stays, as a reverse proxy needs it. Raises SettingsError at `where` for anything but an http or https
    address with a host, and for one that holds a password, a query or a fragment.
    """
    _printable(text, where)
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise SettingsError(
            f"the address {redacted(text)!r} has no scheme", where=where, hint=f'Write "http://{_bare(text)}".'
        )
    kind = scheme[1].lower()
    rest = text[scheme.end() :]
    if kind not in ("http", "https"):
        raise SettingsError(
            f"{redacted(text)!r} has the scheme {scheme[1]!r}, which is not that of a model server",
            where=where,
            hint=f'Write "http://{_bare(rest)}", or https:// where the server has a certificate.',
        )
    _no_secrets(text, rest, where)
    authority, slash, path = rest.partition("/")
    host, port = _split(authority, text, where)
    path = (slash + path).rstrip("/")
    path = path.removesuffix("/v1").rstrip("/")
    if not path.isascii():
        raise SettingsError(
            f"the path of {redacted(text)!r} has characters that are not ASCII",
            where=where,
            hint="Write them percent-encoded.",
        )
    return f"{kind}://{host}{'' if port is None else f':{port}'}{path}"


def ollama_host(text: str, where: str) -> tuple[str, str | None]:
    """The base address that `OLLAMA_HOST` means to a client of Ollama, and a warning if part of it was ignored.

    As `Host` and `ConnectableHost` in Ollama's envconfig/config.go read it: quotes and spaces around it do not count;
    scheme and port are optional; the port is 11434 without a scheme, 80 or 443 with one; a port that is none is
    replaced by that default; `ollama.com` alone is https; a path is kept; an address to listen on everywhere (0.0.0.0,
    [::], or no host at all) is the loopback address to a client. What could never work is a SettingsError at `where`.
    """
    text = text.strip().strip("\"'").strip()
    _printable(text, where)
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "http", text
        default = 11434
        if text == "ollama.com":
            scheme, default = "https", 443
    elif scheme in ("http", "https"):
        default = 80 if scheme == "http" else 443
    else:
        raise SettingsError(
            f"{redacted(text)!r} has the scheme {scheme!r}, which is not Ollama's",
            where=where,
            hint=f'Write "http://{_bare(rest)}".',
        )
    _no_secrets(text, rest, where)
    authority, _, path = rest.partition("/")
    host, port = _host_and_port(authority)
    warning = None
    number = default
    if port is not None:
        if re.fullmatch(r"\+?[0-9]{1,9}", port) and int(port) <= 65535:
            number = int(port)
        else:
            warning = f"{where}: {port!r} is no port; as Ollama does, port {default} is used"
    if number == 0:
        raise SettingsError(
            "port 0 lets a server choose its port, so no client can know it",
            where=where,
            hint="Write the port that Ollama listens on, or set OLLAMA_BASE_URL for this client.",
        )
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(host, host)  # noqa: S104 (nothing listens here)
    if ":" in host:
        six = _ipv6(host, text, where)
        host = "[::1]" if six == "[::]" else six
    base = address(f"{scheme}://{host}:{number}/{path}", where)
    return base, warning


def _bare(text: str) -> str:
    """What may stand behind `http://` in a suggestion."""
    return re.sub(r"^[A-Za-z]*:?/+", "", redacted(text)).removeprefix("***").lstrip("@/:") or "host:port"


def _printable(text: str, where: str) -> None:
    if len(text) > _LONGEST:
        raise SettingsError(f"the address is {len(text)} characters long", where=where, hint="Write http://host:port.")
    if bad := _UNPRINTABLE.search(text):
        what = "a space" if bad[0] == " " else f"the character {bad[0]!r}"
        raise SettingsError(f"the address has {what} in it", where=where, hint="Write it as http://host:port.")


def _no_secrets(text: str, rest: str, where: str) -> None:
    if "@" in rest:
        raise SettingsError(
            f"the address {redacted(text)!r} holds a user or password, which would end up in logs",
            where=where,
            hint="Leave it out of the address and give the key apart: {BACKEND}_API_KEY, or api_key_env in the file.",
        )
    if mark := re.search(r"[?#]", rest):
        what = "query" if mark[0] == "?" else "fragment"
        raise SettingsError(
            f"the address {redacted(text)!r} has a {what} ({mark[0]}…), and requests have their own",
            where=where,
            hint=f'Write "{redacted(text)}".',
        )


def _split(authority: str, text: str, where: str) -> tuple[str, int | None]:
    """Host and port of an address, checked."""
    host, port = authority, None
    if authority.startswith("["):
        host, bracket, tail = authority[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise SettingsError(
                f"{redacted(text)!r} has no proper IPv6 address", where=where, hint='Write "http://[::1]:8000".'
            )
        host, port = _ipv6(host, text, where), (tail[1:] if tail else None)
    elif ":" in authority:
        host, _, port = authority.rpartition(":")
        if ":" in host:
            raise SettingsError(
                f"{redacted(text)!r} has more than one colon",
                where=where,
                hint='An IPv6 address stands in brackets: "http://[::1]:8000".',
            )
    if not host:
        raise SettingsError(f"{redacted(text)!r} names no host", where=where, hint='Write "http://127.0.0.1:8000".')
    if not host.startswith("["):
        host = _hostname(host, text, where)
    if port is None:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise SettingsError(
            f"{redacted(text)!r} has the port {port!r}", where=where, hint="A port is a number from 1 to 65535."
        )
    return host, int(port)


def _hostname(host: str, text: str, where: str) -> str:
    """The host in lower case; names in other scripts as the ASCII that the name system knows (IDNA)."""
    try:
        name = host.encode("idna").decode("ascii").lower() if len(host) <= 253 else ""  # RFC 1035, section 2.3.4
    except UnicodeError:  # an empty or overlong label, or characters that no name may have
        name = ""
    if not _HOST.fullmatch(name):
        raise SettingsError(
            f"{redacted(text)!r} has {host[:_LONGEST_SHOWN]!r} for a host, which is no name and no IP address",
            where=where,
            hint="Write http://host:port.",
        )
    return name


def _ipv6(host: str, text: str, where: str) -> str:
    """An IPv6 address in its short form and brackets."""
    import ipaddress  # here, because hardly anybody needs it and it is slow to import

    try:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    except ValueError:
        raise SettingsError(
            f"{redacted(text)!r} has {host!r} for a host, which is no IPv6 address",
            where=where,
            hint='Write "http://[::1]:8000".',
        ) from None


def _host_and_port(authority: str) -> tuple[str, str | None]:
    """Host, without brackets, and port as Go's net.SplitHostPort and Ollama after it take them apart."""
    if authority.startswith("["):
        host, bracket, tail = authority[1:].partition("]")
        if ":" not in host:
            return authority, None  # brackets around anything else are an error, see `_split`
        if bracket and not tail:
            return host, None
        if bracket and tail.startswith(":"):
            return host, tail[1:]
        return authority, None
    if authority.count(":") == 1:
        host, _, port = authority.partition(":")
        return host, port
    return authority.strip("[]"), None
