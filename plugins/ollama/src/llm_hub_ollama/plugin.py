"""The hooks of the ollama plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llm_hub.errors import SettingsError
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import KnownBad, PluginManifest
from llm_hub_ollama.models import EMBEDDING_FEATURES, FEATURES
from llm_hub_ollama.settings import OllamaSettings

if TYPE_CHECKING:
    from llm_hub.capabilities import Capability, EmbeddingBackend, TextBackend, VisionBackend
    from llm_hub.config import BackendConfig, BuildContext
    from llm_hub.http_backend import HttpBackend
    from llm_hub.launch import Devices, LaunchSpec

__all__ = [
    "DEFAULT_URL",
    "KNOWN_BAD",
    "llm_hub_embedding",
    "llm_hub_launch",
    "llm_hub_manifest",
    "llm_hub_text",
    "llm_hub_vision",
]

DEFAULT_URL = "http://127.0.0.1:11434"

# 0.0.0 is what a build from source calls itself, so nothing is said about it.
KNOWN_BAD = (
    KnownBad(
        ">0.0.0,<0.5.0",
        "`format` takes no JSON schema (it came with 0.5.0), and a prompt over the context is cut in silence",
    ),
    KnownBad(
        ">=0.5.0,<0.12.6",
        "`truncate: false` is ignored (it came with 0.12.6), so a prompt over the context is cut in silence",
    ),
    KnownBad(
        ">=0.12.6rc0,<0.12.11",
        "`logprobs` are ignored in silence (they came with 0.12.11), and 0.12.10 was the first with ids of tool calls",
    ),
    KnownBad(
        ">=0.30.0rc0,<0.30.1",
        "prompt_eval_count leaves out what came from the prompt cache (0.30.1 counts it again), so token counts are "
        "wrong and a cut prompt cannot be told from a cached one",
    ),
)


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What this plugin is."""
    return PluginManifest(
        api_version="1.0",
        summary="Ollama, over its native API",
        features=FEATURES | EMBEDDING_FEATURES,
        settings=OllamaSettings,
        default_url=DEFAULT_URL,
        gpu="optional",
        install_model="ollama pull {model}",
        loads_on_demand=True,
        known_bad=KNOWN_BAD,
    )


@hookimpl
def llm_hub_text(config: BackendConfig, context: BuildContext) -> TextBackend:
    """A text backend. Raises SettingsError for options that are not this plugin's."""
    from llm_hub.capabilities import Capability

    return _backend(Capability.TEXT, config, context)


@hookimpl
def llm_hub_embedding(config: BackendConfig, context: BuildContext) -> EmbeddingBackend:
    """An embedding backend. Raises SettingsError for options that are not this plugin's."""
    from llm_hub.capabilities import Capability

    return _backend(Capability.EMBEDDING, config, context)


@hookimpl
def llm_hub_vision(config: BackendConfig, context: BuildContext) -> VisionBackend:
    """A vision backend, which describes and does not read. Raises SettingsError for options that are not this plugin's."""
    from llm_hub.capabilities import Capability

    return _backend(Capability.VISION, config, context)


@hookimpl
def llm_hub_launch(config: BackendConfig, devices: Devices) -> LaunchSpec:
    """How to start the server of this backend."""
    from llm_hub_ollama.launch import launch

    return launch(config, _settings(config), devices)


def _backend(capability: Capability, config: BackendConfig, context: BuildContext) -> HttpBackend:
    # Imported here, so that asking for the manifest does not load the HTTP client.
    from llm_hub.http_backend import HttpBackend
    from llm_hub_ollama.dialect import OllamaDialect

    return HttpBackend(
        OllamaDialect(_settings(config), capability=capability, configured=config.models.values()),
        config=_without_api_path(config),
        context=context,
        capability=capability,
        default_url=DEFAULT_URL,
    )


def _settings(config: BackendConfig) -> OllamaSettings:
    if isinstance(config.options, OllamaSettings):
        return config.options
    try:
        return msgspec.convert(config.options, OllamaSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"the options of the backend {config.name!r}: {error}", where=config.source) from error


def _without_api_path(config: BackendConfig) -> BackendConfig:
    """The configuration with the address of the server itself, where it was given with the path of one of its APIs."""
    urls = {
        capability: url.rstrip("/").removesuffix("/v1").removesuffix("/api")
        for capability, url in config.base_urls.items()
    }
    return msgspec.structs.replace(config, base_urls=urls)
