"""[services.NAME]: services of one's own, which a Compose file starts beside the backends."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llm_hub.errors import SettingsError
from llm_hub.settings_file import SECRETIVE, Found
from llm_hub.settings_kinds import suggestion
from llm_hub.toml_lines import Path

__all__ = ["Service", "read_services"]


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service that uses the hub, in a container: of an image that has a version, or built from a folder.

    `ports`, `command`, `volumes` and `environment` are as in a Compose file; `depends_on` names other services of one's own.
    """

    name: str
    image: str | None = None
    build: str | None = None
    command: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}
    depends_on: tuple[str, ...] = ()
    source: str = "argument"


def read_services(found: Mapping[Path, Found]) -> tuple[Service, ...]:
    """The services of the settings, in the order of the file. Raises SettingsError at the line of one that cannot be."""
    names = [str(at[1]) for at in found if at[0] == "services" and len(at) == 2]
    services = tuple(_service(name, found) for name in names)
    for one in services:
        for other in one.depends_on:
            if other not in names or other == one.name:
                raise SettingsError(
                    f"the service {one.name!r} depends on {other!r}, which is no other service",
                    where=found["services", one.name, "depends_on"].where,
                    hint=f"{suggestion(other, names)}It is of [services]; backends are waited for anyway.",
                )
    return services


def _service(name: str, found: Mapping[Path, Found]) -> Service:
    at: Path = ("services", name)
    fields = {str(path[2]): one.value for path, one in found.items() if path[:2] == at and len(path) == 3}
    environment = {
        str(path[3]): one for path, one in found.items() if path[:3] == (*at, "environment") and len(path) == 4
    }
    for variable, one in environment.items():
        if SECRETIVE.search(variable) and "$" not in one.value:
            raise SettingsError(
                f"{variable} of the service {name!r} looks like a secret, which does not belong in a settings file",
                where=one.where,
                hint=f'Take it out, export it where Compose runs, and write {variable} = "${{{variable}:?}}".',
            )
    fields["environment"] = {variable: one.value for variable, one in environment.items()}
    service = Service(name=name, source=found[at].where, **fields)
    if service.image is None and service.build is None:
        raise SettingsError(
            f"the service {name!r} has neither image nor build",
            where=service.source,
            hint='Write image = "registry/name:1.2.3", or build = "./folder" with a Dockerfile in it.',
        )
    return service
