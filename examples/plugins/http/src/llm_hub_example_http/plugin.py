"""The hooks of the plugin: what it declares, and how a backend is built. Importing this module does nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_hub import hookimpl
from llm_hub.capabilities import Capability, Feature
from llm_hub.config import BackendConfig, BuildContext
from llm_hub.manifest import PluginManifest

from llm_hub_example_http.dialect import ExampleHttpDialect
from llm_hub_example_http.settings import ExampleHttpSettings

if TYPE_CHECKING:
    from llm_hub.http_backend import HttpBackend

FEATURES = frozenset({Feature.SYSTEM})  # declare what works, and only that: the suite checks both directions
DEFAULT_URL = "http://127.0.0.1:9000"


@hookimpl
def llm_hub_manifest() -> PluginManifest:
    """What the plugin declares. Plain data, no I/O."""
    return PluginManifest(
        api_version="1.0",
        summary="example-http, over HTTP.",
        features=FEATURES,
        settings=ExampleHttpSettings,
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


def _backend(capability: Capability, config: BackendConfig, context: BuildContext) -> HttpBackend:
    from llm_hub.http_backend import HttpBackend  # the HTTP client is imported when a backend is built, not before

    dialect = ExampleHttpDialect(config.options, features=FEATURES, capability=capability)
    return HttpBackend(dialect, config=config, context=context, capability=capability, default_url=DEFAULT_URL)
