"""A Compose file for the whole stack: backends on their GPUs, services of one's own, health checks, volumes and networks.

Keys and their meaning are those of the Compose Specification (https://github.com/compose-spec/compose-spec). Nothing here
talks to Docker.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.config import BackendConfig
from llm_hub.errors import ConfigurationError, SettingsError
from llm_hub.launch import API_KEY, Container, Devices, LaunchSpec, Volume
from llm_hub.settings_environment import read_backends
from llm_hub.settings_services import Service
from llm_hub.settings_table import variable_prefix
from llm_hub.starting import described
from llm_hub.yaml_writer import to_yaml

if TYPE_CHECKING:
    from llm_hub.runtime import Runtime

__all__ = ["Stack", "contained", "render"]

_DEFAULT_NAMES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
_CONFIG = "/etc/llm-hub/llm-hub.toml"
_STATE = "/var/lib/llm-hub"
_NAMED_VOLUME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*):")
_LOGGING = {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """What a Compose file is made from: the backends that run in containers, and the services.

    `config` is the path of the settings file as the Compose file says it, None without one; `base` is the folder of the
    settings file likewise, for paths in it that begin with a dot. `named_outside` are the
    capabilities whose model is not named in it, but in a variable, by backend. `notes` are for the operator.
    """

    backends: tuple[tuple[BackendConfig, LaunchSpec], ...]
    services: tuple[Service, ...] = ()
    config: str | None = None
    base: str = "."
    named_outside: Mapping[str, tuple[Capability, ...]] = {}
    notes: tuple[str, ...] = ()


def contained(runtime: Runtime, *, devices: Mapping[str, Devices], config: str | None = None) -> Stack:
    """The stack of these settings, whose file is at `config` for the Compose file. Raises ConfigurationError where there is no backend that can run in a container."""
    found: list[tuple[BackendConfig, LaunchSpec]] = []
    notes: list[str] = []
    for name in described(runtime):
        if (url := _elsewhere(runtime.settings.backends[name])) is not None:
            notes.append(f"{name}: is elsewhere, and used there ({url})")
            continue
        spec = runtime.registry.get(runtime.plugin_name(name)).launch(
            runtime.config(name), devices.get(name, Devices())
        )
        if spec is None:
            notes.append(f"{name}: runs in the services themselves, whose image must have its plugin")
        elif spec.container is None:
            notes.append(f"{name}: its plugin does not say how it runs in a container; it is used at its own address")
        else:
            found.append((runtime.config(name), spec))
            notes += [f"{name}: {note}" for note in spec.notes]
    if not found:
        raise ConfigurationError(
            "there is no backend that runs in a container",
            hint='Define one: [backends.ollama] models = { text = "llama3.2" } in llm-hub.toml.',
        )
    if runtime.settings.services:
        _check_addresses(runtime, found)
    taken = {_service_name(config.name) for config, _ in found}
    for service in runtime.settings.services:
        if service.name in taken:
            raise SettingsError(
                f"the service {service.name!r} has the name of a backend", where=service.source, hint="Rename it."
            )
    outside = {config.name: tuple(_named_outside(runtime, config)) for config, _ in found}
    return Stack(
        backends=tuple(found),
        services=runtime.settings.services,
        config=config,
        base=posixpath.dirname(config) if config is not None else ".",
        named_outside=outside,
        notes=tuple(notes),
    )


def _check_addresses(runtime: Runtime, found: Iterable[tuple[BackendConfig, LaunchSpec]]) -> None:
    """Raise SettingsError where the variable that tells services of a backend could be meant for another one, too."""
    names = [*runtime.settings.backends, *runtime.registry.names()]
    for config, spec in found:
        assert spec.container is not None
        url = _url(config, spec.container)
        try:
            read_backends(_address_variables(config, url), names)
        except SettingsError as error:
            raise SettingsError(
                f"services cannot be told by a variable where {config.name!r} is: {error.message}",
                where=config.source,
                hint=f'Write base_url = "{url}" in [backends.{config.name}], or rename it.',
            ) from error


def _named_outside(runtime: Runtime, config: BackendConfig) -> Iterator[Capability]:
    for capability in config.models:
        where = runtime.settings.source("backends", config.name, "models", str(capability))
        if where is not None and where.isidentifier():
            yield capability


def _elsewhere(config: BackendConfig) -> str | None:
    """Its address, if that is of another machine; None if it is to be run here."""
    for url in config.base_urls.values():
        host = urlsplit(url).hostname or ""
        ours = host in ("localhost", "0.0.0.0", "::1", _service_name(config.name)) or host.startswith("127.")  # noqa: S104
        if not ours:
            return url
    return None


def render(stack: Stack, *, command: str, file: str | None = None) -> str:
    """The text of the file. `command` is how it was made, for the comment at its top, `file` what it is called."""
    named = "" if file is None or file in _DEFAULT_NAMES else f" -f {file}"
    head = [f"# Made by `{command}`: do not edit it, make it anew."]
    kinds = _kinds(stack)
    if len(kinds) > 1:
        alone = ", ".join(f"--profile {one}" for one in kinds)
        head.append(
            f"# Start it with: docker compose{named} --profile {_all_profile(kinds)} up -d (or a part of it: {alone})"
        )
    variables = _variables(stack)
    if variables:
        head.append(
            f"# It needs these variables, from the environment or from .env, whatever is started: {', '.join(variables)}"
        )
    head += [f"# {note}" for note in stack.notes]
    return "\n".join(head) + "\n\n" + to_yaml(_document(stack))


def _document(stack: Stack) -> dict[str, Any]:
    services: dict[str, Any] = {}
    volumes: dict[str, Any] = {}
    before = _starts(stack)
    for config, spec in stack.backends:
        container = spec.container
        assert container is not None  # `contained` keeps no other
        profiles = _profiles(config, stack)
        name = _service_name(config.name)
        services[name] = _backend(
            config, spec, container, after=before[config.name], profiles=profiles, base=stack.base
        )
        volumes.update({one.name: {} for one in container.volumes if one.name is not None})
        if container.fetch is not None:
            services[f"{name}-models"] = _fetch(name, container, profiles)
    for service in stack.services:
        services[service.name] = _own(service, stack)
        volumes.update({match[1]: {} for text in service.volumes if (match := _NAMED_VOLUME.match(text))})
    document: dict[str, Any] = {"services": services}
    if stack.services:
        volumes["hub-state"] = {}
    if volumes:
        document["volumes"] = volumes
    # The backends are reached by the services alone, and have a way out to fetch their models.
    networks: dict[str, Any] = {"backends": {"internal": True}, "downloads": {}}
    document["networks"] = networks | ({"default": {}} if stack.services else {})
    if stack.services and stack.config is not None:
        document["configs"] = {"llm-hub": {"file": stack.config}}
    return document


# -- backends ---------------------------------------------------------------------------------------------------------


def _backend(
    config: BackendConfig,
    spec: LaunchSpec,
    container: Container,
    *,
    after: Sequence[str],
    profiles: Sequence[str],
    base: str,
) -> dict[str, Any]:
    made: dict[str, Any] = {"image": container.image}
    if container.dockerfile is not None:
        made["build"] = {"context": ".", "dockerfile_inline": _literal(container.dockerfile)}
    if profiles:
        made["profiles"] = list(profiles)
    if container.entrypoint is not None:
        made["entrypoint"] = [_literal(part) for part in container.entrypoint]
    made["command"] = [_literal(part) for part in container.command]
    environment = {
        name: _key_reference(config) if value == API_KEY else value for name, value in container.environment.items()
    }
    if spec.devices.gpus:
        # Inside, the GPUs are counted anew, and there are no others: so nothing but the order is said.
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    else:
        # The images ask for all GPUs, which the engine heeds where NVIDIA's runtime is its default.
        environment["NVIDIA_VISIBLE_DEVICES"] = "void"
    made["environment"] = environment
    if container.volumes:
        made["volumes"] = [_volume(one, base) for one in container.volumes]
    made["networks"] = ["backends", "downloads"]
    if spec.devices.gpus:
        device = {
            "driver": "nvidia",
            "device_ids": [gpu.id for gpu in spec.devices.gpus],
            "capabilities": ["gpu"],
        }
        made["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    if container.shared_memory is not None:
        made["shm_size"] = container.shared_memory
    made["healthcheck"] = {
        "test": [_literal(part) for part in spec.health_command()],
        "interval": "10s",
        "timeout": "5s",
        "retries": 3,
        "start_period": f"{math.ceil(spec.start_timeout)}s",
    }
    if after:
        # One start at a time on a GPU: a server takes its share of what is free when it starts.
        made["depends_on"] = {one: _healthy() for one in after}
    made["stop_grace_period"] = f"{math.ceil(spec.stop_grace)}s"
    made["init"] = True
    made["restart"] = "unless-stopped"
    made["logging"] = _LOGGING
    return made


def _fetch(name: str, container: Container, profiles: Sequence[str]) -> dict[str, Any]:
    """Fetches the models once the server is up, and ends; those that are there already take no time."""
    made: dict[str, Any] = {"image": container.image}
    if profiles:
        made["profiles"] = list(profiles)
    made["entrypoint"] = ["/bin/sh", "-c"]
    made["command"] = [_literal(container.fetch or "")]
    made["environment"] = {"OLLAMA_HOST": f"http://{name}:{container.port}"}
    made["networks"] = ["backends"]
    made["depends_on"] = {name: {"condition": "service_healthy"}}
    made["restart"] = "on-failure"
    made["logging"] = _LOGGING
    return made


def _volume(volume: Volume, base: str) -> dict[str, Any]:
    kind = "bind" if volume.name is None else "volume"
    source = volume.name
    if source is None:
        source = str(Path(volume.source or ".").expanduser())
        source = _moved(source if source.startswith(("/", ".")) else f"./{source}", base)
    made: dict[str, Any] = {"type": kind, "source": source, "target": volume.path}
    if volume.read_only:
        made["read_only"] = True
    return made


def _moved(path: str, base: str) -> str:
    """A path of the settings file as the Compose file says it: both count from the folder that they are in."""
    if not path.startswith("."):
        return path
    moved = posixpath.normpath(posixpath.join(base, path))
    return moved if moved.startswith(".") else f"./{moved}"


def _starts(stack: Stack) -> dict[str, list[str]]:
    """For each backend the one that starts before it on each of its GPUs."""
    last: dict[str, str] = {}
    before: dict[str, list[str]] = {}
    for config, spec in stack.backends:
        name = config.name
        earlier = [last[gpu.id] for gpu in spec.devices.gpus if gpu.id in last]
        before[name] = [_service_name(one) for one in dict.fromkeys(earlier)]
        last.update({gpu.id: name for gpu in spec.devices.gpus})
    return before


# -- services of one's own --------------------------------------------------------------------------------------------


def _own(service: Service, stack: Stack) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if service.image is not None:
        made["image"] = service.image
    if service.build is not None:
        made["build"] = _moved(service.build, stack.base)
    if service.command:
        made["command"] = list(service.command)
    made["environment"] = {**_wiring(stack), **service.environment}
    volumes: list[object] = [{"type": "volume", "source": "hub-state", "target": _STATE}]
    made["volumes"] = [*volumes, *(_moved(one, stack.base) for one in service.volumes)]
    if stack.config is not None:
        made["configs"] = [{"source": "llm-hub", "target": _CONFIG}]
    if service.ports:
        made["ports"] = list(service.ports)
    made["networks"] = ["backends", "default"]
    depends: dict[str, Any] = {name: {"condition": "service_started"} for name in service.depends_on}
    for config, spec in stack.backends:
        name = _service_name(config.name)
        depends[name] = _healthy()
        if spec.container is not None and spec.container.fetch is not None:
            depends[f"{name}-models"] = {"condition": "service_completed_successfully", "required": False}
    made["depends_on"] = depends
    made["init"] = True
    made["restart"] = "unless-stopped"
    made["logging"] = _LOGGING
    return made


def _wiring(stack: Stack) -> dict[str, str]:
    """What a service needs to find the backends by their names on the network, and to be switched with the others."""
    made = {"LLM_PROVIDER": "${LLM_PROVIDER:-}", "LLM_HUB_STATE": f"{_STATE}/control.json"}
    if stack.config is not None:
        made["LLM_HUB_CONFIG"] = _CONFIG
    for config, spec in stack.backends:
        assert spec.container is not None
        prefix = variable_prefix(config.name)
        made.update(_address_variables(config, _url(config, spec.container)))
        for capability in stack.named_outside.get(config.name, ()):
            middle = "" if capability is Capability.TEXT else f"{capability.upper()}_"
            made[f"{prefix}_{middle}MODEL"] = config.models[capability]
        if config.api_key is not None:
            made[config.key_variable or f"{prefix}_API_KEY"] = _key_reference(config)
    return made


def _url(config: BackendConfig, container: Container) -> str:
    return f"http://{_service_name(config.name)}:{container.port}"


def _address_variables(config: BackendConfig, url: str) -> dict[str, str]:
    """The variables that say where a backend is; none where the settings file says the same."""
    prefix = variable_prefix(config.name)
    wanted = [one for one in dict.fromkeys((None, *config.base_urls)) if config.base_urls.get(one) != url]
    if None in wanted and config.base_urls and None not in config.base_urls:
        wanted.remove(None)
    return {f"{prefix}_{'' if one is None else f'{one.upper()}_'}BASE_URL": url for one in wanted}


# -- names and profiles -----------------------------------------------------------------------------------------------


def _service_name(backend: str) -> str:
    """A name that is one label of a host name, too: nobody has to know what else a resolver takes."""
    return re.sub(r"[^a-z0-9-]", "-", backend.lower())


def _kinds(stack: Stack) -> list[str]:
    return list(dict.fromkeys(config.plugin for config, _ in stack.backends))


def _all_profile(kinds: Sequence[str]) -> str:
    return "both" if len(kinds) == 2 else "all"


def _profiles(config: BackendConfig, stack: Stack) -> list[str]:
    """With backends of several plugins, each can be started alone. With one, there is nothing to choose."""
    kinds = _kinds(stack)
    return [config.plugin, _all_profile(kinds)] if len(kinds) > 1 else []


def _healthy() -> dict[str, Any]:
    return {"condition": "service_healthy", "required": False}  # its profile may not be started


def _variables(stack: Stack) -> list[str]:
    return list(dict.fromkeys(_key_variable(config) for config, _ in stack.backends if config.api_key is not None))


def _key_variable(config: BackendConfig) -> str:
    return config.key_variable or f"{variable_prefix(config.name)}_API_KEY"


def _key_reference(config: BackendConfig) -> str:
    """The key, as Compose takes it from the operator's environment: it stands in no file."""
    name = _key_variable(config)
    return f"${{{name}:?set {name}}}"


def _literal(text: str) -> str:
    """Text in which Compose finds no variables."""
    return text.replace("$", "$$")


def mounted(path: str | Path, folder: Path) -> str:
    """A path as a Compose file in `folder` says it."""
    relative = os.path.relpath(path, folder)
    return relative if relative.startswith(".") else f"./{relative}"


def placeholders(text: str, environ: Mapping[str, str]) -> list[str]:
    """The variables that `api_key_env` names in a settings file and that are not set: no file that is made holds them."""
    import tomllib

    try:
        backends = tomllib.loads(text).get("backends", {})
    except tomllib.TOMLDecodeError:
        return []  # whoever reads the settings says what is wrong
    tables = [one for one in backends.values() if isinstance(one, dict)] if isinstance(backends, dict) else []
    names = [one["api_key_env"] for one in tables if isinstance(one.get("api_key_env"), str)]
    return [name for name in names if not environ.get(name, "").strip()]
