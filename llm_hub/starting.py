"""Which of the configured backends this machine can start, how each of them, and why the others are not ours to start."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig
from llm_hub.errors import ConfigurationError, HubError, SettingsError, UnknownBackend
from llm_hub.launch import API_KEY, Devices, LaunchSpec

if TYPE_CHECKING:
    from llm_hub.gpu import Plan
    from llm_hub.runtime import Runtime

__all__ = [
    "NotStarted",
    "Startable",
    "described",
    "environment",
    "expanded",
    "free_port",
    "startable",
    "taken",
    "without_exclusive",
]

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Startable(msgspec.Struct, frozen=True, kw_only=True):
    """A backend to be started: how, where it listens, and the capabilities that it is asked about to see that it serves."""

    config: BackendConfig
    spec: LaunchSpec
    host: str
    port: int
    capabilities: tuple[Capability, ...]

    @property
    def name(self) -> str:
        """The name of the backend."""
        return self.config.name

    @property
    def address(self) -> str:
        """Where it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class NotStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that is not started here, and why. `wrong`: it was meant to be, as far as one can tell."""

    name: str
    reason: str
    hint: str = ""
    wrong: bool = False


def startable(
    runtime: Runtime, *, only: Iterable[str] = (), devices: Mapping[str, Devices] | None = None
) -> tuple[tuple[Startable, ...], tuple[NotStarted, ...]]:
    """The backends to start, in the order of the settings, and those that are not. `only` names those that are wanted.

    `devices` says where each was put. Raises UnknownBackend for a name that nothing defines, and what stands in the way
    of a backend that was asked for by name.
    """
    wanted = tuple(dict.fromkeys(only))
    names = wanted or described(runtime)
    found: list[Startable] = []
    others: list[NotStarted] = []
    for name in names:
        try:
            outcome = _one(runtime, name, (devices or {}).get(name, Devices()))
        except UnknownBackend:
            raise
        except HubError as error:
            outcome = NotStarted(name=name, reason=error.message, hint=error.hint or "", wrong=True)
        if isinstance(outcome, NotStarted):
            if wanted:
                raise ConfigurationError(outcome.reason, backend=name, hint=outcome.hint or None)
            others.append(outcome)
        else:
            found.append(outcome)
    _check_addresses(found)
    return tuple(found), tuple(others)


def described(runtime: Runtime) -> tuple[str, ...]:
    """The backends that the settings describe. One of which a variable says no more than its key is not among them."""
    settings = runtime.settings
    return tuple(
        name
        for name, config in settings.backends.items()
        if config.models or config.base_urls or not (settings.source("backends", name) or "").isidentifier()
    )


def _one(runtime: Runtime, name: str, devices: Devices) -> Startable | NotStarted:
    plugin = runtime.registry.get(runtime.plugin_name(name))
    config = runtime.config(name)
    urls = set(config.base_urls.values()) or {plugin.manifest.default_url} - {None}
    # Where it is comes first: what is not ours to start need not be such that it could be started.
    for url in sorted(filter(None, urls)):
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.path.strip("/") or parts.hostname is None:
            reason = f"something stands before it ({url} is no plain http://host:port), so it is not ours to start"
            return NotStarted(name=name, reason=reason)
        if not is_local(parts.hostname):
            return NotStarted(name=name, reason=f"{parts.hostname} is not this machine, so it is not ours to start")
    spec = plugin.launch(config, devices)
    if spec is None or not urls:
        return NotStarted(name=name, reason=f"it needs no process of its own ({plugin.name} runs in the caller's)")
    if len(urls) > 1:
        return NotStarted(
            name=name,
            reason=f"it has several addresses ({', '.join(sorted(filter(None, urls)))}), and one process listens on one",
            hint=f'Make a backend of each: [backends.{name}-embedding] plugin = "{plugin.name}".',
            wrong=True,
        )
    host, port = parts.hostname or "", parts.port or 80
    capabilities = tuple(one for one in Capability if runtime.offers(name, one) and one in config.models)
    if not capabilities:
        capabilities = tuple(one for one in Capability if runtime.offers(name, one))[:1]
    return Startable(config=config, spec=spec.listening(host, port), host=host, port=port, capabilities=capabilities)


def _check_addresses(found: Iterable[Startable]) -> None:
    seen: dict[int, Startable] = {}
    for one in found:
        other = seen.setdefault(one.port, one)
        if other is not one:
            raise SettingsError(
                f"the backends {other.name!r} and {one.name!r} would both listen on port {one.port}",
                where=one.config.source,
                hint=f"Give one of them another: port {free_port()} is free.",
            )


# -- addresses --------------------------------------------------------------------------------------------------------


def is_local(host: str) -> bool:
    """Can a process of this machine listen on this address? A name that does not resolve is somebody else's."""
    return _try_to_listen(host, 0) in (None, errno.EADDRINUSE)


def taken(host: str, port: int) -> str | None:
    """Why nothing can listen there now; None if it can."""
    code = _try_to_listen(host, port)
    if code is None:
        return None
    if code == errno.EADDRINUSE:
        return f"something listens on {host}:{port} already"
    return f"nothing can listen on {host}:{port} ({os.strerror(code)})"


def _try_to_listen(host: str, port: int) -> int | None:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return errno.EADDRNOTAVAIL
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that was closed is not in the way
        try:
            probe.bind(where)
        except OSError as error:
            return error.errno or errno.EADDRNOTAVAIL
    return None


def free_port() -> int:
    """A port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# -- the environment --------------------------------------------------------------------------------------------------


def environment(one: Startable, environ: Mapping[str, str], keys: Iterable[BackendConfig] = ()) -> dict[str, str]:
    """What the process gets: this environment without the keys of the backends in `keys`, and what it needs itself."""
    own = one.config.api_key
    others = {config.api_key.reveal() for config in keys if config.api_key is not None and config.name != one.name}
    others -= {own.reveal()} if own is not None else set()
    made = {name: value for name, value in environ.items() if value not in others}
    made |= one.spec.devices.environment()
    for name, value in one.spec.environment.items():
        made[name] = (own.reveal() if own is not None else "") if value == API_KEY else expanded(value, environ)
    return made


def without_exclusive(environ: Mapping[str, str], plan: Plan) -> dict[str, str]:
    """The environment for all backends, in which one without an assignment does not see what another has for itself.

    One with an assignment sees its own, whatever stands here. Nothing is changed where the operator chose the GPUs.
    """
    taken = {gpu.id for one in plan.placements.values() if one.exclusive for gpu in one.devices.gpus}
    if not taken or "CUDA_VISIBLE_DEVICES" in environ:
        return dict(environ)
    left = [unit.uuid for unit in plan.inventory.units() if unit.uuid is not None and unit.uuid not in taken]
    return {**environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(left) or "-1"}


def expanded(value: str, environ: Mapping[str, str]) -> str:
    """A value with the operator's variables in it, written "${NAME}" or "${NAME:-default}"."""
    return _REFERENCE.sub(lambda match: environ.get(match[1]) or match[2] or "", value)
