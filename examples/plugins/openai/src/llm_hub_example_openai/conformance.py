"""What the conformance suites need to know of the plugin, and the server they run it on.

It is part of the package, so that whoever installs the plugin can check it: `llm-hub check example-openai`.
"""

from __future__ import annotations

from llm_hub.testing import FakeModel, FakeVLLM
from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub.testing.text import TextRequirements
from llm_hub.testing.vision import VisionRequirements


class Text(TextRequirements):
    """FakeVLLM speaks the OpenAI API as vLLM does. Where your server differs, record it: docs/reference/testing.md of llm-hub."""

    plugin = "example-openai"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing

    def server(self) -> FakeVLLM:
        """A new server, which the suite starts, and makes misbehave."""
        return FakeVLLM()


class Embedding(EmbeddingRequirements):
    """What the embedding suite needs to know."""

    plugin = "example-openai"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    truncates = False

    def server(self) -> FakeVLLM:
        """A new server of a model for embeddings."""
        return FakeVLLM(FakeModel(name="all-minilm:22m", capabilities=("embedding",), context=256))


class Vision(VisionRequirements):
    """What the vision suite needs to know."""

    plugin = "example-openai"
    suite_version = "1.0"  # rules that become mandatory later are told, and fail nothing
    images = True
    read = False

    def server(self) -> FakeVLLM:
        """A new server."""
        return FakeVLLM()
