"""The hooks of a plugin: they describe and build, and are never called while a request is served.

A plugin is an object (a module will do) with some of these functions, each marked with `hookimpl`. Its entry points,
one in the group of each capability that it offers (and one in `llm_hub.observer`, if it observes), all name this one
object.
"""

from __future__ import annotations

import pluggy

from llm_hub.capabilities import EmbeddingBackend, TextBackend, VisionBackend
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.launch import Devices, LaunchSpec
from llm_hub.manifest import PluginManifest
from llm_hub.observers import Observer

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "llm_hub"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def llm_hub_manifest() -> PluginManifest:  # type: ignore[empty-body]
    """What the plugin declares. Plain data, no I/O. The one hook that every plugin must have."""


@hookspec(firstresult=True)
def llm_hub_text(config: BackendConfig, context: BuildContext) -> TextBackend | None:
    """Build a text backend from this configuration; None if this instance offers no text.

    It must not connect to anything or load a model: that is for the first call or the first probe.
    Raise ConfigurationError for options that do not fit together.
    """


@hookspec(firstresult=True)
def llm_hub_embedding(config: BackendConfig, context: BuildContext) -> EmbeddingBackend | None:
    """Build an embedding backend, as `llm_hub_text`."""


@hookspec(firstresult=True)
def llm_hub_vision(config: BackendConfig, context: BuildContext) -> VisionBackend | None:
    """Build a vision backend, as `llm_hub_text`."""


@hookspec(firstresult=True)
def llm_hub_observer(context: BuildContext) -> Observer | None:
    """Make an observer of calls, switches and health (entry point group `llm_hub.observer`); None if it has nothing to do.

    It is asked once a hub, when the hub is opened, and only where LLM_HUB_OBSERVERS names the plugin. A plugin may
    offer this alone. Raise ConfigurationError for what is missing. See `llm_hub.observers.Observer`.
    """


@hookspec(firstresult=True)
def llm_hub_launch(config: BackendConfig, devices: Devices) -> LaunchSpec | None:
    """Say how to run this backend as a process of its own on these devices; None if it needs none, or cannot be run so.

    It describes and does nothing: no file is looked for, nothing is started. A key never stands in it: `API_KEY` in the
    environment stands for the key of `config`. Raise SettingsError for a configuration that one process cannot serve.
    """
