"""The hooks of the plugin, for a server that speaks the OpenAI API: only what differs is said here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_hub import hookimpl
from llm_hub.capabilities import Capability, Feature
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.manifest import PluginManifest
from llm_hub.openai_dialect import OpenAIDialect, server_root

from llm_hub_example_openai.settings import ExampleOpenaiSettings

if TYPE_CHECKING:
    from llm_hub.http_backend import HttpBackend

# What the server can be asked for; anything else is refused before it is sent. Declare what works, and only that: the
# suite checks both directions.
CHAT = frozenset(
    {
        Feature.SYSTEM,
        Feature.TOOLS,
        Feature.TOOL_CHOICE,
        Feature.JSON_OBJECT,
        Feature.JSON_SCHEMA,
        Feature.LOGPROBS,
        Feature.SEED,
        Feature.MULTIPLE_CHOICES,
        Feature.PENALTIES,
        Feature.IMAGES,
    }
)
EMBEDDING = frozenset[Feature]()
DEFAULT_URL = "http://127.0.0.1:8000"


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What the plugin declares. Plain data, no I/O."""
    return PluginManifest(
        api_version="1.0",
        summary="example-openai, over its OpenAI-compatible API.",
        features=CHAT | EMBEDDING,
        settings=ExampleOpenaiSettings,
        default_url=DEFAULT_URL,
    )


@hookimpl
def llm_hub_text(config: BackendConfig, context: BuildContext) -> HttpBackend:
    """A text backend. It connects to nothing before the first call."""
    return _backend(Capability.TEXT, config, context)


@hookimpl
def llm_hub_embedding(config: BackendConfig, context: BuildContext) -> HttpBackend:
    """An embedding backend."""
    return _backend(Capability.EMBEDDING, config, context)


@hookimpl
def llm_hub_vision(config: BackendConfig, context: BuildContext) -> HttpBackend:
    """A vision backend: it describes images; it does not read the text on them."""
    return _backend(Capability.VISION, config, context)


def _backend(capability: Capability, config: BackendConfig, context: BuildContext) -> HttpBackend:
    from llm_hub.http_backend import HttpBackend  # the HTTP client is imported when a backend is built, not before

    options: ExampleOpenaiSettings = config.options
    dialect = OpenAIDialect(
        features=EMBEDDING if capability is Capability.EMBEDDING else CHAT,
        health_path=options.health_path,
        capability=capability,
        # More arguments say what else differs: models_are_loaded, max_tokens_field, reasoning_field, install_model, ...
        # A server that wants more than that gets a subclass of OpenAIDialect.
    )
    return HttpBackend(
        dialect, config=server_root(config), context=context, capability=capability, default_url=DEFAULT_URL
    )
