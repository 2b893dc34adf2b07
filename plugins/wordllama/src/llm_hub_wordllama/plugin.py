"""The hooks of the wordllama plugin."""

from __future__ import annotations

from llm_hub.capabilities import Capability, EmbeddingBackend, Feature
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.hookspecs import hookimpl
from llm_hub.manifest import PluginManifest

__all__ = ["MODEL", "llm_hub_embedding", "llm_hub_manifest"]

MODEL = "l2_supercat"
"""The model whose weights are in wordllama's wheel."""


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What the plugin declares."""
    return PluginManifest(
        api_version="1.0",
        summary="Word vectors in this process, with the weights in the wheel of wordllama.",
        features=frozenset({Feature.DIMENSIONS}),
        default_models={Capability.EMBEDDING: MODEL},
        gpu="none",
    )


@hookimpl
def llm_hub_embedding(config: BackendConfig, context: BuildContext) -> EmbeddingBackend:
    """An embedding backend. Nothing is loaded before the first call."""
    from llm_hub.engine import EngineBackend
    from llm_hub_wordllama.engine import WordLlamaEngine

    return EngineBackend(WordLlamaEngine(), name=config.name, workers=2)
