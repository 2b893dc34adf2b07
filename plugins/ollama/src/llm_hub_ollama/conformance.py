"""What the conformance suites need to know of the plugin, and the server they run it on: `llm-hub check ollama`."""

from __future__ import annotations

from llm_hub.testing import FakeOllama
from llm_hub.testing.embedding import EmbeddingRequirements
from llm_hub.testing.text import TextRequirements
from llm_hub.testing.vision import VisionRequirements

__all__ = ["Embedding", "Text", "Vision"]


class Text(TextRequirements):
    """Ollama, on the fake of it."""

    plugin = "ollama"
    reasoning_model = "hub-test-vlm-think"

    def server(self) -> FakeOllama:
        """A fake Ollama."""
        return FakeOllama()


class Embedding(EmbeddingRequirements):
    """Its embeddings, which any model can be asked to cut."""

    plugin = "ollama"
    model = "all-minilm:22m"
    dimensions = True

    def server(self) -> FakeOllama:
        """A fake Ollama."""
        return FakeOllama()


class Vision(VisionRequirements):
    """Its vision models: they describe, and do not read."""

    plugin = "ollama"
    images = True
    read = False

    def server(self) -> FakeOllama:
        """A fake Ollama."""
        return FakeOllama()
