"""The hooks of the vllm plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from llm_hub.capabilities import Capability, EmbeddingBackend, TextBackend, VisionBackend
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.errors import SettingsError
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import KnownBad, PluginManifest
from llm_hub.openai_dialect import server_root
from llm_hub_vllm.dialect import EMBEDDING_FEATURES, FEATURES, VLLMDialect
from llm_hub_vllm.settings import VLLMSettings

if TYPE_CHECKING:
    from llm_hub.http_backend import HttpBackend
    from llm_hub.launch import Devices, LaunchSpec

__all__ = [
    "DEFAULT_URL",
    "llm_hub_embedding",
    "llm_hub_launch",
    "llm_hub_manifest",
    "llm_hub_text",
    "llm_hub_vision",
]

DEFAULT_URL = "http://127.0.0.1:8000"

_MANIFEST = PluginManifest(
    api_version="1.0",
    summary="vLLM, over its OpenAI-compatible API.",
    features=FEATURES | EMBEDDING_FEATURES,
    settings=VLLMSettings,
    default_url=DEFAULT_URL,
    gpu="optional",
    install_model="vllm serve {model}",
    known_bad=(
        KnownBad(
            "<0.11",
            "it does not know structured_outputs (new in 0.11.0) and ignores it in silence: an answer that was asked to "
            "match a regex, a choice or a grammar would be free text",
        ),
    ),
)


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What the plugin declares."""
    return _MANIFEST


@hookimpl
def llm_hub_text(config: BackendConfig, context: BuildContext) -> TextBackend:
    """A text backend for one vLLM server, whose address is given with or without /v1."""
    return _backend(Capability.TEXT, config, context)


@hookimpl
def llm_hub_embedding(config: BackendConfig, context: BuildContext) -> EmbeddingBackend:
    """An embedding backend for one vLLM server that was started with `--runner pooling`."""
    return _backend(Capability.EMBEDDING, config, context)


@hookimpl
def llm_hub_vision(config: BackendConfig, context: BuildContext) -> VisionBackend:
    """A vision backend for one vLLM server; it describes and does not read."""
    return _backend(Capability.VISION, config, context)


@hookimpl
def llm_hub_launch(config: BackendConfig, devices: Devices) -> LaunchSpec:
    """How to start the server of this backend."""
    from llm_hub_vllm.launch import launch

    return launch(config, _settings(config), devices)


def _backend(capability: Capability, config: BackendConfig, context: BuildContext) -> HttpBackend:
    from llm_hub.http_backend import HttpBackend  # the HTTP client is imported when a backend is built, not before

    return HttpBackend(
        VLLMDialect(_settings(config), capability=capability),
        config=server_root(config),
        context=context,
        capability=capability,
        default_url=DEFAULT_URL,
    )


def _settings(config: BackendConfig) -> VLLMSettings:
    options = config.options
    if isinstance(options, Mapping):  # a config made by hand
        try:
            return msgspec.convert(options, VLLMSettings)
        except msgspec.ValidationError as error:
            raise SettingsError(f"the options of {config.name!r} are wrong: {error}", where=config.source) from error
    if not isinstance(options, VLLMSettings):
        raise SettingsError(f"the options of {config.name!r} are not those of vLLM: {options!r}", where=config.source)
    return options
