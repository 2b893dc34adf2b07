"""The hooks of the llamacpp plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llm_hub.capabilities import Capability
from llm_hub.errors import SettingsError
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest
from llm_hub_llamacpp.requests import FEATURES
from llm_hub_llamacpp.settings import DEFAULT_MODEL, LlamaCppSettings

if TYPE_CHECKING:
    from llm_hub.capabilities import EmbeddingBackend, TextBackend, VisionBackend
    from llm_hub.config import BackendConfig, BuildContext
    from llm_hub.http_backend import HttpBackend
    from llm_hub.launch import Devices, LaunchSpec

__all__ = ["llm_hub_embedding", "llm_hub_launch", "llm_hub_manifest", "llm_hub_text", "llm_hub_vision"]


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What this plugin is."""
    return PluginManifest(
        api_version="1.0",
        summary="GGUF models in the process, through llama.cpp",
        features=FEATURES,
        settings=LlamaCppSettings,
        default_models={Capability.TEXT: DEFAULT_MODEL},
        gpu="optional",
    )


@hookimpl
def llm_hub_text(config: BackendConfig, context: BuildContext) -> TextBackend:
    """A text backend; its model is loaded by the first call. Raises SettingsError for options that are not this plugin's.

    With an address, it speaks to the server process there instead, as the others do.
    """
    if config.base_url(Capability.TEXT) is not None:
        return _server(Capability.TEXT, config, context)
    # Imported here, so that asking for the manifest does not load the machinery of threads.
    from llm_hub.engine import EngineBackend
    from llm_hub_llamacpp.engine import LlamaCppEngine

    settings = _settings(config)
    engine = LlamaCppEngine(
        settings, name=config.name, model=config.models.get(Capability.TEXT), progress=context.progress
    )
    return EngineBackend(engine, name=config.name, workers=settings.n_parallel, queue=settings.queue)


@hookimpl
def llm_hub_embedding(config: BackendConfig, context: BuildContext) -> EmbeddingBackend:
    """An embedding backend for one GGUF file; it is loaded by the first call. Raises SettingsError as `llm_hub_text` does."""
    if config.base_url(Capability.EMBEDDING) is not None:
        return _server(Capability.EMBEDDING, config, context)
    from llm_hub.engine import EngineBackend
    from llm_hub_llamacpp.embedding import LlamaCppEmbeddingEngine

    settings = _settings(config)
    engine = LlamaCppEmbeddingEngine(settings, model=config.models.get(Capability.EMBEDDING))
    return EngineBackend(engine, name=config.name, workers=settings.n_parallel, queue=settings.queue)


@hookimpl
def llm_hub_vision(config: BackendConfig, context: BuildContext) -> VisionBackend:
    """A vision backend: a model with its projector (`mmproj`), which describes and does not read. Raises SettingsError."""
    from llm_hub.engine import EngineBackend
    from llm_hub_llamacpp.engine import LlamaCppEngine

    if config.base_url(Capability.VISION) is not None:
        return _server(Capability.VISION, config, context)
    settings = _settings(config)
    if settings.mmproj is None:
        raise SettingsError(
            f"the backend {config.name!r} has no projector, so that its model sees nothing",
            where=config.source,
            hint=f'Set mmproj = "FILE.gguf", which belongs to the model, in [backends.{config.name}].',
        )
    model = config.models.get(Capability.VISION) or config.models.get(Capability.TEXT)
    engine = LlamaCppEngine(settings, name=config.name, model=model, progress=context.progress)
    return EngineBackend(engine, name=config.name, workers=settings.n_parallel, queue=settings.queue)


@hookimpl
def llm_hub_launch(config: BackendConfig, devices: Devices) -> LaunchSpec | None:
    """How to start the server process of a backend that has an address."""
    from llm_hub_llamacpp.launch import launch

    return launch(config, _settings(config), devices)


def _server(capability: Capability, config: BackendConfig, context: BuildContext) -> HttpBackend:
    from llm_hub.http_backend import HttpBackend
    from llm_hub.openai_dialect import server_root
    from llm_hub_llamacpp.server import ServerDialect

    dialect = ServerDialect(_settings(config), capability=capability, model=config.models.get(capability))
    return HttpBackend(dialect, config=server_root(config), context=context, capability=capability)


def _settings(config: BackendConfig) -> LlamaCppSettings:
    if isinstance(config.options, LlamaCppSettings):
        return config.options
    try:
        return msgspec.convert(config.options, LlamaCppSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"the options of the backend {config.name!r}: {error}", where=config.source) from error
