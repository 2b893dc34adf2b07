"""The hooks of the llamacpp plugin."""

from __future__ import annotations

from llm_hub.capabilities import Capability, Feature, TextBackend
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest
from llm_hub_llamacpp.settings import LlamaCppSettings

__all__ = ["llm_hub_manifest", "llm_hub_text"]


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What the plugin declares."""
    return PluginManifest(
        api_version="1.0",
        summary="GGUF models in this process, through llama.cpp.",
        features=frozenset(Feature) - {Feature.REGEX, Feature.REASONING_EFFORT, Feature.DIMENSIONS, Feature.READ},
        settings=LlamaCppSettings,
        default_models={Capability.TEXT: "smollm2"},
        gpu="optional",
    )


@hookimpl
def llm_hub_text(config: BackendConfig, context: BuildContext) -> TextBackend:
    """A text backend for one GGUF model. Nothing is loaded before the first call."""
    from llm_hub.engine import EngineBackend
    from llm_hub_llamacpp.engine import LlamaEngine

    settings = config.options if isinstance(config.options, LlamaCppSettings) else LlamaCppSettings()
    engine = LlamaEngine(
        config.models.get(Capability.TEXT, "smollm2"), settings, backend=config.name, report=context.progress
    )
    return EngineBackend(engine, name=config.name, workers=settings.n_parallel, queue=settings.queue)
