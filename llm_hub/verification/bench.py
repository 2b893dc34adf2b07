"""What the questions are put to: hubs on the settings of an environment, none of which touches what is in force there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.discovery import installed
from llm_hub.errors import HubError
from llm_hub.hub import Hub
from llm_hub.messages import ServedBy
from llm_hub.registry import Registry
from llm_hub.settings import Settings
from llm_hub.testing import draw
from llm_hub.verification.relay import Relay

__all__ = ["CHOOSING", "Bench", "NoRelay", "Tried"]

CHOOSING = (
    "LLM_PROVIDER",
    "LLM_TEXT_PROVIDER",
    "LLM_EMBEDDING_PROVIDER",
    "LLM_VISION_PROVIDER",
    "LLM_VISION_READ_PROVIDER",
    "LLM_VISION_DESCRIBE_PROVIDER",
    "LLM_FALLBACK",
)
"""The variables by which backends are chosen: each question sets its own."""

# Switches are tried out, and nobody is to be told of calls that are no service's.
_NOT_HERE = ("LLM_HUB_PIN", "LLM_HUB_OBSERVERS")


class NoRelay(Exception):
    """A backend cannot be put behind a relay: it is in this process, or its wire is encrypted."""


class Tried(msgspec.Struct, frozen=True):
    """One backend that was asked for a capability: `served_by` if it answered, else the `error`."""

    name: str
    served_by: ServedBy | None = None
    error: str | None = None


class Bench:
    """Opens hubs on an environment and its settings file, with control files of their own that are thrown away.

    `backends` are those that are asked, by default all that are configured and those that the environment chooses.
    `timeout` is for one call, in seconds: a model may have to be loaded. Nothing that is in force is changed.
    Raises what is wrong with the settings.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        backends: tuple[str, ...] = (),
        timeout: float = 60.0,
    ) -> None:
        self.environ = dict(os.environ if environ is None else environ)
        self.config = config
        self.timeout = timeout
        self._plugins = {plugin.name for plugin in installed()}
        self._folder = tempfile.TemporaryDirectory(prefix="llm-hub-verify-")
        self._states = 0
        self._tried: dict[Capability, tuple[Tried, ...]] = {}
        self._undecided: dict[Capability, HubError] = {}
        self._only = backends
        chosen = self.settings(None, **{name: self.environ[name] for name in CHOOSING if self.environ.get(name)})
        for name in backends:
            chosen.config(name, plugin=name if name in self._plugins else None)
        self._chosen = chosen
        self.registry = Registry(allowed=chosen.allowed, disabled=chosen.disabled)

    # -- hubs ---------------------------------------------------------------------------------------------------------

    def variables(self, **variables: str) -> dict[str, str]:
        """The environment with these variables in place of those that choose, and a control file of its own."""
        self._states += 1
        kept = {name: value for name, value in self.environ.items() if name not in (*CHOOSING, *_NOT_HERE)}
        kept["LLM_HUB_STATE"] = str(Path(self._folder.name) / f"control-{self._states}.json")
        return {**kept, **variables}

    def settings(self, relays: Mapping[str, Relay] | None = None, /, **variables: str) -> Settings:
        """What these `variables` come to; the wire to the backends that `relays` names is that relay."""
        settings = Settings.from_env(self.variables(**variables), plugins=self._plugins, config=self.config)
        backends = dict(settings.backends)
        for name, relay in (relays or {}).items():
            config = settings.config(name, plugin=name)
            backends[name] = msgspec.structs.replace(config, base_urls={None: relay.url})
        return msgspec.structs.replace(settings, backends=backends)

    def ollama_alone(self) -> dict[str, str]:
        """The environment of code that was written against Ollama: its variables, and no settings file."""
        empty = Path(self._folder.name) / "empty.toml"
        empty.touch()
        kept = {name: value for name, value in self.environ.items() if not name.startswith("LLM_")}
        return {**kept, "LLM_HUB_CONFIG": str(empty), "LLM_HUB_STATE": self.variables()["LLM_HUB_STATE"]}

    @contextlib.contextmanager
    def hub(self, relays: Mapping[str, Relay] | None = None, /, **variables: str) -> Iterator[Hub]:
        """A hub of these settings, closed at the end."""
        with Hub(self.settings(relays, **variables), registry=self.registry) as hub:
            yield hub

    @contextlib.contextmanager
    def relay(self, name: str, capability: Capability) -> Iterator[Relay]:
        """A relay to the server of a backend, not open yet. Raises NoRelay where there can be none."""
        config = self._chosen.config(name, plugin=name)
        url = config.base_url(capability) or self.registry.get(config.plugin).manifest.default_url
        if url is None:
            raise NoRelay(f"{name} runs in this process")
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise NoRelay(f"the wire to {name} is encrypted, so that nothing can be put in between")
        with Relay(parts.hostname, parts.port or 80, path=parts.path) as relay:
            yield relay

    # -- backends -----------------------------------------------------------------------------------------------------

    def tried(self, capability: Capability) -> tuple[Tried, ...]:
        """The backends that might serve this, each asked once; that which is chosen first."""
        if capability not in self._tried:
            self._tried[capability] = tuple(self._try(capability))
        return self._tried[capability]

    def has_model(self, name: str, capability: Capability) -> bool:
        """Is a model of this backend configured for this?"""
        config = self._chosen.backends.get(name)
        return config is not None and capability in config.models

    def able(self, capability: Capability) -> tuple[str, ...]:
        """The names of those that answered."""
        return tuple(one.name for one in self.tried(capability) if one.served_by is not None)

    def undecided(self, capability: Capability) -> HubError | None:
        """Why nothing is chosen for this, if nothing is."""
        self.tried(capability)
        return self._undecided.get(capability)

    def _try(self, capability: Capability) -> Iterator[Tried]:
        with Hub(self._chosen, registry=self.registry) as hub:
            names = list(self._only)
            if not names:
                try:
                    names.append(hub.explain(capability).backend)
                except HubError as error:
                    self._undecided[capability] = error
                names += [name for name in self._chosen.backends if name not in names]
            for name in names:
                if not hub.runtime.offers(name, capability):
                    continue
                try:
                    served_by = self._ask(hub, capability, name)
                except HubError as error:
                    yield Tried(name, error=str(error))
                else:
                    yield Tried(name, served_by=served_by)

    def _ask(self, hub: Hub, capability: Capability, name: str) -> ServedBy | None:
        match capability:
            case Capability.EMBEDDING:
                return hub.embedding(backend=name).embed(["ping"], timeout=self.timeout).served_by
            case Capability.VISION:
                picture = draw("red", "circle", "white")
                vision = hub.vision(backend=name)
                return vision.describe(picture, "What is in this picture?", timeout=self.timeout).served_by
            case _:
                return hub.text(backend=name).chat("ping", max_tokens=8, timeout=self.timeout).served_by

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Throw the control files away."""
        self._folder.cleanup()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
