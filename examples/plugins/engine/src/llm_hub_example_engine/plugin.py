"""The hooks of the plugin, for an engine in the process. Importing this module does nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_hub import hookimpl
from llm_hub.capabilities import Capability, Feature
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.manifest import PluginManifest

from llm_hub_example_engine.settings import ExampleEngineSettings

if TYPE_CHECKING:
    from llm_hub.engine import EngineBackend

MODEL = "parrot"
FEATURES = frozenset({Feature.SYSTEM})  # declare what works, and only that: the suite checks both directions


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What the plugin declares. Plain data, no I/O."""
    return PluginManifest(
        api_version="1.0",
        summary="example-engine, in this process.",
        features=FEATURES,
        settings=ExampleEngineSettings,
        default_models={Capability.TEXT: MODEL, Capability.EMBEDDING: MODEL},
        gpu="none",
    )


@hookimpl
def llm_hub_text(config: BackendConfig, context: BuildContext) -> EngineBackend:
    """A text backend. Nothing is loaded before the first call."""
    from llm_hub.engine import EngineBackend

    from llm_hub_example_engine.engine import ExampleEngineEngine

    return EngineBackend(ExampleEngineEngine(config.options), name=config.name, workers=config.options.workers)


@hookimpl
def llm_hub_embedding(config: BackendConfig, context: BuildContext) -> EngineBackend:
    """An embedding backend."""
    from llm_hub.engine import EngineBackend

    from llm_hub_example_engine.embedding import ExampleEngineEmbeddingEngine

    return EngineBackend(ExampleEngineEmbeddingEngine(), name=config.name, workers=config.options.workers)
